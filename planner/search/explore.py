"""The exact search under one workload: bound every family, then solve them in the order of their bounds.

A family whose bound is no better than the best plan so far cannot hold a better one, so when the next bound is no
better the best plan is optimal within the declared space; when time runs out, the least open bound is what is left.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from planner.cost.pipeline import in_flight
from planner.search.assemble import assemble
from planner.search.bounds import Bounds, Pipeline
from planner.search.families import Family, Stretches, equal_pieces, even_stretches
from planner.search.partition import solve_pipeline
from planner.search.table import Choices, Pricing, Table, without_dominated
from planner.search.tree import Space
from planner.search.uniform import Uniform, fastest_by_degrees, price_uniform, uniform_choices
from planner.spec.errors import NearestMiss, NoPlanFitsError
from planner.spec.model import Head
from planner.spec.plan import Plan, ScheduleKind
from planner.spec.strategy import Strategy

Checkpoint = Callable[[float, str], None]
"""Told the share of this exploration that is done and what goes on; may raise to stop it."""


class Candidate(NamedTuple):
    """A plan with its time per sample."""

    per_sample_s: float
    plan: Plan


class Explored(NamedTuple):
    """What the search under one workload found."""

    best: Candidate
    lower_bound_per_sample_s: float
    """No plan of the space is faster; equal to the best one's when that is optimal."""
    solved: int
    """Families solved, rather than excluded by their bound."""
    alternatives: tuple[Candidate, ...]
    """The fastest uniform plan for each set of degrees, fastest first."""


class _Open(NamedTuple):
    """A family, or a part of one, that may still hold a better plan; ordered by its bound."""

    bound_per_sample_s: float
    order: int
    family: Family
    problem: Pipeline


class _Degrees(NamedTuple):
    """What tells uniform plans apart as alternatives."""

    num_stages: int
    virtual_stages: int
    axes: tuple[object, ...]
    experts: object


