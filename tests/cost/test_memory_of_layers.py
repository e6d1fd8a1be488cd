"""Bytes of activations, weights, gradients and optimizer state against closed forms."""

import pytest
from cost_samples import cluster, even_plan, gpt, moe_model

from planner.cost import estimate
from planner.cost.layer import LayerCost, layer_cost
from planner.cost.parameters import layer_parameters, total_parameters
from planner.cost.part import conditions
from planner.spec.cluster import Precision
from planner.spec.estimate import Estimate
from planner.spec.model import Block, DenseFeedForward, GroupedQueryAttention, Model
from planner.spec.placement import Placement
from planner.spec.strategy import Axis, AxisKind, Recompute, Sharding, Strategy
from planner.spec.training import AttentionKernel, Optimizer, Training

SEQUENCE, SAMPLES, HIDDEN, HEADS = 1024, 2, 2048, 16
SBH = SEQUENCE * SAMPLES * HIDDEN
SCORES = 5 * HEADS * SEQUENCE * SEQUENCE * SAMPLES
MODEL = gpt(layers=8, hidden=HIDDEN, heads=HEADS)
KORTHIKANTI = Training(
    global_batch_size=64,
    sequence_length=SEQUENCE,
    precision=Precision.FP16,
    attention_kernel=AttentionKernel.UNFUSED,
    dropout=True,
)


def block_cost(strategy: Strategy, training: Training = KORTHIKANTI) -> LayerCost:
    return layer_cost(conditions(HIDDEN, cluster(), training), MODEL.layers[1], strategy, SAMPLES, SEQUENCE)


def tensor_parallel(degree: int, sequence_parallel: bool, recompute: Recompute = Recompute.NONE) -> Strategy:
    axes = (Axis(AxisKind.TP, degree),) if degree > 1 else ()
    return Strategy(axes=axes, sequence_parallel=sequence_parallel and degree > 1, recompute=recompute)


# Korthikanti et al. 2022 (arXiv 2205.05198): equation 1, equation 2, equation 4 and table 2.


def test_activations_of_a_block_are_those_of_the_paper():
    assert block_cost(Strategy()).activation_bytes == 34 * SBH + SCORES


@pytest.mark.parametrize("tp", [2, 4, 8])
def test_tensor_parallelism_leaves_ten_sbh_whole(tp):
    kept = block_cost(tensor_parallel(tp, sequence_parallel=False)).activation_bytes
    assert kept == 10 * SBH + (24 * SBH + SCORES) // tp


@pytest.mark.parametrize("tp", [2, 4, 8])
def test_sequence_parallelism_divides_everything(tp):
    assert block_cost(tensor_parallel(tp, sequence_parallel=True)).activation_bytes == (34 * SBH + SCORES) // tp


@pytest.mark.parametrize("tp", [1, 2, 8])
def test_selective_recomputation_keeps_all_but_the_scores(tp):
    strategy = tensor_parallel(tp, sequence_parallel=True, recompute=Recompute.SELECTIVE)
    assert block_cost(strategy).activation_bytes == 34 * SBH // tp


@pytest.mark.parametrize("sequence_parallel", [False, True])
def test_full_recomputation_keeps_the_input_of_the_block(sequence_parallel):
    strategy = tensor_parallel(8, sequence_parallel, recompute=Recompute.FULL)
    assert block_cost(strategy).activation_bytes == 2 * SBH // (8 if sequence_parallel else 1)


def test_what_recomputation_does_not_keep_is_made_again_in_the_workspace():
    whole, again = block_cost(Strategy()), block_cost(Strategy(recompute=Recompute.FULL))
    assert again.activation_bytes + again.workspace_bytes == whole.activation_bytes + whole.workspace_bytes


@pytest.mark.parametrize("cp", [2, 4])
def test_context_parallelism_divides_all_activations(cp):
    flash = KORTHIKANTI.model_copy(update={"attention_kernel": AttentionKernel.FLASH})
    strategy = Strategy(axes=(Axis(AxisKind.CP, cp),))
    assert block_cost(strategy, flash).activation_bytes * cp == block_cost(Strategy(), flash).activation_bytes


def test_flash_attention_keeps_a_number_per_row_instead_of_the_scores():
    flash = KORTHIKANTI.model_copy(update={"attention_kernel": AttentionKernel.FLASH})
    assert block_cost(Strategy(), flash).activation_bytes == 34 * SBH + 4 * HEADS * SEQUENCE * SAMPLES


def test_without_dropout_its_three_masks_and_the_dropped_scores_are_not_kept():
    dry = KORTHIKANTI.model_copy(update={"dropout": False})
    assert block_cost(Strategy(), dry).activation_bytes == 32 * SBH + SCORES * 2 // 5


