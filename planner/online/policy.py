"""From a window and what came before to a decision. Pure: no clock, no chance, no network.

The ledger. Let g be the seconds that a candidate saves in each step under the forecast, H the steps for which the gain
is expected to last, C the pause that the candidate costs. Its net value is g H - C. H is the horizon of the forecast;
for moves within the plan no more than the age of the placement in force, because the next one will be outdated as this
one was. The account A holds the seconds lost so far: for each window, its steps x (step under what was in force - step
under the candidate of the greatest net value), both priced for the load that really came. The best candidate is taken
that

* has a positive net value and A >= TRUST C (moving experts) or A >= C (switching plans, which stops the job): the
  forecast says that it pays, and a good part of its cost was lost already; or
* still gains and A >= C / TRUST: the loss has gone on whatever the forecast said.

It takes C out of the account. This is renting or buying with a prediction (Purohit, Svitkina and Kumar, NeurIPS
2018): TRUST near 0 believes the forecast, 1 ignores it.

What it guarantees, over any load history: the account holds only losses that were really suffered, and is never
overdrawn by more than (1 - TRUST) of one move of experts. With S the time of all steps, B the time they would have
taken with the best plan and placement of each window, and C_max the dearest move of experts, losses sum to at most
S - B, so steps and moves together take at most

    B + 2 (S - B) + (1 - TRUST) C_max

seconds: but for half of one move, moves never cost more than imbalance did.

Two things stand outside this ledger. What is in force may not fit in memory under the forecast: then the candidate of
the greatest net value among those that fit is taken at once and not debited, for it does not buy time. And a move that
the next window contradicts was not made: its cost is refunded (`planner.online.intake`).
"""

from __future__ import annotations

from planner.cost import estimate
from planner.cost.balance import Floats, imbalance_bound
from planner.online import reasons
from planner.online.candidates import (
    Candidate,
    Price,
    Pricing,
    StepPrice,
    placement_imbalance,
    rebalances,
    served,
    switches,
)
from planner.online.forecast import Forecast, begin_forecast, update_forecast, window_shares
from planner.online.intake import check_tokens, in_force
from planner.online.state import Debit, RunState, plan_of
from planner.spec.decision import Action, Decision
from planner.spec.placement import Placement
from planner.spec.plan import Plan
from planner.spec.run import RunContext
from planner.spec.window import Window
from planner.spec.workload import BALANCED

TRUST = 0.5
"""Part of a move's cost that must have been lost before a forecast is acted on; its inverse, where it is not asked.
A choice, not a fit: the proof holds for every value in (0, 1]."""


def decide(window: Window, state: RunState, context: RunContext, price: Price = estimate) -> tuple[Decision, RunState]:
    """Answer a window, and what to remember of it.

    Plan and placement of the window, where given, say what is in force. A window that is not newer than the last one
    changes nothing, whatever it says. Raises InputError at `tokens`, `plan_id` or `placement` if the window does not
    fit the run.
    """
    check_tokens(window, context)
    if state.last_window is not None and window.index <= state.last_window:
        reason = reasons.late(window.index, state.last_window)
        return _keep(window, state, served(window_shares(window), context.training), 0.0, reason), state
    pricing = Pricing(context, price)
    forecast = begin_forecast(window) if state.forecast is None else update_forecast(state.forecast, window)
    state = _counted(in_force(window, state, context), forecast, window, pricing)
    plan = plan_of(context, state.plan_id, "plan_id")
    loads = served(forecast.array, context.training)
    now = pricing.step(plan, forecast.array, state.placement)
    found = _candidates(pricing, plan, state, forecast, now, _age(state, window))
    remedy = None if now.fits else next((candidate for candidate in found if candidate.fits), None)
    if remedy is not None:
        return _act(window, state, loads, remedy, 0.0, reasons.remedy(remedy))
    lack = "" if now.fits else reasons.NOTHING_FITS
    candidates = [candidate for candidate in found if candidate.gain_s > 0]
    if not candidates:
        settled = state.model_copy(update={"account_s": min(state.account_s, 0.0)})
        return _keep(window, settled, loads, forecast.horizon_steps, _nothing(state) + lack), settled
    state = _with_loss(pricing, plan, state, candidates, window)
    chosen = _affordable(candidates, state.account_s)
    if chosen is None:
        reason = reasons.not_yet(candidates[0], state.account_s, _advance_s(candidates[0])) + lack
        return _keep(window, state, loads, candidates[0].life_steps, reason, candidates[0]), state
    return _act(window, state, loads, chosen, chosen.cost_s, reasons.act(chosen, state.account_s) + lack)


