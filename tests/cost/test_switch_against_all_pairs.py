"""The price of a plan switch equals the one from the full matrix of pairs of devices, and holds for large clusters."""

import random
import time
import tracemalloc
from itertools import groupby

import numpy as np
import pytest
from test_migration_seconds import CLUSTER, MODEL

from planner.cost.holding import box
from planner.cost.migration import switch_plan_s
from planner.cost.parameters import layer_parameters
from planner.cost.state import optimizer_bytes, weight_bytes
from planner.cost.transfer import transfer_s
from planner.spec.cluster import Cluster, Level, Link
from planner.spec.model import Block, Model
from planner.spec.plan import Plan, Stage, StageRun
from planner.spec.strategy import Axis, AxisKind, ExpertStrategy, Recompute, Sharding, Strategy
from planner.spec.training import Training

DEVICES = 96
TRAINING = Training(global_batch_size=DEVICES, sequence_length=128)
TWO_HEADS = MODEL.model_dump()
TWO_HEADS["runs"][1]["layer"]["attention"]["num_kv_heads"] = 2
MODEL = Model.model_validate(TWO_HEADS)


def link(bytes_per_s, latency_s, pair=None):
    return Link(bandwidth_bytes_per_s=bytes_per_s, latency_s=latency_s, pair_bandwidth_bytes_per_s=pair)


LEVELS = (
    Level(name="node", num_devices=4, link=link(1e9, 1e-5, pair=2.5e8)),
    Level(name="pod", num_devices=48, link=link(2e8, 2e-5)),
    Level(name="network", num_devices=DEVICES, link=link(1e8, 4e-5, pair=3e7)),
)


def cluster(levels, nodes, devices_per_node=4):
    changes = {"nodes": nodes, "devices_per_node": devices_per_node, "levels": levels}
    return Cluster.model_validate(CLUSTER.model_copy(update=changes).model_dump())


def factors(number, count, random_numbers):
    """`count` random factors with this product."""
    found = []
    for _ in range(count - 1):
        found.append(random_numbers.choice([f for f in range(1, number + 1) if number % f == 0]))
        number //= found[-1]
    return [*found, number]


