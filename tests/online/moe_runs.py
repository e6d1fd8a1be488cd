"""Small runs for the tests of the online stage: contexts, windows, a price that is nothing but imbalance."""

from __future__ import annotations

from itertools import combinations

import numpy as np

from planner.cost.balance import imbalance, rank_loads
from planner.online import replay_context
from planner.spec.cluster import Cluster, Device, KernelEfficiency, Level, Link, PeakFlops, Provenance
from planner.spec.estimate import Estimate
from planner.spec.placement import Placement
from planner.spec.run import RunContext
from planner.spec.window import Window


def cluster(nodes: int = 1, devices_per_node: int = 8, bandwidth: float = 1e11) -> Cluster:
    """Round numbers: 1e15 FLOP/s, 100 GB/s in a node unless told, 10 GB/s between nodes."""
    efficiency = KernelEfficiency(
        matmul_ratio=0.7,
        attention_forward_ratio=0.5,
        attention_backward_ratio=0.4,
        memory_ratio=0.8,
        kernel_launch_s=5e-6,
    )
    device = Device(
        name="round",
        memory_bytes=80 * 10**9,
        memory_bandwidth_bytes_per_s=2e12,
        compute_units=100,
        peak_flops_per_s=PeakFlops(fp32=1e14, fp16=1e15, bf16=1e15),
        efficiency=efficiency,
        reserve_bytes=0,
        provenance=Provenance.DATASHEET,
    )
    node = Level(name="node", num_devices=devices_per_node, link=Link(bandwidth_bytes_per_s=bandwidth, latency_s=1e-5))
    network = Level(
        name="network", num_devices=nodes * devices_per_node, link=Link(bandwidth_bytes_per_s=1e10, latency_s=2e-5)
    )
    return Cluster(
        nodes=nodes, devices_per_node=devices_per_node, device=device, levels=(node, network) if nodes > 1 else (node,)
    )


def run_context(layers: int, experts: int, ranks: int, extra_slots: int = 0, bandwidth: float = 1e11) -> RunContext:
    """One plan with `ranks` expert-parallel ranks on as many devices."""
    tokens = np.full((1, layers, experts), 1024)
    return replay_context(tokens, 1, cluster(1, ranks, bandwidth), ranks, extra_slots)


def window(index: int, loads: object, num_steps: int = 10, tokens: int = 100_000, **also: object) -> Window:
    """A window whose counts are `loads` [layers][experts], scaled to about `tokens` a layer."""
    shares = np.asarray(loads, dtype=np.float64)
    shares = shares / shares.sum(axis=1, keepdims=True)
    counts = np.rint(shares * tokens).astype(int)
    rows = tuple(map(tuple, counts.tolist()))
    return Window.model_validate(
        {"index": index, "first_step": index * num_steps, "num_steps": num_steps, "tokens": rows, **also}
    )


def imbalance_price(model, cluster, training, plan, workload, placement) -> Estimate:
    """One second that no load changes and one for experts at balance: convex in the load, exact to check."""
    layers = len(model.moe_layers)
    experts = model.moe(model.moe_layers[0]).num_experts
    shares = np.array([workload.shares(layer, experts) for layer in range(layers)])
    placement = placement or Placement.contiguous([experts] * layers, 1)
    split = None if placement.split is None else np.array(placement.split)
    step = 1.0 + imbalance(rank_loads(shares, np.array(placement.layers), placement.num_ranks, split))
    return estimate_of(plan.id, workload.name, step)


def estimate_of(plan_id: str, workload: str, step_time_s: float) -> Estimate:
    """An estimate that says nothing but its step time."""
    return Estimate(
        plan_id=plan_id,
        workload=workload,
        step_time_s=step_time_s,
        tokens_per_s=1.0,
        tokens_per_s_per_device=1.0,
        tflops_per_device=1.0,
        mfu=0.5,
        time={"step": step_time_s},
        stages=(),
        fits=True,
        provenance=Provenance.DATASHEET,
    )


def all_assignments(experts: int, ranks: int) -> list[tuple[int, ...]]:
    """Every way to give each rank equally many of the experts, one slot each; ranks are interchangeable."""
    each = experts // ranks

    def fill(left: tuple[int, ...]) -> list[tuple[int, ...]]:
        if not left:
            return [()]
        first, rest = left[0], left[1:]
        return [
            (first, *chosen, *tail)
            for chosen in combinations(rest, each - 1)
            for tail in fill(tuple(expert for expert in rest if expert not in chosen))
        ]

    return fill(tuple(range(experts)))
