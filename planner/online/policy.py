"""From a window and what came before to a decision. Pure: no clock, no chance, no network.

What could be done is for `planner.online.candidates`, what it may cost for `planner.online.ledger`; docs/online.md
says what they guarantee together, with the proof. One thing stands outside the ledger: what is in force may not fit in
memory under the forecast. Then the candidate of the greatest net value among those that fit is taken at once and not
debited, for it does not buy time.
"""

from __future__ import annotations

import numpy as np

from planner.cost import Seats, estimate
from planner.cost.balance import Floats, hottest_rank_bound
from planner.online import reasons
from planner.online.calibration import calibration_of, with_step_time
from planner.online.candidates import Candidate, Outlook, Terms, rebalances, switches
from planner.online.forecast import begin_forecast, update_forecast, window_shares
from planner.online.intake import check_tokens, in_force
from planner.online.ledger import (
    Earlier,
    advance_s,
    affordable,
    charged,
    debited,
    earlier_steps,
    foreign_move,
    with_loss,
    without_what_ended,
)
from planner.online.placement.copies import copies_between
from planner.online.pricing import Price, Pricing, seats_of, served, unevenness
from planner.online.standstill import split_pause_of, standstill_of, with_measured
from planner.online.state import RunState, plan_of
from planner.spec.decision import Action, Decision
from planner.spec.run import RunContext
from planner.spec.window import Window


def decide(window: Window, state: RunState, context: RunContext, price: Price = estimate) -> tuple[Decision, RunState]:
    """Answer a window, and what to remember of it.

    Plan and placement of the window, where given, say what is in force. A window that is not newer than the last one
    changes nothing, whatever it says. Raises InputError at `tokens`, `plan_id` or `placement` if the window does not
    fit the run.
    """
    return decide_at(Pricing(context, price), window, state)


def decide_at(pricing: Pricing, window: Window, state: RunState) -> tuple[Decision, RunState]:
    """`decide`, with prices that are worked out once for many windows of the run."""
    context = pricing.context
    check_tokens(window, context)
    if state.last_window is not None and window.index <= state.last_window:
        reason = reasons.late(window.index, state.last_window)
        standing = _Standing(pricing, state, served(window_shares(window), context.training))
        return _keep(window, standing, 0.0, reason), state
    forecast = begin_forecast(window) if state.forecast is None else update_forecast(state.forecast, window)
    taken_in = _charged(state, with_measured(state, in_force(window, state, context), window), pricing)
    plan = plan_of(context, taken_in.plan_id, "plan_id")
    seats = None if taken_in.placement is None else seats_of(taken_in.placement)
    calibration = calibration_of(state)
    outlook = Outlook(pricing, plan, seats, forecast, window_shares(window), calibration.ratio)
    earlier = earlier_steps(window, taken_in, outlook.seen_s)
    counted = with_step_time(_counted(taken_in, outlook, window), window, _priced_s(window, outlook, earlier))
    return _decided(window, outlook, counted, earlier, reasons.clock(calibration))


def _charged(before: RunState, after: RunState, pricing: Pricing) -> RunState:
    """The state `after` intake, with what experts took that moved without being decided here."""
    moved = foreign_move(before, after)
    if moved is None:
        return after
    stood, now = (seats_of(each.placement) for each in moved if each.placement is not None)
    plan, shadows = plan_of(pricing.context, after.plan_id, "plan_id"), now.shadow_slots_per_rank
    if stood.layers.shape != now.layers.shape:
        return after
    copied = copies_between(stood.layers, now.layers, now.num_ranks, shadows).copied
    transfer_s = pricing.migration_s(plan, copied, 0.0)
    standstill = standstill_of(after) if transfer_s > 0.0 else split_pause_of(after)
    return charged(after, transfer_s + standstill.seconds)


def _priced_s(window: Window, outlook: Outlook, earlier: tuple[Earlier, ...]) -> float | None:
    """Price of the steps that a window's measured time is of: the last of them, timed since anything was changed."""
    if window.settled_steps:
        return outlook.now.seen_s
    return earlier[0].seen_s / outlook.ratio if earlier else None


def _decided(
    window: Window, outlook: Outlook, state: RunState, earlier: tuple[Earlier, ...], clock: str
) -> tuple[Decision, RunState]:
    """The decision of a window that was counted; `clock` goes with every reason that names a gain."""
    standing = _Standing(outlook.pricing, state, outlook.loads, outlook.seats)
    found, now = _candidates(outlook, state, window), outlook.now.expected
    remedy = None if now.fits else next((candidate for candidate in found if candidate.fits), None)
    if remedy is not None:
        return _act(window, standing, remedy, 0.0, reasons.remedy(remedy) + clock)
    lack = "" if now.fits else reasons.NOTHING_FITS
    candidates = [candidate for candidate in found if candidate.gain_s > 0]
    if not candidates:
        return _keep(window, standing, outlook.forecast.horizon_steps, _nothing(state) + lack), state
    standing = standing.with_state(with_loss(state, candidates, window, earlier))
    account_s = standing.state.account_s
    chosen = affordable(candidates, account_s)
    if chosen is None:
        reason = reasons.not_yet(candidates[0], account_s, advance_s(candidates[0])) + lack + clock
        return _keep(window, standing, candidates[0].life_steps, reason, candidates[0]), standing.state
    return _act(window, standing, chosen, chosen.cost_s, reasons.act(chosen, account_s) + lack + clock)


