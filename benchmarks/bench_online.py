"""The online stage: CPU milliseconds of a placement and a decision, and the policy on SmartMoE's recorded trace.

Run: .venv/bin/python benchmarks/bench_online.py [samples]. The trace is read from ../shared and left out without it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from planner.cost.balance import imbalance, imbalance_bound, rank_loads
from planner.online import begin, decide, replay, replay_context
from planner.online.placement import first_placement, moves_between, options
from planner.spec.window import Window
from profiles import cluster_from_shorthand, resolve_cluster

TRACE = Path(__file__).parents[2] / "shared" / "data" / "traces" / "gpt_moe_24l_32e_layers_0_11.npz"
CLUSTERS = {4: "1x4:a100-sxm-80g", 8: "1x8:a100-sxm-80g", 16: "2x8:a100-sxm-80g", 32: "4x8:a100-sxm-80g"}


def drawn_loads(kind: str, layers: int, experts: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    if kind == "zipf":
        loads = np.stack([rng.permutation(1.0 / np.arange(1, experts + 1)) for _ in range(layers)])
    else:
        loads = rng.lognormal(0.0, 1.0, (layers, experts))
    return loads / loads.sum(axis=1, keepdims=True)


def milliseconds(work: Callable[[], object], times: int = 5) -> float:
    work()
    taken = []
    for _ in range(times):
        begun = time.process_time()
        work()
        taken.append(time.process_time() - begun)
    return 1e3 * float(np.median(taken))


def placements() -> None:
    print("placement from experts in order, free moves (median of 5)")
    print(
        f"{'layers x experts':>17} {'ranks':>5} {'extra':>5} {'loads':>9} {'ms':>8} "
        f"{'balance':>8} {'bound':>7} {'moves':>6}"
    )
    for layers, experts, ranks, extra in [
        (32, 64, 32, 0),
        (32, 64, 32, 1),
        (12, 32, 8, 1),
        (58, 256, 64, 0),
        (58, 256, 64, 1),
    ]:
        for kind in ("zipf", "lognormal"):
            loads = drawn_loads(kind, layers, experts)
            each = experts // ranks + extra
            before = np.tile(first_placement(experts, ranks, each), (layers, 1))
            spent = milliseconds(lambda: options(loads, ranks, before), 3)  # noqa: B023
            after = options(loads, ranks, before).choose(0.0)
            balance = imbalance(rank_loads(loads, after, ranks))
            bound = imbalance_bound(loads, ranks, each)
            moved = len(moves_between(before, after, ranks))
            print(
                f"{layers:>8} x {experts:<6} {ranks:>5} {extra:>5} {kind:>9} {spent:>8.1f} "
                f"{balance:>8.4f} {bound:>7.4f} {moved:>6}"
            )


def decisions() -> None:
    print("\none decision, estimate() included (median of 20 windows of a drifting load)")
    for layers, experts, ranks, extra in [(12, 32, 8, 0), (32, 64, 32, 0), (32, 64, 32, 1)]:
        loads = drawn_loads("lognormal", layers, experts)
        cluster = resolve_cluster(cluster_from_shorthand(CLUSTERS[ranks]))
        tokens = np.rint(loads * 1e6).astype(int)
        context = replay_context(tokens[None], 2, cluster, ranks, extra)
        state, rng, taken = begin(context), np.random.default_rng(1), []
        for index in range(20):
            loads = loads * rng.lognormal(0.0, 0.05, loads.shape)
            counts = np.rint(1e6 * loads / loads.sum(axis=1, keepdims=True)).astype(int)
            window = Window(index=index, first_step=10 * index, num_steps=10, tokens=tuple(map(tuple, counts.tolist())))
            begun = time.process_time()
            _, state = decide(window, state, context)
            taken.append(time.process_time() - begun)
        print(f"{layers} x {experts}, {ranks} ranks, {extra} extra slots: {1e3 * np.median(taken):.1f} ms")


def recorded(samples: int) -> None:
    if not TRACE.exists():
        print(f"\nno trace at {TRACE.name}: the policy is not replayed")
        return
    with np.load(TRACE) as trace:
        tokens, steps = trace["tokens"][:samples], trace["steps"][:samples]
    print(f"\nSmartMoE's trace, {len(tokens)} samples of 10 steps, placed from earlier windows only")
    print(
        f"{'ranks':>5} {'extra':>5} {'policy':>10} {'imbalance':>10} {'moved':>7} "
        f"{'decisions':>9} {'s/step':>8} {'total s':>9}"
    )
    for ranks, extra in [(4, 0), (8, 0), (16, 0), (4, 1), (8, 1), (8, 2), (16, 1)]:
        cluster = resolve_cluster(cluster_from_shorthand(CLUSTERS[ranks]))
        outcome = replay(tokens, steps, replay_context(tokens, 2, cluster, ranks, extra))
        for name, policy in outcome["policies"].items():
            print(
                f"{ranks:>5} {extra:>5} {name:>10} {policy['imbalance_mean']:>10.4f} {policy['moved_experts']:>7} "
                f"{policy['decisions']:>9} {policy['step_time_s_mean']:>8.4f} {policy['total_time_s']:>9.1f}"
            )


if __name__ == "__main__":
    placements()
    decisions()
    recorded(int(sys.argv[1]) if len(sys.argv) > 1 else 501)
