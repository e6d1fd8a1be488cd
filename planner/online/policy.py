"""From a window and what came before to a decision. Pure: no clock, no chance, no network.

The ledger. Let g be the seconds that a candidate saves in each step under the forecast, H the steps for which the gain
is expected to last, C the pause that the candidate costs. Its net value is g H - C. H is the horizon of the forecast;
for moves within the plan no more than the age of the placement in force, because the next one will be outdated as this
one was. The account A holds a part, CREDIT, of the seconds lost so far: for each window, those of its steps that ran
under what it reports x (step under that - step under the candidate of the greatest net value), both priced for the load
that really came; steps before the window's last change are not counted. The best candidate is taken that

* has a positive net value and A >= TRUST C (moving experts) or A >= C (switching plans, which stops the job): the
  forecast says that it pays, and a good part of its cost was lost already; or
* still gains and A >= C / TRUST: the loss has gone on whatever the forecast said.

It takes C out of the account. This is renting or buying with a prediction (Purohit, Svitkina and Kumar, NeurIPS
2018): TRUST near 0 believes the forecast, 1 ignores it. A split of tokens that is decided anew moves nothing and costs
nothing; it is taken whenever it gains.

What it guarantees, over any load history: the account holds only losses that were really suffered, and is never
overdrawn by more than (1 - TRUST) of one move of experts. With S the time of all steps, B the time they would have
taken with the best plan and placement of each window, C_max the dearest move of experts, losses sum to at most S - B,
so steps and moves together take at most

    B + (1 + CREDIT) (S - B) + (1 - TRUST) C_max

seconds. With F the best fixed plan and placement in hindsight, and rho the greatest ratio in any window of the step in
force to the best step, B <= F and S <= rho B, so that is at most

    (1 + (1 + CREDIT) (rho - 1)) F + (1 - TRUST) C_max.

docs/online.md has the argument in full, what it takes for granted, and what is measured.

Two things stand outside this ledger. What is in force may not fit in memory under the forecast: then the candidate of
the greatest net value among those that fit is taken at once and not debited, for it does not buy time. And a move that
the next window contradicts was not made: its cost is refunded (`planner.online.intake`).
"""

from __future__ import annotations

import numpy as np

from planner.cost import Seats, estimate
from planner.cost.balance import Floats, hottest_rank_bound
from planner.online import reasons
from planner.online.candidates import Candidate, Outlook, rebalances, switches
from planner.online.forecast import Forecast, begin_forecast, update_forecast, window_shares
from planner.online.intake import check_tokens, in_force
from planner.online.pricing import Price, Pricing, seats_of, served, unevenness
from planner.online.standstill import standstill_of, with_measured
from planner.online.state import Debit, RunState, plan_of
from planner.spec.decision import Action, Decision
from planner.spec.run import RunContext
from planner.spec.window import Window

CREDIT = 0.5
"""Part of the time lost to imbalance that moves may take. A choice: less lowers the bound, and lets moves wait."""

TRUST = 0.5
"""Part of a move's cost that must have been lost before a forecast is acted on; its inverse, where it is not asked.
A choice, not a fit: the proof holds for every value in (0, 1]."""


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
    taken_in = with_measured(state, in_force(window, state, context), window)
    state = _counted(taken_in, forecast, window, pricing)
    standing = _Standing(pricing, state, served(forecast.array, context.training))
    plan = plan_of(context, state.plan_id, "plan_id")
    outlook = Outlook(pricing, plan, standing.seats, forecast, window_shares(window))
    now = outlook.now.expected
    found = _candidates(outlook, state, _age(state, window))
    remedy = None if now.fits else next((candidate for candidate in found if candidate.fits), None)
    if remedy is not None:
        return _act(window, standing, remedy, 0.0, reasons.remedy(remedy))
    lack = "" if now.fits else reasons.NOTHING_FITS
    candidates = [candidate for candidate in found if candidate.gain_s > 0]
    if not candidates:
        settled = state.model_copy(update={"account_s": min(state.account_s, 0.0)})
        return _keep(window, standing, forecast.horizon_steps, _nothing(state) + lack), settled
    standing = standing.with_state(_with_loss(state, candidates, window))
    account_s = standing.state.account_s
    chosen = _affordable(candidates, account_s)
    if chosen is None:
        reason = reasons.not_yet(candidates[0], account_s, _advance_s(candidates[0])) + lack
        return _keep(window, standing, candidates[0].life_steps, reason, candidates[0]), standing.state
    return _act(window, standing, chosen, chosen.cost_s, reasons.act(chosen, account_s) + lack)


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


