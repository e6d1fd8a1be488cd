"""How long what is decided holds training up besides any transfer: assumed, until the run has measured it.

A window may say how long what was carried out before it held training up. Less the transfer that was predicted, it is a
sample: of the standstill around a move where experts were copied, else of what a new split of tokens takes, or new
shadow experts. The samples of a run are smoothed. What the transfer itself takes longer than predicted counts as
standstill too.
"""

from __future__ import annotations

from typing import NamedTuple

from planner.cost.migration import PAUSE_S
from planner.online.state import Debit, RunState
from planner.spec.window import Window

NEWEST = 0.5
"""Weight of the newest sample beside those before. A choice: half of a surprise is believed at once."""


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
    return ASSUMED if state.standstill_s is None else Standstill(state.standstill_s, measured=True)


def split_pause_of(state: RunState) -> Standstill:
    """What the next decision of this run that copies no expert is expected to take."""
    known_s = state.split_pause_s
    return ASSUMED_OF_SPLITS if known_s is None else Standstill(known_s, measured=True)


def with_measured(before: RunState, after: RunState, window: Window) -> RunState:
    """The state `after` a window was taken in, with the pause that it reports, if it is that of a move we decided.

    `before`: the state before `planner.online.intake.in_force` settled which of the decided moves was carried out.
    """
    made = _carried_out(before, after)
    if window.pause_s is None or made is None or made.transfer_s is None:
        return after
    sample_s = max(0.0, window.pause_s - made.transfer_s)
    field = "standstill_s" if made.transfer_s > 0.0 else "split_pause_s"
    known_s = getattr(after, field)
    return after.model_copy(update={field: sample_s if known_s is None else known_s + NEWEST * (sample_s - known_s)})


def _carried_out(before: RunState, after: RunState) -> Debit | None:
    """The decision that is in force now: the last, or one that was carried out late."""
    late = before.refunded
    if before.unconfirmed is not None and (before.plan_id, before.placement) == (after.plan_id, after.placement):
        return before.unconfirmed
    if late is not None and (late.plan_id, late.placement) == (after.plan_id, after.placement):
        return late.debit
    return None
