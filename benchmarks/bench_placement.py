"""Placement and token split: CPU time and balance beside their aims and beside EPLB's rule, and gaps to exact optima.

Run: OMP_NUM_THREADS=1 .venv/bin/python benchmarks/bench_placement.py. SmartMoE's record is read from ../shared and left
out without it. A placement's time is that of the placement and of its split, all layers together.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from table import Row, row, show

from planner.cost.balance import Floats, Indices, hottest_rank_bound, imbalance, rank_loads
from planner.online.placement.copies import copies_between
from planner.online.placement.hedge import suited
from planner.online.placement.options import afresh, afresh_with_split, first_placement, options
from planner.online.placement.split import StepSplit, best_split
from planner.online.recorded.rivals.eplb import balanced_replicas
from planner.spec.placement import TokenSplit

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "online"))
from exact_placements import exact_hottest_split, least_hottest  # noqa: E402 - the oracles of the tests

TRACE = ROOT.parent / "shared" / "data" / "traces" / "gpt_moe_24l_32e_layers_0_11.npz"
RECENT = (0.6, 0.25, 0.15)
"""Weights of the last three windows in the load that the split of a window is made for."""
REMEMBERED = 8
"""Windows that the placement for the split of a step is made from."""
SETTLED = 20
"""Windows after which the trace's loads no longer jump; shown beside the mean over all."""


def rows() -> list[Row]:
    """Numbers of the placement alone; the policy's own are in bench_online.py."""
    found = []
    for shape, at_most_ms, even_aims, split_aim in (
        ((58, 256, 64, 5), 40.0, (1.019, 1.015), 1.005),
        ((32, 64, 32, 3), 5.0, (None, None), 1.02),
    ):
        for kind, even_aim in zip(("zipf", "lognormal"), even_aims, strict=True):
            found += of_shape(shape, kind, at_most_ms, even_aim, split_aim)
    found += of_steps()
    if TRACE.exists():
        with np.load(TRACE) as data:
            tokens = data["tokens"].astype(np.float64)
        shares = tokens / tokens.sum(axis=-1, keepdims=True)
        for extra, window_aim, step_aim in ((1, 1.13, 1.05), (2, 1.09, 1.01)):
            found += of_trace(shares, extra, window_aim, step_aim)
    else:
        found.append(Row("SmartMoE's trace", "", f"{TRACE.name} is not there", None))
    return found + of_oracles()


def of_shape(
    shape: tuple[int, int, int, int], kind: str, at_most_ms: float, even_aim: float | None, split_aim: float
) -> list[Row]:
    """Time and balance of a placement made afresh, with even parts and with the best split."""
    layers, experts, ranks, each = shape
    loads = drawn_loads(kind, layers, experts)
    what = f"{layers} x {experts}, {ranks * each} slots, {ranks} ranks, {kind}: "
    theirs = imbalance(rank_loads(loads, balanced_replicas(loads, ranks, each), ranks))
    even_ms, even = timed(lambda: afresh(loads, ranks, each))
    split_ms, (split, parts) = timed(lambda: afresh_with_split(loads, ranks, each))
    in_order = np.tile(first_placement(experts, ranks, each), (layers, 1))
    drifted = loads * np.random.default_rng(1).lognormal(0.0, 0.1, loads.shape)
    paths = [
        timed(lambda start=start, seen=seen, mode=mode: options(seen, ranks, start, mode))[0]
        for start, seen, mode in (
            (in_order, loads, TokenSplit.EVEN),
            (even, drifted, TokenSplit.EVEN),
            (in_order, loads, TokenSplit.STEP),
            (split, drifted, TokenSplit.STEP),
        )
    ]
    even_balance = imbalance(rank_loads(loads, even, ranks))
    split_balance = imbalance(rank_loads(loads, split, ranks, parts))
    return [
        row(f"{what}place, even parts", even_ms, at_most_ms, "ms", 1),
        row(f"{what}place and split", split_ms, at_most_ms, "ms", 1),
        Row(f"{what}options, even parts: experts in order; loads drifted by 10 %", "", in_ms(paths[:2]), None),
        Row(f"{what}options, split tokens: experts in order; loads drifted by 10 %", "", in_ms(paths[2:]), None),
        limited(f"{what}balance, even parts (EPLB {theirs:.4f})", even_balance, even_aim),
        row(f"{what}balance, best split", split_balance, split_aim, digits=4),
    ]


def in_ms(times: list[float]) -> str:
    return "; ".join(f"{time_ms:.1f} ms" for time_ms in times)


def of_steps() -> list[Row]:
    """Microseconds of one layer in one step under drifted loads: the split alone; the split and all sources' shares."""
    found = []
    for experts, ranks, each, at_most_us in ((32, 8, 5, 100.0), (32, 8, 6, 100.0), (256, 64, 5, 1000.0)):
        for kind in ("zipf", "lognormal"):
            loads = drawn_loads(kind, 12, experts)
            slots = afresh(loads, ranks, each, TokenSplit.STEP)
            drifted = np.rint(1e6 * loads * np.random.default_rng(1).lognormal(0.0, 0.1, loads.shape)).astype(np.int64)
            parts_us, shares_us = zip(
                *(of_step(*layer, ranks) for layer in zip(drifted, slots, strict=True)), strict=True
            )
            what = f"split of a step, {experts} experts, {ranks} ranks, {ranks * each} slots, {kind}"
            found.append(row(f"{what}: mean", float(np.mean(parts_us)), at_most_us, "us", 0))
            found.append(row(f"{what}: slowest layer", max(parts_us), at_most_us, "us", 0))
            found.append(
                row(f"{what}, whole tokens of all sources: mean", float(np.mean(shares_us)), at_most_us, "us", 0)
            )
    return found


