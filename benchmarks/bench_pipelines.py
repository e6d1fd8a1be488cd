"""How far the closed forms of pipelines are from running them event by event. By hand: `python
benchmarks/bench_pipelines.py`, two minutes."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from itertools import product

from rich.console import Console
from rich.table import Table

from planner.cost.estimate import stage_paces
from planner.cost.pipeline import Pace, step_s
from planner.cost.timeline import even_pieces, timeline
from planner.search import search
from planner.spec.plan import Schedule, ScheduleKind
from planner.spec.request import Options
from planner.spec.training import Training
from profiles import cluster_from_shorthand, model_preset, resolve_cluster

Draw = Callable[[random.Random], Pace]
STARTS, STEPS = 12, 20
"""Pipelines that the search for the worst begins with, and changes of one stage that it tries on each."""


def alike(multiple: float) -> Draw:
    """Stages of one recipe: backward takes the same multiple of forward."""
    return lambda rng: Pace(1.0, multiple, 0.0, 0.9 * min(1.0, multiple / 2))


def recomputing(rng: random.Random) -> Pace:
    """A stage that recomputes all, and puts nothing off, or little."""
    full = rng.random() < 0.4
    return Pace(1.0, 3.0, 0.0) if full else Pace(1.0, rng.uniform(2.0, 2.4), 0.0, 0.9)


def any_passes(rng: random.Random) -> Pace:
    """A stage whose backward takes one to three times its forward."""
    multiple = rng.uniform(1.0, 3.0)
    return Pace(1.0, multiple, 0.0, min(1.0, multiple / 2) * rng.random())


def error_ratio(schedule: Schedule, paces: list[Pace], count: int) -> float:
    run_s = timeline(schedule, even_pieces(paces, schedule.virtual_stages), count).last_end_s
    return step_s(schedule, paces, count) / run_s - 1.0


def stage(rng: random.Random, draw: Draw, spread: float) -> Pace:
    pace = draw(rng)
    longer = rng.uniform(1.0, 1.0 + spread) / (pace.forward_s + pace.backward_s)
    return Pace(*(seconds * longer for seconds in pace))


def worst(rng: random.Random, kind: ScheduleKind, recipe: str, spread: float, few: bool, sign: int) -> float:
    """The largest error in one direction that climbing finds."""
    found = 0.0
    for _ in range(STARTS):
        stages = rng.choice([2, 4, 8])
        virtual = rng.choice([2, 4]) if kind is ScheduleKind.INTERLEAVED else 1
        count = stages * rng.choice([2, 4, 8])
        if few:
            count = stages if virtual > 1 else rng.randint(1, stages)
        draw = {"alike": alike(rng.uniform(1.0, 3.0)), "recomputing": recomputing, "any": any_passes}[recipe]
        schedule = Schedule(kind=kind, virtual_stages=virtual)
        paces = [stage(rng, draw, spread) for _ in range(stages)]
        error = sign * error_ratio(schedule, paces, count)
        for _ in range(STEPS):
            changed = [*paces]
            changed[rng.randrange(stages)] = stage(rng, draw, spread)
            other = sign * error_ratio(schedule, changed, count)
            if other >= error:
                paces, error = changed, other
        found = max(found, error)
    return found


def random_pipelines() -> Table:
    rng = random.Random(0)
    table = Table("schedule", "stages", "longest over shortest", "micro-batches", "too long", "too short")
    kinds = (ScheduleKind.ONE_F_ONE_B, ScheduleKind.INTERLEAVED, ScheduleKind.ZERO_BUBBLE, ScheduleKind.GPIPE)
    for kind, recipe, spread, few in product(kinds, ("alike", "recomputing", "any"), (0.1, 0.5), (False, True)):
        errors = [f"{worst(rng, kind, recipe, spread, few, sign):.1%}" for sign in (1, -1)]
        table.add_row(kind.value, recipe, f"{1 + spread:.1f}", "m <= p" if few else "m >= 2 p", *errors)
    return table


def found_plans() -> Table:
    table = Table("model", "plan", "step s", "closed form over timeline")
    for name, cluster_text, batch in (
        ("llama-3.1-70b", "8x8:h100-sxm-80g", 256),
        ("gpt-3-175b", "8x8:a100-sxm-80g", 256),
    ):
        cluster = resolve_cluster(cluster_from_shorthand(cluster_text))
        question = (model_preset(name), cluster, Training(global_batch_size=batch, sequence_length=2048))
        for kind in ScheduleKind:
            options = Options(schedules=(kind,), effort_limit=2_000_000_000)
            for entry in search(*question, options).plans:
                plan = entry.plan
                if len(plan.stages) > 1:
                    paces = [pace._replace(once_s=0.0) for pace in stage_paces(*question, plan)]
                    error = error_ratio(plan.schedule, paces, plan.num_micro_batches)
                    table.add_row(name, plan.summary, f"{entry.estimate.step_time_s:.2f}", f"{error:+.2%}")
    return table


def speed() -> Table:
    table = Table("stages", "micro-batches", "virtual stages", "passes", "CPU s")
    for stages, count, virtual in ((16, 64, 1), (64, 512, 1), (64, 512, 8)):
        kind = ScheduleKind.INTERLEAVED if virtual > 1 else ScheduleKind.ONE_F_ONE_B
        began = time.process_time()
        found = timeline(
            Schedule(kind=kind, virtual_stages=virtual), even_pieces([Pace(1.0, 2.0, 0.0)] * stages, virtual), count
        )
        passes = sum(1 for _ in found.passes())
        table.add_row(*map(str, (stages, count, virtual, passes)), f"{time.process_time() - began:.3f}")
    return table


def main() -> None:
    console = Console(width=160)
    for made in (speed, random_pipelines, found_plans):
        console.print(made())


if __name__ == "__main__":
    main()