class _Standing:
    """A state with its placement as arrays, and the served loads [layers, experts] that a decision reports on."""

    def __init__(self, pricing: Pricing, state: RunState, loads: Floats, seats: Seats | None = None) -> None:
        self.pricing = pricing
        self.state = state
        self.loads = loads
        self.seats = seats_of(state.placement) if seats is None and state.placement is not None else seats

    def with_state(self, state: RunState) -> _Standing:
        """The same placement in another state."""
        return _Standing(self.pricing, state, self.loads, self.seats)

    def imbalance(self, seats: Seats | None) -> float:
        """Mean over layers of max over mean load of the ranks."""
        return 1.0 if seats is None else float(unevenness(self.pricing.rank_loads(self.loads, seats)).mean())

    def bounds(self, seats: Seats | None) -> tuple[float, ...]:
        """By layer: what no placement in as many slots can be below."""
        if seats is None:
            return ()
        bound = hottest_rank_bound(self.loads, seats.num_ranks, seats.layers.shape[1] // seats.num_ranks)
        return tuple(np.maximum(bound * seats.num_ranks / self.loads.sum(axis=1), 1.0).tolist())


def _counted(state: RunState, outlook: Outlook, window: Window) -> RunState:
    """The state with what the window adds to it, before anything is decided."""
    pricing = outlook.pricing
    balanced = state.balanced_step_time_s or {plan.id: pricing.balanced_s(plan) for plan in pricing.context.plans}
    counted = state.model_copy(
        update={
            "balanced_step_time_s": balanced,
            "forecast": outlook.forecast,
            "last_window": window.index,
            "placed_step": window.first_step if state.placed_step is None else state.placed_step,
        }
    )
    return without_what_ended(counted, window.first_step + window.num_steps)


def _candidates(outlook: Outlook, state: RunState, window: Window) -> list[Candidate]:
    """What could be done instead of what is in force under the forecast, the greatest net value first.

    Last come switches to plans that the job was advised before, and has not gone over to.
    """
    found = list(switches(outlook, state.balanced_step_time_s))
    if outlook.seats is not None and outlook.seats.num_ranks > 1:
        horizon_steps = outlook.forecast.horizon_steps
        placed = window.first_step if state.placed_step is None else state.placed_step
        moves = Terms(min(horizon_steps, _age(window, placed)), standstill_of(state))
        splits = Terms(min(horizon_steps, _age(window, state.since_step)), split_pause_of(state))
        found += rebalances(outlook, outlook.seats, moves, splits)
    return sorted(found, key=lambda candidate: (candidate.plan.id in state.declined, -candidate.net_s))


def _age(window: Window, since_step: int) -> float:
    """Steps from then to the window's end; at least the window's own, if the job was set back."""
    return float(max(window.first_step + window.num_steps - since_step, window.num_steps))


def _act(
    window: Window, standing: _Standing, chosen: Candidate, debit_s: float, reason: str
) -> tuple[Decision, RunState]:
    """The decision to take a candidate, and the state as if it were carried out; `debit_s` leaves the account."""
    bounds = standing.bounds(chosen.seats)
    decision = Decision(
        window=window.index,
        action=chosen.action,
        plan_id=chosen.plan.id,
        placement=chosen.placement,
        moves=chosen.moves,
        gain_s_per_step=max(0.0, chosen.gain_s),
        cost_s=chosen.cost_s,
        payback_steps=chosen.cost_s / chosen.gain_s if chosen.gain_s > 0 else None,
        horizon_steps=chosen.life_steps,
        imbalance_before=standing.imbalance(standing.seats),
        imbalance_after=standing.imbalance(chosen.seats),
        imbalance_bound=_mean(bounds),
        imbalance_bounds=bounds,
        reason=reason,
    )
    return decision, debited(standing.state, chosen, debit_s, window.first_step + window.num_steps)


def _keep(
    window: Window, standing: _Standing, horizon_steps: float, reason: str, best: Candidate | None = None
) -> Decision:
    """Keep, with the ledger of the best candidate that was turned down."""
    before, bounds = standing.imbalance(standing.seats), standing.bounds(standing.seats)
    return Decision(
        window=window.index,
        action=Action.KEEP,
        plan_id=standing.state.plan_id,
        gain_s_per_step=best.gain_s if best else 0.0,
        cost_s=best.cost_s if best else 0.0,
        payback_steps=best.cost_s / best.gain_s if best else None,
        horizon_steps=horizon_steps,
        imbalance_before=before,
        imbalance_after=before,
        imbalance_bound=_mean(bounds),
        imbalance_bounds=bounds,
        reason=reason,
    )


def _nothing(state: RunState) -> str:
    if state.placement is None:
        return reasons.UNEQUAL_RANKS
    return reasons.ONE_RANK if state.placement.num_ranks == 1 else reasons.NOTHING_FASTER


def _mean(bounds: tuple[float, ...]) -> float:
    return sum(bounds) / len(bounds) if bounds else 1.0
