"""The policy's totals: on loads made to hurt it, and where a job is young and its loads drift most.

The best fixed placement knows the whole load in advance, costs nothing and is in force from the first step on. So a
policy loses to it what its own moves cost, and all of the first window, before which nothing is known. Over the first
50 windows of a trace that is told apart here; over whole traces see bench_online.py.

Run: .venv/bin/python benchmarks/bench_policy.py. SmartMoE's record is read from ../shared.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
from table import Row, row, show

from planner.online import Pricing, Trace, replay_context, trace_of
from planner.online.recorded.accounts import outcome
from planner.online.recorded.contestants import trimtab
from planner.online.recorded.course import Course, Game, game_of
from planner.online.recorded.yardsticks import best_static
from planner.spec.placement import TokenSplit
from profiles import cluster_from_shorthand, resolve_cluster

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "online"))
from adversaries import ADVERSARIES, CHEAP, DEAR, play, spiteful  # noqa: E402 - games that the tests play

THEIRS = ROOT.parent / "shared" / "data" / "traces" / "gpt_moe_24l_32e_layers_0_11.npz"
OURS = ROOT / "profiles" / "traces" / "byte-moe-6x32.npz"
FIXED_AIM = 1.5
YOUNG_WINDOWS = 50
RANKS = 8
CLUSTER = "1x8:a100-sxm-80g"
BATCHES = {"SmartMoE's trace": None, "own trace": 128}
"""Samples per step; None: as recorded."""


def rows() -> list[Row]:
    """Adversaries, then young jobs."""
    blind = dict(ADVERSARIES)
    seeing = {"heats rank 0": spiteful(every_rank=False), "heats each rank in turn": spiteful(every_rank=True)}
    hotter = {
        f"heats {which} x {by:g}": spiteful(every_rank, by)
        for which, every_rank in (("rank 0", False), ("each rank in turn", True))
        for by in (8.0, 20.0, 100.0)
    }
    return [
        *of_adversaries("loads that do not look at the placement", blind),
        *of_adversaries("an adversary that sees the placement, hot experts x 4", seeing),
        *of_adversaries("the same, hotter", hotter),
        *of_young_jobs(),
    ]


def of_adversaries(what: str, loads: dict[str, object]) -> list[Row]:
    """The worst of all games against the best fixed placement, and how many keep what is proved."""
    games = {
        f"{name}, windows of {steps} steps, {cost} moves": play(load, 120, steps, run)
        for name, load in loads.items()
        for cost, run in (("cheap", CHEAP), ("dear", DEAR))
        for steps in (1, 10, 100)
    }
    ratios = {name: game.total_s / game.best_fixed_s for name, game in games.items()}
    worst = max(ratios, key=lambda name: ratios[name])
    within = sum(game.stays_within_what_is_proved() for game in games.values())
    return [
        row(f"{what}, {len(games)} games: total / best fixed, worst ({worst})", ratios[worst], FIXED_AIM),
        Row(f"{what}: games within the stated bounds", str(len(games)), str(within), within == len(games)),
    ]


def of_young_jobs() -> list[Row]:
    """Beside the best fixed placement, for each trace, way to split tokens, and number of extra slots."""
    found = []
    for name, path in (("SmartMoE's trace", THEIRS), ("own trace", OURS)):
        if not path.exists():
            found.append(Row(name, "", f"{path.name} is not there", None))
            continue
        trace = young(path)
        for extra in (0, 1, 2):
            for split in TokenSplit if extra else (TokenSplit.EVEN,):
                totals = beside_best_fixed(trace, extra, split, BATCHES[name])
                what = f"{name}, first {YOUNG_WINDOWS} windows, +{extra}, {split} split: total / best fixed"
                said = f"{totals.whole:.4f}; from the first decision on {totals.decided:.4f}; steps {totals.steps:.4f}"
                found.append(Row(what, "", said, None))
    return found


def young(path: Path) -> Trace:
    """The beginning of a trace."""
    with np.load(path) as data:
        arrays = {name: data[name] for name in data.files}
    return trace_of(
        {name: array[:YOUNG_WINDOWS] if array.ndim and name != "top_k" else array for name, array in arrays.items()}
    )


class Totals(NamedTuple):
    """Ours over those of the best fixed placement."""

    whole: float
    decided: float
    """Without the first window, before which nobody has seen a load."""
    steps: float
    """The same, without what moves cost."""


def beside_best_fixed(trace: Trace, extra: int, split: TokenSplit, batch: int | None) -> Totals:
    """The policy's totals."""
    cluster = resolve_cluster(cluster_from_shorthand(CLUSTER))
    context = replay_context(
        trace.step_tokens, trace.top_k or 2, cluster, RANKS, extra, token_split=split, global_batch_size=batch
    )
    game = game_of(trace, 1, Pricing(context))
    ours, best = trimtab(game, _silent), best_static(game, _silent)
    (first_s, whole_s, pause_s), (best_first_s, best_whole_s, _) = _seconds(ours, game), _seconds(best, game)
    decided_s, best_decided_s = whole_s - first_s, best_whole_s - best_first_s
    return Totals(whole_s / best_whole_s, decided_s / best_decided_s, (decided_s - pause_s) / best_decided_s)


def _seconds(course: Course, game: Game) -> tuple[float, float, float]:
    """(Steps of the first window, the whole total, its pauses.)"""
    whole = outcome(course, game)
    loads = game.loads._replace(
        shares=game.loads.shares[:1], served=game.loads.served[:1], lengths=game.loads.lengths[:1]
    )
    first = outcome(Course(course.standings[:1]), game._replace(windows=game.windows[:1], loads=loads))
    return first["total_time_s"], whole["total_time_s"], whole["pause_s"]


def _silent(part: float) -> None:
    """Nobody waits for progress."""


if __name__ == "__main__":
    show(rows())
