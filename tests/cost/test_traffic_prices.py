"""Traffic of parallelism: what moves, over which group, how often, and what compute hides."""

import pytest
from cost_samples import cluster, even_plan, gpt, moe_model

from planner.cost import estimate
from planner.cost.boundary import entry, layout, transition_s
from planner.cost.collectives import all_gather_s, all_reduce_s, all_to_all_s, point_to_point_s, reduce_scatter_s
from planner.cost.dense import residual_stream
from planner.cost.experts import moe_feed_forward
from planner.cost.kernels import is_aligned, matmul_s, overlapped_s
from planner.cost.layer import layer_cost
from planner.cost.parameters import layer_parameters
from planner.cost.part import conditions, share
from planner.cost.state import state_without_experts
from planner.spec.model import MoeFeedForward
from planner.spec.plan import Plan, Stage, StageRun
from planner.spec.strategy import Axis, AxisKind, ExpertStrategy, Sharding, Strategy
from planner.spec.training import Training

HIDDEN, SEQUENCE = 1024, 512
CLUSTER = cluster(nodes=2, devices_per_node=4)
TRAINING = Training(global_batch_size=16, sequence_length=SEQUENCE)
PRICE = conditions(HIDDEN, CLUSTER, TRAINING)
MODEL = gpt(layers=4, hidden=HIDDEN, heads=8, vocab=4096)
BLOCK, HEAD = MODEL.layers[1], MODEL.layers[-1]
PARAMETERS = layer_parameters(BLOCK, HIDDEN).total
WEIGHTS, GRADIENTS = 2.0 * PARAMETERS, 4.0 * PARAMETERS


def data_parallel(sharding: Sharding) -> Strategy:
    return Strategy(axes=(Axis(AxisKind.DP, 8),), sharding=sharding)


ALL_EIGHT = ((8, 1),)
GATHER_WEIGHTS = all_gather_s(CLUSTER.levels, ALL_EIGHT, WEIGHTS)
SCATTER_GRADIENTS = reduce_scatter_s(CLUSTER.levels, ALL_EIGHT, GRADIENTS)


@pytest.mark.parametrize(
    ("sharding", "each_micro_batch", "once"),
    [
        (Sharding.NONE, (0.0, 0.0), (0.0, all_reduce_s(CLUSTER.levels, ALL_EIGHT, GRADIENTS))),
        (Sharding.OPTIMIZER, (0.0, 0.0), (GATHER_WEIGHTS, SCATTER_GRADIENTS)),
        (Sharding.GRADIENTS, (0.0, SCATTER_GRADIENTS), (GATHER_WEIGHTS, 0.0)),
        (Sharding.FULL, (GATHER_WEIGHTS, GATHER_WEIGHTS + SCATTER_GRADIENTS), (0.0, 0.0)),
    ],
)
def test_data_parallel_traffic_is_that_of_zero(sharding, each_micro_batch, once):
    found = state_without_experts(PRICE, BLOCK, data_parallel(sharding), own_copy=True)
    assert (found.micro_forward_s, found.micro_backward_s) == pytest.approx(each_micro_batch)
    assert (found.once_forward_s, found.once_backward_s) == pytest.approx(once)


def test_hybrid_sharding_gathers_inside_and_reduces_shards_outside():
    strategy = Strategy(axes=(Axis(AxisKind.DP, 2), Axis(AxisKind.SDP, 4)), sharding=Sharding.FULL)
    found = state_without_experts(PRICE, BLOCK, strategy, own_copy=True)
    assert found.micro_forward_s == pytest.approx(all_gather_s(CLUSTER.levels, ((4, 1),), WEIGHTS))
    assert found.once_backward_s == pytest.approx(all_reduce_s(CLUSTER.levels, ((2, 4),), GRADIENTS / 4))


