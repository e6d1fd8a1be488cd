"""The search under one workload: problems are looked at more and more closely until none can hold a better plan than
the best.

A family is bounded four times, each bound closer and dearer than the one before: by what its layers compute (outlook);
by the table of its strategies, memory apart; with memory (bounds); by an exact solution in which work once per step
counts a little less. What is left is solved exactly. A family whose bound is no better than the best plan so far cannot
hold a better one, so when the least bound is no better the best plan is optimal within the declared space; when time
runs out, the least open bound is what is left.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from enum import IntEnum
from functools import partial
from itertools import count
from math import inf
from typing import NamedTuple

from planner.search.bounds import Bounds, mean_step_s, promising
from planner.search.families import Family
from planner.search.instances import Group, Instance, groups
from planner.search.mixed import AnyInstances
from planner.search.partition import NARROW, Solution, once_in_passes, solve_pipeline, step_s
from planner.search.pool import COMPARABLE, Candidate, Pool
from planner.search.problem import Pipeline
from planner.search.progress import Checkpoint, ignore
from planner.spec.errors import NoPlanFitsError
from planner.spec.plan import ScheduleKind

ALTERNATIVES = 12
"""Alternatives handed to the shortlist; it chooses a few of them."""
_GLANCED = 6
"""Groups of families that a search without a certificate prices."""
_GLANCES = 1
"""Families in which it makes a narrow pass."""
_MORE = 4
"""Groups that are priced for their alternatives alone."""
_OUTLOOK = 0.1
"""Progress after the first bounds: the share of the time that they usually take."""
_PRICED = 0.35
"""Progress after the prices."""
_TRIED = 0.6
"""Progress after good plans were looked for everywhere."""


class Explored(NamedTuple):
    """What the search under one workload found."""

    best: Candidate
    lower_bound_per_sample_s: float
    """No plan of the space is faster; equal to the best one's when that is optimal."""
    solved: int
    """Families solved, rather than excluded by their bound."""
    alternatives: tuple[Candidate, ...]
    """The fastest uniform plan for each set of degrees, fastest first."""
    quick: tuple[Family, ...]
    """Families with uniform plans that fit, the quickest first."""

    @property
    def is_optimal(self) -> bool:
        """Whether the best plan is proven to be the best."""
        return self.lower_bound_per_sample_s >= self.best.per_sample_s


class _Look(IntEnum):
    """How closely a problem has been looked at."""

    PRICED = 0
    BOUNDED = 1
    TRIED = 2
    """A narrow pass has looked for a good plan."""


class _Open(NamedTuple):
    """A problem that may still hold a better plan.

    What is dear waits until good plans were looked for everywhere; then the least bound comes first, of equals the
    first made.
    """

    is_tried: bool
    bound_per_sample_s: float
    order: int
    look: _Look
    family: Family
    problem: Pipeline


class Limits(NamedTuple):
    """When to stop solving and answer with a bound."""

    out_of_time: Callable[[], bool]
    effort: int
    """Comparisons of partial choices, in all: the same on every machine."""
    must_find: bool = True
    """Time ends nothing before a plan is known."""

    def over(self, pool: Pool) -> bool:
        """Whether time ends the search now."""
        return self.out_of_time() and (pool.best is not None or not self.must_find)


def explore(
    instances: AnyInstances, families: Sequence[Family], pool: Pool, checkpoint: Checkpoint, limits: Limits
) -> Explored:
    """Search the families exactly; raises NoPlanFitsError with the nearest miss, and what the checkpoint raises.

    Where no strategy can cut the batch at all, that is an InputError. At a limit, families that are not solved are left
    open with their bounds; finding a plan at all is part of any answer.
    """
    explored = explore_if_any(instances, families, pool, checkpoint, limits)
    if explored is None:
        raise _nothing_fits(instances, families, pool, checkpoint)
    return explored


