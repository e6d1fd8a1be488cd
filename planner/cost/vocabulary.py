"""Embedding and head: the layers whose matrix has the vocabulary on one side."""

from __future__ import annotations

from math import ceil

from planner.cost.dense import linear_s, norm_extra_bytes, whole_tokens
from planner.cost.kernels import elementwise_s, unquantised
from planner.cost.message import Collective, Message, Messages, messages_s
from planner.cost.part import Conditions, Part, Share, tensor_group
from planner.spec.model import Embedding, Head
from planner.spec.strategy import Strategy

_PADDED_TO = 128
"""Rows of the vocabulary on a rank. Source: Megatron-LM's --make-vocab-size-divisible-by."""


def embedding(conditions: Conditions, layer: Embedding, strategy: Strategy, part_of: Share) -> Part:
    """Look-up of rows, cut along the vocabulary: ranks without the row add zeros, then all-reduce."""
    elements = part_of.tokens * conditions.hidden_size
    element = conditions.rate.element_bytes
    look_up = elementwise_s(conditions.rate, 2.0 * elements * element * (2 if layer.num_positions else 1))
    mask = part_of.edge_tokens * conditions.hidden_size if conditions.training.dropout else 0.0
    forward, backward = embedding_messages(conditions, strategy, part_of)
    with_gradient = elementwise_s(conditions.rate, 3.0 * elements * element)
    return Part(
        forward_s=look_up,
        backward_s=with_gradient,
        tensor_forward_s=messages_s(conditions.levels, forward),
        tensor_backward_s=messages_s(conditions.levels, backward),
        stored_bytes=8.0 * part_of.tokens + mask,
    )


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
    rate, hidden = conditions.rate, conditions.hidden_size
    logits = part_of.tokens * layer.vocab_size / strategy.tp
    # Frameworks pad the vocabulary so that the product is aligned.
    padded = ceil(layer.vocab_size / strategy.tp / _PADDED_TO) * _PADDED_TO
    stored, loss_ratio = conditions._replace(rate=unquantised(rate)), conditions.stack.loss_ratio
    forward, backward = linear_s(stored, part_of.tokens, padded, hidden)
    norm = part_of.edge_tokens * hidden * rate.element_bytes
    sent_forward, sent_backward = head_messages(conditions, strategy, part_of)
    return Part(
        forward_s=forward + elementwise_s(rate, 2 * norm + loss_ratio * logits * (rate.element_bytes + 8.0), 3),
        backward_s=backward + elementwise_s(rate, 3 * norm + loss_ratio * logits * (rate.element_bytes + 4.0), 2),
        tensor_forward_s=messages_s(conditions.levels, sent_forward),
        tensor_backward_s=messages_s(conditions.levels, sent_backward),
        stored_bytes=2.0 * norm + norm_extra_bytes(conditions) * part_of.edge_tokens * hidden,
        logits_bytes=logits * (12.0 if conditions.stack.eager_loss else rate.element_bytes + 4.0),
    )


def head_messages(conditions: Conditions, strategy: Strategy, part_of: Share) -> tuple[Messages, Messages]:
    """(forward, backward): maximum, sum and target logit of each token in fp32; the gradient of the input is summed.

    With sequence parallelism the input is gathered and its gradient reduce-scattered.
    """
    loss = Message(Collective.ALL_REDUCE, tensor_group(strategy), 4.0 * part_of.tokens, 3)
    if not strategy.sequence_parallel:
        return (loss,), (whole_tokens(Collective.ALL_REDUCE, conditions, strategy, part_of),)
    return (
        (whole_tokens(Collective.ALL_GATHER, conditions, strategy, part_of), loss),
        (whole_tokens(Collective.REDUCE_SCATTER, conditions, strategy, part_of),),
    )