@pytest.mark.parametrize("sharding", [Sharding.OPTIMIZER, Sharding.GRADIENTS, Sharding.FULL])
def test_ranks_that_share_the_optimizer_update_a_part_each(sharding):
    alone = state_without_experts(PRICE, BLOCK, data_parallel(Sharding.NONE), own_copy=True).optimizer_s
    assert alone == pytest.approx(PARAMETERS * (4 + 2 * 12 + 2) / (0.8 * 2e12))
    found = state_without_experts(PRICE, BLOCK, data_parallel(sharding), own_copy=True).optimizer_s
    assert found == pytest.approx(alone / 8)


def test_traffic_of_each_micro_batch_hides_behind_its_compute_and_slows_it_down():
    plain = layer_cost(PRICE, BLOCK, data_parallel(Sharding.NONE), 64, SEQUENCE)
    sharded = layer_cost(PRICE, BLOCK, data_parallel(Sharding.FULL), 64, SEQUENCE)
    for before, after, traffic in (
        (plain.forward_s, sharded.forward_s, GATHER_WEIGHTS),
        (plain.backward_s, sharded.backward_s, GATHER_WEIGHTS + SCATTER_GRADIENTS),
    ):
        assert after == pytest.approx(overlapped_s(PRICE.rate, before, traffic))


def test_overlap_costs_the_longer_of_two_and_some_of_the_shorter():
    assert overlapped_s(PRICE.rate, 3.0, 2.0) == overlapped_s(PRICE.rate, 2.0, 3.0) == pytest.approx(3.0 + 0.15 * 2.0)
    assert overlapped_s(PRICE.rate, 3.0, 0.0) == 3.0


@pytest.mark.parametrize("sequence_parallel", [False, True])
@pytest.mark.parametrize("recompute", ["none", "full"])
def test_tensor_parallelism_reduces_twice_in_each_direction_of_a_block(sequence_parallel, recompute):
    strategy = Strategy(axes=(Axis(AxisKind.TP, 4),), sequence_parallel=sequence_parallel, recompute=recompute)
    cost = layer_cost(PRICE, BLOCK, strategy, 2, SEQUENCE)
    region = all_reduce_s(CLUSTER.levels, ((4, 1),), 2.0 * 2 * SEQUENCE * HIDDEN)
    assert cost.forward[2] == pytest.approx(2 * region)
    assert cost.backward[2] == pytest.approx((4 if recompute == "full" else 2) * region)


# Matrix products.


LARGE_TILES = PRICE.rate._replace(bytes_per_s=1e40, launch_s=0.0, tiles=((128, 256, 1.0),))


def test_a_matrix_product_fills_tiles_and_waves():
    full = matmul_s(LARGE_TILES, 1280, 2560, 4096)  # 10 x 10 tiles of 128 x 256 on 100 units
    assert full == pytest.approx(2 * 1280 * 2560 * (4096 + 150) / (0.7 * 3e14))
    assert matmul_s(LARGE_TILES, 1, 1, 4096) == pytest.approx(full)  # one tile takes as long as a wave
    assert matmul_s(LARGE_TILES, 1281, 2560, 4096) == pytest.approx(2 * full)  # 110 tiles need a second wave
    assert matmul_s(LARGE_TILES, 1280, 2560, 4096, groups=3) == pytest.approx(3 * full)


def test_a_last_wave_that_is_partly_filled_may_take_less_than_a_whole_one():
    full = matmul_s(LARGE_TILES, 1280, 2560, 4096)
    for ratio, waves in ((1e-9, 1.1), (0.5, 1.55), (1.0, 2.0)):
        rate = LARGE_TILES._replace(last_wave_ratio=ratio)
        assert matmul_s(rate, 1281, 2560, 4096) == pytest.approx(waves * full)


def test_a_small_product_takes_smaller_tiles_where_they_are_quicker():
    rate = LARGE_TILES._replace(tiles=((128, 256, 1.0), (64, 128, 0.5)))
    assert matmul_s(rate, 64, 128, 4096) == pytest.approx(0.5 * matmul_s(LARGE_TILES, 64, 128, 4096))
    assert matmul_s(rate, 1280, 2560, 4096) == matmul_s(LARGE_TILES, 1280, 2560, 4096)


