"""How far predictions are from measurements: statistics over outcomes, without any I/O.

Errors are predicted over measured, less one. Only rows that are `usable_for_accuracy` count for accuracy; all rows with
a measured time count for the ranking of their group, all with a measured peak or an OOM for memory.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, TypedDict

import numpy as np
from numpy.typing import NDArray

from profiles.runs.outcome import Outcome

LEAST_PLANS = 3
"""Different plans of a group from which on their order says something."""


class Errors(TypedDict):
    """Relative errors of some rows."""

    rows: int
    mean_absolute_error: float
    median_absolute_error: float
    bias: float
    """The mean with its sign: below zero predictions are too fast (or too small)."""


class Ranking(TypedDict):
    """Plans of one group, ordered by prediction and by measurement."""

    group: str
    source: str
    plans: int
    spearman: float
    regret_ratio: float
    """Measured time of the plan that is predicted to be the best, over that of the best, less one."""


class Rankings(TypedDict):
    """All groups of enough plans."""

    groups: int
    mean_spearman: float | None
    mean_regret_ratio: float | None
    by_group: list[Ranking]


class OutOfMemory(TypedDict):
    """Plans that did not fit, and plans that did."""

    oom_rows: int
    oom_called: int
    ran_rows: int
    false_alarms: int


class Worst(TypedDict):
    """One row far off."""

    id: str
    error_ratio: float


class Skips(TypedDict):
    """Rows without a price."""

    rows: int
    usable_rows: int
    usable_ratio: float
    """Of all rows that are usable for accuracy."""
    reasons: dict[str, int]


class Summary(TypedDict):
    """A whole validation."""

    rows: int
    priced: int
    accuracy_rows: int
    unmeasured_rows: int
    """Usable rows with a price that did not run out of memory, of which no step time can be derived."""
    skipped: Skips
    step_time: dict[str, Errors]
    """Named lines, "all" first."""
    by_source: dict[str, Errors]
    by_stack: dict[str, Errors]
    by_device: dict[str, Errors]
    by_kind: dict[str, Errors]
    by_precision: dict[str, Errors]
    worst: list[Worst]
    ranking: Rankings
    memory: Errors | None
    out_of_memory: OutOfMemory


class _Line(NamedTuple):
    """One named line of the summary, and which rows it is about."""

    name: str
    holds: Callable[[Outcome], bool]


def _has(*words: str) -> Callable[[Outcome], bool]:
    return lambda outcome: all(word in outcome.record.source.lower() for word in words)


LINES = (
    _Line("all", lambda outcome: True),
    _Line("all sources but vTrain", lambda outcome: not _has("vtrain")(outcome)),
    _Line("vTrain multi-node", _has("vtrain", "multi-node")),
    _Line("vTrain single-node", _has("vtrain", "single-node")),
    _Line("Korthikanti et al., table 5", _has("korthikanti", "table 5")),
    _Line("MoE", lambda outcome: _kind(outcome) == "moe"),
)
"""What is asked of the prices by name; vTrain apart, since its hundreds of rows would drown the others."""


def summarise(outcomes: Sequence[Outcome], worst: int = 10) -> Summary:
    """All statistics of a validation; `worst` is how many rows to name."""
    usable = [o for o in outcomes if o.record.usable_for_accuracy]
    counted = [o for o in usable if o.error_ratio is not None]
    return Summary(
        rows=len(outcomes),
        priced=sum(o.case is not None for o in outcomes),
        accuracy_rows=len(counted),
        unmeasured_rows=sum(o.unmeasured is not None for o in usable),
        skipped=_skips(outcomes, usable),
        step_time=_lines(counted),
        by_source=_by(counted, lambda outcome: outcome.source),
        by_stack=_by(counted, lambda outcome: outcome.case.stack if outcome.case else None),
        by_device=_by(counted, lambda outcome: outcome.case.cluster.device.name if outcome.case else None),
        by_kind=_by(counted, _kind),
        by_precision=_by(counted, lambda outcome: outcome.case.training.precision.value if outcome.case else None),
        worst=_worst(counted, worst),
        ranking=rankings(outcomes),
        memory=errors([o.memory_error_ratio for o in outcomes if o.memory_error_ratio is not None]),
        out_of_memory=out_of_memory(outcomes),
    )


def errors(ratios: Sequence[float]) -> Errors | None:
    """Mean and median of the absolute errors, and the bias; None of no rows."""
    if not ratios:
        return None
    values = np.asarray(ratios, dtype=np.float64)
    return Errors(
        rows=len(ratios),
        mean_absolute_error=float(np.abs(values).mean()),
        median_absolute_error=float(np.median(np.abs(values))),
        bias=float(values.mean()),
    )


def spearman(predicted: Sequence[float], measured: Sequence[float]) -> float:
    """Rank correlation, equal values sharing their mean rank; 0 where either side tells no order at all."""
    first, second = _ranks(predicted), _ranks(measured)
    first, second = first - first.mean(), second - second.mean()
    scale = float(np.sqrt((first @ first) * (second @ second)))
    return float(first @ second) / scale if scale else 0.0


def regret_ratio(predicted: Sequence[float], measured: Sequence[float]) -> float:
    """Measured time lost by taking the predicted best (of equals the first), over the measured best."""
    chosen = min(range(len(predicted)), key=lambda number: predicted[number])
    return measured[chosen] / min(measured) - 1


def rankings(outcomes: Iterable[Outcome]) -> Rankings:
    """Groups with at least three different plans that were priced and ran."""
    groups: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        if outcome.record.group and outcome.error_ratio is not None and not outcome.record.oom:
            groups[outcome.record.group].append(outcome)
    found = [_ranking(group, rows) for group, rows in groups.items() if _num_plans(rows) >= LEAST_PLANS]
    return Rankings(
        groups=len(found),
        mean_spearman=float(np.mean([each["spearman"] for each in found])) if found else None,
        mean_regret_ratio=float(np.mean([each["regret_ratio"] for each in found])) if found else None,
        by_group=found,
    )


def out_of_memory(outcomes: Iterable[Outcome]) -> OutOfMemory:
    """How many OOM rows are predicted not to fit, and how many rows that ran are too."""
    priced = [o for o in outcomes if o.fits is not None]
    ran = [o for o in priced if not o.record.oom and o.measured_step_time_s is not None]
    oom = [o for o in priced if o.record.oom]
    return OutOfMemory(
        oom_rows=len(oom),
        oom_called=sum(not o.fits for o in oom),
        ran_rows=len(ran),
        false_alarms=sum(not o.fits for o in ran),
    )


def _ranking(group: str, rows: Sequence[Outcome]) -> Ranking:
    predicted = [row.predicted_step_time_s or 0.0 for row in rows]
    measured = [row.measured_step_time_s or 0.0 for row in rows]
    return Ranking(
        group=group,
        source=rows[0].source,
        plans=_num_plans(rows),
        spearman=spearman(predicted, measured),
        regret_ratio=regret_ratio(predicted, measured),
    )


def _num_plans(rows: Iterable[Outcome]) -> int:
    return len({row.case.plan.id for row in rows if row.case is not None})


def _ranks(values: Sequence[float]) -> NDArray[np.float64]:
    """Ranks from 0 on; equal values share their mean."""
    _, inverse, counts = np.unique(np.asarray(values, dtype=np.float64), return_inverse=True, return_counts=True)
    first = np.cumsum(counts) - counts
    mean_ranks: NDArray[np.float64] = first + (counts - 1) / 2
    return mean_ranks[inverse]


def _kind(outcome: Outcome) -> str | None:
    return None if outcome.case is None else "moe" if outcome.case.model.moe_layers else "dense"


def _lines(outcomes: Sequence[Outcome]) -> dict[str, Errors]:
    return _present({line.name: [o for o in outcomes if line.holds(o)] for line in LINES})


def _by(outcomes: Iterable[Outcome], key: Callable[[Outcome], str | None]) -> dict[str, Errors]:
    """Errors by key in alphabetical order."""
    rows: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        rows[key(outcome) or "unknown"].append(outcome)
    return _present({name: rows[name] for name in sorted(rows)})


def _present(rows: Mapping[str, Sequence[Outcome]]) -> dict[str, Errors]:
    found = {name: errors([o.error_ratio for o in each if o.error_ratio is not None]) for name, each in rows.items()}
    return {name: each for name, each in found.items() if each is not None}


def _worst(outcomes: Iterable[Outcome], count: int) -> list[Worst]:
    """The rows farthest off, measured so that twice and half are equally far."""
    rows = [(o.record.id, o.error_ratio) for o in outcomes if o.error_ratio is not None]
    rows.sort(key=lambda row: (-abs(float(np.log1p(row[1]))), row[0]))
    return [Worst(id=name, error_ratio=ratio) for name, ratio in rows[:count]]


def _skips(outcomes: Iterable[Outcome], usable: Sequence[Outcome]) -> Skips:
    reasons = Counter(o.skipped for o in outcomes if o.skipped is not None)
    skipped_usable = sum(o.skipped is not None for o in usable)
    return Skips(
        rows=reasons.total(),
        usable_rows=skipped_usable,
        usable_ratio=skipped_usable / len(usable) if usable else 0.0,
        reasons=dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0]))),
    )
