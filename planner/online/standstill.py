"""How long what is decided holds training up besides any transfer: assumed, until the run has measured it.

A window may say how long what was carried out before it held training up. Less the transfer that was predicted, it is a
sample: of the standstill around a move where experts were copied, else of what a new split of tokens takes, or new
shadow experts. What the transfer itself takes longer than predicted counts as standstill too.

Of each kind the estimate is the lower median of what is assumed and the last samples. So one odd pause (a debugger, an
initialisation that waited for the first move) changes nothing, two that agree are believed, and a dear estimate takes
as many dear samples as cheap ones, what is assumed among these. One that is below what is assumed is believed at once:
if it is wrong, the moves that it allows are measured.

A dear estimate stops the moves that could correct it. So a sample counts for the next `LIFE_WINDOWS` windows only and
is then forgotten: the estimate goes back to what is assumed, and if that is wrong, two moves show it again.
"""

from __future__ import annotations

from statistics import median_low
from typing import NamedTuple

from planner.cost.migration import PAUSE_S
from planner.online.state import Debit, Pause, RunState
from planner.spec.window import Window

SAMPLES = 6
"""Samples that count, beside what is assumed. A choice: with it seven, of which three may be odd."""

LIFE_WINDOWS = 200
"""Windows for which a sample counts. A choice: long beside what a move pays back in, short beside a job."""


class Standstill(NamedTuple):
    """Seconds besides the transfer, and where they are from."""

    seconds: float
    measured: bool


SPLIT_PAUSE_S = 0.007
"""Assumed until a run has measured it: what a decision that copies no expert holds all ranks up, its way to them and
the new tables. Measured: 4 to 10 ms of `agent.step()` with two ranks on CPU (docs/log.md, 2026-11-21)."""

ASSUMED = Standstill(PAUSE_S, measured=False)
ASSUMED_OF_SPLITS = Standstill(SPLIT_PAUSE_S, measured=False)


def standstill_of(state: RunState) -> Standstill:
    """What the next move of this run is expected to take besides its transfer."""
    return _estimate(ASSUMED, state.standstills)


def split_pause_of(state: RunState) -> Standstill:
    """What the next decision of this run that copies no expert is expected to take."""
    return _estimate(ASSUMED_OF_SPLITS, state.split_pauses)


def _estimate(assumed: Standstill, samples: tuple[Pause, ...]) -> Standstill:
    measured = [sample.pause_s for sample in samples]
    seconds = median_low([assumed.seconds, *measured])
    return Standstill(seconds, measured=seconds in measured)


def with_measured(before: RunState, after: RunState, window: Window) -> RunState:
    """The state `after` a window was taken in, with the pause that it reports, if it is that of a move we decided.

    `before`: the state before `planner.online.intake.in_force` settled which of the decided moves was carried out.
    Samples that are too old are forgotten, whatever the window says.
    """
    kept = {"standstills": _young(after.standstills, window), "split_pauses": _young(after.split_pauses, window)}
    made = _carried_out(before, after)
    if window.pause_s is not None and made is not None and made.transfer_s is not None:
        kind = "standstills" if made.transfer_s > 0.0 else "split_pauses"
        sample = Pause(window=window.index, pause_s=max(0.0, window.pause_s - made.transfer_s))
        kept[kind] = (*kept[kind], sample)[-SAMPLES:]
    return after.model_copy(update={name: samples for name, samples in kept.items() if samples != getattr(after, name)})


def _young(samples: tuple[Pause, ...], window: Window) -> tuple[Pause, ...]:
    return tuple(sample for sample in samples if window.index <= sample.window + LIFE_WINDOWS)


def _carried_out(before: RunState, after: RunState) -> Debit | None:
    """The decision that is in force now: the last, or one that was carried out late."""
    late = before.refunded
    if before.unconfirmed is not None and (before.plan_id, before.placement) == (after.plan_id, after.placement):
        return before.unconfirmed
    if late is not None and (late.plan_id, late.placement) == (after.plan_id, after.placement):
        return late.debit
    return None