def _counted(state: RunState, forecast: Forecast, window: Window, pricing: Pricing) -> RunState:
    """The state with what the window adds to it, before anything is decided."""
    balanced = state.balanced_step_time_s or {plan.id: pricing.balanced_s(plan) for plan in pricing.context.plans}
    return state.model_copy(
        update={
            "balanced_step_time_s": balanced,
            "forecast": forecast,
            "last_window": window.index,
            "placed_step": window.first_step if state.placed_step is None else state.placed_step,
        }
    )


def _candidates(outlook: Outlook, state: RunState, age_steps: float) -> list[Candidate]:
    """What could be done instead of what is in force under the forecast, the greatest net value first."""
    found = list(switches(outlook, state.balanced_step_time_s))
    if outlook.seats is not None and outlook.seats.num_ranks > 1:
        life_steps = min(outlook.forecast.horizon_steps, age_steps)
        found += rebalances(outlook, outlook.seats, life_steps, standstill_of(state))
    return sorted(found, key=lambda candidate: -candidate.net_s)


def _age(state: RunState, window: Window) -> float:
    """Steps since the placement in force was decided; at least the window's own, if the job was set back."""
    placed = window.first_step if state.placed_step is None else state.placed_step
    return float(max(window.first_step + window.num_steps - placed, window.num_steps))


def _with_loss(state: RunState, candidates: list[Candidate], window: Window) -> RunState:
    """The account after this window; a gain pays no debt, and no more is saved than the dearest candidate needs."""
    loss_s = CREDIT * window.settled_steps * candidates[0].missed_s
    account = max(min(state.account_s, 0.0), state.account_s + loss_s)
    most = max(candidate.cost_s for candidate in candidates) / TRUST
    return state.model_copy(update={"account_s": min(account, most)})


def _affordable(candidates: list[Candidate], account_s: float) -> Candidate | None:
    for candidate in candidates:
        if candidate.cost_s == 0.0:
            return candidate
        expected_to_pay = candidate.net_s > 0 and account_s >= _advance_s(candidate)
        if expected_to_pay or account_s >= candidate.cost_s / TRUST:
            return candidate
    return None


def _advance_s(candidate: Candidate) -> float:
    """What must have been lost before the forecast is believed; only moves within the plan get credit."""
    return TRUST * candidate.cost_s if candidate.action is Action.REBALANCE else candidate.cost_s


def _act(
    window: Window, standing: _Standing, chosen: Candidate, debit_s: float, reason: str
) -> tuple[Decision, RunState]:
    """The decision to take a candidate, and the state as if it were carried out; `debit_s` leaves the account."""
    state, bounds = standing.state, standing.bounds(chosen.seats)
    stirs = chosen.num_moves > 0 or chosen.action is Action.SWITCH_PLAN
    following = state.model_copy(
        update={
            "plan_id": chosen.plan.id,
            "placement": chosen.placement,
            "placed_step": window.first_step + window.num_steps if stirs else state.placed_step,
            "account_s": state.account_s - debit_s,
            "unconfirmed": Debit(
                plan_id=chosen.plan.id,
                placement=chosen.placement,
                cost_s=debit_s,
                placed_step_before=state.placed_step,
                transfer_s=chosen.transfer_s,
            ),
        }
    )
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
    return decision, following


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
