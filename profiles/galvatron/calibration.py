"""From measured passes and bytes to the constants of a device and a stack, under the formulas of planner.cost."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from math import log
from typing import NamedTuple

from planner.cost.parameters import layer_parameters
from planner.spec.cluster import Device, Provenance
from planner.spec.errors import InputError
from planner.spec.model import Block, Embedding, Head, Model
from planner.spec.stack import Stack
from profiles.galvatron.comparison import (
    Comparison,
    Subject,
    activation_bytes,
    all_bytes,
    block_seconds,
    edge_activation_bytes,
    edge_seconds,
    state_bytes,
)
from profiles.galvatron.hardware import mean, rounded
from profiles.galvatron.model_profile import ModelProfile
from profiles.pattern_search import fitted

FARTHEST_PARAMETERS_RATIO = 1.1
"""Parameters of a block may be measured so many times more or less than they are: allocators round, models differ."""


class Machine(NamedTuple):
    """What was found, and how near it comes."""

    device: Device
    stack: Stack
    comparisons: tuple[Comparison, ...]


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
        loss = partial(_loss, lambda found: block_seconds(subject, _with_efficiency(device, found), stack))
        device = _with_efficiency(device, _rounded(fitted(start, loss, most={"matmul_ratio": 1.0})))
        device = device.model_copy(update={"provenance": Provenance.MEASURED})
        loss = partial(_loss, lambda found: edge_seconds(subject, device, stack.model_copy(update=found)))
        stack = stack.model_copy(update=_rounded(fitted({"loss_ratio": 2.0}, loss, least={"loss_ratio": 1.0})))
    compared = (
        *block_seconds(subject, device, stack),
        *edge_seconds(subject, device, stack),
        *all_bytes(subject, device, stack),
    )
    return Machine(device, stack, compared)


def _subject(model: Model, profile: ModelProfile) -> Subject:
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
    return Subject(model, first, blocks[0], last, profile)


def _stack(subject: Subject, device: Device) -> Stack:
    """The flags that come nearest to the bytes that were measured; a plain stack without those."""
    stack = Stack(name="galvatron")
    if not subject.profile.kept:
        return stack
    stack = _nearest([stack, stack.model_copy(update={"casts_shards": True})], partial(state_bytes, subject, device))
    eager = stack.model_copy(update={"eager_blocks": True})
    stack = _nearest([stack, eager], partial(activation_bytes, subject, device))
    beyond = mean(c.measured / c.predicted for c in activation_bytes(subject, device, stack)) - 1.0
    stack = stack.model_copy(update=_rounded({"fragmentation_ratio": max(0.0, beyond)}))
    eager = stack.model_copy(update={"eager_loss": True})
    return _nearest([stack, eager], partial(edge_activation_bytes, subject, device))


def _nearest(stacks: list[Stack], pairs: Callable[[Stack], Iterable[Comparison]]) -> Stack:
    """The stack of least loss; of equals the first."""
    return min(stacks, key=lambda stack: _mean_square(pairs(stack)))


def _loss(pairs: Callable[[Mapping[str, float]], Iterable[Comparison]], constants: Mapping[str, float]) -> float:
    return _mean_square(pairs(constants))


def _mean_square(comparisons: Iterable[Comparison]) -> float:
    """Of the logarithms: twice as long is as wrong as half as long."""
    found = [log(each.predicted / each.measured) ** 2 for each in comparisons]
    return sum(found) / len(found)


def _with_efficiency(device: Device, constants: Mapping[str, float]) -> Device:
    return device.model_copy(update={"efficiency": device.efficiency.model_copy(update=constants)})


def _rounded(found: Mapping[str, float]) -> dict[str, float]:
    return {name: rounded(value) for name, value in found.items()}
