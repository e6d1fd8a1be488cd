"""What crosses from layer to layer: between stages, between unlike strategies inside a stage, and tied weights."""

from __future__ import annotations

from math import ceil
from typing import NamedTuple

from planner.cost.collectives import narrowest_bytes_per_s, pair_s
from planner.cost.message import Collective, Message, Messages, messages_s
from planner.cost.part import Conditions, at_entry, context_share, of_layer, share, tensor_group
from planner.cost.state import gradient_bytes
from planner.spec.cluster import Link
from planner.spec.model import AnyLayer, Block, Head
from planner.spec.strategy import AxisKind, Strategy

Layout = tuple[tuple[AxisKind, int, int], ...]
"""How a [samples, tokens, hidden] activation is cut over the devices of a stage: (axis, degree, stride)."""


class Entry(NamedTuple):
    """What a piece of a stage pays for its activations to arrive and its gradients to leave."""

    pass_s: float
    """One message; a micro-batch needs one forward and one backward."""
    buffer_bytes: int
    carried_bytes: int = 0
    """Of what arrives, kept for each micro-batch in flight: see `carried_bytes`."""


def activation_bytes(conditions: Conditions, strategy: Strategy, samples: int, sequence_length: int) -> float:
    """A device's share of the activation between two layers; conditions and tokens are those of `at_entry`."""
    edge = share(strategy, samples, sequence_length).edge_tokens
    return edge * conditions.hidden_size * conditions.rate.element_bytes


def entry(
    conditions: Conditions,
    strategy: Strategy,
    samples: int,
    sequence_length: int,
    link: Link,
    senders: int | None = None,
) -> Entry:
    """Into a piece, from the stage before, over the `link` between the first device there and the last here.

    `conditions` and tokens are those `at_entry` of its first layer. `senders`: devices of the stage before; None: as
    many as here. Two buffers each for activation and gradient. Not overlapped.
    """
    share_bytes = activation_bytes(conditions, strategy, samples, sequence_length)
    sent, *arrived = entry_messages(conditions, strategy, samples, sequence_length)
    # The side with fewer devices has the larger share of the activation on each.
    busiest_bytes = sent.moved_bytes * max(1.0, strategy.num_devices / (senders or strategy.num_devices))
    pass_s = pair_s(link, busiest_bytes) + messages_s(conditions.levels, tuple(arrived))
    return Entry(pass_s + conditions.stack.message_host_s, 4 * int(share_bytes))


def entry_into(
    conditions: Conditions,
    layer: AnyLayer,
    strategy: Strategy,
    samples: int,
    link: Link,
    senders: int | None = None,
) -> Entry:
    """The same into a piece that begins with this layer; `conditions` are the model's."""
    arriving, tokens = at_entry(conditions, layer, conditions.training.sequence_length)
    found = entry(arriving, strategy, samples, tokens, link, senders)
    return found._replace(carried_bytes=carried_bytes(conditions, layer, strategy, samples))


def carried_bytes(conditions: Conditions, layer: AnyLayer, strategy: Strategy, samples: int) -> int:
    """The encoder's output on a device, which a piece of a stage that is entered at this layer keeps.

    By micro-batch in flight, once for all its blocks with cross-attention; the stage of the encoder's end has it there.
    """
    if not isinstance(layer, Block) or not layer.cross_attention:
        return 0
    part_of = context_share(conditions, strategy, share(strategy, samples, 1))
    return ceil(part_of.edge_tokens * of_layer(conditions, layer).hidden_size * conditions.rate.element_bytes)


def entry_messages(conditions: Conditions, strategy: Strategy, samples: int, sequence_length: int) -> Messages:
    """Every device sends its share to its peer, one stage away; forward, and backward with gradients.

    Tensor-parallel ranks that hold the same activation send a part each and gather it on arrival (Narayanan et al.
    2021, arXiv 2104.04473, section 4.1).
    """
    share_bytes = activation_bytes(conditions, strategy, samples, sequence_length)
    peers = ((2, strategy.num_devices),)
    if strategy.sequence_parallel:
        return (Message(Collective.SEND_RECEIVE, peers, share_bytes),)
    sent = Message(Collective.SEND_RECEIVE, peers, share_bytes / strategy.tp)
    return sent, Message(Collective.ALL_GATHER, tensor_group(strategy), share_bytes)


def layout(strategy: Strategy) -> Layout:
    """Strategies with one layout hand activations over without moving them."""
    cuts = [(AxisKind.CP, strategy.cp, strategy.stride(AxisKind.CP)), *_unbroken_cuts(strategy)]
    samples = [(strategy.degree(kind), strategy.stride(kind)) for kind in (AxisKind.DP, AxisKind.SDP)]
    samples.sort(key=lambda cut: -cut[1])
    (outer, outer_stride), (inner, inner_stride) = samples
    if outer_stride == inner * inner_stride or 1 in (outer, inner):
        samples = [(outer * inner, inner_stride if inner > 1 else outer_stride)]
    cuts += [(AxisKind.DP, degree, stride) for degree, stride in samples]
    return tuple(sorted(cut for cut in cuts if cut[1] > 1))


def _unbroken_cuts(strategy: Strategy) -> Layout:
    """Ulysses and sequence parallelism give each rank one unbroken part of the tokens: alike, whichever it is."""
    outer, inner = strategy.ulysses, strategy.tp if strategy.sequence_parallel else 1
    outer_stride, inner_stride = strategy.stride(AxisKind.ULYSSES), strategy.stride(AxisKind.TP)
    if inner == 1 or outer == 1 or outer_stride == inner * inner_stride:
        return ((AxisKind.TP, outer * inner, inner_stride if inner > 1 else outer_stride),)
    return (AxisKind.ULYSSES, outer, outer_stride), (AxisKind.TP, inner, inner_stride)


def transition_s(
    conditions: Conditions, before: Strategy, after: Strategy, samples: int, sequence_length: int
) -> tuple[float, float]:
    """(forward, backward) seconds to cut an activation anew between two layers of a stage; 0 for equal layouts.

    `conditions` and tokens are those `at_entry` of the layer after.
    """
    if layout(before) == layout(after):
        return 0.0, 0.0
    return (
        arrival_s(conditions, after, samples, sequence_length),
        arrival_s(conditions, before, samples, sequence_length),
    )


def arrival_s(conditions: Conditions, strategy: Strategy, samples: int, sequence_length: int) -> float:
    """Every device of a stage receives its whole share of an activation over the widest link that the stage needs.

    An upper bound of what a change of layout moves (own derivation; what a device already holds is not subtracted).
    """
    bytes_per_s, latency_s = narrowest_bytes_per_s(conditions.levels, strategy.num_devices)
    return activation_bytes(conditions, strategy, samples, sequence_length) / bytes_per_s + latency_s


def tied_gradient_s(conditions: Conditions, layer: AnyLayer, strategy: Strategy, link: Link) -> float:
    """Once per step: embedding and tied head, on two stages joined by `link`, add up their gradients.

    An all-reduce of two devices.
    """
    if not isinstance(layer, Head) or not layer.tied:
        return 0.0
    hidden_size = of_layer(conditions, layer).hidden_size
    return pair_s(link, layer.vocab_size * hidden_size / strategy.tp * gradient_bytes(conditions.training))
