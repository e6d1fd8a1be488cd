"""Every collective of one layer under a strategy: the messages that layer_cost prices, in a list.

Not listed: what crosses from layer to layer (planner.cost.boundary), how many experts' tokens a rank was sent, and
Megatron's second all-gather of a layer's input in the backward pass, which runs under a matrix product.
"""

from __future__ import annotations

from typing import NamedTuple

from planner.cost.attention import around_core, cross_region, head_exchange, ring
from planner.cost.dense import tensor_region
from planner.cost.experts import token_exchange
from planner.cost.message import Messages, is_sent
from planner.cost.part import Conditions, Share, computed_tokens, context_share, of_layer, share
from planner.cost.state import StateMessages, messages_of_experts, messages_without_experts
from planner.cost.vocabulary import embedding_messages, head_messages
from planner.spec.model import AnyLayer, Block, Embedding, Head
from planner.spec.strategy import Recompute, Strategy


class LayerTraffic(NamedTuple):
    """Messages of one device: of each micro-batch by pass, and of each step."""

    forward: Messages
    backward: Messages
    recomputation: Messages
    """Of the forward pass, what the backward pass sends again."""
    step: Messages


class _Passes(NamedTuple):
    """Messages about activations and their gradients, of one micro-batch."""

    forward: Messages
    backward: Messages
    selected: Messages = ()
    """Of `forward`, what selective recomputation sends again."""


def layer_traffic(
    conditions: Conditions,
    layer: AnyLayer,
    strategy: Strategy,
    samples: int,
    sequence_length: int,
    own_copy: bool = True,
) -> LayerTraffic:
    """All messages of a layer for micro-batches of `samples` over all data-parallel ranks, experts evenly loaded.

    Bytes are those of one device, by the convention of `Message.moved_bytes`; groups of one are left out. The
    arguments mean what they mean to `layer_cost`.
    """
    conditions = of_layer(conditions, layer)
    tokens = computed_tokens(layer, sequence_length, conditions.training.encoder_length)
    passes = _passes(conditions, layer, strategy, share(strategy, samples, tokens))
    held = [messages_without_experts(conditions, layer, strategy, own_copy)]
    if isinstance(layer, Block) and layer.moe is not None:
        held.append(messages_of_experts(conditions, layer, strategy))
    gathered: StateMessages = StateMessages._make(sum(column, ()) for column in zip(*held, strict=True))
    again = {Recompute.NONE: (), Recompute.SELECTIVE: passes.selected, Recompute.FULL: passes.forward}
    return LayerTraffic(
        *(
            tuple(filter(is_sent, messages))
            for messages in (
                passes.forward + gathered.micro_forward,
                passes.backward + gathered.micro_backward,
                again[strategy.recompute],
                gathered.once_forward + gathered.once_backward,
            )
        )
    )


def _passes(conditions: Conditions, layer: AnyLayer, strategy: Strategy, part_of: Share) -> _Passes:
    if isinstance(layer, Embedding):
        return _Passes(*embedding_messages(conditions, strategy, part_of))
    if isinstance(layer, Head):
        return _Passes(*head_messages(conditions, layer, strategy, part_of))
    if not isinstance(layer, Block):
        return _Passes((), ())
    around, around_back = around_core(conditions, layer.attention, strategy, part_of)
    region = tensor_region(conditions, strategy, part_of)
    first, first_back = region, region
    if layer.cross_attention:
        context = context_share(conditions, strategy, part_of)
        rings = ring(conditions, layer.cross_attention, strategy, context)
        around, around_back = around + rings[0], around_back + rings[1]
        sent, sent_back = cross_region(conditions, strategy, part_of)
        first, first_back = region + sent, region + sent_back
    selected = around
    if conditions.stack.selective_products:
        selected = head_exchange(conditions, layer.attention, strategy, part_of)
    if layer.moe is None:
        last = () if layer.parallel else region
        return _Passes(around + first + last, around_back + first_back + last, selected)
    assert strategy.experts is not None
    exchange = token_exchange(conditions, layer.moe, strategy.experts, part_of.edge_tokens, load_ratio=1.0)
    experts = exchange + (region if layer.moe.shared_width else ())
    return _Passes(around + first + experts, around_back + first_back + experts, selected)
