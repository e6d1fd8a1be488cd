"""Seconds of moving experts and of switching plans, against sums done by hand."""

import pytest

from planner.cost.holding import box
from planner.cost.migration import (
    expert_ranks,
    migration_s,
    rank_devices,
    state_bytes,
    switch_plan_s,
)
from planner.cost.parameters import total_parameters
from planner.cost.transfer import transfer_s
from planner.spec.cluster import Cluster, Device, KernelEfficiency, Level, Link, PeakFlops, Precision, Provenance
from planner.spec.errors import InputError
from planner.spec.model import (
    Block,
    DenseFeedForward,
    Embedding,
    GroupedQueryAttention,
    Head,
    LayerRun,
    Model,
    MoeFeedForward,
)
from planner.spec.placement import Move
from planner.spec.plan import Plan, Stage, StageRun
from planner.spec.strategy import Axis, AxisKind, ExpertStrategy, Sharding, Strategy
from planner.spec.training import Optimizer, Training

NODE = Level(name="node", num_devices=4, link=Link(bandwidth_bytes_per_s=1e9, latency_s=1e-3))
MESH = Level(
    name="node", num_devices=4, link=Link(bandwidth_bytes_per_s=1e9, latency_s=0, pair_bandwidth_bytes_per_s=2.5e8)
)
NETWORK = Level(name="network", num_devices=8, link=Link(bandwidth_bytes_per_s=1e8, latency_s=1e-2))
LEVELS = (NODE, NETWORK)

ATTENTION = GroupedQueryAttention(num_heads=8, num_kv_heads=8, head_dim=16)
MOE = Block(attention=ATTENTION, feed_forward=MoeFeedForward(num_experts=8, top_k=2, expert_width=256))
MODEL = Model(
    name="small",
    hidden_size=128,
    runs=(
        LayerRun(layer=Embedding(vocab_size=1024)),
        LayerRun(layer=MOE, num_layers=4),
        LayerRun(layer=Head(vocab_size=1024)),
    ),
)
EXPERT_PARAMETERS = 3 * 128 * 256
TRAINING = Training(global_batch_size=8, sequence_length=128)
CLUSTER = Cluster(
    nodes=2,
    devices_per_node=4,
    device=Device(
        name="round",
        memory_bytes=10**10,
        memory_bandwidth_bytes_per_s=1e12,
        compute_units=100,
        peak_flops_per_s=PeakFlops(fp32=1e13, bf16=1e14),
        efficiency=KernelEfficiency(
            matmul_ratio=0.7,
            attention_forward_ratio=0.5,
            attention_backward_ratio=0.5,
            memory_ratio=0.8,
            kernel_launch_s=0,
        ),
        reserve_bytes=0,
        provenance=Provenance.DATASHEET,
    ),
    levels=LEVELS,
)


def move(from_rank: int, to_rank: int, layer: int = 0, expert: int = 0) -> Move:
    return Move(layer=layer, expert=expert, from_rank=from_rank, to_rank=to_rank, to_slot=2 * to_rank)