def test_rows_that_are_not_multiples_of_sixteen_bytes_are_slower():
    rate = LARGE_TILES._replace(misaligned_ratio=0.25)
    aligned, slow = matmul_s(rate, 1280, 2560, 4096), matmul_s(rate, 1280, 2560, 4092, aligned=False)
    assert is_aligned(rate, 2560, 4096)
    assert not is_aligned(rate, 2560, 4092)
    assert slow == pytest.approx(4 * matmul_s(LARGE_TILES, 1280, 2560, 4092))
    assert aligned == matmul_s(LARGE_TILES, 1280, 2560, 4096)


def test_a_thin_matrix_product_is_bound_by_memory():
    rate = PRICE.rate._replace(launch_s=0.0, matmul_flops_per_s=1e40)
    assert matmul_s(rate, 1, 2**14, 2**14) == pytest.approx(2 * (2**28 + 2 * 2**14) / (0.8 * 2e12))
    assert matmul_s(rate, 0, 2**14, 2**14) == 0.0


def test_norms_and_residual_additions_pass_over_the_activations():
    """Forward 2 for each norm and 3 for each addition; backward one more for each norm; four launches each way."""
    passing_s = 2.0 * 2 * SEQUENCE * HIDDEN / (0.8 * 2e12)
    found = residual_stream(PRICE, share(Strategy(), 2, SEQUENCE))
    assert found.forward_s == pytest.approx(10 * passing_s + 4 * 3e-6)
    assert found.backward_s == pytest.approx(12 * passing_s + 4 * 3e-6)


def test_sequence_parallelism_divides_norms_and_residual_additions():
    split = Strategy(axes=(Axis(AxisKind.TP, 4),), sequence_parallel=True)
    whole, part = (residual_stream(PRICE, share(strategy, 2, SEQUENCE)).forward_s for strategy in (Strategy(), split))
    assert part - 4 * 3e-6 == pytest.approx((whole - 4 * 3e-6) / 4)


# Experts.

MOE = MoeFeedForward(num_experts=8, top_k=2, expert_width=2048)


def routed(ep: int, etp: int, load_ratio: float = 1.0, moe: MoeFeedForward = MOE):
    spread = ExpertStrategy(
        expert_parallel_size=ep, expert_tensor_parallel_size=etp, expert_data_parallel_size=8 // (ep * etp)
    )
    strategy = Strategy(axes=(Axis(AxisKind.DP, 8),), experts=spread)
    return moe_feed_forward(PRICE, moe, strategy, share(strategy, 8, SEQUENCE), load_ratio)


@pytest.mark.parametrize(("ep", "etp"), [(4, 1), (8, 1), (4, 2), (2, 4), (1, 4)])
def test_experts_exchange_tokens_there_and_back_and_tensor_ranks_gather_them(ep, etp):
    copies = 2.0 * SEQUENCE * 2 * HIDDEN
    exchange = 2 * all_to_all_s(CLUSTER.levels, ((ep, etp),), copies)
    gather = 2 * all_gather_s(CLUSTER.levels, ((etp, 1),), copies * etp)
    assert routed(ep, etp).all_to_all_s == pytest.approx(exchange + gather)


def test_without_expert_parallelism_no_token_moves():
    assert routed(1, 1).all_to_all_s == 0.0


def test_imbalance_is_what_the_busiest_rank_takes_longer():
    even, hot = routed(8, 1), routed(8, 1, load_ratio=2.0)
    assert (hot.forward_s, hot.backward_s, hot.all_to_all_s) == (even.forward_s, even.backward_s, even.all_to_all_s)
    assert (even.imbalance_forward_s, even.imbalance_backward_s) == (0.0, 0.0)
    assert hot.imbalance_forward_s > even.all_to_all_s * 0.9
    assert hot.imbalance_backward_s > hot.imbalance_forward_s