def _counted(state: RunState, forecast: Forecast, window: Window, pricing: Pricing) -> RunState:
    """The state with what the window adds to it, before anything is decided."""
    return state.model_copy(
        update={
            "balanced_step_time_s": state.balanced_step_time_s or _balanced(pricing),
            "forecast": forecast,
            "last_window": window.index,
            "placed_step": window.first_step if state.placed_step is None else state.placed_step,
        }
    )


def _candidates(
    pricing: Pricing, plan: Plan, state: RunState, forecast: Forecast, now: StepPrice, age_steps: float
) -> list[Candidate]:
    """What could be done instead of what is in force (`now`) under the forecast, the greatest net value first."""
    loads, horizon = forecast.array, forecast.horizon_steps
    found = list(switches(pricing, plan, loads, now, horizon, state.balanced_step_time_s))
    if state.placement is not None and state.placement.num_ranks > 1:
        found += rebalances(pricing, plan, state.placement, loads, now, min(horizon, age_steps))
    return sorted(found, key=lambda candidate: -candidate.net_s)


def _age(state: RunState, window: Window) -> float:
    """Steps since the placement in force was decided; at least the window's own, if the job was set back."""
    placed = window.first_step if state.placed_step is None else state.placed_step
    return float(max(window.first_step + window.num_steps - placed, window.num_steps))


def _with_loss(pricing: Pricing, plan: Plan, state: RunState, candidates: list[Candidate], window: Window) -> RunState:
    """The account after this window; a gain pays no debt, and no more is saved than the dearest candidate needs."""
    seen, best = window_shares(window), candidates[0]
    now_s = pricing.step(plan, seen, state.placement).seconds
    loss = window.num_steps * (now_s - pricing.step(best.plan, seen, best.placement).seconds)
    account = max(min(state.account_s, 0.0), state.account_s + loss)
    most = max(candidate.cost_s for candidate in candidates) / TRUST
    return state.model_copy(update={"account_s": min(account, most)})


def _affordable(candidates: list[Candidate], account_s: float) -> Candidate | None:
    for candidate in candidates:
        expected_to_pay = candidate.net_s > 0 and account_s >= _advance_s(candidate)
        if expected_to_pay or account_s >= candidate.cost_s / TRUST:
            return candidate
    return None


def _advance_s(candidate: Candidate) -> float:
    """What must have been lost before the forecast is believed; only moves within the plan get credit."""
    return TRUST * candidate.cost_s if candidate.action is Action.REBALANCE else candidate.cost_s


def _act(
    window: Window, state: RunState, loads: Floats, chosen: Candidate, debit_s: float, reason: str
) -> tuple[Decision, RunState]:
    """The decision to take a candidate, and the state as if it were carried out; `debit_s` leaves the account."""
    debit = Debit(
        plan_id=chosen.plan.id,
        placement=chosen.placement,
        cost_s=debit_s,
        placed_step_before=state.placed_step,
    )
    following = state.model_copy(
        update={
            "plan_id": chosen.plan.id,
            "placement": chosen.placement,
            "placed_step": window.first_step + window.num_steps,
            "account_s": state.account_s - debit_s,
            "unconfirmed": debit,
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
        imbalance_before=_imbalance(loads, state.placement),
        imbalance_after=_imbalance(loads, chosen.placement),
        imbalance_bound=_bound(loads, chosen.placement),
        reason=reason,
    )
    return decision, following


def _keep(
    window: Window,
    state: RunState,
    loads: Floats,
    horizon_steps: float,
    reason: str,
    best: Candidate | None = None,
) -> Decision:
    """Keep, with the ledger of the best candidate that was turned down."""
    before = _imbalance(loads, state.placement)
    return Decision(
        window=window.index,
        action=Action.KEEP,
        plan_id=state.plan_id,
        gain_s_per_step=best.gain_s if best else 0.0,
        cost_s=best.cost_s if best else 0.0,
        payback_steps=best.cost_s / best.gain_s if best else None,
        horizon_steps=horizon_steps,
        imbalance_before=before,
        imbalance_after=before,
        imbalance_bound=_bound(loads, state.placement),
        reason=reason,
    )


def _nothing(state: RunState) -> str:
    if state.placement is None:
        return reasons.UNEQUAL_RANKS
    return reasons.ONE_RANK if state.placement.num_ranks == 1 else reasons.NOTHING_FASTER


def _imbalance(loads: Floats, placement: Placement | None) -> float:
    return 1.0 if placement is None else placement_imbalance(loads, placement)


def _bound(loads: Floats, placement: Placement | None) -> float:
    return 1.0 if placement is None else imbalance_bound(loads, placement.num_ranks, placement.slots_per_rank(0))


def _balanced(pricing: Pricing) -> dict[str, float]:
    context = pricing.context
    return {
        plan.id: pricing.price(context.model, context.cluster, context.training, plan, BALANCED, None).step_time_s
        for plan in context.plans
    }
