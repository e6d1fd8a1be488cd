"""A replay for people: what was replayed, a row for each policy, and what that says in a few sentences."""

from __future__ import annotations

from planner.online import Trace
from planner.online.recorded.accounts import Outcome
from planner.online.recorded.replay import Replay
from planner.spec.run import RunContext
from planner.view import Column, Table
from planner.view.quantities import percent, seconds

_COLUMNS = (
    Column("policy"),
    Column("imbalance", True),
    Column("split per step", True),
    Column("moved experts", True),
    Column("decisions", True),
    Column("pauses", True),
    Column("mean step", True),
    Column("total", True),
    Column("/ static", True),
    Column("/ hindsight", True),
)
_UNKNOWN = "–"
_SPLITS = {"even": "evenly", "window": "by window", "step": "anew in every step"}
_YARDSTICKS = ("static", "best-static", "hindsight")
_RIVALS = ("smartmoe", "eplb")
_NOTHING = 5e-4
"""What would be told as 0.0 %."""
_UNEVEN = 1.1
"""Imbalance from which on a reader is told that no placement removes it."""


def replay_title(trace: Trace, context: RunContext, samples_per_window: int, delay: float) -> str:
    """Three lines: the trace, the job that it is replayed as, and what that does with replicas and how late it acts."""
    samples, layers, experts = trace.tokens.shape
    training = context.training
    of_window = "" if samples_per_window == 1 else f", {samples_per_window} of them per window"
    return (
        f"{_counted(samples, 'sample')} of {_counted(int(trace.lengths.sum()), 'step')}{of_window}: "
        f"{_counted(layers, 'MoE layer')} x {_counted(experts, 'expert')}\n"
        f"{context.model.name} on {_counted(context.cluster.num_devices, 'device')}: {context.plans[0].summary}, "
        f"batches of {training.global_batch_size:,} x {training.sequence_length:,} tokens\n{_slots(context)}; "
        f"decisions are carried out after {delay:g} of the next window"
    )


def _slots(context: RunContext) -> str:
    kinds = (("extra", context.extra_slots_per_rank), ("shadow", context.shadow_slots_per_rank))
    slots = [_counted(number, f"{kind} slot") for kind, number in kinds if number]
    if not slots:
        return "no replicas"
    return f"{' and '.join(slots)} per rank, tokens of replicas split {_SPLITS[context.token_split.value]}"


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def replay_table(outcomes: dict[str, Outcome]) -> Table:
    """One row per policy."""
    return Table("Replay", _COLUMNS, tuple(_row(name, outcome) for name, outcome in outcomes.items()))


def replay_summary(found: Replay) -> list[str]:
    """What the table says: how far ours is from the yardsticks, what rivals pay for their balance, what none can do."""
    outcomes = found["policies"]
    lines = []
    ours = outcomes.get("trimtab")
    if ours is not None:
        compared = [f"{_against(ours, outcomes[name])} {name}" for name in _YARDSTICKS if name in outcomes]
        if compared:
            lines.append(f"trimtab: {_listed(compared)}.")
        lines += [_rival(name, outcomes[name], ours) for name in _RIVALS if name in outcomes]
    bound = found["imbalance_bound_mean"]
    advice = "; more of --slots-extra lowers that" if bound > _UNEVEN else ""
    return [*lines, f"No placement in these slots has a mean imbalance below {bound:.3f}{advice}."]


def _row(name: str, outcome: Outcome) -> tuple[str, ...]:
    return (
        name,
        f"{outcome['imbalance_mean']:.3f}",
        f"{outcome['imbalance_mean_step_split']:.3f}",
        f"{outcome['moved_experts']:,}",
        f"{outcome['decisions']:,}",
        seconds(outcome["pause_s"]),
        seconds(outcome["step_time_s_mean"]),
        seconds(outcome["total_time_s"]),
        _ratio(outcome["static_ratio"]),
        _ratio(outcome["hindsight_ratio"]),
    )


def _ratio(ratio: float | None) -> str:
    return _UNKNOWN if ratio is None else f"{ratio:.3f}"


def _against(one: Outcome, other: Outcome) -> str:
    """`12.3 % less time than`."""
    change = one["total_time_s"] / other["total_time_s"] - 1
    if abs(change) < _NOTHING:
        return "as much time as"
    return f"{percent(abs(change))} {'less' if change < 0 else 'more'} time than"


def _rival(name: str, other: Outcome, ours: Outcome) -> str:
    moved, mine = other["moved_experts"], ours["moved_experts"]
    often = f"{moved / mine:.1f} times as many experts as trimtab" if mine else f"{moved:,} experts, trimtab none"
    return f"{name} moves {often}, and takes {_against(other, ours)} trimtab."


def _listed(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
