"""What a window says, checked against the run that it belongs to."""

from __future__ import annotations

from typing import Any

from planner.cost.migration import expert_ranks
from planner.online.ledger import confirmed, debit_late, refund
from planner.online.state import Refund, RunState, Stood, experts_per_layer, placement_at_start, plan_of
from planner.spec.errors import InputError
from planner.spec.placement import Placement
from planner.spec.plan import Plan
from planner.spec.run import RunContext
from planner.spec.window import Window


def check_tokens(window: Window, context: RunContext) -> None:
    """Raise InputError unless the counts are those of the model's MoE layers and experts."""
    experts, layers = experts_per_layer(context.model), len(context.model.moe_layers)
    given = {len(row) for row in window.tokens}
    if len(window.tokens) != layers or given != {experts}:
        shape = " or ".join(str(number) for number in sorted(given))
        raise InputError.at(
            "tokens", f"must be {layers} MoE layers x {experts} experts, got {len(window.tokens)} x {shape}"
        )


def in_force(window: Window, state: RunState, context: RunContext) -> RunState:
    """The state with the plan and the placement that the window reports; raises InputError if they cannot be.

    A decision costs nothing until it is carried out: where the report contradicts the last one, its cost goes back to
    the account, and is taken again if a later window reports that it was carried out after all. What nobody decided
    begins its age at the step that is reported with it.
    """
    reported = _reported(window, state, context)
    if _alike(reported, state):
        return confirmed(reported.model_copy(update={"since_step": _since(window, state.since_step)}))
    last = state.unconfirmed
    reported = reported.model_copy(update=_succession(window, reported, state))
    if last is not None:
        reported = refund(reported, Refund(plan_id=state.plan_id, placement=state.placement, debit=last))
    if last is None or window.placed_step is not None:
        reported = reported.model_copy(update={"placed_step": window.begun_step})
    given_back = state.refunded
    if given_back is not None and _alike(reported, given_back):
        reported = debit_late(reported, given_back, window.begun_step)
    return reported


def _alike(one: RunState | Stood, other: RunState | Stood | Refund) -> bool:
    return (one.plan_id, one.placement) == (other.plan_id, other.placement)


def _since(window: Window, known_step: int) -> int:
    """The first step under what stays in force: where a window does not say, it is all of the window at least."""
    return min(known_step, window.first_step) if window.placed_step is None else window.placed_step


def _succession(window: Window, reported: RunState, state: RunState) -> dict[str, Any]:
    """Since when that is in force which was not expected, and what was before it."""
    earlier = state.earlier
    if state.unconfirmed is None:
        return {"since_step": window.begun_step, "earlier": (*earlier, state.standing)}
    if earlier and _alike(reported, earlier[-1]):
        return {"since_step": _since(window, earlier[-1].first_step), "earlier": earlier[:-1]}
    return {"since_step": window.begun_step}


def _reported(window: Window, state: RunState, context: RunContext) -> RunState:
    if window.plan_id is not None and window.plan_id != state.plan_id:
        plan = plan_of(context, window.plan_id, "plan_id")
        started = {"plan_id": plan.id, "placement": placement_at_start(context, plan), "declined": ()}
        state = state.model_copy(update=started)
    if window.placement is None or window.placement == state.placement:
        return state
    _check_placement(window.placement, context, plan_of(context, state.plan_id, "plan_id"))
    return state.model_copy(update={"placement": window.placement})


def _check_placement(placement: Placement, context: RunContext, plan: Plan) -> None:
    experts, layers = experts_per_layer(context.model), len(context.model.moe_layers)
    ranks = expert_ranks(context.model, plan)
    if placement.num_ranks != ranks:
        raise InputError.at(
            "placement.num_ranks", f"must be the plan's expert-parallel size {ranks}, got {placement.num_ranks}"
        )
    if placement.shadow_slots_per_rank != context.shadow_slots_per_rank:
        raise InputError.at(
            "placement.shadow_slots_per_rank",
            f"must be the run's {context.shadow_slots_per_rank}, got {placement.shadow_slots_per_rank}",
        )
    if len(placement.layers) != layers:
        raise InputError.at("placement.layers", f"must have {layers} MoE layers, got {len(placement.layers)}")
    if len({len(slots) for slots in placement.layers}) != 1:
        raise InputError.at("placement.layers", "all layers must have the same number of slots")
    for number, slots in enumerate(placement.layers):
        if len(set(slots)) != experts:
            raise InputError.at(f"placement.layers[{number}]", f"must hold each of the {experts} experts")
