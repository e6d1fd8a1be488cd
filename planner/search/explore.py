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
from planner.search.partition import NARROW, solve_pipeline
from planner.search.pool import Candidate, Pool
from planner.spec.errors import NoPlanFitsError
from planner.spec.plan import ScheduleKind

Checkpoint = Callable[[float, str], None]
"""Told the share of this exploration that is done and what goes on; may raise to stop it."""

ALTERNATIVES = 12
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


class Limits(NamedTuple):
    """When to stop solving and answer with a bound."""

    out_of_time: Callable[[], bool]
    effort: int
    """Comparisons of partial choices, in all: the same on every machine."""


def explore(
    instances: Instances, families: Sequence[Family], pool: Pool, checkpoint: Checkpoint, limits: Limits
) -> Explored:
    """Search the families exactly; raises NoPlanFitsError with the nearest miss, and what the checkpoint raises.

    Where no strategy can cut the batch at all, that is an InputError. At a limit, families that are not solved are left
    open with their bounds; finding a plan at all is part of any answer.
    """
    waiting, least = _bound(instances, groups(families), pool, checkpoint, limits.out_of_time)
    bounds: dict[Family, float] = {}
    for found in waiting:
        family = found.instance.family
        bounds[family] = min(found.bound_per_sample_s, bounds.get(family, float("inf")))
    _narrow(waiting, pool, checkpoint, limits.out_of_time)
    solved = _exact(waiting, pool, checkpoint, limits)
    if pool.best is None:
        miss = pool.nearest_miss()
        raise NoPlanFitsError(miss) if miss else instances.no_strategy()
    bound = min([pool.best.per_sample_s, least, *(found.bound_per_sample_s for found in waiting)])
    return Explored(pool.best, bound, solved, pool.alternatives(ALTERNATIVES), bounds)


def glance(
    instances: Instances, families: Sequence[Family], pool: Pool, checkpoint: Checkpoint, limits: Limits
) -> tuple[Candidate, ...]:
    """Search the families quickly, without a certificate. The best plan, if any fits, and alternatives."""
    waiting, _ = _bound(instances, groups(families), pool, checkpoint, limits.out_of_time)
    _narrow(waiting, pool, checkpoint, limits.out_of_time)
    best = (pool.best,) if pool.best else ()
    return (*best, *pool.alternatives(ALTERNATIVES))


def _narrow(waiting: list[_Open], pool: Pool, checkpoint: Checkpoint, out_of_time: Callable[[], bool]) -> None:
    """Narrow passes in the order of the bounds: good plans soon, so that the exact passes have little to look at."""
    for number, found in enumerate(sorted(waiting)):
        if _beaten(found, pool) or (out_of_time() and pool.best):
            return
        share, what = 0.5 + 0.2 * number / len(waiting), f"trying {_name(found.instance.family)}"
        _offer(found.instance, pool, partial(_tell, checkpoint, share, what), exact=False)


def _tell(checkpoint: Checkpoint, share: float, what: str, work: int) -> None:
    checkpoint(share, what)


def _exact(waiting: list[_Open], pool: Pool, checkpoint: Checkpoint, limits: Limits) -> int:
    """Solve instances until no bound is better than the best plan; takes them out of `waiting` and counts them."""
    heapq.heapify(waiting)
    total, solved, spent = len(waiting), 0, 0

    def spend(work: int) -> None:
        nonlocal spent
        spent += work
        checkpoint(0.7 + 0.3 * solved / total, f"solving {_name(found.instance.family)}")
        if pool.best and (spent > limits.effort or limits.out_of_time()):
            raise TimeoutError("time or effort has run out")

    while waiting and not _beaten(waiting[0], pool):
        found = heapq.heappop(waiting)
        try:
            _offer(found.instance, pool, spend, exact=True)
        except TimeoutError:
            heapq.heappush(waiting, found)
            break
        solved += 1
    return solved


def _beaten(found: _Open, pool: Pool) -> bool:
    """Whether an instance cannot hold a better plan than the best, or none that fits."""
    best = pool.best.per_sample_s if pool.best else float("inf")
    return found.bound_per_sample_s >= best


def _offer(instance: Instance, pool: Pool, spend: Callable[[int], None], exact: bool) -> None:
    """Offer the instance's best plan to the pool, if it beats the pool's."""
    width = None if exact else NARROW
    solution = solve_pipeline(instance.problem, pool.best_step_s(instance), spend, width)
    if solution is not None:
        pool.offer(instance, instance.problem.table, solution.step_s, solution.stages, solution.chosen)


def _bound(
    instances: Instances,
    grouped: Sequence[Group],
    pool: Pool,
    checkpoint: Checkpoint,
    out_of_time: Callable[[], bool],
) -> tuple[list[_Open], float]:
    """Price tables and uniform plans, and bound every family; and a bound for those that time did not allow."""
    found: list[_Open] = []
    for number, group in enumerate(grouped):
        if out_of_time() and pool.best:
            return found, instances.least_per_sample_s()
        what = f"pricing {group.num_stages} stages, {group.samples} samples per micro-batch"
        checkpoint(0.5 * number / len(grouped), what)
        for instance in instances.of(group):
            pool.offer_uniform(instance)
            bound = pool.per_sample_s(instance, Bounds(instance.problem).step_s())
            found.append(_Open(bound, len(found), instance))
    return found, float("inf")


def _name(family: Family) -> str:
    schedule = family.schedule
    virtual = f" of {schedule.virtual_stages} pieces" if schedule.virtual_stages > 1 else ""
    split = ", zero-bubble" if schedule.kind is ScheduleKind.ZERO_BUBBLE else ""
    return f"{family.num_stages} stages{virtual}, {family.num_micro_batches} micro-batches{split}"
