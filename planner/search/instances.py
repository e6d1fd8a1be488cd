"""From families to instances for the solvers: the strategies of each stage size, their tables, tied weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import inf
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from planner.cost.flops import wide_matrix_flops_per_sample
from planner.cost.kernels import rates
from planner.cost.layer import LayerCost
from planner.cost.pipeline import Beats, beat, beats_of, in_flight, rhythm
from planner.search.bounds import promising
from planner.search.families import Family, cuts, no_strategy
from planner.search.grid import Grid
from planner.search.outlook import Outlook
from planner.search.pricing import Pricing
from planner.search.problem import Pipeline, with_tables
from planner.search.progress import Tick
from planner.search.removed import DOMINATED, Removed
from planner.search.space import Space
from planner.search.table import Boundaries, Choices, Priced, Table, all_choices, without_dominated
from planner.search.uniform import Uniform, each_uniform, uniform_choices
from planner.spec.errors import InputError
from planner.spec.model import Head, Model
from planner.spec.stretches import Stretches, equal_pieces, even_stretches

Integers = NDArray[np.int64]


class Group(NamedTuple):
    """Families with the same strategies and costs."""

    num_stages: int
    samples: int
    families: tuple[Family, ...]
    cut: tuple[int, ...] = ()
    """Of the families."""


def groups(families: Sequence[Family]) -> list[Group]:
    """The families by stages and samples per micro-batch."""
    found: dict[tuple[int, int, tuple[int, ...]], list[Family]] = {}
    for family in families:
        found.setdefault((family.num_stages, family.samples, family.cut), []).append(family)
    return [Group(stages, samples, tuple(members), cut) for (stages, samples, cut), members in found.items()]


class Instance(NamedTuple):
    """A family as numbers, with every strategy."""

    family: Family
    problem: Pipeline
    uniform: Uniform
    even: tuple[Stretches, ...] | None
    """Stretches of each stage in the uniform plans; None if there are fewer blocks than stages."""


class Instances:
    """Makes instances for one space under one workload."""

    def __init__(self, space: Space, pricing: Pricing, families: Sequence[Family]) -> None:
        self._space = space
        self._pricing = pricing
        self._outlook = Outlook(pricing, space, ((family.num_stages, family.samples) for family in families))

    @property
    def model(self) -> Model:
        """The model that is planned."""
        return self._pricing.model

    def at_least_s(self, family: Family) -> float:
        """No plan of the family takes a shorter step, but for what every plan pays."""
        made = rhythm(family.schedule, family.num_stages, family.num_micro_batches)
        return self._outlook.step_s(family, made, beats_of(family.schedule.kind))

    def least_per_sample_s(self) -> float:
        """No plan is faster: the wide matrix products of the model, spread over all devices at their full rate."""
        cluster, training = self._space.cluster, self._space.training
        flops = wide_matrix_flops_per_sample(self.model, training)
        return flops / cluster.num_devices / rates(cluster.device, cluster.stack, training.precision).matmul_flops_per_s

    def no_strategy(self) -> InputError:
        """The error for a space without any strategy."""
        return no_strategy(self._space.cluster, self._space.training, self._space.options, self._space.removed)

    def of(self, group: Group) -> Iterator[Instance]:
        """The instances of a group's families; none where no strategy cuts its samples."""
        classes, sequence = self._pricing.layer_classes
        devices = self._space.cluster.num_devices // group.num_stages
        grids = tuple(
            cutting(self._space.grid(each.layer, devices), group.samples, self._space.options.max_micro_batch_size)
            for each in classes
        )
        if not all(map(len, grids)):
            return
        apart = group.num_stages > 1
        costs = tuple(self._costs(n, grid, group.samples, apart) for n, grid in enumerate(grids))
        uniform = uniform_choices(grids, sequence)
        boundaries = Boundaries(self._pricing, grids[0].shapes, group.samples)
        tied_link = self._space.cluster.link_between(0, (group.num_stages - 1) * devices) if apart else None
        tables: dict[Beats, Table] = {}
        for family in group.families:
            self._space.tick()
            beats = beats_of(family.schedule.kind)
            if beats not in tables:
                choices = all_choices(self._pricing, Priced(grids, costs), boundaries, beats, tied_link)
                tables[beats] = Table(choices, boundaries.transitions(beats), beat(beats, 1.0, 1.0, 0.0))
            problem = self._problem(family, tables[beats], sequence)
            given = None if problem.pieces else cuts(self.model, family.num_stages, self._space.options)
            for pieces in given or ():
                self._space.tick()
                yield Instance(family, problem._replace(pieces=pieces), uniform, pieces)
            if given is None:
                even = problem.pieces or even_stretches(self.model, family.num_stages)
                yield Instance(family, problem, uniform, even)

    def parts(self, instance: Instance, best_s: Callable[[], float]) -> Iterator[Pipeline]:
        """The instance in parts that together hold all better plans, without strategies that no better plan has.

        A better plan is one of less than `best_s`, but for what every plan pays; it may fall between two parts. One
        part for each uniform choice where only those are wanted, and for each layout of weights tied on one stage.
        """
        if self._space.options.uniform:
            found = each_uniform(instance.problem, instance.uniform, best_s)
        else:
            found = self._mixed(instance, best_s())
        for each in found:
            self._space.tick()
            yield each

    def tellable(self, instance: Instance) -> Uniform:
        """Choices by which a misfit is told: the uniform ones; where layers cannot be alike, the smallest of each."""
        if len(instance.uniform.rows) or self._space.options.uniform:
            return instance.uniform
        problem, flight = instance.problem, float(max(instance.problem.flights))
        rows = [
            [
                whole.row_of(own, int((own.fixed_bytes + flight * own.flight_bytes + own.workspace_bytes).argmin()))
                for whole, own in zip(problem.tables[0].choices, part.tables[0].choices, strict=True)
            ]
            for part in self._mixed(instance, inf)
        ]
        return Uniform(np.array(rows, dtype=np.int64), np.zeros(len(rows), dtype=np.int64))

    def _mixed(self, instance: Instance, best_s: float) -> Iterator[Pipeline]:
        last, problem = self.model.layers[-1], promising(instance.problem, best_s)
        apart = len(problem.flights) == 1 and isinstance(last, Head) and last.tied
        for each in (promising(part, best_s) for part in _by_matrix(problem)) if apart else (problem,):
            if all(len(choices.once_s) for table in each.tables for choices in table.choices):
                yield each

    def without_dominated(self, problem: Pipeline) -> Pipeline:
        """The problem without strategies that others beat or equal in every number: the same optimum."""
        return undominated_tables(problem, self._space.removed, self._space.tick)

    def _costs(self, number: int, grid: Grid, samples: int, apart: bool) -> LayerCost:
        self._space.tick()
        return self._pricing.costs(number, grid, samples, apart)

    def _problem(self, family: Family, table: Table, sequence: Sequence[int]) -> Pipeline:
        cluster, stages = self._space.cluster, family.num_stages
        virtual = family.schedule.virtual_stages
        return Pipeline(
            tables=(table,) * stages,
            sequence=tuple(sequence),
            pieces=equal_pieces(self.model, stages, virtual) if virtual > 1 else None,
            flights=tuple(
                in_flight(family.schedule, stages, family.num_micro_batches, stage) for stage in range(stages)
            ),
            tiers=tuple(self._tier(stage, stages) for stage in range(stages)),
            limits_bytes=(cluster.usable_bytes - cluster.reserve_bytes,) * stages,
            host_limits_bytes=(cluster.device.host.memory_bytes if cluster.device.host else 0,) * stages,
            rhythm=rhythm(family.schedule, stages, family.num_micro_batches),
        )

    def _tier(self, stage: int, stages: int) -> int:
        """The tier of links that joins all devices of a stage and of the one before it in the ring."""
        devices = self._space.cluster.num_devices // stages
        first, last = (stage - 1) % stages * devices, (stage + 1) * devices - 1
        levels = self._space.cluster.levels
        return next(i for i, lv in enumerate(levels) if first // lv.num_devices == last // lv.num_devices)


def undominated_tables(problem: Pipeline, removed: Removed, tick: Tick) -> Pipeline:
    """Each table without dominated strategies; notes how many they were."""

    def kept(table: Table) -> Table:
        choices = tuple(without_dominated(each, tick) for each in table.choices)
        lost = sum(len(c.once_s) for c in table.choices) - sum(len(c.once_s) for c in choices)
        removed.note(DOMINATED, lost, "")
        return table._replace(choices=choices)

    return with_tables(problem, kept)


def cutting(grid: Grid, samples: int, limit: int) -> Grid:
    """The strategies that cut so many samples evenly, and leave each rank no more than the limit."""
    ranks = grid.ranks[grid.shape]
    return grid.rows(np.flatnonzero((samples % ranks == 0) & (samples // ranks <= limit)))


def _by_matrix(problem: Pipeline) -> Iterator[Pipeline]:
    """Embedding and tied head on one stage share a matrix, and so axes and sharding."""
    table, first, last = problem.tables[0], problem.sequence[0], problem.sequence[-1]
    keys = [_matrices(table.choices[number]) for number in (first, last)]
    for key in sorted(set(keys[0].tolist()) & set(keys[1].tolist())):
        choices = list(table.choices)
        for number, found in zip((first, last), keys, strict=True):
            choices[number] = table.choices[number].rows(np.flatnonzero(found == key))
        yield problem._replace(tables=(table._replace(choices=tuple(choices)),))


def _matrices(choices: Choices) -> Integers:
    """[rows] of a number that is equal where axes and sharding are."""
    grid = choices.strategies
    assert isinstance(grid, Grid)
    axes: dict[object, int] = {}
    numbers = np.array([axes.setdefault(shape.axes, len(axes)) for shape in grid.shapes])
    found: Integers = numbers[grid.shape] * 4 + grid.sharding
    return found
