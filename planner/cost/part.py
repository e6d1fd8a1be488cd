"""What one part of a layer costs one device for one micro-batch, and the conditions that it is priced under."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from planner.cost.collectives import Group, levels_from
from planner.cost.kernels import Rates, rates
from planner.cost.numbers import Numbers, largest
from planner.spec.cluster import Cluster, HostShare, Level
from planner.spec.model import AnyLayer, Block, Embedding, Merging
from planner.spec.stack import Stack
from planner.spec.strategy import AxisKind, Strategy
from planner.spec.training import Training


class Conditions(NamedTuple):
    """What a layer is priced under: width, device, links, recipe."""

    hidden_size: int
    """Of the layer, once `of_layer` has seen it; before, the model's."""
    rate: Rates
    levels: tuple[Level, ...]
    training: Training
    stack: Stack
    host: HostShare | None = None
    """None: nothing can be offloaded."""


def conditions(hidden_size: int, cluster: Cluster, training: Training) -> Conditions:
    """Conditions for a model of this width; raises InputError if the device lacks the number format."""
    rate = rates(cluster.device, cluster.stack, training.precision)
    return Conditions(hidden_size, rate, cluster.levels, training, cluster.stack, cluster.device.host)


def stage_conditions(of_group: Conditions, first_device: int, num_devices: int) -> Conditions:
    """What holds on the consecutive devices of a stage, numbered from the first of their group.

    The tiers are as the stage finds them; the very same object where it begins at a multiple of its size.
    """
    levels = levels_from(of_group.levels, first_device, num_devices)
    return of_group if levels is of_group.levels else of_group._replace(levels=levels)


def of_layer(conditions: Conditions, layer: AnyLayer) -> Conditions:
    """Conditions with the layer's own width; what reads `hidden_size` for a layer has them from here."""
    return conditions if layer.hidden_size is None else conditions._replace(hidden_size=layer.hidden_size)


def arriving_tokens(layer: AnyLayer, sequence_length: int, encoder_length: int) -> tuple[int, ...]:
    """Tokens of a sample in each activation that comes from the layer before: the layer's own, then what goes along.

    Along an encoder go the embedded tokens of the decoder; along a decoder that attends to it, the encoder's output.
    """
    if layer.tokens_per_sample == "encoder":
        return encoder_length, sequence_length
    own = sequence_length if layer.tokens_per_sample is None else layer.tokens_per_sample
    if isinstance(layer, Merging):
        return (own * layer.merged_tokens,)
    return (own, encoder_length) if isinstance(layer, Block) and layer.cross_attention else (own,)


def computed_tokens(layer: AnyLayer, sequence_length: int, encoder_length: int) -> int:
    """Tokens of a sample that a layer computes on: those of its input; an embedding puts out all that arrives later."""
    arriving = arriving_tokens(layer, sequence_length, encoder_length)
    return sum(arriving) if isinstance(layer, Embedding) else arriving[0]


def at_entry(conditions: Conditions, layer: AnyLayer, sequence_length: int) -> tuple[Conditions, int]:
    """(conditions, tokens of a sample) of all that crosses into a layer."""
    width = layer.input_size if isinstance(layer, Merging) else of_layer(conditions, layer).hidden_size
    arriving = arriving_tokens(layer, sequence_length, conditions.training.encoder_length)
    return conditions._replace(hidden_size=width), sum(arriving)


class Share(NamedTuple):
    """What one device gets of a micro-batch under a strategy."""

    samples: float
    """Samples of its data-parallel rank."""
    sequence: float
    """Tokens of each sample after the cuts of its sequence."""
    tokens: float
    """samples x sequence: what the tensor-parallel regions see."""
    edge_tokens: float
    """What the regions between them see: tokens / tp with sequence parallelism."""


def context_share(conditions: Conditions, strategy: Strategy, part_of: Share) -> Share:
    """Of the encoder's output, what the same device reads in cross-attention."""
    sequence = conditions.training.encoder_length / strategy.sequence_parts
    tokens = part_of.samples * sequence
    return Share(part_of.samples, sequence, tokens, tokens / strategy.tp if strategy.sequence_parallel else tokens)


def share(strategy: Strategy, samples: int, sequence_length: int) -> Share:
    """The share under `strategy` of a micro-batch of `samples` over all data-parallel ranks."""
    local = samples / strategy.data_parallel_size
    sequence = sequence_length / strategy.sequence_parts
    tokens = local * sequence
    return Share(local, sequence, tokens, tokens / strategy.tp if strategy.sequence_parallel else tokens)


class Part(NamedTuple):
    """Seconds and bytes of a part of a layer, on the busiest device, for one micro-batch.

    Communication is what compute does not hide. Arrays hold a number for each of many strategies or loads.
    """

    forward_s: Numbers = 0.0
    backward_s: Numbers = 0.0
    core_forward_s: Numbers = 0.0
    """Of `forward_s`, what selective recomputation does again."""
    weightless_forward_s: Numbers = 0.0
    """Of `forward_s`, the attention core, which has no weights and so no gradients of weights."""
    tensor_forward_s: Numbers = 0.0
    tensor_backward_s: Numbers = 0.0
    context_forward_s: Numbers = 0.0
    context_backward_s: Numbers = 0.0
    context_again_s: Numbers = 0.0
    """Of `context_forward_s`, what selective recomputation does again."""
    ring_forward_s: Numbers = 0.0
    """Of `forward_s`, what hides context-parallel traffic, and hides no other."""
    ring_backward_s: Numbers = 0.0
    all_to_all_s: Numbers = 0.0
    """One direction: forward; backward takes the same."""
    imbalance_forward_s: Numbers = 0.0
    """What uneven expert load adds to compute and all-to-all."""
    imbalance_backward_s: Numbers = 0.0
    host_s: Numbers = 0.0
    """In which the host submits one pass."""
    stall_s: Numbers = 0.0
    """In a forward pass, waiting for the host whatever the device does."""
    stored_bytes: Numbers = 0.0
    """Activations kept for the backward pass."""
    core_bytes: Numbers = 0.0
    """Of `stored_bytes`, what selective recomputation does not keep."""
    logits_bytes: Numbers = 0.0
    """Scores over the vocabulary, beside `stored_bytes`."""
    transient_bytes: Numbers = 0.0
    """Gradients of activations, alive during the backward pass of this part."""


def add(parts: Iterable[Part]) -> Part:
    """The parts one after the other; of the transient bytes, the largest."""
    columns = list(zip(*parts, strict=True))
    return Part._make([*map(sum, columns[:-1]), largest(columns[-1])])


def tensor_group(strategy: Strategy) -> Group:
    """The tensor-parallel group of a device."""
    return ((strategy.tp, strategy.stride(AxisKind.TP)),)


def context_group(strategy: Strategy) -> Group:
    """The context-parallel group of a device."""
    return ((strategy.cp, strategy.stride(AxisKind.CP)),)


def head_group(strategy: Strategy) -> Group:
    """The devices that turn parts of the sequence into parts of the heads, of Ulysses."""
    return ((strategy.ulysses, strategy.stride(AxisKind.ULYSSES)),)