def explore_if_any(
    instances: AnyInstances, families: Sequence[Family], pool: Pool, checkpoint: Checkpoint, limits: Limits
) -> Explored | None:
    """Search the families exactly; None if no plan fits. Raises what the checkpoint raises."""
    priced = _priced(instances, families, pool, checkpoint, limits)
    waiting = priced.waiting
    solved = _solved(instances, waiting, pool, checkpoint, limits)
    if pool.best is None:
        return None
    bound = min([pool.best.per_sample_s, priced.left_open, *(found.bound_per_sample_s for found in waiting)])
    return Explored(pool.best, bound, solved, pool.alternatives(ALTERNATIVES), priced.quick)


def glance(
    instances: AnyInstances, families: Sequence[Family], pool: Pool, checkpoint: Checkpoint, limits: Limits
) -> tuple[Candidate, ...]:
    """Look at the first of the families, without a bound: the best plan, if any is found, and alternatives.

    Uniform plans, then a narrow pass where these are the best.
    """
    ranked: list[tuple[float, int, Instance]] = []
    grouped, numbers = groups(families)[:_GLANCED], count()
    for done, group in enumerate(grouped):
        if limits.over(pool):
            break
        checkpoint(_PRICED * done / len(grouped), _pricing(group))
        bounds = _first_bounds(instances, group.families, pool)
        if not all(_beaten(bound, pool) for bound in bounds.values()):
            ranked += [(pool.offer_uniform(instance), next(numbers), instance) for instance in instances.of(group)]
            ranked = sorted(ranked)[:_GLANCES]
    for done, (least, number, instance) in enumerate(ranked):
        if least == inf or limits.over(pool):
            break
        family = instance.family
        spend = partial(_tell, checkpoint, _PRICED + (1 - _PRICED) * done / len(ranked), f"trying {_name(family)}")
        for problem in instances.parts(instance, partial(pool.best_step_s, family.global_batch_size)):
            found = _Open(False, least, number, _Look.BOUNDED, family, problem)
            _look(instances, found, pool, spend)
    best = (pool.best,) if pool.best else ()
    return (*best, *pool.alternatives(ALTERNATIVES))


def _tell(checkpoint: Checkpoint, share: float, what: str, work: int) -> None:
    checkpoint(share, what)


def _nothing_fits(
    instances: AnyInstances, families: Sequence[Family], pool: Pool, checkpoint: Checkpoint
) -> NoPlanFitsError | Exception:
    """What to say when no plan fits: the nearest miss of all families."""
    for group in groups(families):
        checkpoint(1.0, f"looking for the nearest miss, {_count(group.num_stages, 'stage')}")
        for instance in instances.of(group):
            pool.note_miss(instance, instances.tellable(instance))
    miss = pool.nearest_miss()
    return NoPlanFitsError(miss) if miss else instances.no_strategy()


class _Priced(NamedTuple):
    """What the prices of tables and uniform plans leave open."""

    waiting: list[_Open]
    """Problems that may hold a better plan than the best."""
    left_open: float
    """No plan of the families that time did not allow is faster; inf if it allowed all."""
    quick: tuple[Family, ...]
    """Families with uniform plans that fit, the quickest first."""


def _priced(
    instances: AnyInstances,
    families: Sequence[Family],
    pool: Pool,
    checkpoint: Checkpoint,
    limits: Limits,
) -> _Priced:
    """Price tables and uniform plans in the order of the first bounds."""
    found: list[_Open] = []
    uniform: list[tuple[float, int, Family]] = []
    bounds = _first_bounds(instances, families, pool, checkpoint)
    grouped = _by_bound(bounds)
    more, left_open = _MORE, inf
    for number, (least, _, group) in enumerate(grouped):
        if least == inf:
            break
        if limits.over(pool):
            left_open = max(least, instances.least_per_sample_s())
            break
        if _beaten(least, pool):
            if more == 0 or least >= COMPARABLE * _best(pool):
                break
            more -= 1
        share = number / _expected([each[0] for each in grouped], pool)
        checkpoint(_OUTLOOK + (_PRICED - _OUTLOOK) * share, _pricing(group))
        for instance in instances.of(group):
            uniform.append((pool.offer_uniform(instance), len(uniform), instance.family))
            for problem, bound in _parts(instances, instance, bounds[instance.family], pool):
                found.append(_Open(False, bound, len(found), _Look.PRICED, instance.family, problem))
    return _Priced(found, left_open, tuple(family for time_s, _, family in sorted(uniform) if time_s < inf))


