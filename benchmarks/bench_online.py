"""The online stage's numbers beside their aims, in one table: what each part measures.

Run: make bench-online; or .venv/bin/python benchmarks/bench_online.py [PART …]. Each part measures in a module of its
own, bench_PART.py (`rows`); here it is the policy on recorded loads. SmartMoE's record is read from ../shared.
"""

from __future__ import annotations

import importlib
import sys
import time
from pathlib import Path

import numpy as np
from table import Row, row, show

from planner.online import Trace, replay, replay_context, trace_of
from planner.spec.placement import TokenSplit
from profiles import cluster_from_shorthand, resolve_cluster

ROOT = Path(__file__).parents[1]
THEIRS = ROOT.parent / "shared" / "data" / "traces" / "gpt_moe_24l_32e_layers_0_11.npz"
OURS = ROOT / "profiles" / "traces" / "byte-moe-6x32.npz"
RANKS = 8
CLUSTER = "1x8:a100-sxm-80g"
BATCH = 128
"""Samples per step that our own trace is replayed with: in its own steps of 1,024 tokens no move pays."""
EVEN_AIMS = {1: (1.13, 1.05), 2: (1.09, 1.01)}
"""By extra slots per rank: imbalance with the split of the window, and of the step."""
MOVES_AIM, HINDSIGHT_AIM, STATIC_AIM = 0.5, 1.05, 1.0


def rows() -> list[Row]:
    """The policy on recorded loads."""
    found = []
    for name, path, batch in (("SmartMoE's trace", THEIRS, None), ("own trace", OURS, BATCH)):
        if path.exists():
            for extra in EVEN_AIMS:
                found += of_trace(f"{name}, {RANKS} ranks, +{extra}: ", read(path), extra, batch)
        else:
            found.append(Row(name, "", f"{path.name} is not there", None))
    return found


def read(path: Path) -> Trace:
    with np.load(path) as data:
        return trace_of(dict(data))


def of_trace(what: str, trace: Trace, extra: int, batch: int | None) -> list[Row]:
    """Balance, moves and time of the policy, beside EPLB, hindsight and the best fixed placement."""
    cluster = resolve_cluster(cluster_from_shorthand(CLUSTER))
    tokens, top_k = trace.step_tokens, trace.top_k or 2
    by_window, by_step = (
        replay_context(tokens, top_k, cluster, RANKS, extra, token_split=split, global_batch_size=batch)
        for split in (TokenSplit.WINDOW, TokenSplit.STEP)
    )
    found = replay(trace, by_window, ("trimtab", "static", "eplb", "best-static", "hindsight"))["policies"]
    in_steps = replay(trace, by_step, ("trimtab", "best-static"))["policies"]
    ours, eplb = found["trimtab"], found["eplb"]
    window_aim, step_aim = EVEN_AIMS[extra]
    total_s = {name: outcome["total_time_s"] for name, outcome in found.items()}
    return [
        row(f"{what}split per window (EPLB {eplb['imbalance_mean']:.3f})", ours["imbalance_mean"], window_aim),
        row(f"{what}split per step", in_steps["trimtab"]["imbalance_mean"], step_aim),
        row(
            f"{what}moves ({ours['moved_experts']:,}) / EPLB's ({eplb['moved_experts']:,})",
            ours["moved_experts"] / eplb["moved_experts"],
            MOVES_AIM,
        ),
        row(f"{what}total time / hindsight", total_s["trimtab"] / total_s["hindsight"], HINDSIGHT_AIM),
        row(f"{what}total time / best static", total_s["trimtab"] / total_s["best-static"], STATIC_AIM),
        row(
            f"{what}split per step, total time / best static",
            in_steps["trimtab"]["total_time_s"] / in_steps["best-static"]["total_time_s"],
            STATIC_AIM,
        ),
    ]


def parts() -> list[str]:
    """The benchmarks with rows for this table."""
    files = sorted((ROOT / "benchmarks").glob("bench_*.py"))
    return [file.stem.removeprefix("bench_") for file in files if "\ndef rows(" in file.read_text(encoding="utf-8")]


def main(chosen: list[str]) -> None:
    found: list[Row] = []
    for part in chosen:
        began = time.monotonic()
        found += importlib.import_module(f"bench_{part}").rows()
        print(f"{part}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    show(found)


if __name__ == "__main__":
    main(sys.argv[1:] or parts())
