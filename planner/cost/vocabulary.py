"""Embedding and head: the layers whose matrix has the vocabulary on one side."""

from __future__ import annotations

from math import ceil

from planner.cost.dense import linear_s, norm_extra_bytes, part_norm, whole_tokens
from planner.cost.kernels import elementwise_s, unquantised
from planner.cost.message import Collective, Message, Messages, messages_s
from planner.cost.part import Conditions, Part, Share, add, tensor_group
from planner.spec.model import Embedding, Head
from planner.spec.strategy import Strategy

_PADDED_TO = 128
"""Rows of the vocabulary on a rank. Source: Megatron-LM's --make-vocab-size-divisible-by."""


def embedding(conditions: Conditions, layer: Embedding, strategy: Strategy, part_of: Share) -> Part:
    """Look-up of rows, cut along the vocabulary: ranks without the row add zeros, then all-reduce."""
    elements = part_of.tokens * conditions.hidden_size
    element = conditions.rate.element_bytes
    tables = 1 + (layer.num_positions > 0) + (layer.num_token_types > 0)
    look_up = elementwise_s(conditions.rate, 2.0 * elements * element * tables)
    norm = part_norm(conditions, part_of) if layer.norm else Part()
    mask = part_of.edge_tokens * conditions.hidden_size if conditions.training.dropout else 0.0
    forward, backward = embedding_messages(conditions, strategy, part_of)
    with_gradient = elementwise_s(conditions.rate, 3.0 * elements * element)
    looked_up = Part(
        forward_s=look_up,
        backward_s=with_gradient,
        tensor_forward_s=messages_s(conditions.levels, forward),
        tensor_backward_s=messages_s(conditions.levels, backward),
        stored_bytes=8.0 * part_of.tokens + mask,
    )
    return add((looked_up, norm))


def embedding_messages(conditions: Conditions, strategy: Strategy, part_of: Share) -> tuple[Messages, Messages]:
    """(forward, backward): the output is all-reduced, and every rank has its gradient.

    With sequence parallelism the output is reduce-scattered and its gradient gathered, half an all-reduce each.
    """
    if not strategy.sequence_parallel:
        return (whole_tokens(Collective.ALL_REDUCE, conditions, strategy, part_of),), ()
    return (
        (whole_tokens(Collective.REDUCE_SCATTER, conditions, strategy, part_of),),
        (whole_tokens(Collective.ALL_GATHER, conditions, strategy, part_of),),
    )


def head(conditions: Conditions, layer: Head, strategy: Strategy, part_of: Share) -> Part:
    """Norm, projection to this rank's part of the vocabulary, cross-entropy over all ranks.

    Kept: inputs of norm and projection; logits once as computed and once in fp32 with their gradient in place. A loss
    of operations of its own holds three copies in fp32: log-probabilities, their gradient, that of the logits.
    Source: Korthikanti et al. 2022 (arXiv 2205.05198), section 4.3; tests/oracle for the copies.
    """
    rate, hidden, scored = conditions.rate, conditions.hidden_size, _scored(layer, part_of)
    logits = scored.tokens * layer.vocab_size / strategy.tp
    # Frameworks pad the vocabulary so that the product is aligned.
    padded = ceil(layer.vocab_size / strategy.tp / _PADDED_TO) * _PADDED_TO
    stored, loss_ratio = conditions._replace(rate=unquantised(rate)), conditions.stack.loss_ratio
    forward, backward = linear_s(stored, scored.tokens, padded, hidden)
    norm = part_of.edge_tokens * hidden * rate.element_bytes if layer.norm else 0.0
    put_in = scored.edge_tokens * hidden * rate.element_bytes
    extra = norm_extra_bytes(conditions) * part_of.edge_tokens * hidden if layer.norm else 0.0
    sent_forward, sent_backward = head_messages(conditions, layer, strategy, part_of)
    scoring = Part(
        forward_s=forward + elementwise_s(rate, 2 * norm + loss_ratio * logits * (rate.element_bytes + 8.0), 3),
        backward_s=backward + elementwise_s(rate, 3 * norm + loss_ratio * logits * (rate.element_bytes + 4.0), 2),
        tensor_forward_s=messages_s(conditions.levels, sent_forward),
        tensor_backward_s=messages_s(conditions.levels, sent_backward),
        stored_bytes=norm + put_in + extra,
        logits_bytes=logits * (12.0 if conditions.stack.eager_loss else rate.element_bytes + 4.0),
    )
    return add((scoring, _transform(conditions, part_of))) if layer.transform else scoring


def _scored(layer: Head, part_of: Share) -> Share:
    """What is scored: every token, or one of each sample."""
    return Share(part_of.samples, 1.0, part_of.samples, part_of.samples) if layer.pooled else part_of


def _transform(conditions: Conditions, part_of: Share) -> Part:
    """A square matrix, which every tensor-parallel rank holds, and an activation function; both keep their input."""
    rate, hidden = conditions.rate, conditions.hidden_size
    forward, backward = linear_s(conditions, part_of.edge_tokens, hidden, hidden)
    elements = part_of.edge_tokens * hidden
    return Part(
        forward_s=forward + elementwise_s(rate, 2.0 * elements * rate.element_bytes),
        backward_s=backward + elementwise_s(rate, 3.0 * elements * rate.element_bytes),
        stored_bytes=elements * (rate.operand_bytes + rate.element_bytes),
    )


def head_messages(conditions: Conditions, layer: Head, strategy: Strategy, part_of: Share) -> tuple[Messages, Messages]:
    """(forward, backward): maximum, sum and target logit of each token in fp32; the gradient of the input is summed.

    With sequence parallelism the input is gathered and its gradient reduce-scattered.
    """
    part_of = _scored(layer, part_of)
    loss = Message(Collective.ALL_REDUCE, tensor_group(strategy), 4.0 * part_of.tokens, 3)
    if not strategy.sequence_parallel:
        return (loss,), (whole_tokens(Collective.ALL_REDUCE, conditions, strategy, part_of),)
    return (
        (whole_tokens(Collective.ALL_GATHER, conditions, strategy, part_of), loss),
        (whole_tokens(Collective.REDUCE_SCATTER, conditions, strategy, part_of),),
    )
