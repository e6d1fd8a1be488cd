"""A machine whose constants are known, and the samples that it would give: times by the formulas of planner.cost."""

from __future__ import annotations

from planner.spec.cluster import Cluster, Device, KernelEfficiency, Level, Link, PeakFlops, Precision, Provenance
from planner.spec.stack import Stack
from profiles.measurement import (
    AttentionSample,
    CollectiveSample,
    ElementwiseSample,
    ElementwiseWork,
    LaunchSample,
    Machine,
    MatmulSample,
    Operation,
    OverlapSample,
    Sample,
)
from profiles.prediction import pairs

INSIDE = Link(bandwidth_bytes_per_s=2e11, latency_s=4e-6, pair_bandwidth_bytes_per_s=1e11)
BETWEEN = Link(bandwidth_bytes_per_s=2.5e10, latency_s=2e-5, pair_bandwidth_bytes_per_s=2.5e10)
MACHINE = Machine(
    device="Known 9000",
    backend="cuda",
    precision=Precision.BF16,
    memory_bytes=80 * 10**9,
    compute_units=100,
    reserve_bytes=10**9,
    torch_version="2.13.0",
    num_devices=16,
    devices_per_node=8,
)
KNOWN = Cluster(
    nodes=2,
    devices_per_node=8,
    device=Device(
        name="known",
        memory_bytes=MACHINE.memory_bytes,
        memory_bandwidth_bytes_per_s=2e12,
        compute_units=MACHINE.compute_units,
        peak_flops_per_s=PeakFlops(fp32=2e13, bf16=3e14),
        efficiency=KernelEfficiency(
            matmul_ratio=1.0,
            matmul_tile=(128, 256),
            half_tile_ratio=0.8,
            misaligned_ratio=0.6,
            matmul_half_depth=200,
            attention_forward_ratio=0.5,
            attention_backward_ratio=0.4,
            memory_ratio=1.0,
            kernel_launch_s=3e-6,
            overlap_slowdown_ratio=1.15,
        ),
        reserve_bytes=MACHINE.reserve_bytes,
        provenance=Provenance.MEASURED,
    ),
    levels=(
        Level(name="node", num_devices=8, link=INSIDE),
        Level(name="cluster", num_devices=16, link=BETWEEN),
    ),
    stack=Stack(name="measured", elementwise_ratio=1.7, optimizer_ratio=1.3, grouped_matmul_ratio=0.7),
)
_SIDES = (512, 1024, 4096, 8192)


def samples(cluster: Cluster = KNOWN, machine: Machine = MACHINE) -> list[Sample]:
    """What the machine would measure."""
    return [_timed(sample, cluster, machine.precision) for sample in _shapes(machine)]


def _shapes(machine: Machine) -> list[Sample]:
    precision = machine.precision
    given = {"precision": precision, "operands": "forward", "time_s": 1.0}
    products = [(rows, columns, depth, 1) for rows in _SIDES for columns in _SIDES for depth in _SIDES]
    # The last is so large that nothing but the rate counts: its rate is the peak.
    products += [(4096, 1025, 4097, 1), (4096, 4096, 4096, 8), (32768, 25600, 2**20, 1)]
    works = [(work, size) for work in ElementwiseWork for size in (2048, 8192)]
    one_way = (ElementwiseWork.STREAM, ElementwiseWork.UPDATE)
    groups = [(2, 1), (8, 1)] + ([(2, 8)] if machine.num_devices > machine.devices_per_node else [])
    sizes = (2**12, 2**20, 2**28)
    return [
        LaunchSample(time_s=1.0),
        *(MatmulSample(rows=r, columns=c, depth=d, groups=g, **given) for r, c, d, g in products),
        MatmulSample(**given | {"precision": Precision.FP32}, rows=8192, columns=8192, depth=8192),
        *(
            AttentionSample(
                precision=precision,
                samples=4,
                num_heads=16,
                head_dim=128,
                sequence_length=tokens,
                forward_s=1.0,
                backward_s=1.0,
            )
            for tokens in (1024, 4096)
        ),
        *(
            ElementwiseSample(
                precision=precision,
                work=work,
                rows=size,
                columns=size,
                forward_s=1.0,
                backward_s=None if work in one_way else 1.0,
            )
            for work, size in [*works, (ElementwiseWork.STREAM, 2**17)]
        ),
        *(
            CollectiveSample(operation=operation, degree=degree, stride=stride, message_bytes=size, time_s=1.0)
            for degree, stride in groups
            for operation in Operation
            for size in sizes
        ),
        OverlapSample(compute_s=2e-3, communication_s=1e-3, both_s=1.0),
    ]


def _timed(sample: Sample, cluster: Cluster, usual: Precision) -> Sample:
    """The sample with the seconds that the formulas say."""
    seconds = [predicted for predicted, _ in pairs(sample, cluster, usual)]
    if isinstance(sample, OverlapSample):
        return sample.model_copy(update={"both_s": seconds[0]})
    if isinstance(sample, ElementwiseSample | AttentionSample):
        return sample.model_copy(update=dict(zip(("forward_s", "backward_s"), seconds, strict=False)))
    return sample.model_copy(update={"time_s": seconds[0]})
