"""Restricted spaces with names, and how much faster the best plan of the whole space is than theirs.

The first six are what Galvatron compares itself with (arXiv 2211.13878): the single strategies, and the two dimensions
that earlier planners search. `3d-uniform` is what experts set by hand. The last three are what one framework can run.
A baseline takes from the user's options what is its own, and never more: so none is faster than a plan that is proven
the best.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from planner.cost.targets import FRAMEWORKS
from planner.search.restricted import restricted
from planner.spec.errors import InputError, NoPlanFitsError
from planner.spec.request import Options
from planner.spec.shortlist import BaselineResult, Shortlist, ShortlistEntry
from planner.spec.strategy import Sharding
from planner.spec.workload import BALANCED, Scenario

Report = Callable[[float, str], None]
Search = Callable[[Options, Report], Shortlist]
"""The search of one question under some options, with its progress."""

_PLAIN = (Sharding.NONE,)
BASELINES: Mapping[str, Mapping[str, object]] = MappingProxyType(
    {
        "dp": {"axes": ("dp",), "sharding": _PLAIN},
        "sdp": {"axes": ("sdp",), "sharding": (Sharding.FULL,)},
        "tp": {"axes": ("tp", "sp"), "sharding": _PLAIN},
        "pp": {"axes": ("pp",), "sharding": _PLAIN},
        "dp+tp": {"axes": ("dp", "tp", "sp"), "sharding": _PLAIN},
        "dp+pp": {"axes": ("dp", "pp"), "sharding": _PLAIN},
        # With expert parallelism and ZeRO-1, where the model and the cluster have use for them, as is the custom.
        "3d-uniform": {
            "axes": ("dp", "tp", "pp", "ep", "sp"),
            "sharding": (Sharding.NONE, Sharding.OPTIMIZER),
            "uniform": True,
        },
        **{target.value: {"target": target} for target in FRAMEWORKS},
    }
)
"""By name: the options that hold a space down; each as the user has them where it is not named."""


def compare_baselines(
    search: Search, options: Options, best: ShortlistEntry, report: Report
) -> tuple[BaselineResult, ...]:
    """The best plan of each restricted space beside `best`, which is that of the whole space, for balanced load.

    `report` gets progress from 0 to 1; what it raises stops the comparison.
    """
    results = []
    for number, (name, limits) in enumerate(BASELINES.items()):
        results.append(_compare(search, name, limits, options, best, within(report, number, len(BASELINES), name)))
    report(1.0, "all baselines are searched")
    return tuple(results)


def within(report: Report, number: int, total: int, name: str) -> Report:
    """Progress of one search among `total`, of which `number` are done."""
    return lambda share, message: report((number + share) / total, f"{name}, {message}")


def _compare(
    search: Search, name: str, limits: Mapping[str, object], options: Options, best: ShortlistEntry, report: Report
) -> BaselineResult:
    balanced = options.model_copy(
        update={"shortlist_size": 1, "scenarios": (Scenario(workload=BALANCED, probability=1.0),)}
    )
    try:
        found = search(restricted(balanced, limits), report)
    except NoPlanFitsError as error:
        return BaselineResult(name=name, nearest_miss=error.nearest_miss)
    except InputError as error:
        return BaselineResult(name=name, impossible=str(error))
    entry = found.plans[0]
    return BaselineResult(
        name=name,
        plan=entry.plan,
        step_time_s=entry.estimate.step_time_s,
        speedup_ratio=best.estimate.tokens_per_s / entry.estimate.tokens_per_s,
        status=found.certificate.status,
    )