def test_a_capacity_factor_below_one_drops_work_on_every_rank():
    even, dropping = routed(8, 1), routed(8, 1, load_ratio=0.5)
    copies = 2.0 * SEQUENCE * 2 * HIDDEN
    assert dropping.all_to_all_s == pytest.approx(2 * all_to_all_s(CLUSTER.levels, ((8, 1),), copies / 2))
    assert dropping.forward_s < even.forward_s
    assert dropping.stored_bytes < 0.6 * even.stored_bytes
    assert (dropping.imbalance_forward_s, dropping.imbalance_backward_s) == (0.0, 0.0)


def test_experts_keep_what_their_products_need():
    """For each copy of a token: its input and output, three values of the gated width; and the router's logits."""
    copies = SEQUENCE * 2
    assert routed(8, 1).stored_bytes == 2 * copies * (2 * HIDDEN + 3 * 2048) + 8 * SEQUENCE * 8


def test_a_shared_expert_costs_every_token():
    shared = MOE.model_copy(update={"shared_width": 4096})
    plain, more = routed(8, 1), routed(8, 1, moe=shared)
    assert more.stored_bytes - plain.stored_bytes == 2 * SEQUENCE * 3 * 4096
    flops = 2 * 3 * HIDDEN * 4096 * SEQUENCE
    assert more.forward_s - plain.forward_s > flops / 3e14
    assert more.all_to_all_s == plain.all_to_all_s


def test_tensor_parallelism_cuts_a_shared_expert():
    spread = ExpertStrategy(expert_parallel_size=8)
    strategy = Strategy(axes=(Axis(AxisKind.DP, 2), Axis(AxisKind.TP, 4)), sequence_parallel=True, experts=spread)
    shared = MOE.model_copy(update={"shared_width": 4096})
    plain, more = (moe_feed_forward(PRICE, moe, strategy, share(strategy, 2, SEQUENCE), 1.0) for moe in (MOE, shared))
    assert more.stored_bytes - plain.stored_bytes == 2 * SEQUENCE * 3 * 4096 // 4
    region = all_reduce_s(CLUSTER.levels, ((4, 1),), 2.0 * SEQUENCE * HIDDEN)
    assert (plain.tensor_forward_s, more.tensor_forward_s) == (0.0, pytest.approx(region))


# Vocabulary.


def test_logits_are_kept_once_as_computed_and_once_in_fp32():
    for tp in (1, 4):
        strategy = Strategy(axes=(Axis(AxisKind.TP, tp),)) if tp > 1 else Strategy()
        cost = layer_cost(PRICE, HEAD, strategy, 2, SEQUENCE)
        assert cost.logits_bytes == (2 + 4) * 2 * SEQUENCE * 4096 // tp


def test_the_loss_over_a_cut_vocabulary_is_agreed_upon():
    strategy = Strategy(axes=(Axis(AxisKind.TP, 4),))
    cost = layer_cost(PRICE, HEAD, strategy, 2, SEQUENCE)
    assert cost.forward[2] == pytest.approx(3 * all_reduce_s(CLUSTER.levels, ((4, 1),), 4.0 * 2 * SEQUENCE))


# Boundaries.


@pytest.mark.parametrize("sequence_parallel", [False, True])
def test_a_stage_receives_a_part_on_each_tensor_parallel_rank(sequence_parallel):
    strategy = Strategy(axes=(Axis(AxisKind.TP, 4),), sequence_parallel=sequence_parallel)
    whole = 2.0 * 2 * SEQUENCE * HIDDEN
    found = entry(PRICE, strategy, 2, SEQUENCE, CLUSTER.link_between(0, 4))
    gathered = 0.0 if sequence_parallel else all_gather_s(CLUSTER.levels, ((4, 1),), whole)
    assert found.pass_s == pytest.approx(point_to_point_s(CLUSTER.levels, 0, 4, whole / 4) + gathered)
    assert found.buffer_bytes == 4 * (whole / 4 if sequence_parallel else whole)


