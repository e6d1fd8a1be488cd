"""What an exploration remembers: the best plan, an alternative for each set of degrees, the nearest miss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf
from typing import NamedTuple

import numpy as np

from planner.search.assemble import assemble
from planner.search.families import Family
from planner.search.instances import Instance
from planner.search.partition import Solution
from planner.search.places import places
from planner.search.problem import Pipeline
from planner.search.smallest import smallest
from planner.search.uniform import Uniform, fastest_by_degrees, mean_stage_s, price_uniform
from planner.spec.errors import NearestMiss
from planner.spec.mixed_cluster import AnyCluster
from planner.spec.plan import Plan
from planner.spec.stretches import Stretches
from planner.spec.training import Training

COMPARABLE = 1.1
"""Alternatives that take more than so many times the best are not remembered."""


class Candidate(NamedTuple):
    """A plan with its time per sample."""

    per_sample_s: float
    plan: Plan


class _Unbuilt(NamedTuple):
    """A plan that is built only if somebody wants it."""

    per_sample_s: float
    build: Callable[[], Plan]


class _Miss(NamedTuple):
    """A plan that does not fit, and the stage that lacks most."""

    missing_bytes: int
    stage: int
    limit_bytes: int
    build: Callable[[], Plan]


class Pool:
    """Candidates of one exploration."""

    def __init__(self, cluster: AnyCluster, training: Training, best: Candidate | None = None) -> None:
        self._cluster = cluster
        self._training = training
        self.best = best
        self._alternatives: dict[object, _Unbuilt] = {}
        self._nearest: _Miss | None = None
        self._host_s = max(group.stack.step_host_s for group in cluster.groups)

    def best_step_s(self, batch: int) -> float:
        """Step time, but for what every plan pays, that a plan of this batch must beat."""
        return self.step_s(self.best.per_sample_s, batch) if self.best else inf

    def step_s(self, per_sample_s: float, batch: int) -> float:
        """From the time of a sample to a step time without what every plan pays."""
        return per_sample_s * batch - self._host_s

    def per_sample_s(self, step_s: float, batch: int) -> float:
        """From a step time without what every plan pays to the time of a sample with it."""
        return (step_s + self._host_s) / batch

    def offer(self, family: Family, problem: Pipeline, solution: Solution) -> None:
        """A plan with its step time, but for what every plan pays; the faster one stays, of equals the first."""
        per_sample_s = self.per_sample_s(solution.step_s, family.global_batch_size)
        if self.best is None or per_sample_s < self.best.per_sample_s:
            plan = self._built(family, problem, solution)
            self.best = Candidate(per_sample_s, plan)
            if family.cut:
                # No uniform plans: the best of each cut of the groups are the alternatives.
                self._alternatives[family.cut] = _Unbuilt(per_sample_s, lambda: plan)

    def _built(self, family: Family, problem: Pipeline, solution: Solution) -> Plan:
        strategies = [
            [
                table.choices[problem.sequence[layer]].strategies[row]
                for layer, row in zip(_layers(each), rows, strict=True)
            ]
            for table, each, rows in zip(problem.tables, solution.stages, solution.chosen, strict=True)
        ]
        return assemble(self._cluster, self._training, family, solution.stages, strategies)

    def offer_uniform(self, instance: Instance) -> float:
        """The uniform plans of an instance on even stages that are not much slower than the best, all at once.

        The time per sample of the fastest that fits; inf where there is none.
        """
        stages, batch = instance.even, instance.family.global_batch_size
        if stages is None or not len(instance.uniform.rows):
            return inf
        uniform = self._not_much_slower(instance)
        if not len(uniform.rows):
            return inf
        priced = price_uniform(instance.problem, uniform, stages)
        ranked = fastest_by_degrees(uniform, priced)
        for row in ranked:
            per_sample_s = self.per_sample_s(float(priced.step_s[row]), batch)
            key = (instance.family.num_stages, int(uniform.degrees[row]))
            known = self._alternatives.get(key)
            if known is None or per_sample_s < known.per_sample_s:
                build = self._builder(instance, stages, uniform.rows[row].tolist())
                self._alternatives[key] = _Unbuilt(per_sample_s, build)
                if self.best is None or per_sample_s < self.best.per_sample_s:
                    self.best = Candidate(per_sample_s, build())
        return self.per_sample_s(float(priced.step_s[ranked[0]]), batch) if ranked else inf

    def alternatives(self, count: int) -> tuple[Candidate, ...]:
        """The fastest uniform plans, one for each set of degrees, fastest first."""
        ranked = sorted(self._alternatives.values(), key=lambda found: found.per_sample_s)
        return tuple(Candidate(found.per_sample_s, found.build()) for found in ranked[:count])

    def note_miss(self, instance: Instance, choices: Uniform) -> None:
        """Where nothing fits: the plan of these choices that lacks least, if it lacks less than the one that is known.

        Of stages as even as they can be; on groups of unlike devices, the plan of least memory by layer.
        """
        if instance.family.cut:
            found = smallest(instance.problem)
            if self._nearest is None or found.missing_bytes < self._nearest.missing_bytes:
                plan = self._built(instance.family, instance.problem, found.solution)
                self._note(instance.family, found.missing_bytes, found.stage, lambda: plan)
            return
        if not len(choices.rows):
            return
        stages = instance.even or _even_layers(len(instance.problem.sequence), instance.family.num_stages)
        priced = price_uniform(instance.problem, choices, stages)
        row = int(priced.missing_bytes.argmin())
        missing = int(priced.missing_bytes[row])
        if self._nearest is None or missing < self._nearest.missing_bytes:
            build = self._builder(instance, stages, choices.rows[row].tolist())
            self._note(instance.family, missing, int(priced.fullest[row]), build)

    def _note(self, family: Family, missing_bytes: int, stage: int, build: Callable[[], Plan]) -> None:
        group = self._cluster.groups[places(self._cluster, family)[stage].group]
        self._nearest = _Miss(missing_bytes, stage, group.usable_bytes, build)

    def nearest_miss(self) -> NearestMiss | None:
        """Of the noted plans the one that lacks least; None if none was noted."""
        if self._nearest is None:
            return None
        missing, stage, limit, build = self._nearest
        return NearestMiss(build().summary, stage, missing, limit)

    def _not_much_slower(self, instance: Instance) -> Uniform:
        """Uniform choices whose mean stage allows a step that is comparable with the best."""
        problem, uniform = instance.problem, instance.uniform
        if self.best is None:
            return uniform
        limit_s = self.step_s(self.best.per_sample_s * COMPARABLE, instance.family.global_batch_size)
        return uniform.only(np.flatnonzero(mean_stage_s(problem, uniform) < limit_s))

    def _builder(self, instance: Instance, stages: tuple[Stretches, ...], row: Sequence[int]) -> Callable[[], Plan]:
        """Remembers the strategies of the row, not the table."""
        sequence, choices = instance.problem.sequence, instance.problem.tables[0].choices
        kept = [each.rows(np.array([number])).strategies for each, number in zip(choices, row, strict=True)]
        family = instance.family

        def build() -> Plan:
            by_class = [strategies[0] for strategies in kept]
            chosen = [[by_class[sequence[layer]] for layer in _layers(stretches)] for stretches in stages]
            return assemble(self._cluster, self._training, family, stages, chosen)

        return build


def _layers(stretches: Stretches) -> list[int]:
    return [layer for first, end in stretches for layer in range(first, end)]


def _even_layers(layers: int, stages: int) -> tuple[Stretches, ...]:
    """Layers of any kind over the stages, as evenly as they go."""
    return tuple(((layers * n // stages, layers * (n + 1) // stages),) for n in range(stages))
