"""The search under one workload: bound every family, then solve them in the order of their bounds.

A family whose bound is no better than the best plan so far cannot hold a better one, so when the next bound is no
better the best plan is optimal within the declared space; when time runs out, the least open bound is what is left.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from planner.search.bounds import Bounds
from planner.search.families import Family
from planner.search.instances import Group, Instance, Instances, groups
from planner.search.partition import solve_pipeline
from planner.search.pool import Candidate, Pool
from planner.spec.errors import NoPlanFitsError

Checkpoint = Callable[[float, str], None]
"""Told the share of this exploration that is done and what goes on; may raise to stop it."""

ALTERNATIVES = 16
"""Alternatives handed to the shortlist; it chooses a few of them."""


class Explored(NamedTuple):
    """What the search under one workload found."""

    best: Candidate
    lower_bound_per_sample_s: float
    """No plan of the space is faster; equal to the best one's when that is optimal."""
    solved: int
    """Families solved, rather than excluded by their bound."""
    alternatives: tuple[Candidate, ...]
    """The fastest uniform plan for each set of degrees, fastest first."""
    bounds_per_sample_s: dict[Family, float]
    """No plan of the family is faster."""


class _Open(NamedTuple):
    """An instance that may still hold a better plan; the least bound comes first, of equals the first made."""

    bound_per_sample_s: float
    order: int
    instance: Instance


def explore(
    instances: Instances,
    families: Sequence[Family],
    pool: Pool,
    checkpoint: Checkpoint,
    out_of_time: Callable[[], bool],
) -> Explored:
    """Search the families exactly; raises NoPlanFitsError with the nearest miss, and what the checkpoint raises.

    Where no strategy can cut the batch at all, that is an InputError.

    Out of time, families that are bounded but not solved are left open; bounding them all is part of any answer.
    """
    waiting = _bound(instances, groups(families), pool, checkpoint)
    bounds: dict[Family, float] = {}
    for found in waiting:
        family = found.instance.family
        bounds[family] = min(found.bound_per_sample_s, bounds.get(family, float("inf")))
    heapq.heapify(waiting)
    total, solved = len(waiting), 0
    while waiting and not (pool.best and waiting[0].bound_per_sample_s >= pool.best.per_sample_s):
        if out_of_time() and pool.best:
            break
        instance = heapq.heappop(waiting).instance
        share = 0.5 + 0.5 * solved / total
        checkpoint(share, f"solving {_name(instance.family)}")
        solve(instance, pool, partial(checkpoint, share, f"solving {_name(instance.family)}"), exact=True)
        solved += 1
    if pool.best is None:
        miss = pool.nearest_miss()
        raise NoPlanFitsError(miss) if miss else instances.no_strategy()
    bound = min([pool.best.per_sample_s, *(found.bound_per_sample_s for found in waiting)])
    return Explored(pool.best, bound, solved, pool.alternatives(ALTERNATIVES), bounds)


def glance(
    instances: Instances,
    families: Sequence[Family],
    pool: Pool,
    checkpoint: Checkpoint,
    out_of_time: Callable[[], bool],
) -> tuple[Candidate, ...]:
    """Search the families quickly, without a certificate: uniform plans, then narrow passes in the order of bounds.

    The best plan, if any fits, and alternatives.
    """
    waiting = sorted(_bound(instances, groups(families), pool, checkpoint))
    for number, found in enumerate(waiting):
        if out_of_time() or (pool.best and found.bound_per_sample_s >= pool.best.per_sample_s):
            break
        checkpoint(0.5 + 0.5 * number / len(waiting), f"trying {_name(found.instance.family)}")
        solve(found.instance, pool, lambda: None, exact=False)
    best = (pool.best,) if pool.best else ()
    return (*best, *pool.alternatives(ALTERNATIVES))


def solve(instance: Instance, pool: Pool, checkpoint: Callable[[], None], exact: bool) -> None:
    """Offer the instance's best plan to the pool, if it beats the pool's."""
    solution = solve_pipeline(instance.problem, pool.best_step_s(instance), checkpoint, exact)
    if solution is not None:
        pool.offer(instance, instance.problem.table, solution.step_s, solution.stages, solution.chosen)


def _bound(instances: Instances, grouped: Sequence[Group], pool: Pool, checkpoint: Checkpoint) -> list[_Open]:
    """Price tables and uniform plans, and bound every family."""
    found: list[_Open] = []
    for number, group in enumerate(grouped):
        what = f"pricing {group.num_stages} stages, {group.samples} samples per micro-batch"
        checkpoint(0.5 * number / len(grouped), what)
        for instance in instances.of(group):
            pool.offer_uniform(instance)
            bound = Bounds(instance.problem).step_s() / instance.family.global_batch_size
            found.append(_Open(bound, len(found), instance))
    return found


def _name(family: Family) -> str:
    virtual = f" of {family.schedule.virtual_stages} pieces" if family.schedule.virtual_stages > 1 else ""
    return f"{family.num_stages} stages{virtual}, {family.num_micro_batches} micro-batches"
