"""CPU milliseconds to price a switch between two plans. By hand: `python benchmarks/bench_switch.py [OTHER_CHECKOUT]`.

With another checkout its times stand beside, and how far its prices differ: `git worktree add ../before REVISION`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from itertools import permutations
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from planner.cost.switch import Known, switch_plan_s
from planner.spec.model import Block, Embedding, Head, Model
from planner.spec.plan import Plan, Schedule, ScheduleKind, Stage, StageRun
from planner.spec.strategy import Axis, AxisKind, ExpertStrategy, Sharding, Strategy
from planner.spec.training import Training
from profiles import cluster_from_shorthand, model_preset, resolve_cluster

TRAINING = Training(global_batch_size=2**20, sequence_length=4096)
Degrees = tuple[int, int, int, int]
"""Stages, tensor, context and expert parallelism."""


class Case(NamedTuple):
    """Plans between which one goes over."""

    what: str
    model: str
    cluster: str
    plans: tuple[Degrees, ...]
    virtual: int = 1
    mixed: bool = False
    """Every other block has full sharding and half the tensor parallelism."""


CASES = (
    Case("dense", "llama-3.1-70b", "8x8:h100-sxm-80g", ((1, 8, 1, 1), (4, 8, 1, 1), (8, 4, 1, 1), (2, 4, 2, 1))),
    Case("MoE", "mixtral-8x7b", "8x8:h100-sxm-80g", ((1, 1, 1, 8), (2, 2, 1, 8), (4, 2, 2, 4), (8, 1, 1, 8))),
    Case("MoE, mixed", "mixtral-8x7b", "8x8:h100-sxm-80g", ((1, 2, 1, 8), (2, 2, 1, 8), (4, 4, 2, 4)), mixed=True),
    Case("MoE, meshes", "mixtral-8x7b", "8x8:mi300x-192g", ((1, 1, 1, 8), (2, 2, 1, 8), (4, 2, 2, 4), (8, 1, 1, 8))),
    Case(
        "MoE, six nodes", "mixtral-8x7b", "6x8:h100-sxm-80g", ((1, 1, 1, 8), (3, 2, 1, 8), (2, 2, 1, 8), (6, 1, 1, 8))
    ),
    Case("MoE", "deepseek-v3", "256x8:h100-sxm-80g", ((4, 1, 1, 32), (8, 2, 1, 64), (16, 4, 1, 64), (32, 1, 1, 64))),
    Case("interleaved", "deepseek-v3", "256x8:h100-sxm-80g", ((4, 1, 1, 32), (8, 2, 1, 64), (16, 4, 2, 64)), virtual=3),
    Case("MoE", "deepseek-v3", "2048x8:h100-sxm-80g", ((1, 8, 1, 64), (8, 1, 1, 64), (16, 8, 4, 128), (32, 2, 1, 64))),
    Case(
        "MoE, mixed", "deepseek-v3", "2048x8:h100-sxm-80g", ((4, 8, 1, 64), (16, 8, 4, 128), (32, 2, 1, 64)), mixed=True
    ),
    Case("dense", "llama-3.1-405b", "2048x8:h100-sxm-80g", ((1, 8, 1, 1), (16, 8, 1, 1), (64, 4, 1, 1), (32, 8, 1, 1))),
)


def main(other: str | None) -> None:
    """Print the table."""
    table = Table("plans", "model", "cluster", "pairs", "CPU ms per pair", "most", "before", "price differs by at most")
    for number, case in enumerate(CASES):
        spent, prices = measured(case)
        before = _measured_by(other, number) if other else None
        differ = max(abs(a - b) / b for a, b in zip(prices, before[1], strict=True) if a != b or b) if before else 0.0
        table.add_row(
            *(case.what, case.model, case.cluster, str(len(spent))),
            f"{1e3 * sum(spent) / len(spent):.2f}",
            f"{1e3 * max(spent):.2f}",
            f"{1e3 * sum(before[0]) / len(before[0]):.1f}" if before else "",
            f"{differ:.1e}" if before else "",
        )
    Console(width=150).print(table)


def measured(case: Case) -> tuple[list[float], list[float]]:
    """CPU seconds and prices of all pairs of plans, with what plans have in common known from a first pass."""
    model, cluster = model_preset(case.model), resolve_cluster(cluster_from_shorthand(case.cluster))
    plans = [plan_of(model, cluster.num_devices, degrees, case) for degrees in case.plans]
    known: Known = {}
    switch_plan_s(model, cluster, TRAINING, plans[0], plans[1], known={})
    spent, prices = [], []
    for current, target in permutations(plans, 2):
        began = time.process_time()
        prices.append(switch_plan_s(model, cluster, TRAINING, current, target, restart_pause_s=0.0, known=known))
        spent.append(time.process_time() - began)
    return spent, prices


def _measured_by(checkout: str, number: int) -> tuple[list[float], list[float]]:
    command = [sys.executable, __file__, "--case", str(number)]
    made = subprocess.run(command, env={**os.environ, "PYTHONPATH": checkout}, check=True, capture_output=True)
    spent, prices = json.loads(made.stdout)
    return spent, prices


def plan_of(model: Model, num_devices: int, degrees: Degrees, case: Case) -> Plan:
    """Stages of equally many devices and about equally many layers."""
    num_stages, tp, cp, ep = degrees
    virtual = case.virtual if num_stages > 1 else 1
    size = num_devices // num_stages
    plain = _strategies(size, tp, cp, ep, Sharding.OPTIMIZER)
    other = _strategies(size, max(1, tp // 2), cp, ep, Sharding.FULL) if case.mixed else plain
    pieces = num_stages * virtual
    ends = [len(model.layers) * piece // pieces for piece in range(pieces + 1)]
    stages = []
    for number in range(num_stages):
        runs: list[StageRun] = []
        for piece in range(number, pieces, num_stages):
            for layer in range(ends[piece], ends[piece + 1]):
                _append(runs, layer, (other if layer % 2 else plain)[_is_moe(model.layers[layer])])
        stages.append(Stage(first_device=number * size, num_devices=size, runs=tuple(runs)))
    dp = stages[0].runs[0].strategy.data_parallel_size
    return Plan(
        global_batch_size=num_devices * 192,
        sequence_length=4096,
        micro_batch_size=num_devices // dp,
        num_micro_batches=192,
        schedule=Schedule(kind=ScheduleKind.INTERLEAVED, virtual_stages=virtual) if virtual > 1 else Schedule(),
        stages=tuple(stages),
    )


def _append(runs: list[StageRun], layer: int, strategy: Strategy) -> None:
    if runs and runs[-1].end_layer == layer and runs[-1].strategy == strategy:
        runs[-1] = runs[-1].model_copy(update={"num_layers": runs[-1].num_layers + 1})
    else:
        runs.append(StageRun(first_layer=layer, num_layers=1, strategy=strategy))


def _strategies(size: int, tp: int, cp: int, ep: int, sharding: Sharding) -> tuple[Strategy, Strategy]:
    """Of dense layers and of MoE layers."""
    sizes = ((AxisKind.DP, size // tp // cp), (AxisKind.CP, cp), (AxisKind.TP, tp))
    axes = tuple(Axis(kind, degree) for kind, degree in sizes if degree > 1)
    dense = Strategy(axes=axes, sharding=sharding, sequence_parallel=tp > 1)
    experts = ExpertStrategy(expert_parallel_size=ep, expert_data_parallel_size=size // ep)
    return dense, dense.model_copy(update={"experts": experts})


def _is_moe(layer: Embedding | Block | Head) -> bool:
    return isinstance(layer, Block) and layer.moe is not None


if __name__ == "__main__":
    if sys.argv[1:2] == ["--case"]:
        print(json.dumps(measured(CASES[int(sys.argv[2])])))
    else:
        main(sys.argv[1] if len(sys.argv) > 1 else None)