@pytest.mark.parametrize("kernel", list(AttentionKernel))
def test_fp32_keeps_twice_the_bytes(kernel):
    half = KORTHIKANTI.model_copy(update={"dropout": False, "attention_kernel": kernel})
    single = half.model_copy(update={"precision": Precision.FP32})
    numbers = 4 * HEADS * SEQUENCE * SAMPLES if kernel is AttentionKernel.FLASH else 0  # always in fp32
    half_bytes, single_bytes = (block_cost(Strategy(), one).activation_bytes - numbers for one in (half, single))
    assert single_bytes == 2 * half_bytes


# State.


def state_bytes_of(found: Estimate, stage: int = 0) -> int:
    memory = found.stages[stage].memory
    return memory["weights"] + memory["gradients"] + memory["optimizer_states"]


def priced(text: str, model: Model = MODEL, training: Training = KORTHIKANTI, devices: int = 8) -> Estimate:
    where = cluster(devices_per_node=devices)
    return estimate(model, where, training, even_plan(text, model, where, training))


@pytest.mark.parametrize(
    ("changes", "bytes_per_parameter"),
    [
        ({}, 2 + 4 + 4 + 8),
        ({"gradient_precision": Precision.FP16}, 2 + 2 + 4 + 8),
        ({"optimizer": Optimizer.SGD}, 2 + 4 + 4 + 4),
        ({"precision": Precision.FP32}, 4 + 4 + 8),
        ({"precision": Precision.FP32, "gradient_precision": Precision.BF16}, 4 + 4 + 8),
    ],
)
def test_state_takes_a_fixed_number_of_bytes_for_each_parameter(changes, bytes_per_parameter):
    training = KORTHIKANTI.model_copy(update=changes)
    held = state_bytes_of(priced("mbs1", training=training, devices=1))
    assert held == bytes_per_parameter * total_parameters(MODEL)


@pytest.mark.parametrize(
    ("sharding", "weights", "gradients", "optimizer"),
    [("zero0", 1, 1, 1), ("zero1", 1, 1, 8), ("zero2", 1, 8, 8), ("zero3", 8, 8, 8)],
)
def test_each_stage_of_zero_divides_one_more_kind_of_state(sharding, weights, gradients, optimizer):
    parameters = total_parameters(MODEL)
    memory = priced(f"dp8-mbs1-{sharding}").stages[0].memory
    assert memory["weights"] == 2 * parameters // weights
    assert memory["gradients"] == 4 * parameters // gradients
    assert memory["optimizer_states"] == 12 * parameters // optimizer


def test_hybrid_sharding_divides_by_the_inner_axis_only():
    axes = (Axis(AxisKind.DP, 2), Axis(AxisKind.SDP, 4))
    parameters = layer_parameters(MODEL.layers[1], HIDDEN).total
    cost = layer_cost(
        conditions(HIDDEN, cluster(), KORTHIKANTI),
        MODEL.layers[1],
        Strategy(axes=axes, sharding=Sharding.FULL),
        8,
        SEQUENCE,
    )
    assert cost.fixed_bytes == 18 * parameters // 4


@pytest.mark.parametrize("recompute", list(Recompute))
def test_zero_3_holds_whole_weights_of_two_layers_and_whole_gradients_in_the_place_of_activations(recompute):
    axes = (Axis(AxisKind.DP, 8),)
    price = conditions(HIDDEN, cluster(), KORTHIKANTI)
    parameters = layer_parameters(MODEL.layers[1], HIDDEN).total
    split, whole = (
        layer_cost(price, MODEL.layers[1], Strategy(axes=axes, sharding=sharding, recompute=recompute), 8, SEQUENCE)
        for sharding in (Sharding.FULL, Sharding.OPTIMIZER)
    )
    gradients = max(0, 4 * parameters - whole.activation_bytes)
    assert split.workspace_bytes - whole.workspace_bytes == 2 * 2 * parameters + gradients


def test_tensor_parallelism_divides_matrices_and_leaves_norms_and_positions_whole():
    parts = [layer_parameters(layer, HIDDEN) for layer in MODEL.layers]
    local = sum(part.split for part in parts) // 8 + sum(part.replicated for part in parts)
    assert state_bytes_of(priced("tp8-mbs1")) == 18 * local