def _expected(leasts: Sequence[float], pool: Pool) -> int:
    """Of groups with such bounds, ascending, those that will be priced if no better plan is found."""
    return min(len(leasts), bisect_left(leasts, _best(pool)) + _MORE)


def _first_bounds(
    instances: AnyInstances, families: Sequence[Family], pool: Pool, checkpoint: Checkpoint = ignore
) -> dict[Family, float]:
    """Seconds per sample that no plan of a family falls below."""
    bounds = {}
    for number, family in enumerate(families):
        checkpoint(_OUTLOOK * number / len(families), f"bounding {_count(family.num_stages, 'stage')}")
        bounds[family] = pool.per_sample_s(instances.at_least_s(family), family.global_batch_size)
    return bounds


def _by_bound(bounds: dict[Family, float]) -> list[tuple[float, int, Group]]:
    """The groups of the families with their bounds, the least first."""
    numbered = enumerate(groups(list(bounds)))
    return sorted((min(bounds[family] for family in group.families), number, group) for number, group in numbered)


def _pricing(group: Group) -> str:
    return f"pricing {_count(group.num_stages, 'stage')}, {_count(group.samples, 'sample')} per micro-batch"


def _parts(instances: AnyInstances, instance: Instance, least: float, pool: Pool) -> Iterator[tuple[Pipeline, float]]:
    """The problems of an instance that may hold a better plan than the best, each with a bound."""
    if _beaten(least, pool):
        return
    batch = instance.family.global_batch_size
    for problem in instances.parts(instance, partial(pool.best_step_s, batch)):
        bound = max(least, pool.per_sample_s(mean_step_s(problem), batch))
        if not _beaten(bound, pool):
            yield problem, bound


def _solved(
    instances: AnyInstances,
    waiting: list[_Open],
    pool: Pool,
    checkpoint: Checkpoint,
    limits: Limits,
) -> int:
    """Look at the problem with the least bound, until no bound is better than the best plan; counts those solved.

    Takes what is done with out of `waiting`.
    """
    heapq.heapify(waiting)
    solved, spent, ended = 0, 0, False
    first: dict[bool, float] = {}

    def spend(work: int) -> None:
        nonlocal spent, ended
        spent += work
        bound = found.bound_per_sample_s
        share = _closed(first.setdefault(found.is_tried, bound), bound, pool)
        if found.is_tried:
            share = _TRIED + (1 - _TRIED) * max(share, min(1.0, spent / limits.effort))
        else:
            share = _PRICED + (_TRIED - _PRICED) * share
        checkpoint(share, f"{'solving' if found.is_tried else 'trying'} {_name(found.family)}")
        ended = limits.over(pool) or (pool.best is not None and spent > limits.effort)
        if ended:
            raise TimeoutError("time or effort has run out")

    while waiting:
        found = heapq.heappop(waiting)
        if _beaten(found.bound_per_sample_s, pool):
            continue
        if limits.over(pool):
            heapq.heappush(waiting, found)
            break
        try:
            spend(0)
            closer = _look(instances, found, pool, spend)
        except TimeoutError:
            if not ended:
                # Of the listener, not ours.
                raise
            heapq.heappush(waiting, found)
            break
        if closer is not None and not _beaten(closer.bound_per_sample_s, pool):
            heapq.heappush(waiting, closer)
        else:
            solved += found.is_tried
    return solved


def _closed(first: float, now: float, pool: Pool) -> float:
    """How far the bounds of open problems have come from the first to the best plan; 0 while none is known."""
    best = _best(pool)
    return (now - first) / (best - first) if first < best < inf else 0.0


