"""What a window says, checked against the run that it belongs to."""

from __future__ import annotations

from planner.cost.migration import expert_ranks
from planner.online.state import Debit, RunState, experts_per_layer, placement_at_start, plan_of
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
    stands = (reported.plan_id, reported.placement) == (state.plan_id, state.placement)
    last, given_back = state.unconfirmed, state.refunded
    if stands:
        return reported if last is None else reported.model_copy(update={"unconfirmed": None, "refunded": None})
    if last is not None:
        reported = _refund(reported, last)
    if last is None or window.placed_step is not None:
        reported = reported.model_copy(update={"placed_step": window.begun_step})
    if given_back is not None and (reported.plan_id, reported.placement) == (given_back.plan_id, given_back.placement):
        reported = _debit_late(reported, given_back, window)
    return reported


def _refund(state: RunState, debit: Debit) -> RunState:
    account_s, placed = state.account_s + debit.cost_s, debit.placed_step_before
    return state.model_copy(
        update={"account_s": account_s, "placed_step": placed, "unconfirmed": None, "refunded": debit}
    )


def _debit_late(state: RunState, debit: Debit, window: Window) -> RunState:
    refunded = None if state.refunded == debit else state.refunded
    return state.model_copy(
        update={
            "account_s": state.account_s - debit.cost_s,
            "placed_step": window.begun_step,
            "refunded": refunded,
        }
    )


def _reported(window: Window, state: RunState, context: RunContext) -> RunState:
    if window.plan_id is not None and window.plan_id != state.plan_id:
        plan = plan_of(context, window.plan_id, "plan_id")
        state = state.model_copy(update={"plan_id": plan.id, "placement": placement_at_start(context, plan)})
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
