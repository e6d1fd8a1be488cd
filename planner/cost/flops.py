"""Model FLOPs: what the mathematics of a step needs, whatever the plan. The basis of MFU."""

from __future__ import annotations

from planner.cost.parameters import layer_parameters
from planner.cost.part import computed_tokens
from planner.spec.model import (
    AnyLayer,
    Block,
    DenseFeedForward,
    GroupedQueryAttention,
    Head,
    LatentAttention,
    Merging,
    Model,
    PatchEmbedding,
)
from planner.spec.training import Training


def attention_flops_per_token(attention: GroupedQueryAttention | LatentAttention, sequence_length: int) -> float:
    """Forward FLOPs of scores and weighted values, the whole square counted also where it is masked.

    Source: PaLM (arXiv 2204.02311), appendix B, a third of its 12 L H Q T. A sliding window narrows the square.
    """
    if isinstance(attention, LatentAttention):
        return 2.0 * attention.num_heads * (attention.qk_head_dim + attention.v_head_dim) * sequence_length
    seen = min(sequence_length, attention.window or sequence_length)
    return 4.0 * attention.num_heads * attention.head_dim * seen


def layer_flops_per_sample(layer: AnyLayer, hidden_size: int, sequence_length: int, encoder_length: int) -> float:
    """Forward FLOPs of one layer: 2 per parameter that takes part (a look-up is free), plus attention."""
    width = layer.hidden_size or hidden_size
    tokens = computed_tokens(layer, sequence_length, encoder_length)
    if isinstance(layer, Block):
        return _block_flops(layer, width, tokens, encoder_length)
    if isinstance(layer, Head):
        transform = 2.0 * width * width if layer.transform else 0.0
        return (1 if layer.pooled else tokens) * (2.0 * layer.vocab_size * width + transform)
    if isinstance(layer, Merging):
        return 2.0 * tokens * layer.input_size * width
    if isinstance(layer, PatchEmbedding):
        return 2.0 * (tokens - layer.class_token) * layer.patch_values * width
    return 0.0


def _block_flops(block: Block, width: int, tokens: int, encoder_length: int) -> float:
    looked_up = sum(
        each.num_heads * each.position_buckets for each in block.attentions if isinstance(each, GroupedQueryAttention)
    )
    dense = 2.0 * (layer_parameters(block, width).active - looked_up)
    flops = tokens * (dense + attention_flops_per_token(block.attention, tokens))
    if cross := block.cross_attention:
        # Keys and values are made of the encoder's tokens, not of the decoder's.
        keys_values = 2 * cross.num_kv_heads * cross.head_dim * (width + (1 if cross.qkv_bias else 0))
        flops += 2.0 * (encoder_length - tokens) * keys_values
        flops += tokens * attention_flops_per_token(cross, encoder_length)
    return flops


def model_flops_per_sample(model: Model, sequence_length: int, encoder_length: int) -> float:
    """FLOPs of a training step per sample: forward, and backward at twice the forward; no recomputation."""
    return 3.0 * sum(
        run.num_layers * layer_flops_per_sample(run.layer, model.hidden_size, sequence_length, encoder_length)
        for run in model.runs
    )


def model_flops_per_token(model: Model, sequence_length: int) -> float:
    """FLOPs of a training step per token of `sequence_length`; an encoder reads as many."""
    return model_flops_per_sample(model, sequence_length, sequence_length) / sequence_length


def wide_matrix_flops_per_sample(model: Model, training: Training) -> float:
    """FLOPs of a step per sample in feed-forward matrices, experts and head: any plan computes at least these."""
    return 3.0 * sum(run.num_layers * _wide_matrix_flops(run.layer, model, training) for run in model.runs)


def _wide_matrix_flops(layer: AnyLayer, model: Model, training: Training) -> float:
    tokens = computed_tokens(layer, training.sequence_length, training.encoder_length)
    hidden_size = layer.hidden_size or model.hidden_size
    if isinstance(layer, Head):
        return 2.0 * layer.vocab_size * hidden_size * (1 if layer.pooled else tokens)
    if not isinstance(layer, Block):
        return 0.0
    feed_forward = layer.feed_forward
    if isinstance(feed_forward, DenseFeedForward):
        width = float(feed_forward.width)
    else:
        # A capacity factor lets experts drop tokens, all but the part that is sure to be taken.
        taken = 0.0 if training.capacity_factor is not None else float(feed_forward.top_k)
        width = taken * feed_forward.expert_width + feed_forward.shared_width
    return 2.0 * tokens * hidden_size * width * (3 if feed_forward.gated else 2)
