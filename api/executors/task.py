"""What happens on a worker of a Dask cluster: one search in the worker's thread, with its news as events.

A thread cannot be killed. The search asks its report function some times a second, and that asks the worker whether
anybody still wants the search: not so once it was cancelled, or its service or the scheduler is gone.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version

from distributed import Status, Worker, get_worker

from api.executors.attempt import attempt, throttled
from api.executors.port import STARTING, Failed, Report, SearchFunction, Succeeded
from api.problems import problem_of
from api.values import SearchJob
from planner.spec.errors import CancelledError, UnavailableError

GOING_ON = (Status.init, Status.running, Status.paused, Status.closing_gracefully)


def run_search(key: str, topic: str, wanted_version: str, search: SearchFunction, job: str) -> Succeeded | Failed:
    """Do the search `job` (a SearchJob as JSON) as the task `key`; news go to `topic`."""
    worker = get_worker()
    here = version("trimtab")
    if here != wanted_version:
        return Failed(
            problem_of(
                UnavailableError(
                    f"the Dask worker {worker.address} has Trimtab {here}, this service {wanted_version}: "
                    "both need the same"
                )
            )
        )

    def tell(progress: float, message: str) -> None:
        worker.log_event(topic, {"key": key, "worker": worker.address, "progress": progress, "message": message})

    tell(0.0, STARTING)
    return attempt(search, SearchJob.model_validate_json(job), _while_wanted(worker, key, throttled(tell)))


def _while_wanted(worker: Worker, key: str, report: Report) -> Report:
    """The report function, which stops the search that nobody wants any more."""
    wanted = _wanted(worker, key)

    def asking(progress: float, message: str) -> None:
        if not wanted():
            raise CancelledError
        report(progress, message)

    return asking


def _wanted(worker: Worker, key: str) -> Callable[[], bool]:
    def wanted() -> bool:
        task = worker.state.tasks.get(key)
        return task is not None and task.state == "executing" and worker.status in GOING_ON

    return wanted
