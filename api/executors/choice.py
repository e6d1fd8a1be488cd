"""Which executor an operator has chosen."""

from __future__ import annotations

from importlib.util import find_spec

from api.executors.local import LocalExecutor
from api.executors.port import Executor, SearchFunction
from api.settings import LOCAL, Settings, local_places
from planner.spec.errors import InputError


def check_executor(settings: Settings) -> None:
    """Raises InputError where what the chosen executor needs is not installed."""
    if settings.executor != LOCAL and find_spec("distributed") is None:
        raise InputError.at("executor", "needs Dask, which is not installed: pip install 'trimtab[dask]'")


def executor_of(settings: Settings, search: SearchFunction) -> Executor:
    """The executor of these settings; raises InputError where it is not installed."""
    if settings.executor == LOCAL:
        return LocalExecutor(search, local_places(settings), settings.search_memory_bytes, settings.log_format)
    check_executor(settings)
    # Here, not above: it takes long to load, and nobody else needs it.
    from api.executors.dask import DaskExecutor  # noqa: PLC0415

    return DaskExecutor(search, settings.executor, settings.workers)
