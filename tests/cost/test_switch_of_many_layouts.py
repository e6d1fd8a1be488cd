"""Switches between plans of every shape: unequal stages, virtual stages, another strategy for each layer."""

import random

import pytest
from test_migration_seconds import ATTENTION, MOE
from test_switch_against_all_pairs import TRAINING, cluster, factors, link, switch_by_all_pairs_s

from planner.cost.migration import switch_plan_s
from planner.cost.redistribution import Redistribution
from planner.spec.cluster import Level
from planner.spec.model import Block, DenseFeedForward, Embedding, Head, LayerRun, Model
from planner.spec.plan import Plan, Schedule, ScheduleKind, Stage, StageRun
from planner.spec.strategy import Axis, AxisKind, ExpertStrategy, Recompute, Sharding, Strategy

SAMPLES = 960
NUM_MICRO_BATCHES = 60
TWO_HEADS = ATTENTION.model_copy(update={"num_kv_heads": 2})
MODEL = Model(
    name="mixed",
    hidden_size=128,
    runs=(
        LayerRun(layer=Embedding(vocab_size=1024)),
        LayerRun(layer=Block(attention=TWO_HEADS, feed_forward=DenseFeedForward(width=256)), num_layers=3),
        LayerRun(layer=MOE.model_copy(update={"attention": TWO_HEADS}), num_layers=7),
        LayerRun(layer=Head(vocab_size=1024)),
    ),
)


def levels_of(*sizes, limited=()):
    """Levels of these sizes, each slower than the one before; those in `limited` give a pair a quarter of the rate."""
    return tuple(
        Level(
            name=f"level{number}",
            num_devices=size,
            link=link(1e9 / 3**number, 1e-5 * 2**number, pair=1e9 / 3**number / 4 if number in limited else None),
        )
        for number, size in enumerate(sizes)
    )


def random_strategy(devices, is_moe, random_numbers):
    kinds = [AxisKind.DP, AxisKind.SDP, AxisKind.CP, AxisKind.TP]
    random_numbers.shuffle(kinds)
    axes = {kind: n for kind, n in zip(kinds, factors(devices, 4, random_numbers), strict=True) if n > 1}
    if AxisKind.SDP in axes and AxisKind.DP not in axes:
        axes = {AxisKind.DP if kind is AxisKind.SDP else kind: n for kind, n in axes.items()}
    sharding = random_numbers.choice(list(Sharding))
    if AxisKind.SDP in axes:
        sharding = Sharding.FULL
    elif not axes.keys() & {AxisKind.DP, AxisKind.CP}:
        sharding = Sharding.NONE
    parallel, tensor, data = factors(devices, 3, random_numbers)
    sizes = {"expert_parallel_size": parallel, "expert_tensor_parallel_size": tensor, "expert_data_parallel_size": data}
    return Strategy(
        axes=tuple(Axis(kind, n) for kind, n in axes.items()),
        sharding=sharding,
        recompute=random_numbers.choice(list(Recompute)),
        experts=ExpertStrategy(**sizes) if is_moe else None,
    )


def random_runs(first, end, strategies, random_numbers):
    """Runs over layers, with one of the strategies (dense, MoE) each."""
    runs = []
    for layer in range(first, end):
        block = MODEL.layers[layer]
        strategy = random_numbers.choice(strategies[isinstance(block, Block) and block.moe is not None])
        if runs and runs[-1].strategy == strategy and runs[-1].end_layer == layer:
            runs[-1] = runs[-1].model_copy(update={"num_layers": runs[-1].num_layers + 1})
        else:
            runs.append(StageRun(first_layer=layer, num_layers=1, strategy=strategy))
    return runs


def random_plan(sizes, random_numbers):
    """A plan whose stages have so many devices each."""
    virtual = random_numbers.choice([1, 2]) if 1 < len(sizes) <= 6 else 1
    pieces = len(sizes) * virtual
    layers = len(MODEL.layers)
    ends = [0, *sorted(random_numbers.sample(range(1, layers), pieces - 1)), layers]
    stages = []
    for number, size in enumerate(sizes):
        strategies = [[random_strategy(size, is_moe, random_numbers) for _ in range(2)] for is_moe in (False, True)]
        runs = [
            run
            for piece in range(number, pieces, len(sizes))
            for run in random_runs(ends[piece], ends[piece + 1], strategies, random_numbers)
        ]
        stages.append(Stage(first_device=sum(sizes[:number]), num_devices=size, runs=tuple(runs)))
    dp = stages[0].runs[0].strategy.data_parallel_size
    kind = ScheduleKind.INTERLEAVED if virtual > 1 else ScheduleKind.ONE_F_ONE_B
    return Plan(
        global_batch_size=SAMPLES * NUM_MICRO_BATCHES,
        sequence_length=128,
        micro_batch_size=SAMPLES // dp,
        num_micro_batches=NUM_MICRO_BATCHES,
        schedule=Schedule(kind=kind, virtual_stages=virtual),
        stages=tuple(stages),
    )


