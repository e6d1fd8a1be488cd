"""What every exporter reads: a plan with its model, cluster and training, and the numbers that follow from them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from planner.cost.framework import can_shard
from planner.spec.cluster import Cluster
from planner.spec.mixed_cluster import AnyCluster
from planner.spec.model import AnyLayer, Block, Embedding, Head, Model
from planner.spec.plan import Plan, StageRun
from planner.spec.strategy import AxisKind, ExpertStrategy, Recompute, Sharding, Strategy
from planner.spec.training import Training


class Piece(NamedTuple):
    """The unbroken layers of one virtual stage."""

    stage: int
    layers: tuple[AnyLayer, ...]
    numbers: tuple[int, ...]
    """Of the layers, the model's embedding being 0."""
    runs: tuple[StageRun, ...]

    @property
    def blocks(self) -> tuple[int, ...]:
        """Numbers of its blocks among the model's blocks, from 0 on, where the model begins with its embedding."""
        found = zip(self.numbers, self.layers, strict=True)
        return tuple(number - 1 for number, layer in found if isinstance(layer, Block))

    @property
    def has_embedding(self) -> bool:
        """Whether the model begins here."""
        return isinstance(self.layers[0], Embedding)

    @property
    def has_head(self) -> bool:
        """Whether the model ends here."""
        return isinstance(self.layers[-1], Head)


@dataclass(frozen=True)
class Job:
    """A training job. What is said of one strategy holds for all layers: frameworks' rules see to that."""

    model: Model
    cluster: AnyCluster
    training: Training
    plan: Plan

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """The Transformer blocks in order."""
        return tuple(layer for layer in self.model.layers if isinstance(layer, Block))

    @cached_property
    def strategies(self) -> tuple[tuple[int, Strategy], ...]:
        """(layer, strategy) of all layers in order."""
        return tuple((number, run.strategy) for piece in self.pieces for run in piece.runs for number in _numbers(run))

    @cached_property
    def pieces(self) -> tuple[Piece, ...]:
        """All pieces in the order of the model's layers: virtual stage by virtual stage, stage by stage."""
        return tuple(
            self._piece(number, stage.pieces[virtual])
            for virtual in range(self.plan.schedule.virtual_stages)
            for number, stage in enumerate(self.plan.stages)
        )

    def _piece(self, stage: int, runs: tuple[StageRun, ...]) -> Piece:
        numbers = tuple(number for run in runs for number in _numbers(run))
        return Piece(stage, tuple(self.model.layers[number] for number in numbers), numbers, runs)

    @property
    def num_stages(self) -> int:
        """Pipeline stages."""
        return len(self.plan.stages)

    @property
    def first(self) -> Strategy:
        """The strategy of the first layer, whose axes all layers share."""
        return self.plan.stages[0].runs[0].strategy

    @property
    def sharding(self) -> Sharding:
        """Of the layers that have something to shard; none where none has."""
        return next((s.sharding for _, s in self.strategies if can_shard(s)), Sharding.NONE)

    @property
    def replicas(self) -> int:
        """Copies of what is sharded: dp where sdp shards, all of dp where nothing is sharded, else 1."""
        if self.first.degree(AxisKind.SDP) > 1:
            return self.first.degree(AxisKind.DP)
        return self.first.data_parallel_size if self.sharding is Sharding.NONE else 1

    @property
    def shards(self) -> int:
        """Data-parallel ranks that split among them; replicas x shards is all of data parallelism."""
        return self.first.data_parallel_size // self.replicas

    @property
    def experts(self) -> ExpertStrategy | None:
        """How the experts are spread, where there are any."""
        return next((s.experts for _, s in self.strategies if s.experts), None)

    @property
    def recompute(self) -> tuple[tuple[Recompute, ...], ...]:
        """Of each piece in order: the kind of each of its blocks."""
        kinds = dict(self.strategies)
        return tuple(tuple(kinds[number + 1].recompute for number in piece.blocks) for piece in self.pieces)

    @property
    def nodes(self) -> tuple[int, frozenset[int]]:
        """Nodes of the cluster, and the numbers of devices that they have."""
        groups = (self.cluster,) if isinstance(self.cluster, Cluster) else self.cluster.groups
        return sum(group.nodes for group in groups), frozenset(group.devices_per_node for group in groups)

    @property
    def devices_per_node(self) -> int:
        """Of every node, where all have equally many."""
        return min(self.nodes[1])


def _numbers(run: StageRun) -> range:
    return range(run.first_layer, run.end_layer)