def of_step(counts: np.ndarray, slots: Indices, ranks: int) -> tuple[float, float]:
    split, listed = StepSplit(slots.tolist(), ranks), counts.tolist()
    by_source = np.stack([counts // ranks] * ranks)
    return 1e3 * timed(lambda: split.parts(listed))[0], 1e3 * timed(lambda: split.shares_of_sources(by_source))[0]


def of_trace(shares: Floats, extra: int, window_aim: float, step_aim: float) -> list[Row]:
    """SmartMoE's trace on 8 ranks, each window placed and split from those before it, moves for nothing."""
    ranks, each = 8, 4 + extra
    current = np.tile(first_placement(32, ranks, each), (shares.shape[1], 1))
    theirs, of_steps, moved, moved_of_steps, their_moves = current, current, 0, 0, 0
    balances = []
    for now in range(1, len(shares)):
        found = options(shares[now - 1], ranks, current, TokenSplit.WINDOW).choose(0.0)
        moved += len(copies_between(current, found, ranks).layer)
        current = found
        found = suited(shares[max(0, now - REMEMBERED) : now], ranks, of_steps, TokenSplit.STEP)
        moved_of_steps += len(copies_between(of_steps, found, ranks).layer)
        of_steps = found
        packed = balanced_replicas(shares[now - 1], ranks, each)
        their_moves += newcomers(theirs, packed, ranks)
        theirs = packed
        recent = np.average([shares[max(0, now - back)] for back in (1, 2, 3)], axis=0, weights=RECENT)
        placed = ((current, recent), (of_steps, shares[now]))
        split = [
            imbalance(rank_loads(shares[now], slots, ranks, best_split(loads, slots, ranks))) for slots, loads in placed
        ]
        balances.append([*split, imbalance(rank_loads(shares[now], theirs, ranks))])
    window, step, beside = np.mean(balances, axis=0)
    settled = np.mean(balances[SETTLED:], axis=0)
    what = f"SmartMoE's trace, 8 ranks, +{extra}: "
    return [
        row(
            f"{what}split per window (EPLB {beside:.3f}; from window {SETTLED} on {settled[0]:.3f})", window, window_aim
        ),
        row(f"{what}split per step (from window {SETTLED} on {settled[1]:.4f})", step, step_aim, digits=4),
        row(f"{what}moves ({moved:,}) / EPLB's ({their_moves:,}), per window", moved / their_moves, 0.5, digits=4),
        row(f"{what}moves ({moved_of_steps:,}), per step", moved_of_steps / their_moves, 0.5, digits=4),
    ]


def of_oracles() -> list[Row]:
    """Gaps to the MILP (placement and split, from experts in order) and to the LP (split alone)."""
    found = []
    for experts, ranks, each in ((6, 3, 3), (8, 4, 3), (10, 4, 3)):
        loads = np.rint(100 * np.random.default_rng(2).lognormal(0, 1, (10, experts)))
        start = np.tile(first_placement(experts, ranks, each), (10, 1))
        slots = options(loads, ranks, start, TokenSplit.WINDOW).choose(0.0)
        exact = np.array([exact_hottest_split(one, ranks, each) for one in loads])
        ours = rank_loads(loads, slots, ranks, best_split(loads, slots, ranks)).max(axis=1)
        below = exact / hottest_rank_bound(loads, ranks, each)
        what = f"{experts} experts, {ranks} ranks, {each} slots each"
        found.append(gap(f"gap to the MILP, {what}", ours / exact - 1))
        found.append(gap(f"gap of the MILP to the bound, {what}", below - 1))
    loads = drawn_loads("lognormal", 6, 256)
    slots = afresh(loads, 64, 5, TokenSplit.STEP)
    drifted = loads * np.random.default_rng(5).lognormal(0, 0.1, loads.shape)
    ours = rank_loads(drifted, slots, 64, best_split(drifted, slots, 64)).max(axis=1)
    least = np.array([least_hottest(*layer, 64) for layer in zip(drifted, slots, strict=True)])
    return [*found, gap("gap to the LP, split of 256 experts on 64 ranks", ours / least - 1)]


def gap(what: str, gaps: Floats) -> Row:
    return Row(what, "", f"mean {100 * gaps.mean():.2f} %, most {100 * gaps.max():.2f} %", None)


def limited(what: str, measured: float, at_most: float | None) -> Row:
    return Row(what, "", f"{measured:.4f}", None) if at_most is None else row(what, measured, at_most, digits=4)


def newcomers(before: Indices, after: Indices, ranks: int) -> int:
    """Experts that stand on ranks that they did not stand on."""
    pairs = [
        {
            (layer, slot * ranks // row.size, expert)
            for layer, row in enumerate(slots)
            for slot, expert in enumerate(row)
        }
        for slots in (before, after)
    ]
    return len(pairs[1] - pairs[0])


def drawn_loads(kind: str, layers: int, experts: int) -> Floats:
    rng = np.random.default_rng(0)
    if kind == "zipf":
        loads = np.stack([rng.permutation(1.0 / np.arange(1, experts + 1)) for _ in range(layers)])
    else:
        loads = rng.lognormal(0.0, 1.0, (layers, experts))
    return np.asarray(loads / loads.sum(axis=1, keepdims=True), dtype=np.float64)


def timed(work: Callable[[], Any], times: int = 5) -> tuple[float, Any]:
    """(CPU milliseconds, the median of some runs after one more; what it gave.)"""
    result = work()
    taken = []
    for _ in range(times):
        begun = time.process_time()
        work()
        taken.append(time.process_time() - begun)
    return 1e3 * float(np.median(taken)), result


if __name__ == "__main__":
    show(rows())
