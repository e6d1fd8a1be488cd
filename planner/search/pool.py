"""What an exploration remembers: the best plan, an alternative for each set of degrees, the nearest miss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from planner.search.assemble import assemble
from planner.search.families import Stretches
from planner.search.instances import Instance
from planner.search.table import Table
from planner.search.uniform import fastest_by_degrees, price_uniform
from planner.spec.cluster import Cluster
from planner.spec.errors import NearestMiss
from planner.spec.plan import Plan
from planner.spec.training import Training


class Candidate(NamedTuple):
    """A plan with its time per sample."""

    per_sample_s: float
    plan: Plan


class _Unbuilt(NamedTuple):
    """A plan that is built only if somebody wants it."""

    per_sample_s: float
    build: Callable[[], Plan]


class Pool:
    """Candidates of one exploration."""

    def __init__(self, cluster: Cluster, training: Training, best: Candidate | None = None) -> None:
        self._cluster = cluster
        self._training = training
        self.best = best
        self._alternatives: dict[object, _Unbuilt] = {}
        self._nearest: tuple[int, int, Callable[[], Plan]] | None = None

    def best_step_s(self, instance: Instance) -> float:
        """Step time, but for what every plan pays, that a plan of this instance must beat."""
        if self.best is None:
            return float("inf")
        return self.best.per_sample_s * instance.family.global_batch_size - self._cluster.stack.step_host_s

    def per_sample_s(self, instance: Instance, step_s: float) -> float:
        """From a step time without what every plan pays to the time of a sample with it."""
        return (step_s + self._cluster.stack.step_host_s) / instance.family.global_batch_size

    def offer(
        self,
        instance: Instance,
        table: Table,
        step_s: float,
        stages: tuple[Stretches, ...],
        chosen: Sequence[Sequence[int]],
    ) -> None:
        """A plan with its step time, but for what every plan pays; the faster one stays, of equals the first."""
        per_sample_s = self.per_sample_s(instance, step_s)
        if self.best is None or per_sample_s < self.best.per_sample_s:
            self.best = Candidate(per_sample_s, self._plan(instance, table, stages, chosen))

    def offer_uniform(self, instance: Instance) -> None:
        """The uniform plans of an instance on even stages, all at once."""
        stages, uniform = instance.even, instance.uniform
        if stages is None or not len(uniform.rows):
            return
        priced = price_uniform(instance.all_choices, uniform, stages)
        self._note_miss(instance, stages, priced.missing_bytes.tolist(), priced.fullest.tolist())
        for row in fastest_by_degrees(uniform, priced):
            per_sample_s = self.per_sample_s(instance, float(priced.step_s[row]))
            key = (instance.family.num_stages, instance.family.schedule, *uniform.names[int(uniform.degrees[row])])
            known = self._alternatives.get(key)
            if known is None or per_sample_s < known.per_sample_s:
                build = self._builder(instance, stages, uniform.rows[row].tolist())
                self._alternatives[key] = _Unbuilt(per_sample_s, build)
                if self.best is None or per_sample_s < self.best.per_sample_s:
                    self.best = Candidate(per_sample_s, build())

    def alternatives(self, count: int) -> tuple[Candidate, ...]:
        """The fastest uniform plans, one for each set of degrees, fastest first."""
        ranked = sorted(self._alternatives.values(), key=lambda found: found.per_sample_s)
        return tuple(Candidate(found.per_sample_s, found.build()) for found in ranked[:count])

    def nearest_miss(self) -> NearestMiss | None:
        """Of the uniform plans the one that lacks least; None if none was offered."""
        if self._nearest is None:
            return None
        missing, stage, build = self._nearest
        return NearestMiss(build().summary, stage, missing, self._cluster.usable_bytes)

    def _note_miss(
        self, instance: Instance, stages: tuple[Stretches, ...], missing: list[int], fullest: list[int]
    ) -> None:
        row = min(range(len(missing)), key=missing.__getitem__)
        if self._nearest is None or missing[row] < self._nearest[0]:
            rows = instance.uniform.rows[row].tolist()
            self._nearest = (missing[row], fullest[row], self._builder(instance, stages, rows))

    def _builder(self, instance: Instance, stages: tuple[Stretches, ...], row: Sequence[int]) -> Callable[[], Plan]:
        sequence = instance.all_choices.sequence
        chosen = [[row[sequence[layer]] for layer in _layers(stretches)] for stretches in stages]
        return lambda: self._plan(instance, instance.all_choices.table, stages, chosen)

    def _plan(
        self, instance: Instance, table: Table, stages: tuple[Stretches, ...], chosen: Sequence[Sequence[int]]
    ) -> Plan:
        sequence = instance.all_choices.sequence
        strategies = [
            [table.choices[sequence[layer]].strategies[row] for layer, row in zip(_layers(each), rows, strict=True)]
            for each, rows in zip(stages, chosen, strict=True)
        ]
        return assemble(self._cluster, self._training, instance.family, stages, strategies)


def _layers(stretches: Stretches) -> list[int]:
    return [layer for first, end in stretches for layer in range(first, end)]