def plan(
    stages: int = 1,
    tp: int = 1,
    experts: tuple[int, int, int] = (8, 1, 1),
    sharding: Sharding = Sharding.NONE,
    split: bool = False,
) -> Plan:
    """`experts`: (expert, expert-tensor, expert-data) parallel sizes; `split`: other experts from layer 3 on."""
    devices = 8 // stages
    axes = tuple(Axis(kind, degree) for kind, degree in ((AxisKind.DP, devices // tp), (AxisKind.TP, tp)) if degree > 1)
    dense = Strategy(axes=axes, sharding=sharding, sequence_parallel=tp > 1)

    def strategy(layer: int) -> Strategy:
        if layer in (0, 5):
            return dense
        parallel, tensor, data = (experts[0] // 2, experts[1], experts[2] * 2) if split and layer > 2 else experts
        spread = ExpertStrategy(
            expert_parallel_size=parallel, expert_tensor_parallel_size=tensor, expert_data_parallel_size=data
        )
        return dense.model_copy(update={"experts": spread})

    built = []
    for stage in range(stages):
        layers = range(6 * stage // stages, 6 * (stage + 1) // stages)
        runs: list[StageRun] = []
        for layer in layers:
            if runs and runs[-1].strategy == strategy(layer):
                runs[-1] = runs[-1].model_copy(update={"num_layers": runs[-1].num_layers + 1})
            else:
                runs.append(StageRun(first_layer=layer, num_layers=1, strategy=strategy(layer)))
        built.append(Stage(first_device=stage * devices, num_devices=devices, runs=tuple(runs)))
    return Plan(
        global_batch_size=8,
        sequence_length=128,
        micro_batch_size=1,
        num_micro_batches=8 * tp // devices,
        stages=tuple(built),
    )


def test_a_message_takes_its_latency_and_its_bytes_over_the_nearest_common_link():
    assert transfer_s(LEVELS, [0], [3], [1e9]) == pytest.approx(1e-3 + 1.0)
    assert transfer_s(LEVELS, [0], [4], [1e9]) == pytest.approx(1e-2 + 10.0)


def test_a_device_sends_one_message_after_the_other_and_different_devices_at_once():
    one_sender = transfer_s(LEVELS, [0, 0], [1, 2], [1e9, 1e9])
    two_senders = transfer_s(LEVELS, [0, 2], [1, 3], [1e9, 1e9])
    assert one_sender == pytest.approx(2 * (1e-3 + 1.0))
    assert two_senders == pytest.approx(1e-3 + 1.0)


def test_a_device_receives_one_message_after_the_other_but_sends_meanwhile():
    assert transfer_s(LEVELS, [1, 2], [0, 0], [1e9, 1e9]) == pytest.approx(2 * (1e-3 + 1.0))
    assert transfer_s(LEVELS, [0, 1], [1, 0], [1e9, 1e9]) == pytest.approx(1e-3 + 1.0)


def test_messages_on_different_levels_of_one_device_add_up():
    assert transfer_s(LEVELS, [0, 0], [1, 4], [1e9, 1e9]) == pytest.approx(1e-3 + 1.0 + 1e-2 + 10.0)


def test_one_pair_on_a_mesh_reaches_the_pair_rate_and_several_pairs_share_the_device():
    assert transfer_s((MESH,), [0], [1], [1e9]) == pytest.approx(4.0)
    assert transfer_s((MESH,), [0, 0], [1, 1], [5e8, 5e8]) == pytest.approx(4.0)
    assert transfer_s((MESH,), [0, 0, 0], [1, 2, 3], [1e9, 1e9, 1e9]) == pytest.approx(4.0)


def test_what_stays_on_its_device_is_free():
    assert transfer_s(LEVELS, [0, 5], [0, 5], [1e12, 1e12]) == 0.0
    assert transfer_s(LEVELS, [], [], []) == 0.0


@pytest.mark.parametrize(
    ("precision", "optimizer", "expected"),
    [
        (Precision.BF16, Optimizer.ADAM, 2 + 4 + 4 + 4),
        (Precision.FP32, Optimizer.ADAM, 4 + 4 + 4),
        (Precision.BF16, Optimizer.SGD, 2 + 4 + 4),
        (Precision.FP32, Optimizer.SGD, 4 + 4),
    ],
)
def test_weights_and_optimizer_state_move_together(precision, optimizer, expected):
    training = TRAINING.model_copy(update={"precision": precision, "optimizer": optimizer})
    assert state_bytes(training) == expected


def test_one_move_takes_the_expert_over_the_link_between_the_ranks():
    near = migration_s(MODEL, CLUSTER, TRAINING, plan(), [move(0, 1)], pause_s=0.5)
    far = migration_s(MODEL, CLUSTER, TRAINING, plan(), [move(0, 4)], pause_s=0.5)
    assert near == pytest.approx(0.5 + 1e-3 + 14 * EXPERT_PARAMETERS / 1e9)
    assert far == pytest.approx(0.5 + 1e-2 + 14 * EXPERT_PARAMETERS / 1e8)


def test_no_move_takes_no_time_and_no_pause():
    assert migration_s(MODEL, CLUSTER, TRAINING, plan(), []) == 0.0


def test_expert_tensor_parallel_parts_move_at_once_each_its_part():
    split = plan(experts=(4, 2, 1))
    assert rank_devices(split.stages[0], split.stages[0].runs[1].strategy.experts).tolist() == [
        [0, 1],
        [2, 3],
        [4, 5],
        [6, 7],
    ]
    assert migration_s(MODEL, CLUSTER, TRAINING, split, [move(0, 1)], pause_s=0) == pytest.approx(
        1e-3 + 14 * EXPERT_PARAMETERS / 2 / 1e9
    )


def test_every_expert_data_parallel_group_moves_the_same_inside_itself():
    grouped = plan(experts=(4, 1, 2))
    assert rank_devices(grouped.stages[0], grouped.stages[0].runs[1].strategy.experts).tolist() == [
        [0, 4],
        [1, 5],
        [2, 6],
        [3, 7],
    ]
    assert migration_s(MODEL, CLUSTER, TRAINING, grouped, [move(0, 1)], pause_s=0) == pytest.approx(
        1e-3 + 14 * EXPERT_PARAMETERS / 1e9
    )


@pytest.mark.parametrize(
    ("sharding", "per_parameter"),
    [(Sharding.OPTIMIZER, 2 + 12 / 2), (Sharding.GRADIENTS, 2 + 12 / 2), (Sharding.FULL, 7)],
)
def test_what_the_groups_shard_is_moved_once(sharding, per_parameter):
    sharded = plan(experts=(4, 1, 2), sharding=sharding)
    assert migration_s(MODEL, CLUSTER, TRAINING, sharded, [move(0, 1)], pause_s=0) == pytest.approx(
        1e-3 + per_parameter * EXPERT_PARAMETERS / 1e9
    )


def test_layers_on_different_stages_move_at_once():
    staged = plan(stages=2, experts=(4, 1, 1))
    both = [move(0, 1, layer=0), move(0, 1, layer=3)]
    same_stage = [move(0, 1, layer=0), move(0, 1, layer=1)]
    one = migration_s(MODEL, CLUSTER, TRAINING, staged, both[:1], pause_s=0)
    assert migration_s(MODEL, CLUSTER, TRAINING, staged, both, pause_s=0) == pytest.approx(one)
    assert migration_s(MODEL, CLUSTER, TRAINING, staged, same_stage, pause_s=0) == pytest.approx(2 * one)


def test_the_ranks_of_a_plan_are_its_expert_parallel_size_where_that_is_one():
    assert expert_ranks(MODEL, plan()) == 8
    assert expert_ranks(MODEL, plan(experts=(1, 1, 8))) == 1
    assert expert_ranks(MODEL, plan(split=True)) is None


def test_a_dense_model_has_no_experts_to_place():
    block = MOE.model_copy(update={"feed_forward": DenseFeedForward(width=256)})
    dense = Model(name="dense", hidden_size=128, runs=(LayerRun(layer=block, num_layers=2),))
    with pytest.raises(InputError, match="no experts to place"):
        expert_ranks(dense, plan())


def test_a_plan_that_lacks_moe_layers_is_refused():
    longer = MODEL.model_copy(update={"runs": (*MODEL.runs[:1], LayerRun(layer=MOE, num_layers=7), *MODEL.runs[2:])})
    with pytest.raises(InputError, match="MoE layer 6 lacks"):
        expert_ranks(Model.model_validate(longer.model_dump()), plan())


def switch(current: Plan, target: Plan, pause: float = 0.0) -> float:
    return switch_plan_s(MODEL, CLUSTER, TRAINING, current, target, restart_pause_s=pause)


def test_staying_costs_nothing_not_even_the_pause():
    assert switch_plan_s(MODEL, CLUSTER, TRAINING, plan(), plan()) == 0.0


def test_a_plan_whose_devices_hold_all_they_need_costs_the_pause_alone():
    replicated, sharded = plan(experts=(1, 1, 8)), plan(experts=(1, 1, 8), sharding=Sharding.OPTIMIZER)
    assert switch(replicated, sharded, pause=7.0) == 7.0
    assert switch(replicated, plan(), pause=7.0) == 7.0


def test_gathering_sharded_optimizer_state_brings_seven_eighths_to_every_device():
    replicated, sharded = plan(experts=(1, 1, 8)), plan(experts=(1, 1, 8), sharding=Sharding.OPTIMIZER)
    # From each of the 8 devices 1/8 of all optimizer state to each other one: 4 of 7 messages cross the network.
    piece = 12 * total_parameters(MODEL) / 8
    parts = 2 + 4  # cut and replicated in embedding and head; these, keys with values, and experts in the blocks
    expected = 3 * piece / 1e9 + 4 * piece / 1e8
    messages = parts * (3 * 1e-3 + 4 * 1e-2)
    assert switch(sharded, replicated) == pytest.approx(expected + messages, rel=1e-6)


def test_state_of_layers_that_change_stage_crosses_to_the_other_node():
    one, two = plan(experts=(4, 1, 2)), plan(stages=2, experts=(4, 1, 1))
    # Every device has all layers under `one` (dense state whole, experts by rank): nothing has to come.
    assert switch(one, two) == 0.0
    assert switch(two, one) > 0.0


def test_switching_back_over_a_slower_network_takes_longer():
    slow = CLUSTER.model_copy(
        update={"levels": (NODE, NETWORK.model_copy(update={"link": Link(bandwidth_bytes_per_s=1e6, latency_s=1e-2)}))}
    )
    two, one = plan(stages=2, experts=(4, 1, 1)), plan(experts=(4, 1, 2))
    assert switch_plan_s(MODEL, slow, TRAINING, two, one) > 10 * switch(two, one)


def test_key_value_heads_that_tensor_parallel_ranks_copy_are_received_whole():
    two_heads = MODEL.model_dump()
    two_heads["runs"][1]["layer"]["attention"]["num_kv_heads"] = 2
    strategy = plan(tp=8, experts=(8, 1, 1)).stages[0].runs[1].strategy
    for part, heads, parts in (("split", 0, 8), ("keys_values", 8, 8), ("keys_values", 2, 2)):
        tensor, *_ = box(strategy, part, True, heads)
        assert tensor.parts == parts
        assert tensor.number(8).tolist() == [device * parts // 8 for device in range(8)]
    apart, whole = plan(tp=8, experts=(8, 1, 1)), plan(experts=(8, 1, 1))
    copied = switch_plan_s(Model.model_validate(two_heads), CLUSTER, TRAINING, apart, whole, restart_pause_s=0)
    assert 0 < copied < switch(apart, whole), "less is cut, and less has to come"


def test_plans_of_another_model_are_refused():
    longer = Model.model_validate(
        {**MODEL.model_dump(), "runs": [*MODEL.model_dump()["runs"][:-1], *MODEL.model_dump()["runs"][1:]]}
    )
    with pytest.raises(InputError, match="the plan has 6 layers"):
        switch_plan_s(longer, CLUSTER, TRAINING, plan(), plan(stages=2, experts=(4, 1, 1)))