class Explorer:
    """Explores the families of one space under one workload."""

    def __init__(self, space: Space, pricing: dict[bool, Pricing], families: Sequence[Family]) -> None:
        self._space = space
        self._pricing = pricing
        self._families = families
        self._model = next(iter(pricing.values())).model
        self._best: Candidate | None = None
        self._alternatives: dict[_Degrees, tuple[float, Callable[[], Plan]]] = {}
        self._nearest: tuple[int, Callable[[], NearestMiss]] | None = None

    def run(self, checkpoint: Checkpoint, out_of_time: Callable[[], bool]) -> Explored:
        """Explore; raises NoPlanFitsError, and whatever the checkpoint raises."""
        open_problems = self._bound(checkpoint)
        heapq.heapify(open_problems)
        total = len(open_problems)
        solved = 0
        while open_problems and not (self._best and open_problems[0].bound_per_sample_s >= self._best.per_sample_s):
            if out_of_time() and self._best:
                break
            share = 0.5 + 0.5 * (total - len(open_problems)) / total
            checkpoint(share, f"solving {_name(open_problems[0].family)}")
            self._solve(heapq.heappop(open_problems), partial(checkpoint, share, "solving a stage"))
            solved += 1
        if self._best is None:
            assert self._nearest is not None, "a space without any plan is refused before"
            raise NoPlanFitsError(self._nearest[1]())
        bound = min([self._best.per_sample_s, *(problem.bound_per_sample_s for problem in open_problems)])
        return Explored(self._best, bound, solved, self._ranked_alternatives())

    def _bound(self, checkpoint: Checkpoint) -> list[_Open]:
        """Price the tables, the uniform plans and the bound of every family."""
        groups: dict[tuple[int, int, bool], list[Family]] = {}
        for family in self._families:
            split = family.schedule.kind is ScheduleKind.GPIPE
            groups.setdefault((family.num_stages, family.samples, split), []).append(family)
        found: list[_Open] = []
        strategies: dict[int, list[list[Strategy]]] = {}
        for number, ((stages, samples, split), members) in enumerate(groups.items()):
            checkpoint(0.5 * number / len(groups), f"pricing {stages} stages, {samples} samples per micro-batch")
            devices = self._space.cluster.num_devices // stages
            pricing = self._pricing[split]
            if stages not in strategies:
                layers = pricing.layer_classes[0]
                strategies[stages] = [self._space.strategies(found_class.layer, devices) for found_class in layers]
            for table in self._tables(pricing, strategies[stages], stages, samples):
                exact = self._without_dominated(table)
                uniform = uniform_choices(table)
                for family in members:
                    problem = self._problem(family, table)
                    if problem is not None:
                        self._try_uniform(family, problem, uniform)
                        problem = problem._replace(table=exact)
                        bound = Bounds(problem).step_s() / family.global_batch_size
                        found.append(_Open(bound, len(found), family, problem))
        return found

    def _tables(self, pricing: Pricing, strategies: list[list[Strategy]], stages: int, samples: int) -> Iterator[Table]:
        """The table for all strategies that can cut these samples; with tied weights on one stage, one per key.

        Embedding and tied head on one stage share a matrix, and so axes and sharding.
        """
        limit = self._space.options.max_micro_batch_size
        possible = [
            [s for s in candidates if samples % s.data_parallel_size == 0 and samples // s.data_parallel_size <= limit]
            for candidates in strategies
        ]
        if not all(possible):
            return
        devices = self._space.cluster.num_devices // stages
        table = pricing.table(possible, samples, own_copy=stages > 1, tied_hop=(stages - 1) * devices)
        last = self._model.layers[-1]
        if stages > 1 or not isinstance(last, Head) or not last.tied:
            yield table
            return
        sequence = pricing.layer_classes[1]
        first_choices, last_choices = table.choices[sequence[0]], table.choices[sequence[-1]]
        for key in dict.fromkeys(map(_matrix, first_choices.strategies)):
            choices = list(table.choices)
            choices[sequence[0]] = _only(first_choices, key)
            choices[sequence[-1]] = _only(last_choices, key)
            if choices[sequence[-1]].strategies:
                yield table._replace(choices=tuple(choices))

    def _without_dominated(self, table: Table) -> Table:
        kept = tuple(without_dominated(choices) for choices in table.choices)
        before, after = (sum(len(choices.strategies) for choices in every) for every in (table.choices, kept))
        self._space.pruned["dominated"] += before - after
        return table._replace(choices=kept)

    def _problem(self, family: Family, table: Table) -> Pipeline | None:
        """The family as numbers; None if its pieces do not exist."""
        space, stages = self._space, family.num_stages
        virtual = family.schedule.virtual_stages
        pricing = self._pricing[family.schedule.kind is ScheduleKind.GPIPE]
        devices = space.cluster.num_devices // stages
        return Pipeline(
            table=table,
            sequence=tuple(pricing.layer_classes[1]),
            pieces=equal_pieces(self._model, stages, virtual) if virtual > 1 else None,
            flights=tuple(
                in_flight(family.schedule, stages, family.num_micro_batches, stage) for stage in range(stages)
            ),
            tiers=tuple(self._tier((stage - 1) % stages * devices, stage * devices) for stage in range(stages)),
            limit_bytes=space.cluster.usable_bytes - space.cluster.device.reserve_bytes,
            steady=family.num_micro_batches - 1.0 / virtual,
            virtual=virtual,
        )

    def _tier(self, sender: int, receiver: int) -> int:
        levels = self._space.cluster.levels
        return next(i for i, lv in enumerate(levels) if sender // lv.num_devices == receiver // lv.num_devices)

    def _try_uniform(self, family: Family, problem: Pipeline, uniform: Uniform) -> None:
        """Price all uniform plans of a family on even stages; keep the fastest, and the nearest to fitting."""
        stages = problem.pieces or even_stretches(self._model, family.num_stages)
        if stages is None or not len(uniform.rows):
            return
        priced = price_uniform(problem, uniform, stages)
        missing = int(priced.missing_bytes.min())
        if self._nearest is None or missing < self._nearest[0]:
            row = int(priced.missing_bytes.argmin())
            self._nearest = (
                missing,
                lambda: self._miss(family, problem, stages, uniform.rows[row], priced.fullest[row], missing),
            )
        for row in fastest_by_degrees(uniform, priced):
            self._offer(family, problem, stages, uniform.rows[row].tolist(), float(priced.step_s[row]))

    def _offer(
        self, family: Family, problem: Pipeline, stages: tuple[Stretches, ...], row: Sequence[int], step_s: float
    ) -> None:
        per_sample_s = step_s / family.global_batch_size
        leader = max(problem.sequence, key=problem.sequence.count)
        strategy = problem.table.choices[leader].strategies[row[leader]]
        degrees = _Degrees(family.num_stages, family.schedule.virtual_stages, strategy.axes, strategy.experts)
        known = self._alternatives.get(degrees)
        if known is None or per_sample_s < known[0]:

            def plan() -> Plan:
                chosen = [
                    [row[problem.sequence[layer]] for first, end in each for layer in range(first, end)]
                    for each in stages
                ]
                return self._plan(family, problem, stages, chosen)

            self._alternatives[degrees] = (per_sample_s, plan)
            if self._best is None or per_sample_s < self._best.per_sample_s:
                self._best = Candidate(per_sample_s, plan())

    def _solve(self, problem: _Open, checkpoint: Callable[[], None]) -> None:
        best_s = self._best.per_sample_s * problem.family.global_batch_size if self._best else np.inf
        solution = solve_pipeline(problem.problem, best_s, checkpoint)
        if solution is not None:
            plan = self._plan(problem.family, problem.problem, solution.stages, solution.chosen)
            self._best = Candidate(solution.step_s / problem.family.global_batch_size, plan)

    def _plan(
        self,
        family: Family,
        problem: Pipeline,
        stages: tuple[Stretches, ...],
        chosen: Sequence[Sequence[int]],
    ) -> Plan:
        strategies = []
        for stretches, rows in zip(stages, chosen, strict=True):
            layers = [layer for first, end in stretches for layer in range(first, end)]
            strategies.append(
                [
                    problem.table.choices[problem.sequence[layer]].strategies[row]
                    for layer, row in zip(layers, rows, strict=True)
                ]
            )
        return assemble(self._space.cluster, self._space.training, family, stages, strategies)

    def _miss(
        self,
        family: Family,
        problem: Pipeline,
        stages: tuple[Stretches, ...],
        row: Sequence[int],
        stage: int,
        missing: int,
    ) -> NearestMiss:
        chosen = [
            [int(row[problem.sequence[layer]]) for first, end in each for layer in range(first, end)] for each in stages
        ]
        plan = self._plan(family, problem, stages, chosen)
        return NearestMiss(plan.summary, int(stage), missing, self._space.cluster.usable_bytes)

    def _ranked_alternatives(self) -> tuple[Candidate, ...]:
        ranked = sorted(self._alternatives.values(), key=lambda found: found[0])
        return tuple(Candidate(per_sample_s, plan()) for per_sample_s, plan in ranked[:_ALTERNATIVES])


_ALTERNATIVES = 48
"""Alternatives handed to the shortlist; it chooses a few of them."""


def _matrix(strategy: Strategy) -> tuple[object, ...]:
    return strategy.axes, strategy.sharding


def _only(choices: Choices, key: tuple[object, ...]) -> Choices:
    kept = [row for row, strategy in enumerate(choices.strategies) if _matrix(strategy) == key]
    return choices.rows(np.array(kept, dtype=np.int64))


def _name(family: Family) -> str:
    return f"{family.num_stages} stages, {family.num_micro_batches} micro-batches"