def plan_of(axes, experts, sharding, num_stages=1, devices=DEVICES):
    dense = Strategy(axes=axes, sharding=sharding if any(a.kind is not AxisKind.TP for a in axes) else Sharding.NONE)
    parallel, tensor, data = experts
    spread = ExpertStrategy(
        expert_parallel_size=parallel, expert_tensor_parallel_size=tensor, expert_data_parallel_size=data
    )
    moe = dense.model_copy(update={"experts": spread})
    layers = [dense, moe, moe, moe, moe, dense]
    stages = []
    for stage in range(num_stages):
        mine = range(6 * stage // num_stages, 6 * (stage + 1) // num_stages)
        blocks = [list(group) for _, group in groupby(mine, key=lambda layer: layer in (0, 5))]
        runs = tuple(StageRun(first_layer=b[0], num_layers=len(b), strategy=layers[b[0]]) for b in blocks)
        size = devices // num_stages
        stages.append(Stage(first_device=stage * size, num_devices=size, runs=runs))
    batch = layers[0].data_parallel_size
    return Plan(
        global_batch_size=devices,
        sequence_length=128,
        micro_batch_size=1,
        num_micro_batches=devices // batch,
        stages=tuple(stages),
    )


def random_plan(random_numbers):
    num_stages = random_numbers.choice([1, 2, 3])
    degrees = factors(DEVICES // num_stages, 3, random_numbers)
    axes = [Axis(kind, n) for kind, n in zip((AxisKind.DP, AxisKind.CP, AxisKind.TP), degrees, strict=True) if n > 1]
    random_numbers.shuffle(axes)
    experts = factors(DEVICES // num_stages, 3, random_numbers)
    return plan_of(tuple(axes), experts, random_numbers.choice(list(Sharding)), num_stages)


def all_pairs(old, new, from_, to):
    """[devices before, devices after]: the part of the whole that each sends to each between two stages."""
    shared, offset = np.ones((from_.num_devices, to.num_devices)), from_.first_device - to.first_device
    for before, after in zip(old, new, strict=True):
        held, wanted = before.number(from_.num_devices)[:, None], after.number(to.num_devices)[None, :]
        begin = np.maximum(held / before.parts, wanted / after.parts)
        end = np.minimum((held + 1) / before.parts, (wanted + 1) / after.parts)
        shared *= np.maximum(end - begin, 0.0)
    shared[shared < 1e-12] = 0.0
    mine = np.arange(shared.shape[0])[:, None] + offset == np.arange(shared.shape[1])[None, :]
    missing = 1 / np.prod([cut.parts for cut in new]) - np.where(mine, shared, 0.0).sum(axis=0)
    missing[missing < 1e-12] = 0.0
    holders = np.where(mine, 0.0, shared)
    total = holders.sum(axis=0)
    return holders * (missing / np.where(total > 0, total, 1.0))


def keys_values(layer, hidden_size):
    if not isinstance(layer, Block):
        return 0
    return 2 * layer.attention.num_kv_heads * layer.attention.head_dim * hidden_size


def switch_by_all_pairs_s(levels, current, target, model=MODEL):
    owners = []
    for plan in (current, target):
        held = ((layer, stage, strategy) for stage in plan.stages for layer, strategy in stage.strategies())
        alike = {"recompute": Recompute.NONE, "sequence_parallel": False}
        owners.append({layer: (stage, strategy.model_copy(update=alike)) for layer, stage, strategy in held})
    groups = {}
    for number, layer in enumerate(model.layers):
        key = tuple(owned[number] for owned in owners)
        parameters, cut_by_heads = layer_parameters(layer, model.hidden_size), keys_values(layer, model.hidden_size)
        split = parameters.split - cut_by_heads
        for part, count in zip(
            ("split", "keys_values", "replicated", "experts"),
            (split, cut_by_heads, parameters.replicated, parameters.experts),
            strict=True,
        ):
            groups[key, part] = groups.get((key, part), 0) + count
    messages = [[], [], []]
    for (((from_, old), (to, new)), part), count in groups.items():
        for is_weight, width in ((True, weight_bytes(TRAINING)), (False, optimizer_bytes(TRAINING))):
            if count:
                boxes = (box(strategy, part, is_weight, 2) for strategy in (old, new))
                flow = all_pairs(*boxes, from_, to)
                senders, receivers = np.nonzero(flow)
                for column, values in zip(
                    messages,
                    (
                        senders + from_.first_device,
                        receivers + to.first_device,
                        count * width * flow[senders, receivers],
                    ),
                    strict=True,
                ):
                    column.append(values)
    return transfer_s(levels, *(np.concatenate(column) for column in messages))


@pytest.mark.parametrize("levels", [LEVELS, LEVELS[::2], LEVELS[2:]], ids=["three", "two", "one"])
def test_a_switch_costs_what_all_pairs_of_devices_sum_up_to(levels):
    random_numbers = random.Random(7)
    prices = []
    for _ in range(40):
        current, target = random_plan(random_numbers), random_plan(random_numbers)
        if current.id == target.id:
            continue
        prices.append(
            switch_plan_s(MODEL, cluster(levels, DEVICES // 4), TRAINING, current, target, restart_pause_s=0.0)
        )
        assert prices[-1] == pytest.approx(switch_by_all_pairs_s(levels, current, target), rel=1e-9)
    assert sum(price > 0 for price in prices) > 20


def test_sixteen_thousand_devices_take_little_time_and_memory():
    devices = 2048 * 8
    levels = (
        Level(name="node", num_devices=8, link=link(4e11, 1e-6)),
        Level(name="pod", num_devices=512, link=link(5e10, 5e-6)),
        Level(name="network", num_devices=devices, link=link(5e10, 1e-5)),
    )
    dp, tp = Axis(AxisKind.DP, devices // 8), Axis(AxisKind.TP, 8)
    plans = [
        plan_of((dp, tp), (8, 1, devices // 8), Sharding.FULL, devices=devices),
        plan_of((Axis(AxisKind.DP, devices),), (8, 1, devices // 8), Sharding.NONE, devices=devices),
        plan_of((Axis(AxisKind.DP, devices),), (1, 1, devices), Sharding.OPTIMIZER, devices=devices),
        plan_of((tp, dp), (512, 8, devices // 4096), Sharding.GRADIENTS, devices=devices),
    ]
    large = cluster(levels, 2048, 8)
    for current in plans:
        for target in plans:
            tracemalloc.start()
            began = time.process_time()
            price_s = switch_plan_s(MODEL, large, TRAINING, current, target, restart_pause_s=0.0)
            assert time.process_time() - began < 2.0
            assert tracemalloc.get_traced_memory()[1] < 500e6
            tracemalloc.stop()
            assert current is target or price_s > 0 or target.stages[0].runs[0].strategy.sharding is not Sharding.NONE
