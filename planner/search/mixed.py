"""Instances on a cluster of groups of unlike devices: the strategies, prices and memory of each group for its stages.

The groups stand in the pipeline in the order of their numbers, each with equal stages of its own. What a layer takes
depends on the group, so every group has tables of its own; a bound for a layer is the least over the groups.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from planner.cost.flops import wide_matrix_flops_per_sample
from planner.cost.kernels import rates
from planner.cost.pipeline import Beats, beat, beats_of, in_flight, rhythm
from planner.search.bounds import promising
from planner.search.families import Family, no_strategy
from planner.search.instances import Group, Instance, Instances, cutting, undominated_tables
from planner.search.outlook import Outlook, step_s
from planner.search.places import Place, places
from planner.search.pricing import Pricing
from planner.search.problem import Pipeline
from planner.search.space import Space
from planner.search.table import Boundaries, Priced, Table, Way, all_choices
from planner.search.uniform import Uniform
from planner.spec.errors import InputError
from planner.spec.mixed_cluster import MixedCluster
from planner.spec.model import Model
from planner.spec.stretches import equal_pieces
from planner.spec.workload import Workload

NO_UNIFORM = "uniform-on-equal-devices"
"""Uniform plans are one strategy for all blocks, priced at once for equal stages; groups are searched without them."""


class Part(NamedTuple):
    """One group of the cluster."""

    space: Space
    pricing: Pricing

    def under(self, workload: Workload) -> Part:
        """The same, priced under another workload."""
        return self._replace(pricing=self.pricing.under(workload))


class MixedInstances:
    """Makes instances for a cluster of groups under one workload; asked like Instances."""

    def __init__(self, cluster: MixedCluster, parts: Sequence[Part], families: Sequence[Family]) -> None:
        self._cluster = cluster
        self._groups = parts
        self._outlooks = [
            Outlook(part.pricing, part.space, ((family.cut[number], family.samples) for family in families))
            for number, part in enumerate(parts)
        ]

    @property
    def model(self) -> Model:
        """The model that is planned."""
        return self._groups[0].pricing.model

    def at_least_s(self, family: Family) -> float:
        """No plan of the family takes a shorter step, but for what every plan pays."""
        beats = beats_of(family.schedule.kind)
        least = [
            outlook.layers_s(stages, family.samples, beats)
            for outlook, stages in zip(self._outlooks, family.cut, strict=True)
        ]
        made = rhythm(family.schedule, family.num_stages, family.num_micro_batches)
        return step_s(np.min(least, axis=0), family.num_stages, made)

    def least_per_sample_s(self) -> float:
        """No plan is faster: the wide matrix products of the model, spread over all devices at their full rates."""
        training = self._groups[0].space.training
        flops_per_s = sum(
            group.num_devices * rates(group.device, group.stack, training.precision).matmul_flops_per_s
            for group in self._cluster.groups
        )
        return wide_matrix_flops_per_sample(self.model, training) / flops_per_s

    def no_strategy(self) -> InputError:
        """The error for a space without any strategy."""
        space = self._groups[0].space
        return no_strategy(self._cluster, space.training, space.options, space.removed)

    def of(self, group: Group) -> Iterator[Instance]:
        """The instances of a set of families; they have no uniform plans."""
        where = places(self._cluster, group.families[0])
        first = {place.group: number for number, place in reversed(list(enumerate(where)))}
        makers = [self._tables(place, where[number - 1], group) for number, place in self._firsts(where)]
        if any(maker is None for maker in makers):
            return
        sequence = tuple(self._groups[0].pricing.layer_classes[1])
        nothing = Uniform(np.zeros((0, len(set(sequence))), dtype=np.int64), np.zeros(0, dtype=np.int64))
        for family in group.families:
            self._groups[0].space.tick()
            made = [maker(beats_of(family.schedule.kind)) for maker in makers if maker is not None]
            stages, turns, virtual = family.num_stages, family.num_micro_batches, family.schedule.virtual_stages
            problem = Pipeline(
                tables=tuple(made[place.group] for place in where),
                sequence=sequence,
                pieces=equal_pieces(self.model, stages, virtual) if virtual > 1 else None,
                flights=tuple(in_flight(family.schedule, stages, turns, stage) for stage in range(stages)),
                tiers=tuple(self._way(where, stage, first) for stage in range(stages)),
                limits_bytes=tuple(self._limit_bytes(place) for place in where),
                host_limits_bytes=tuple(self._host_limit_bytes(place) for place in where),
                rhythm=rhythm(family.schedule, stages, turns),
            )
            yield Instance(family, problem, nothing, None)

    def parts(self, instance: Instance, best_s: Callable[[], float]) -> Iterator[Pipeline]:
        """The instance without strategies that no better plan has; nothing if some layer has none left anywhere."""
        problem = promising(instance.problem, best_s())
        columns = zip(*(table.choices for table in problem.tables), strict=True)
        if all(any(len(choices.once_s) for choices in column) for column in columns):
            yield problem

    def without_dominated(self, problem: Pipeline) -> Pipeline:
        """The problem without strategies that others beat or equal in every number: the same optimum."""
        space = self._groups[0].space
        return undominated_tables(problem, space.removed, space.tick)

    def tellable(self, instance: Instance) -> Uniform:
        """No uniform choices: a misfit is told by the smallest strategies (smallest)."""
        return instance.uniform

    def _firsts(self, where: Sequence[Place]) -> list[tuple[int, Place]]:
        """The first stage of each group, with its number."""
        return [(n, place) for n, place in enumerate(where) if n == 0 or place.group != where[n - 1].group]

    def _tables(self, place: Place, before: Place, group: Group) -> Callable[[Beats], Table] | None:
        """Makes the table of a group's stages, of which `place` is the first; None if no strategy cuts the samples."""
        space, pricing = self._groups[place.group]
        limit, samples = space.options.max_micro_batch_size, group.samples
        layers = [each.layer for each in pricing.layer_classes[0]]
        grids = tuple(cutting(space.grid(layer, place.num_devices), samples, limit) for layer in layers)
        if not all(map(len, grids)):
            return None
        space.tick()
        costs = tuple(pricing.costs(n, grid, samples, True) for n, grid in enumerate(grids))
        beyond = Way(self._cluster.inter_group, before.num_devices)
        boundaries = Boundaries(pricing, grids[0].shapes, samples, [beyond])
        known: dict[Beats, Table] = {}

        def made(beats: Beats) -> Table:
            if beats not in known:
                tied = self._cluster.inter_group
                choices = all_choices(pricing, Priced(grids, costs), boundaries, beats, tied)
                known[beats] = Table(choices, boundaries.transitions(beats), beat(beats, 1.0, 1.0, 0.0))
            return known[beats]

        return made

    def _way(self, where: Sequence[Place], stage: int, first: dict[int, int]) -> int:
        """Which way a stage is reached: a tier of its group, or after all of them, from the group before."""
        place, group = where[stage], self._cluster.groups[where[stage].group]
        if stage == first[place.group]:
            return len(group.levels)
        link = self._cluster.link_between(where[stage - 1].first_device, place.first_device + place.num_devices - 1)
        return next(number for number, level in enumerate(group.levels) if level.link is link)

    def _limit_bytes(self, place: Place) -> int:
        group = self._cluster.groups[place.group]
        return group.usable_bytes - group.reserve_bytes

    def _host_limit_bytes(self, place: Place) -> int:
        host = self._cluster.groups[place.group].device.host
        return host.memory_bytes if host else 0


AnyInstances = Instances | MixedInstances
