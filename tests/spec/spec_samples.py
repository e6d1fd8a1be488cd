"""Sound values to start from, and hypothesis strategies that make more of them."""

from hypothesis import strategies as st

from planner.spec.plan import Plan, Schedule, ScheduleKind, Stage, StageRun
from planner.spec.strategy import Axis, AxisKind, ExpertStrategy, Recompute, Sharding, Strategy

DP2_TP2 = Strategy(axes=(Axis(AxisKind.DP, 2), Axis(AxisKind.TP, 2)))
TP4 = Strategy(axes=(Axis(AxisKind.TP, 4),), sequence_parallel=True)

TWO_STAGES = {
    "global_batch_size": 16,
    "sequence_length": 128,
    "micro_batch_size": 2,
    "num_micro_batches": 4,
    "stages": [
        {
            "first_device": 0,
            "num_devices": 4,
            "runs": [
                {"first_layer": 0, "num_layers": 2, "strategy": {"axes": [["dp", 2], ["tp", 2]]}},
                {
                    "first_layer": 2,
                    "num_layers": 1,
                    "strategy": {
                        "axes": [["dp", 2], ["tp", 2]],
                        "sharding": "optimizer",
                        "recompute": "full",
                        "experts": {"expert_parallel_size": 2, "expert_data_parallel_size": 2},
                    },
                },
            ],
        },
        {
            "first_device": 4,
            "num_devices": 4,
            "runs": [{"first_layer": 3, "num_layers": 3, "strategy": {"axes": [["tp", 4]], "sequence_parallel": True}}],
        },
    ],
}
"""Plain data of a sound plan."""

KINDS = list(AxisKind)


@st.composite
def strategies(draw, num_devices):
    """Strategies over a power of two of devices."""
    kinds = draw(st.permutations(KINDS))
    axes, left = [], num_devices
    for kind in kinds:
        degree = draw(st.sampled_from([2**k for k in range(left.bit_length()) if left % 2**k == 0]))
        if degree > 1:
            axes.append(Axis(kind, degree))
            left //= degree
    if left > 1:
        axes = [Axis(draw(st.sampled_from([AxisKind.DP, AxisKind.TP])), num_devices)]
    kinds = {axis.kind for axis in axes}
    if AxisKind.SDP in kinds and AxisKind.DP not in kinds:
        axes = [axis._replace(kind=AxisKind.DP) if axis.kind is AxisKind.SDP else axis for axis in axes]
    return Strategy(
        axes=tuple(axes),
        sharding=draw(_shardings({axis.kind for axis in axes})),
        sequence_parallel=draw(st.booleans()) and AxisKind.TP in kinds,
        recompute=draw(st.sampled_from(list(Recompute))),
        experts=draw(st.none() | _experts(num_devices)),
        offload=draw(st.booleans()),
    )


def _shardings(kinds):
    if AxisKind.SDP in kinds:
        return st.just(Sharding.FULL)
    return st.sampled_from(list(Sharding) if kinds - {AxisKind.TP} else [Sharding.NONE])


def _experts(num_devices):
    sizes = [2**k for k in range(num_devices.bit_length())]
    pairs = [(ep, etp) for ep in sizes for etp in sizes if num_devices % (ep * etp) == 0]
    return st.sampled_from(pairs).map(
        lambda pair: ExpertStrategy(
            expert_parallel_size=pair[0],
            expert_tensor_parallel_size=pair[1],
            expert_data_parallel_size=num_devices // (pair[0] * pair[1]),
        )
    )


@st.composite
def plans(draw):
    """Plans of up to 4 stages of equal size, interleaved or not, with one or two strategies in each piece."""
    num_stages, per_stage = draw(st.integers(1, 4)), draw(st.sampled_from([1, 2, 4, 8]))
    pieces = draw(st.integers(1, 3)) if num_stages > 1 else 1
    plain = draw(st.sampled_from([ScheduleKind.ONE_F_ONE_B, ScheduleKind.GPIPE, ScheduleKind.ZERO_BUBBLE]))
    runs = [[] for _ in range(num_stages)]
    layer = 0
    for _ in range(pieces):
        for stage in runs:
            for strategy in draw(st.lists(strategies(per_stage), min_size=1, max_size=2, unique_by=repr)):
                num_layers = draw(st.integers(1, 3))
                stage.append(StageRun(first_layer=layer, num_layers=num_layers, strategy=strategy))
                layer += num_layers
    first = runs[0][0].strategy.data_parallel_size
    # Interleaving goes in rounds of stages.
    round_size = num_stages if pieces > 1 else 1
    micro_batch_size, num_micro_batches = 8 * draw(st.integers(1, 3)), round_size * draw(st.integers(1, 5))
    return Plan(
        global_batch_size=micro_batch_size * first * num_micro_batches,
        sequence_length=draw(st.integers(1, 10**6)),
        micro_batch_size=micro_batch_size,
        num_micro_batches=num_micro_batches,
        schedule=Schedule(kind=ScheduleKind.INTERLEAVED if pieces > 1 else plain, virtual_stages=pieces),
        stages=tuple(
            Stage(first_device=number * per_stage, num_devices=per_stage, runs=tuple(stage))
            for number, stage in enumerate(runs)
        ),
    )
