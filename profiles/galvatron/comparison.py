"""What was measured of a model's layers beside what the formulas of planner.cost say. Chooses and fits nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from planner.cost.layer import LayerCost, layer_cost
from planner.cost.part import Conditions, conditions
from planner.spec.cluster import Cluster, Device, Level, Link
from planner.spec.model import Block, Embedding, Head, Model
from planner.spec.stack import Stack
from planner.spec.strategy import Axis, AxisKind, Recompute, Strategy
from planner.spec.training import Training
from profiles.galvatron.model_profile import Kept, ModelProfile, Passes

_STATE_BYTES_RATIO = 4
"""Measured bytes of weights, gradients and optimizer state, over what the profile calls the parameter size."""


class Comparison(NamedTuple):
    """One measured number beside what the formulas say with the constants that were found."""

    kind: str
    case: str
    measured: float
    predicted: float

    @property
    def error_ratio(self) -> float:
        """Predicted over measured, less one."""
        return self.predicted / self.measured - 1.0


class Subject(NamedTuple):
    """The layers that were measured, and how."""

    model: Model
    embedding: Embedding
    block: Block
    head: Head
    profile: ModelProfile


def block_seconds(subject: Subject, device: Device, stack: Stack) -> list[Comparison]:
    """Of one block's forward pass."""
    given = _conditions(subject, device, stack)
    return [
        Comparison(
            "seconds of a block, forward", _batch(passes), passes.block_s, _forward_s(given, subject.block, passes)
        )
        for passes in subject.profile.passes
    ]


def edge_seconds(subject: Subject, device: Device, stack: Stack) -> list[Comparison]:
    """Of the forward passes of embedding and head."""
    given = _conditions(subject, device, stack)
    return [
        Comparison(
            "seconds of embedding and head, forward",
            _batch(passes),
            passes.edges_s,
            sum(_forward_s(given, layer, passes) for layer in (subject.embedding, subject.head)),
        )
        for passes in subject.profile.passes
    ]


def all_bytes(subject: Subject, device: Device, stack: Stack) -> Iterator[Comparison]:
    """All that the memory profile says."""
    yield from state_bytes(subject, device, stack)
    yield from activation_bytes(subject, device, stack)
    yield from _recomputed_bytes(subject, device, stack)
    yield from edge_activation_bytes(subject, device, stack)


def state_bytes(subject: Subject, device: Device, stack: Stack) -> list[Comparison]:
    """Under ZeRO-3, as the profiler runs it; on two devices, whose halves are added up."""
    given = _conditions(subject, device, stack)
    sharded = Strategy.model_validate({"axes": [["dp", 2]], "sharding": "full"})
    return [
        Comparison(
            "bytes of a block's weights, gradients and optimizer state",
            "all shards",
            kept.parameter_bytes * _STATE_BYTES_RATIO,
            2.0 * _cost(given, subject.block, sharded, 2, kept.sequence_length).fixed_bytes,
        )
        for kept in subject.profile.kept
    ]


def activation_bytes(subject: Subject, device: Device, stack: Stack) -> list[Comparison]:
    """What a block keeps for its backward pass, by tensor-parallel degree."""
    given = _conditions(subject, device, stack)
    return [
        Comparison(
            "bytes of a block's activations",
            f"1 x {kept.sequence_length} tokens, tp{degree}",
            measured,
            _cost(given, subject.block, _tensor(subject, degree), 1, kept.sequence_length).activation_bytes,
        )
        for kept in subject.profile.kept
        for degree, measured in kept.activation_bytes
    ]


def _recomputed_bytes(subject: Subject, device: Device, stack: Stack) -> list[Comparison]:
    given, whole = _conditions(subject, device, stack), Strategy(recompute=Recompute.FULL)
    return [
        Comparison(
            "bytes of a recomputed block's input",
            f"1 x {kept.sequence_length} tokens",
            kept.recomputed_bytes,
            _cost(given, subject.block, whole, 1, kept.sequence_length).activation_bytes,
        )
        for kept in subject.profile.kept
        if kept.recomputed_bytes
    ]


def edge_activation_bytes(subject: Subject, device: Device, stack: Stack) -> list[Comparison]:
    """What embedding and head keep, by tensor-parallel degree."""
    given = _conditions(subject, device, stack)
    return [
        Comparison(
            "bytes of embedding and head's activations",
            f"1 x {kept.sequence_length} tokens, tp{degree}",
            measured,
            sum(_edge_bytes(given, subject, kept, degree)),
        )
        for kept in subject.profile.kept
        for degree, measured in kept.edges_activation_bytes
    ]


def _edge_bytes(given: Conditions, subject: Subject, kept: Kept, degree: int) -> Iterator[float]:
    for layer in (subject.embedding, subject.head):
        cost = _cost(given, layer, _tensor(subject, degree), 1, kept.sequence_length)
        yield cost.activation_bytes + cost.logits_bytes


def _tensor(subject: Subject, degree: int) -> Strategy:
    if degree == 1:
        return Strategy()
    return Strategy(axes=(Axis(AxisKind.TP, degree),), sequence_parallel=bool(subject.profile.sequence_parallel))


def _forward_s(given: Conditions, layer: Embedding | Block | Head, passes: Passes) -> float:
    return float(_cost(given, layer, Strategy(), passes.samples, passes.sequence_length).forward_s)


def _cost(
    given: Conditions, layer: Embedding | Block | Head, strategy: Strategy, samples: int, sequence_length: int
) -> LayerCost:
    return layer_cost(given, layer, strategy, samples, sequence_length)


def _conditions(subject: Subject, device: Device, stack: Stack) -> Conditions:
    """Links play no part: what is compared stays on a device, or is bytes."""
    link = Link(bandwidth_bytes_per_s=1.0, latency_s=0.0)
    degree = max((degree for kept in subject.profile.kept for degree, _ in kept.activation_bytes), default=1)
    size = max(2, degree)
    cluster = Cluster(
        nodes=1,
        devices_per_node=size,
        device=device,
        levels=(Level(name="node", num_devices=size, link=link),),
        stack=stack,
    )
    training = Training.model_validate(
        {"global_batch_size": 1, "sequence_length": 1, "precision": subject.profile.precision}
    )
    return conditions(subject.model.hidden_size, cluster, training)


def _batch(passes: Passes) -> str:
    return f"{passes.samples} x {passes.sequence_length} tokens"
