"""Plans with pipeline stages: a placement is of the MoE layers of all stages, and stages move side by side."""

from moe_runs import window
from smartmoe_runs import LAYERS, context, zipf

from planner.cost.migration import migration_s
from planner.online import begin, decide
from planner.spec.decision import Action
from planner.spec.placement import Move

EXPERTS = 16
RUN = context(EXPERTS, None, "pp2-dp8-ep8")
FIRST_OF_SECOND_STAGE = LAYERS // 2


def pause_s(*layers):
    """Of one expert that goes from rank 0 to rank 1 in each of these MoE layers."""
    moves = [Move(layer=layer, expert=0, from_rank=0, to_rank=1, to_slot=2) for layer in layers]
    return migration_s(RUN.model, RUN.cluster, RUN.training, RUN.plans[0], moves, pause_s=0.0)


def test_a_run_begins_with_a_placement_of_the_moe_layers_of_all_stages():
    placement = begin(RUN).placement
    assert len(RUN.plans[0].stages) == 2
    assert (len(placement.layers), placement.num_ranks) == (LAYERS, 8)


def test_experts_of_all_stages_are_placed_by_one_decision():
    decision, state = decide(window(0, zipf(EXPERTS, 1.0), num_steps=5000), begin(RUN), RUN)
    assert decision.action is Action.REBALANCE and state.placement == decision.placement
    moved = [layer for layer, row in enumerate(decision.placement.layers) if row != tuple(range(EXPERTS))]
    assert min(moved) < FIRST_OF_SECOND_STAGE <= max(moved)
    assert decision.imbalance_after < decision.imbalance_before


def test_stages_move_side_by_side_and_layers_of_one_stage_one_after_the_other():
    assert pause_s(0, FIRST_OF_SECOND_STAGE) == pause_s(0) == pause_s(FIRST_OF_SECOND_STAGE)
    assert pause_s(0, 1, FIRST_OF_SECOND_STAGE) == pause_s(0, 1) > pause_s(0)
