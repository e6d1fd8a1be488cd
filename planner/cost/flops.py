"""Model FLOPs: what the mathematics of a step needs, whatever the plan. The basis of MFU."""

from __future__ import annotations

from planner.cost.parameters import layer_parameters
from planner.spec.model import Block, DenseFeedForward, Embedding, GroupedQueryAttention, Head, LatentAttention, Model


def attention_flops_per_token(attention: GroupedQueryAttention | LatentAttention, sequence_length: int) -> float:
    """Forward FLOPs of scores and weighted values, the whole square counted also where it is masked.

    Source: PaLM (arXiv 2204.02311), appendix B, a third of its 12 L H Q T. A sliding window narrows the square.
    """
    if isinstance(attention, LatentAttention):
        return 2.0 * attention.num_heads * (attention.qk_head_dim + attention.v_head_dim) * sequence_length
    seen = min(sequence_length, attention.window or sequence_length)
    return 4.0 * attention.num_heads * attention.head_dim * seen


def layer_flops_per_token(layer: Embedding | Block | Head, hidden_size: int, sequence_length: int) -> float:
    """Forward FLOPs of one layer: 2 per parameter that takes part (a look-up is free), plus attention."""
    if isinstance(layer, Embedding):
        return 0.0
    if isinstance(layer, Head):
        return 2.0 * layer.vocab_size * hidden_size
    dense = 2.0 * layer_parameters(layer, hidden_size).active
    return dense + attention_flops_per_token(layer.attention, sequence_length)


def model_flops_per_token(model: Model, sequence_length: int) -> float:
    """FLOPs of a training step per token: forward, and backward at twice the forward; no recomputation."""
    return 3.0 * sum(
        run.num_layers * layer_flops_per_token(run.layer, model.hidden_size, sequence_length) for run in model.runs
    )


def wide_matrix_flops_per_token(model: Model, capacity_factor: float | None) -> float:
    """FLOPs of a step per token in feed-forward matrices, experts and head alone: any plan computes at least these."""
    return 3.0 * sum(run.num_layers * _wide_matrix_flops(run.layer, model, capacity_factor) for run in model.runs)


def _wide_matrix_flops(layer: Embedding | Block | Head, model: Model, capacity_factor: float | None) -> float:
    if isinstance(layer, Embedding):
        return 0.0
    if isinstance(layer, Head):
        return 2.0 * layer.vocab_size * model.hidden_size
    feed_forward = layer.feed_forward
    if isinstance(feed_forward, DenseFeedForward):
        width = float(feed_forward.width)
    else:
        # A capacity factor lets experts drop tokens, all but the part that is sure to be taken.
        taken = 0.0 if capacity_factor is not None else float(feed_forward.top_k)
        width = taken * feed_forward.expert_width + feed_forward.shared_width
    return 2.0 * model.hidden_size * width * (3 if feed_forward.gated else 2)
