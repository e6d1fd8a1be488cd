"""From measured passes and bytes to the constants of a device and a stack, under the formulas of planner.cost."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from math import log
from typing import NamedTuple

from planner.cost.layer import LayerCost, layer_cost
from planner.cost.parameters import layer_parameters
from planner.cost.part import Conditions, conditions
from planner.spec.cluster import Cluster, Device, Level, Link, Provenance
from planner.spec.errors import InputError
from planner.spec.model import Block, Embedding, Head, Model
from planner.spec.stack import Stack
from planner.spec.strategy import Axis, AxisKind, Recompute, Strategy
from planner.spec.training import Training
from profiles.galvatron.hardware import mean
from profiles.galvatron.model_profile import Kept, ModelProfile, Passes
from profiles.pattern_search import fitted

FARTHEST_PARAMETERS_RATIO = 1.1
"""Parameters of a block may be measured so many times more or less than they are: allocators round, models differ."""
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


class Machine(NamedTuple):
    """What was found, and how near it comes."""

    device: Device
    stack: Stack
    comparisons: tuple[Comparison, ...]


class _Subject(NamedTuple):
    """The layers that were measured, and how."""

    model: Model
    embedding: Embedding
    block: Block
    head: Head
    profile: ModelProfile


def calibrate(model: Model, profile: ModelProfile, device: Device, slowdown_ratio: float | None) -> Machine:
    """Device and stack of a profile, beginning with a device's datasheet.

    Fitted: `matmul_ratio`, so that a block's forward pass takes what was measured (the mean of logarithms over batch
    sizes), then `loss_ratio` likewise for embedding and head. Chosen: the stack's flags whose bytes are nearest;
    `fragmentation_ratio` is what activations take beyond. Raises InputError at `--model` if the profile's blocks have
    other sizes.
    """
    subject = _subject(model, profile)
    efficiency: dict[str, float] = {} if slowdown_ratio is None else {"overlap_slowdown_ratio": slowdown_ratio}
    device = _with_efficiency(device, efficiency)
    stack = _stack(subject, device)
    if profile.passes:
        start = {"matmul_ratio": device.efficiency.matmul_ratio}
        loss = partial(_loss, lambda found: _block_pairs(subject, _with_efficiency(device, found), stack))
        device = _with_efficiency(device, _rounded(fitted(start, loss, most={"matmul_ratio": 1.0})))
        device = device.model_copy(update={"provenance": Provenance.MEASURED})
        loss = partial(_loss, lambda found: _edge_pairs(subject, device, stack.model_copy(update=found)))
        stack = stack.model_copy(update=_rounded(fitted({"loss_ratio": 2.0}, loss, least={"loss_ratio": 1.0})))
    compared = (
        *_block_pairs(subject, device, stack),
        *_edge_pairs(subject, device, stack),
        *_bytes(subject, device, stack),
    )
    return Machine(device, stack, compared)


def _subject(model: Model, profile: ModelProfile) -> _Subject:
    blocks = list(dict.fromkeys(layer for layer in model.layers if isinstance(layer, Block)))
    first, last = model.layers[0], model.layers[-1]
    if len(blocks) != 1 or blocks[0].moe is not None:
        raise InputError.at("--model", "must have one kind of block, without experts, as the profile has")
    if not isinstance(first, Embedding) or not isinstance(last, Head):
        raise InputError.at("--model", "must have an embedding and a head, as the profile has")
    parameters = layer_parameters(blocks[0], model.hidden_size).total
    for kept in profile.kept:
        ratio = kept.parameter_bytes / (4.0 * parameters)
        if not 1 / FARTHEST_PARAMETERS_RATIO <= ratio <= FARTHEST_PARAMETERS_RATIO:
            raise InputError.at(
                "--model",
                f"a block of {model.name} has {parameters / 1e6:.4g} M parameters, that of the profile {profile.name} "
                f"{kept.parameter_bytes / 4e6:.4g} M: these are two models",
            )
    return _Subject(model, first, blocks[0], last, profile)


def _stack(subject: _Subject, device: Device) -> Stack:
    """The flags that come nearest to the bytes that were measured; a plain stack without those."""
    stack = Stack(name="galvatron")
    if not subject.profile.kept:
        return stack
    stack = _nearest([stack, stack.model_copy(update={"casts_shards": True})], partial(_state_pairs, subject, device))
    eager = stack.model_copy(update={"eager_blocks": True})
    stack = _nearest([stack, eager], partial(_activation_pairs, subject, device))
    beyond = mean(c.measured / c.predicted for c in _activation_pairs(subject, device, stack)) - 1.0
    stack = stack.model_copy(update=_rounded({"fragmentation_ratio": max(0.0, beyond)}))
    eager = stack.model_copy(update={"eager_loss": True})
    return _nearest([stack, eager], partial(_edge_activation_pairs, subject, device))


def _nearest(stacks: list[Stack], pairs: Callable[[Stack], Iterable[Comparison]]) -> Stack:
    """The stack of least loss; of equals the first."""
    return min(stacks, key=lambda stack: _mean_square(pairs(stack)))


def _loss(pairs: Callable[[Mapping[str, float]], Iterable[Comparison]], constants: Mapping[str, float]) -> float:
    return _mean_square(pairs(constants))


def _mean_square(comparisons: Iterable[Comparison]) -> float:
    """Of the logarithms: twice as long is as wrong as half as long."""
    found = [log(each.predicted / each.measured) ** 2 for each in comparisons]
    return sum(found) / len(found)


def _block_pairs(subject: _Subject, device: Device, stack: Stack) -> list[Comparison]:
    given = _conditions(subject, device, stack)
    return [
        Comparison(
            "seconds of a block, forward", _batch(passes), passes.block_s, _forward_s(given, subject.block, passes)
        )
        for passes in subject.profile.passes
    ]


def _edge_pairs(subject: _Subject, device: Device, stack: Stack) -> list[Comparison]:
    given = _conditions(subject, device, stack)
    return [
        Comparison(
            "seconds of embedding and head, forward",
            _batch(passes),
            passes.edges_s,
            sum(_forward_s(given, layer, passes) for layer in (subject.embedding, subject.head)),
        )
        for passes in subject.profile.passes
        if passes.edges_s > 0
    ]


def _bytes(subject: _Subject, device: Device, stack: Stack) -> Iterator[Comparison]:
    yield from _state_pairs(subject, device, stack)
    yield from _activation_pairs(subject, device, stack)
    yield from _recomputed_pairs(subject, device, stack)
    yield from _edge_activation_pairs(subject, device, stack)


def _state_pairs(subject: _Subject, device: Device, stack: Stack) -> list[Comparison]:
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


def _activation_pairs(subject: _Subject, device: Device, stack: Stack) -> list[Comparison]:
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


def _recomputed_pairs(subject: _Subject, device: Device, stack: Stack) -> list[Comparison]:
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


def _edge_activation_pairs(subject: _Subject, device: Device, stack: Stack) -> list[Comparison]:
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


def _edge_bytes(given: Conditions, subject: _Subject, kept: Kept, degree: int) -> Iterator[float]:
    for layer in (subject.embedding, subject.head):
        cost = _cost(given, layer, _tensor(subject, degree), 1, kept.sequence_length)
        yield cost.activation_bytes + cost.logits_bytes


def _tensor(subject: _Subject, degree: int) -> Strategy:
    if degree == 1:
        return Strategy()
    return Strategy(axes=(Axis(AxisKind.TP, degree),), sequence_parallel=bool(subject.profile.sequence_parallel))


def _forward_s(given: Conditions, layer: Embedding | Block | Head, passes: Passes) -> float:
    return float(_cost(given, layer, Strategy(), passes.samples, passes.sequence_length).forward_s)


def _cost(
    given: Conditions, layer: Embedding | Block | Head, strategy: Strategy, samples: int, sequence_length: int
) -> LayerCost:
    return layer_cost(given, layer, strategy, samples, sequence_length)


def _conditions(subject: _Subject, device: Device, stack: Stack) -> Conditions:
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


def _with_efficiency(device: Device, constants: Mapping[str, float]) -> Device:
    return device.model_copy(update={"efficiency": device.efficiency.model_copy(update=constants)})


def _batch(passes: Passes) -> str:
    return f"{passes.samples} x {passes.sequence_length} tokens"


def _rounded(found: Mapping[str, float]) -> dict[str, float]:
    """What a measurement is good for."""
    return {name: float(f"{value:.4g}") for name, value in found.items()}
