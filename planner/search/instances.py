"""From families to instances for the solvers: the strategies of each stage size, their tables, tied weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from planner.cost.flops import wide_matrix_flops_per_token
from planner.cost.kernels import rates
from planner.cost.pipeline import Beats, beats_of, in_flight, rhythm
from planner.cost.rules import AnyLayer
from planner.search.bounds import Pipeline
from planner.search.families import Family, Stretches, equal_pieces, even_stretches, no_strategy
from planner.search.table import Choices, Pricing, Table, without_dominated
from planner.search.tree import Space
from planner.search.uniform import Uniform, uniform_choices
from planner.spec.errors import InputError
from planner.spec.model import Head, Model
from planner.spec.strategy import Strategy
from planner.spec.workload import Workload


class Instance(NamedTuple):
    """A family, or the part of one in which tied weights have one layout, as numbers."""

    family: Family
    all_choices: Pipeline
    """With every strategy."""
    problem: Pipeline
    """Without dominated strategies: the same optimum."""
    uniform: Uniform
    """Rows of `all_choices`."""
    even: tuple[Stretches, ...] | None
    """Stretches of each stage in the uniform plans; None if there are fewer blocks than stages."""


class Group(NamedTuple):
    """Families with the same tables."""

    num_stages: int
    samples: int
    beats: Beats
    families: tuple[Family, ...]


def groups(families: Sequence[Family]) -> list[Group]:
    """The families by stages, samples per micro-batch, and what stands for their time."""
    found: dict[tuple[int, int, Beats], list[Family]] = {}
    for family in families:
        key = (family.num_stages, family.samples, beats_of(family.schedule.kind))
        found.setdefault(key, []).append(family)
    return [Group(*key, tuple(members)) for key, members in found.items()]


class Instances:
    """Makes instances for one space under one workload."""

    def __init__(self, space: Space, pricing: dict[Beats, Pricing]) -> None:
        self._space = space
        self._pricing = pricing
        self._strategies: dict[tuple[int, int], list[Strategy]] = {}
        self._uniform: dict[tuple[int, int, int], Uniform] = {}

    def under(self, workload: Workload) -> Instances:
        """Instances under another workload; strategies are not made again, nor counted as pruned again."""
        pricing = {beats: one.under(workload) for beats, one in self._pricing.items()}
        other = Instances(self._space._replace(pruned=Counter()), pricing)
        other._strategies = self._strategies
        if len(workload.expert_shares) <= 1:
            # The same classes of layers, so the same rows.
            other._uniform = self._uniform
        return other

    @property
    def model(self) -> Model:
        """The model that is planned."""
        return next(iter(self._pricing.values())).model

    def least_per_sample_s(self) -> float:
        """No plan is faster: the wide matrix products of the model, spread over all devices at their full rate."""
        cluster, training = self._space.cluster, self._space.training
        flops = wide_matrix_flops_per_token(self.model, training.capacity_factor) * training.sequence_length
        return flops / cluster.num_devices / rates(cluster.device, cluster.stack, training.precision).matmul_flops_per_s

    def no_strategy(self) -> InputError:
        """The error for a space without any strategy."""
        return no_strategy(self._space.cluster, self._space.training, self._space.options)

    def of(self, group: Group) -> Iterator[Instance]:
        """All instances of the families of a group."""
        pricing = self._pricing[group.beats]
        for number, table in enumerate(self._tables(pricing, group)):
            exact = self._without_dominated(table)
            key = (group.num_stages, group.samples, number)
            uniform = self._uniform[key] = self._uniform.get(key) or uniform_choices(table, pricing.layer_classes[1])
            for family in group.families:
                problem = self._problem(family, table, pricing.layer_classes[1])
                even = problem.pieces or even_stretches(self.model, family.num_stages)
                yield Instance(family, problem, problem._replace(table=exact), uniform, even)

    def _strategies_of(self, layer: AnyLayer, stages: int) -> list[Strategy]:
        key = (id(layer), stages)
        if key not in self._strategies:
            self._strategies[key] = self._space.strategies(layer, self._space.cluster.num_devices // stages)
        return self._strategies[key]

    def _tables(self, pricing: Pricing, group: Group) -> Iterator[Table]:
        """The table of all strategies that can cut these samples; one for each layout of weights tied on one stage."""
        limit = self._space.options.max_micro_batch_size
        possible = [
            [
                s
                for s in each
                if group.samples % s.data_parallel_size == 0 and group.samples // s.data_parallel_size <= limit
            ]
            for each in (self._strategies_of(found.layer, group.num_stages) for found in pricing.layer_classes[0])
        ]
        if not all(possible):
            return
        stages = group.num_stages
        last_stage = (stages - 1) * (self._space.cluster.num_devices // stages)
        table = pricing.table(possible, group.samples, own_copy=stages > 1, tied_hop=last_stage)
        last = self.model.layers[-1]
        if stages == 1 and isinstance(last, Head) and last.tied:
            yield from _by_matrix(table, pricing.layer_classes[1][0], pricing.layer_classes[1][-1])
        else:
            yield table

    def _without_dominated(self, table: Table) -> Table:
        kept = tuple(without_dominated(choices) for choices in table.choices)
        before, after = (sum(len(choices.strategies) for choices in every) for every in (table.choices, kept))
        self._space.pruned["dominated"] += before - after
        return table._replace(choices=kept)

    def _problem(self, family: Family, table: Table, sequence: Sequence[int]) -> Pipeline:
        cluster, stages = self._space.cluster, family.num_stages
        virtual = family.schedule.virtual_stages
        return Pipeline(
            table=table,
            sequence=tuple(sequence),
            pieces=equal_pieces(self.model, stages, virtual) if virtual > 1 else None,
            flights=tuple(
                in_flight(family.schedule, stages, family.num_micro_batches, stage) for stage in range(stages)
            ),
            tiers=tuple(self._tier(stage, stages) for stage in range(stages)),
            limit_bytes=cluster.usable_bytes - cluster.reserve_bytes,
            rhythm=rhythm(family.schedule, stages, family.num_micro_batches),
        )

    def _tier(self, stage: int, stages: int) -> int:
        """The tier of links that joins all devices of a stage and of the one before it in the ring."""
        devices = self._space.cluster.num_devices // stages
        first, last = (stage - 1) % stages * devices, (stage + 1) * devices - 1
        levels = self._space.cluster.levels
        return next(i for i, lv in enumerate(levels) if first // lv.num_devices == last // lv.num_devices)


def _by_matrix(table: Table, first: int, last: int) -> Iterator[Table]:
    """Embedding and tied head on one stage share a matrix, and so axes and sharding."""
    for key in dict.fromkeys(map(_matrix, table.choices[first].strategies)):
        choices = list(table.choices)
        choices[first], choices[last] = _only(choices[first], key), _only(choices[last], key)
        if choices[last].strategies:
            yield table._replace(choices=tuple(choices))


def _matrix(strategy: Strategy) -> tuple[object, ...]:
    return strategy.axes, strategy.sharding


def _only(choices: Choices, key: tuple[object, ...]) -> Choices:
    kept = [row for row, strategy in enumerate(choices.strategies) if _matrix(strategy) == key]
    return choices.rows(np.array(kept, dtype=np.int64))