def test_the_slowest_stage_pays_a_message_in_each_direction():
    plan = even_plan("dp4-pp2-mbs1", MODEL, CLUSTER, TRAINING)
    found = estimate(MODEL, CLUSTER, TRAINING, plan)
    message = point_to_point_s(CLUSTER.levels, 0, 4, 2.0 * SEQUENCE * HIDDEN)
    assert found.time["pipeline_communication"] == pytest.approx(2 * message * plan.num_micro_batches)
    assert [stage.memory["buffers"] for stage in found.stages] == [0, 4 * 2 * SEQUENCE * HIDDEN]


def test_an_interleaved_ring_leads_back_to_the_first_stage():
    plan = even_plan("dp4-pp2-vpp2-mbs1", MODEL, CLUSTER, TRAINING)
    buffers = [stage.memory["buffers"] for stage in estimate(MODEL, CLUSTER, TRAINING, plan).stages]
    assert buffers == [4 * 2 * SEQUENCE * HIDDEN, 2 * 4 * 2 * SEQUENCE * HIDDEN]


def test_a_tied_head_on_another_stage_adds_up_gradients_with_the_embedding():
    tied, untied = (gpt(layers=4, hidden=HIDDEN, heads=8, vocab=4096, tied=tied) for tied in (True, False))
    steps = [
        estimate(model, CLUSTER, TRAINING, even_plan("dp4-pp2-mbs1", model, CLUSTER, TRAINING)).stages[1].time
        for model in (tied, untied)
    ]
    matrix = point_to_point_s(CLUSTER.levels, 0, 4, 4096.0 * HIDDEN * 4)
    assert steps[0].once_per_step_s - steps[1].once_per_step_s == pytest.approx(matrix)
    assert steps[0].micro_batch_s == steps[1].micro_batch_s


DP8 = Strategy(axes=(Axis(AxisKind.DP, 8),))
TP8 = Strategy(axes=(Axis(AxisKind.TP, 8),))


def test_equal_layouts_hand_activations_over_for_nothing():
    sharded = Strategy(axes=(Axis(AxisKind.DP, 2), Axis(AxisKind.SDP, 4)), sharding=Sharding.FULL)
    assert layout(DP8) == layout(sharded)
    assert layout(TP8) == layout(Strategy(axes=()))
    assert transition_s(PRICE, DP8, sharded, 8, SEQUENCE) == (0.0, 0.0)


def test_unlike_strategies_cut_activations_anew_and_say_so():
    narrowest, latency = 0.8 * 2.5e10, 1e-5
    whole = 2.0 * 8 * SEQUENCE * HIDDEN
    there, back = transition_s(PRICE, DP8, TP8, 8, SEQUENCE)
    assert (there, back) == pytest.approx((whole / narrowest + latency, whole / 8 / narrowest + latency))
    runs = (
        StageRun(first_layer=0, num_layers=3, strategy=DP8),
        StageRun(first_layer=3, num_layers=3, strategy=TP8),
    )
    stage = Stage(first_device=0, num_devices=8, runs=runs)
    model = gpt(layers=4, hidden=HIDDEN, heads=8, vocab=4096, tied=False)
    plan = Plan(
        global_batch_size=16, sequence_length=SEQUENCE, micro_batch_size=1, num_micro_batches=2, stages=(stage,)
    )
    assert estimate(model, CLUSTER, TRAINING, plan).time["layout_change"] == pytest.approx(2 * (there + back))


def test_expert_layers_without_neighbours_of_their_kind_change_no_layout():
    model = moe_model(layers=2, dense_layers=2)
    plan = even_plan("dp8-ep8-etp1-mbs1", model, CLUSTER, TRAINING)
    assert "layout_change" not in estimate(model, CLUSTER, TRAINING, plan).time