NESTING = [(64,), (32, 32), (16,) * 4, (32, 16, 16), (16, 16, 32), (16, 16, 16, 8, 8)]
SIXES = [(48,), (24, 24), (24, 12, 12), (12,) * 4, (8,) * 6]


def generally(known):
    """Kinds of state whose cuts did not nest."""
    return sum(isinstance(found, Redistribution) for found in known.values())


@pytest.mark.parametrize(
    "levels",
    [
        levels_of(8, 64),
        levels_of(8, 64, limited=(0,)),
        levels_of(4, 32, 64, limited=(0, 2)),
        levels_of(2, 4, 16, 64, limited=(1,)),
        levels_of(64),
    ],
    ids=["nodes", "meshes", "pods", "four levels", "flat"],
)
def test_powers_of_two_cost_what_all_pairs_sum_up_to_in_closed_form(levels):
    known = compare(levels, NESTING, count=60)
    assert not generally(known)


@pytest.mark.parametrize(
    ("levels", "stages"),
    [
        (levels_of(4, 48, limited=(0,)), SIXES),
        (levels_of(16, 48), [(48,), (16,) * 3]),
        (levels_of(8, 64, limited=(0,)), [(64,), (16, 32, 16), (8, 48, 8), (24, 40)]),
    ],
    ids=["six", "three", "stages that do not nest"],
)
def test_other_sizes_cost_what_all_pairs_sum_up_to(levels, stages):
    known = compare(levels, stages, count=20)
    assert generally(known)


def compare(levels, stages, count):
    random_numbers = random.Random(11)
    computer = cluster(levels, levels[-1].num_devices // levels[0].num_devices, levels[0].num_devices)
    known, positive = {}, 0
    for _ in range(count):
        current, target = (random_plan(random_numbers.choice(stages), random_numbers) for _ in range(2))
        price_s = switch_plan_s(MODEL, computer, TRAINING, current, target, 0.0, known)
        assert price_s == pytest.approx(switch_by_all_pairs_s(levels, current, target, MODEL), rel=1e-9)
        positive += price_s > 0
    assert positive > count // 2
    return known


def test_three_stages_of_six_nodes_nest_too():
    wide = Strategy(axes=(Axis(AxisKind.DP, 4), Axis(AxisKind.TP, 4)), sharding=Sharding.OPTIMIZER)
    narrow = Strategy(axes=(Axis(AxisKind.TP, 2), Axis(AxisKind.DP, 8)), sharding=Sharding.OPTIMIZER)
    dense = Model(name="dense", hidden_size=128, runs=MODEL.runs[:2])
    levels, known = levels_of(8, 48), {}
    one, other = (
        plan_of_stages([(wide, 2), (wide, 1), (wide, 1)]),
        plan_of_stages([(narrow, 1), (narrow, 2), (wide, 1)]),
    )
    for current, target in ((one, other), (other, one)):
        price_s = switch_plan_s(dense, cluster(levels, 6, 8), TRAINING, current, target, 0.0, known)
        assert price_s == pytest.approx(switch_by_all_pairs_s(levels, current, target, dense), rel=1e-9)
        assert price_s > 0
    assert not generally(known)


def plan_of_stages(stages):
    """`stages`: (strategy, layers)."""
    made, first_layer = [], 0
    for strategy, layers in stages:
        runs = (StageRun(first_layer=first_layer, num_layers=layers, strategy=strategy),)
        made.append(Stage(first_device=len(made) * strategy.num_devices, num_devices=strategy.num_devices, runs=runs))
        first_layer += layers
    dp = stages[0][0].data_parallel_size
    return Plan(
        global_batch_size=96, sequence_length=128, micro_batch_size=24 // dp, num_micro_batches=4, stages=tuple(made)
    )
