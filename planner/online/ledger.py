"""The account that moves are paid from: what fills it, what is taken out, what is given back.

The bound that it keeps is stated and proved in docs/online.md, for every CREDIT and every TRUST in (0, 1].

**Account.** A window adds CREDIT times the seconds that its steps lost: for each, what it took less what it would have
taken with the candidate of the greatest net value, both priced for the load that came. Steps that still ran under
something earlier count what the placement in force now would have lost in them, and no more than they did lose. A
window of few tokens beside those before counts by its part of them. What a step gains pays no debt.

**Debit.** A decision takes its cost out when it is made. Let g be the seconds that a candidate saves in each step under
the forecast, H the steps for which that is expected to last, C the pause that it costs. The best one is taken that

* has a net value g H - C > 0, with TRUST C in the account for moving experts, C for another plan, which stops the job:
  the forecast says that it pays, and a good part of its cost was lost already; or
* still gains, with C / TRUST in the account: the loss has gone on whatever the forecast said.

This is renting or buying with a prediction (Purohit, Svitkina and Kumar, NeurIPS 2018): TRUST near 0 believes the
forecast, 1 ignores it.

**Refund.** A decision that the next window contradicts was not made: its cost goes back. Where a later window says that
it was carried out after all, it is taken again.

**Others.** A job may be told by two policies, the service's and the agent's own, each with an account. What a window
reports that was not decided here is charged too, as if it had been: so both accounts know of every move.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from planner.online.candidates import Candidate
from planner.online.state import Debit, Refund, RunState, Stood
from planner.spec.decision import Action
from planner.spec.window import Window

CREDIT = 0.4
"""Part of the time lost to imbalance that moves may take. A choice: less lowers the bound, and lets moves wait."""

TRUST = 0.5
"""Part of a move's cost that must have been lost before a forecast is acted on; its inverse, where it is not asked.
A choice, not a fit."""


class Earlier(NamedTuple):
    """Steps of a window under what stood earlier."""

    stood: Stood
    steps: int
    seen_s: float
    """What each takes under the load of the window."""


def with_loss(
    state: RunState, candidates: Sequence[Candidate], window: Window, earlier: Sequence[Earlier] = ()
) -> RunState:
    """The account after a window whose `candidates` gain, the best first.

    No more is added to what was saved before than the dearest of them needs.
    """
    best = candidates[0]
    lost_s = window.settled_steps * best.missed_s
    lost_s += sum(each.steps * min(best.missed_s, each.seen_s - best.seen_s) for each in earlier)
    account_s = max(min(state.account_s, 0.0), state.account_s + CREDIT * _counts(state) * lost_s)
    most_s = max(candidate.cost_s for candidate in candidates) / TRUST
    return state.model_copy(update={"account_s": min(account_s, max(most_s, state.account_s))})


def _counts(state: RunState) -> float:
    return 1.0 if state.forecast is None else state.forecast.counted


def earlier_steps(window: Window, state: RunState, seen_s: Callable[[Stood], float]) -> tuple[Earlier, ...]:
    """What stood earlier in the window, the latest first; `seen_s` prices a step under the load of the window."""
    found = []
    stop = window.first_step + window.num_steps - window.settled_steps
    for stood in reversed(state.earlier):
        start = min(max(stood.first_step, window.first_step), stop)
        if start < stop:
            found.append(Earlier(stood, stop - start, seen_s(stood)))
        stop = start
    return tuple(found)


def without_what_ended(state: RunState, end_step: int) -> RunState:
    """Without what no step from `end_step` on can run under."""
    stops = [*(stood.first_step for stood in state.earlier[1:]), state.since_step]
    kept = tuple(stood for stood, stop in zip(state.earlier, stops, strict=False) if stop > end_step)
    return state if len(kept) == len(state.earlier) else state.model_copy(update={"earlier": kept})


def affordable(candidates: Sequence[Candidate], account_s: float) -> Candidate | None:
    """The first that may be taken now."""
    for candidate in candidates:
        if candidate.cost_s == 0.0:
            return candidate
        expected_to_pay = candidate.net_s > 0 and account_s >= advance_s(candidate)
        if expected_to_pay or account_s >= candidate.cost_s / TRUST:
            return candidate
    return None


def advance_s(candidate: Candidate) -> float:
    """What must have been lost before the forecast is believed; only moves within the plan get credit."""
    return TRUST * candidate.cost_s if candidate.action is Action.REBALANCE else candidate.cost_s


def debited(state: RunState, chosen: Candidate, cost_s: float, end_step: int) -> RunState:
    """The state as if the candidate were carried out from `end_step` on; its cost leaves the account at once."""
    stirs = chosen.num_moves > 0 or chosen.action is Action.SWITCH_PLAN
    return state.model_copy(
        update={
            "plan_id": chosen.plan.id,
            "placement": chosen.placement,
            "placed_step": end_step if stirs else state.placed_step,
            "since_step": end_step,
            "earlier": (*state.earlier, state.standing),
            "account_s": state.account_s - cost_s,
            "unconfirmed": Debit(cost_s=cost_s, placed_step_before=state.placed_step, transfer_s=chosen.transfer_s),
        }
    )


def foreign_move(before: RunState, after: RunState) -> tuple[Stood, Stood] | None:
    """From what to what experts moved, within a plan, without being decided here; None: they did not.

    `after`: the state `before` once `planner.online.intake.in_force` has settled what a window reports.
    """
    if before.last_window is None or (before.plan_id, before.placement) == (after.plan_id, after.placement):
        return None
    late, stood = before.refunded, before.standing
    if before.unconfirmed is not None and before.earlier:
        stood = before.earlier[-1]
    if late is not None and (late.plan_id, late.placement) == (after.plan_id, after.placement):
        return None
    same = stood.plan_id != after.plan_id or stood.placement == after.placement
    return None if same or None in (stood.placement, after.placement) else (stood, after.standing)


def charged(state: RunState, cost_s: float) -> RunState:
    """With a move that was not decided here: it is paid like an own one, however deep the debt."""
    return state.model_copy(update={"account_s": state.account_s - cost_s})


def confirmed(state: RunState) -> RunState:
    """The last decision, if there was one, is in force."""
    return state if state.unconfirmed is None else state.model_copy(update={"unconfirmed": None, "refunded": None})


def refund(state: RunState, made: Refund) -> RunState:
    """The last decision was not carried out."""
    declined = state.declined
    if made.plan_id not in (state.plan_id, *declined):
        declined = (*declined, made.plan_id)
    return state.model_copy(
        update={
            "declined": declined,
            "account_s": state.account_s + made.debit.cost_s,
            "placed_step": made.debit.placed_step_before,
            "unconfirmed": None,
            "refunded": made,
        }
    )


def debit_late(state: RunState, made: Refund, first_step: int) -> RunState:
    """What was refunded is in force from `first_step` on."""
    return state.model_copy(
        update={
            "account_s": state.account_s - made.debit.cost_s,
            "placed_step": first_step,
            "refunded": None if state.refunded == made else state.refunded,
        }
    )
