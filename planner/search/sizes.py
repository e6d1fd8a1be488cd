"""Sizes beyond which the search would count wrong: bytes are 64-bit whole numbers in its tables."""

from __future__ import annotations

from planner.cost.parameters import total_parameters
from planner.spec.errors import InputError
from planner.spec.model import (
    AnyLayer,
    Attention,
    Block,
    Embedding,
    Head,
    LatentAttention,
    Merging,
    Model,
    PatchEmbedding,
)
from planner.spec.request import Options
from planner.spec.training import AttentionKernel, Training

MAX_PARAMETERS = 2**50
MAX_ACTIVATIONS = 2**56
"""Numbers that the widest layer makes of one micro-batch, times the layers: tens of bytes for each stay below 2**63."""


def check_sizes(model: Model, training: Training, options: Options) -> None:
    """Raise InputError for a model or a recipe that no device will ever hold a part of."""
    if (total := total_parameters(model)) > MAX_PARAMETERS:
        raise InputError.at("model", f"may have at most {MAX_PARAMETERS} parameters, this has {total}")
    lengths = [scenario.sequence_length or 0 for scenario in options.scenarios or ()]
    if max(lengths, default=0) > training.sequence_length:
        _check_micro_batch(model, training.model_copy(update={"sequence_length": max(lengths)}), options)
    _check_micro_batch(model, training, options)


def _check_micro_batch(model: Model, training: Training, options: Options) -> None:
    batch = training.max_global_batch_size if training.global_batch_size == "max" else training.global_batch_size
    samples = min(batch, options.max_micro_batch_size)
    tokens = max(_tokens(run.layer, training) for run in model.runs)
    width = max(_width(run.layer, model, training, tokens) for run in model.runs)
    if samples * tokens * width * len(model.layers) > MAX_ACTIVATIONS:
        raise InputError.at(
            "training.sequence_length",
            f"is too much with the rest: a micro-batch of up to {samples} samples of {tokens} tokens, {width} wide, in "
            f"{len(model.layers)} layers is more than {MAX_ACTIVATIONS} numbers; shorten it, narrow the model, or "
            "lower options.max_micro_batch_size",
        )


def _tokens(layer: AnyLayer, training: Training) -> int:
    given = layer.tokens_per_sample
    if isinstance(given, int):
        return given * (layer.merged_tokens if isinstance(layer, Merging) else 1)
    return training.encoder_length if given == "encoder" else training.sequence_length


def _width(layer: AnyLayer, model: Model, training: Training, tokens: int) -> int:
    """The most numbers that one token has anywhere in the layer."""
    widths = [layer.hidden_size or model.hidden_size]
    if isinstance(layer, Embedding | Head):
        widths.append(layer.vocab_size)
    elif isinstance(layer, PatchEmbedding):
        widths.append(layer.patch_values)
    elif isinstance(layer, Merging):
        widths.append(layer.input_size)
    elif isinstance(layer, Block):
        widths += [_attention_width(each, training, tokens) for each in layer.attentions]
        feed_forward = layer.feed_forward
        if layer.moe is not None:
            widths += [layer.moe.num_experts, layer.moe.top_k * layer.moe.expert_width, layer.moe.shared_width]
        elif feed_forward.kind == "dense":
            widths.append(feed_forward.width)
    return max(widths)


def _attention_width(attention: Attention, training: Training, tokens: int) -> int:
    if isinstance(attention, LatentAttention):
        head = max(attention.qk_head_dim, attention.v_head_dim)
    else:
        head = attention.head_dim
    return attention.num_heads * max(head, tokens if training.attention_kernel is AttentionKernel.UNFUSED else 0)