def _look(instances: AnyInstances, found: _Open, pool: Pool, spend: Callable[[int], None]) -> _Open | None:
    """The problem one look closer, or None once it is solved; better plans on the way are offered to the pool."""
    best_s = pool.best_step_s(found.family.global_batch_size)
    problem = promising(found.problem, best_s)
    if found.look is _Look.PRICED:
        bound = pool.per_sample_s(Bounds(problem).step_s(best_s), found.family.global_batch_size)
        bound = max(bound, found.bound_per_sample_s)
        return found._replace(bound_per_sample_s=bound, look=_Look.BOUNDED, problem=problem)
    if found.look is _Look.BOUNDED:
        problem = instances.without_dominated(problem)
        _offer(found._replace(problem=problem), pool, spend, width=NARROW)
        return found._replace(is_tried=True, look=_Look.TRIED, problem=problem)
    closer = _closer(instances, found._replace(problem=problem), pool, spend)
    if not _beaten(closer.bound_per_sample_s, pool):
        _offer(closer, pool, spend, width=None)
    return None


def _closer(instances: AnyInstances, found: _Open, pool: Pool, spend: Callable[[int], None]) -> _Open:
    """The problem with a closer bound: exact, but for work once per step, which counts a little less.

    Most problems are excluded by that; it leaves out a number in which strategies differ much and steps little.
    """
    problem, batch = found.problem, found.family.global_batch_size
    if len(problem.flights) == 1:
        # There it is one number with the passes anyway.
        return found
    best_s = pool.best_step_s(batch)
    relaxed = instances.without_dominated(once_in_passes(problem))
    solution = solve_pipeline(relaxed, best_s, spend)
    if solution is None:
        return found._replace(bound_per_sample_s=inf)
    whole = Solution(0.0, solution.stages, _rows_in(problem, relaxed, solution))
    pool.offer(found.family, problem, whole._replace(step_s=step_s(problem, whole)))
    bound = pool.per_sample_s(solution.step_s, batch)
    return found._replace(bound_per_sample_s=max(bound, found.bound_per_sample_s))


def _rows_in(problem: Pipeline, part: Pipeline, solution: Solution) -> tuple[tuple[int, ...], ...]:
    """The rows of a solution of a part of the strategies, as rows of all."""
    chosen = []
    for whole, own, stretches, rows in zip(problem.tables, part.tables, solution.stages, solution.chosen, strict=True):
        numbers = (problem.sequence[layer] for first, end in stretches for layer in range(first, end))
        chosen.append(
            tuple(
                whole.choices[number].row_of(own.choices[number], row)
                for number, row in zip(numbers, rows, strict=True)
            )
        )
    return tuple(chosen)


def _best(pool: Pool) -> float:
    return pool.best.per_sample_s if pool.best else inf


def _beaten(bound_per_sample_s: float, pool: Pool) -> bool:
    """Whether what has this bound cannot hold a better plan than the best, or none that fits."""
    return bound_per_sample_s >= _best(pool)


def _offer(found: _Open, pool: Pool, spend: Callable[[int], None], width: int | None) -> None:
    """Offer the problem's best plan to the pool, if it beats the pool's; with a width, a good one."""
    best_s = pool.best_step_s(found.family.global_batch_size)
    solution = solve_pipeline(found.problem, best_s, spend, width)
    if solution is not None:
        pool.offer(found.family, found.problem, solution)


def _name(family: Family) -> str:
    schedule = family.schedule
    virtual = f" of {schedule.virtual_stages} pieces" if schedule.virtual_stages > 1 else ""
    split = ", zero-bubble" if schedule.kind is ScheduleKind.ZERO_BUBBLE else ""
    micro_batches = _count(family.num_micro_batches, "micro-batch", "es")
    return f"{_count(family.num_stages, 'stage')}{virtual}, {micro_batches}{split}"


def _count(number: int, what: str, plural: str = "s") -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}{plural}"
