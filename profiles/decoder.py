"""Parts from which the families of Hugging Face models are built: attention by window, feed-forward, whole stack."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any, Literal

from planner.spec.model import (
    Attention,
    Block,
    DenseFeedForward,
    Embedding,
    FeedForward,
    GroupedQueryAttention,
    Head,
    LayerRun,
    Model,
    MoeFeedForward,
)
from profiles.config_reader import ConfigReader


def decoder(
    config: ConfigReader,
    attentions: Sequence[Attention],
    feed_forwards: Sequence[FeedForward],
    *,
    tied: bool = False,
    norms_both_sides: bool = False,
) -> Model:
    """Token embedding, one block for each pair of attention and feed-forward, RMS norm and head.

    `tied`: whether the library ties the head to the embedding where the file does not say.
    """
    vocab_size = config.count("vocab_size")
    blocks = [
        Block(attention=a, feed_forward=f, norms_both_sides=norms_both_sides)
        for a, f in zip(attentions, feed_forwards, strict=True)
    ]
    layers = [
        Embedding(vocab_size=vocab_size),
        *blocks,
        Head(vocab_size=vocab_size, tied=config.flag("tie_word_embeddings", tied)),
    ]
    return stack(config, config.count("hidden_size"), layers, config.optional_count("max_position_embeddings", None))


def stack(config: ConfigReader, hidden_size: int, layers: Sequence[Any], max_length: int | None) -> Model:
    """A model of these layers, equal neighbours as one run; it is called by its type until it gets its name."""
    runs = tuple(LayerRun(layer=layer, num_layers=len(list(equal))) for layer, equal in groupby(layers))
    name = config.content["model_type"]
    return Model(name=name, hidden_size=hidden_size, runs=runs, max_sequence_length=max_length)


def grouped_query(
    config: ConfigReader,
    windows: Sequence[int | None],
    *,
    kv_heads: int | None = None,
    head_dim: int | None = None,
    qkv_bias: bool = False,
    output_bias: bool = False,
    qk_norm: Literal["none", "per_head", "full"] = "none",
    sinks: bool = False,
) -> list[GroupedQueryAttention]:
    """One attention for each window; `kv_heads` and `head_dim` are the library's defaults, None: from the heads."""
    heads = config.count("num_attention_heads")
    groups = config.optional_count("num_key_value_heads", kv_heads) or heads
    config.multiple("num_attention_heads", heads, "num_key_value_heads", groups)
    channels = config.optional_count("head_dim", head_dim)
    if channels is None:
        channels = config.multiple("hidden_size", config.count("hidden_size"), "num_attention_heads", heads)
    return [
        GroupedQueryAttention(
            num_heads=heads,
            num_kv_heads=groups,
            head_dim=channels,
            window=window,
            qkv_bias=qkv_bias,
            output_bias=output_bias,
            qk_norm=qk_norm,
            sinks=sinks,
        )
        for window in windows
    ]


def no_windows(config: ConfigReader) -> list[int | None]:
    """Full attention in every block."""
    return [None] * config.num_layers("num_hidden_layers")


def one_window(config: ConfigReader, default: int | None) -> list[int | None]:
    """The same `sliding_window` in every block."""
    return [config.optional_count("sliding_window", default)] * config.num_layers("num_hidden_layers")


def qwen_windows(config: ConfigReader, slides_by_default: Callable[[int], bool]) -> list[int | None]:
    """Qwen's windows: only with `use_sliding_window`, in the blocks of `layer_types` or else the default ones."""
    layers = config.num_layers("num_hidden_layers")
    window = config.optional_count("sliding_window", 4096) if config.flag("use_sliding_window", False) else None
    slides = config.sliding_layers(layers) or [slides_by_default(number) for number in range(layers)]
    return [window if sliding else None for sliding in slides]


def dense(config: ConfigReader, bias: bool = False) -> DenseFeedForward:
    """A gated network of `intermediate_size`."""
    return DenseFeedForward(width=config.count("intermediate_size"), bias=bias)


def moe(config: ConfigReader, experts: str, width: str, **parts: Any) -> MoeFeedForward:
    """Experts whose number and width stand under these keys."""
    num_experts = config.count(experts)
    top_k = config.count("num_experts_per_tok")
    if top_k > num_experts:
        raise config.wrong("num_experts_per_tok", f"must not exceed {experts} ({num_experts}), got {top_k}")
    return MoeFeedForward(num_experts=num_experts, top_k=top_k, expert_width=config.count(width), **parts)