@pytest.mark.parametrize(("kv_heads", "tp"), [(1, 8), (2, 8), (8, 8), (2, 2)])
def test_fewer_key_value_heads_than_ranks_are_copied_to_each(kv_heads, tp):
    block = Block(
        attention=GroupedQueryAttention(num_heads=16, num_kv_heads=kv_heads, head_dim=128),
        feed_forward=DenseFeedForward(width=4096, gated=False),
    )
    cost = layer_cost(
        conditions(HIDDEN, cluster(), KORTHIKANTI), block, tensor_parallel(tp, sequence_parallel=False), 1, SEQUENCE
    )
    queries_and_output, feed_forward, norms = 2 * 16 * 128 * HIDDEN, 2 * 4096 * HIDDEN, 2 * HIDDEN
    keys_and_values = 2 * max(1, kv_heads // tp) * 128 * HIDDEN
    assert cost.fixed_bytes == 18 * ((queries_and_output + feed_forward) // tp + keys_and_values + norms)


def test_a_tied_matrix_is_held_once_on_one_stage_and_twice_across_stages():
    matrix = 51200 * HIDDEN
    alone = state_bytes_of(priced("mbs1", devices=1))
    halves = priced("pp2-mbs1", devices=2)
    assert alone == 18 * total_parameters(MODEL)
    assert state_bytes_of(halves, 0) + state_bytes_of(halves, 1) == alone + 18 * matrix


def test_a_matrix_that_is_not_tied_is_held_by_the_head_wherever_it_stands():
    model = gpt(layers=8, hidden=HIDDEN, heads=HEADS, tied=False)
    halves = priced("pp2-mbs1", model, devices=2)
    assert state_bytes_of(halves, 0) + state_bytes_of(halves, 1) == 18 * total_parameters(model)


# Experts.

MOE = moe_model(layers=4, experts=8)
MOE_TRAINING = Training(global_batch_size=64, sequence_length=512)


@pytest.mark.parametrize(("ep", "etp"), [(1, 1), (2, 1), (8, 1), (1, 2), (4, 2), (2, 4)])
def test_expert_and_expert_tensor_parallelism_divide_the_experts_alone(ep, etp):
    parts = [layer_parameters(layer, MOE.hidden_size) for layer in MOE.layers]
    dense = sum(part.split + part.replicated for part in parts)
    experts = sum(part.experts for part in parts)
    held = state_bytes_of(priced(f"dp8-ep{ep}-etp{etp}-mbs1", MOE, MOE_TRAINING))
    assert held == 18 * (dense + experts // (ep * etp))


def test_zero_1_divides_experts_by_the_ranks_that_hold_the_same():
    parts = [layer_parameters(layer, MOE.hidden_size) for layer in MOE.layers]
    dense = sum(part.split + part.replicated for part in parts)
    experts = sum(part.experts for part in parts) // 4
    memory = priced("dp8-ep4-etp1-mbs1-zero1", MOE, MOE_TRAINING).stages[0].memory
    assert memory["optimizer_states"] == 12 * (dense // 8 + experts // 2)


@pytest.mark.parametrize("ep", [1, 2, 8])
def test_balanced_experts_keep_the_same_activations_whatever_their_spread(ep):
    alone = priced("dp8-ep1-etp1-mbs1", MOE, MOE_TRAINING).stages[0].memory["activations"]
    assert priced(f"dp8-ep{ep}-etp1-mbs1", MOE, MOE_TRAINING).stages[0].memory["activations"] == alone


def with_slots(slots_per_rank: int, limit: int | None = None, text: str = "dp8-ep4-etp1-mbs1-zero1") -> Estimate:
    """Of 8 experts on 4 ranks; two slots a rank are an even share."""
    where = cluster(memory_limit_bytes=limit)
    row = tuple((2 * rank + slot) % 8 for rank in range(4) for slot in range(slots_per_rank))
    placement = Placement(layers=(row,) * 4, num_ranks=4)
    plan = even_plan(text, MOE, where, MOE_TRAINING)
    return estimate(MOE, where, MOE_TRAINING, plan, placement=placement)


@pytest.mark.parametrize(
    ("text", "gradients_split", "optimizer_split"),
    [("dp8-ep4-etp1-mbs1-zero0", 1, 1), ("dp8-ep4-etp1-mbs1-zero1", 1, 2), ("dp8-ep4-etp1-mbs1-zero2", 2, 2)],
)
@pytest.mark.parametrize("slots", [3, 4, 8])
def test_replicas_hold_weights_gradients_and_optimizer_state_of_their_own(
    text, gradients_split, optimizer_split, slots
):
    per_slot = sum(layer_parameters(layer, MOE.hidden_size).experts for layer in MOE.layers) // 8
    even, more = (with_slots(number, text=text).stages[0].memory for number in (2, slots))
    extra = (slots - 2) * per_slot
    assert more["weights"] - even["weights"] == 2 * extra
    assert more["gradients"] - even["gradients"] == 4 * extra // gradients_split
    assert more["optimizer_states"] - even["optimizer_states"] == 12 * extra // optimizer_split


def test_a_placement_without_replicas_takes_what_experts_in_order_take():
    plain = priced("dp8-ep4-etp1-mbs1-zero1", MOE, MOE_TRAINING)
    assert with_slots(2).stages[0].memory == plain.stages[0].memory


def test_a_plan_that_fits_does_not_when_its_replicas_exceed_the_memory():
    even, doubled = (with_slots(number).stages[0].peak_memory_bytes for number in (2, 4))
    assert with_slots(2, limit=doubled - 1).fits
    found = with_slots(4, limit=doubled - 1)
    assert (found.fits, found.stages[0].missing_bytes) == (False, 1)
    assert with_slots(4, limit=doubled).fits
    assert with_slots(4, limit=even).stages[0].missing_bytes == doubled - even


# Stages.


def kept_by_a_block() -> int:
    return layer_cost(
        conditions(HIDDEN, cluster(), KORTHIKANTI), MODEL.layers[1], Strategy(), 1, SEQUENCE
    ).activation_bytes


def test_1f1b_keeps_one_micro_batch_less_on_each_further_stage():
    found = priced("pp4-mbs1", devices=4)
    held = [stage.memory["activations"] for stage in found.stages]
    embedding = SEQUENCE * (8 + HIDDEN)  # numbers of the tokens, and the mask of dropout
    head = 2 * 2 * SEQUENCE * HIDDEN  # inputs of norm and projection
    pair = 2 * kept_by_a_block()
    assert held == [4 * (pair + embedding), 3 * pair, 2 * pair, pair + head]


def test_gpipe_keeps_all_micro_batches_on_every_stage():
    held = [stage.memory["activations"] for stage in priced("pp4-mbs1-gpipe", devices=4).stages]
    assert held[1:3] == [64 * 2 * kept_by_a_block()] * 2


def test_zero_bubble_keeps_as_many_micro_batches_on_every_stage_as_1f1b_on_the_first():
    held = [stage.memory["activations"] for stage in priced("pp4-mbs1-zb", devices=4).stages]
    assert held[1:3] == [4 * 2 * kept_by_a_block()] * 2


def test_a_layer_that_is_recomputed_whole_puts_no_weight_gradient_off():
    costs = [
        layer_cost(conditions(HIDDEN, cluster(), KORTHIKANTI), MODEL.layers[1], Strategy(recompute=again), 1, SEQUENCE)
        for again in Recompute
    ]
    put_off = [cost.weight_gradient_s for cost in costs]
    assert put_off[0] == put_off[1] > 0 == put_off[2]
    assert put_off[0] <= min(costs[0].forward_s, costs[0].backward_s / 2)


@pytest.mark.parametrize("layer", [MODEL.layers[0], MODEL.layers[-1]])
def test_embedding_and_head_put_no_weight_gradient_off(layer):
    cost = layer_cost(conditions(HIDDEN, cluster(), KORTHIKANTI), layer, Strategy(), 1, SEQUENCE)
    assert cost.weight_gradient_s == 0


def test_interleaving_keeps_pieces_in_flight():
    # Stage i of p holds 2 (p - i - 1) + (v - 1) p + 1 pieces of one layer each.
    held = [stage.memory["activations"] for stage in priced("pp4-vpp2-mbs1", devices=4).stages]
    assert held[1:3] == [9 * kept_by_a_block(), 7 * kept_by_a_block()]


@pytest.mark.parametrize(
    "text", ["dp8-mbs1-zero2", "tp2-pp2-mbs2-sp-recompute:selective", "pp4-vpp2-mbs1", "pp8-mbs1-gpipe", "pp8-mbs1-zb"]
)
def test_named_parts_sum_to_the_peak(text):
    for stage in priced(text).stages:
        assert sum(stage.memory.values()) == stage.peak_memory_bytes
        assert min(stage.memory.values()) >= 0


def test_layers_of_a_stage_use_its_workspace_in_turn():
    found = priced("dp8-mbs1-zero3")
    costs = [
        layer_cost(
            conditions(HIDDEN, cluster(), KORTHIKANTI),
            layer,
            Strategy(axes=(Axis(AxisKind.DP, 8),), sharding=Sharding.FULL),
            8,
            SEQUENCE,
            own_copy=False,
        )
        for layer in MODEL.layers
    ]
    assert found.stages[0].memory["workspace"] == max(cost.workspace_bytes for cost in costs)


def test_a_stage_lacks_what_is_above_the_limit_and_nothing_below_it():
    plan = even_plan("mbs1", MODEL, cluster(devices_per_node=1), KORTHIKANTI)

    def within(limit: int | None) -> Estimate:
        return estimate(MODEL, cluster(devices_per_node=1, memory_limit_bytes=limit), KORTHIKANTI, plan)

    peak = within(None).stages[0].peak_memory_bytes
    assert (within(peak).fits, within(peak).stages[0].missing_bytes) == (True, 0)
    assert (within(peak - 7).fits, within(peak - 7).stages[0].missing_bytes) == (False, 7)
