"""A model as planning sees it: layers with shapes. Knows no framework, no file format, no weights.

A layer is the embedding, one Transformer block, or the head; layers are numbered from 0 (the embedding) on.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from functools import cached_property
from itertools import accumulate
from typing import Annotated, Literal

from pydantic import Field, model_validator

from planner.spec.value import Count, Index, Name, StrEnum, Value

MAX_LAYERS = 10_000
"""Layers of one model; more is a mistake, or an attack on the planner's memory."""


class Norm(StrEnum):
    """`rms` has one weight per channel, `layer` a weight and a bias."""

    RMS = "rms"
    LAYER = "layer"


class GroupedQueryAttention(Value):
    """Attention with `num_kv_heads` groups: multi-head (equal to heads), grouped-query or multi-query (1)."""

    kind: Literal["gqa"] = "gqa"
    num_heads: Count
    num_kv_heads: Count
    head_dim: Count
    causal: bool = True
    window: Count | None = None
    """Tokens that one token may look back on, itself included; None: all."""
    qkv_bias: bool = False
    output_bias: bool = False
    qk_norm: Literal["none", "per_head", "full"] = "none"
    """RMS norm of queries and keys: one weight per channel of a head (Qwen3), or of the projection (OLMoE)."""
    sinks: bool = False
    """One learned logit per head that takes part in the softmax (gpt-oss)."""

    @model_validator(mode="after")
    def _groups_divide_heads(self) -> GroupedQueryAttention:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads: must be a multiple of num_kv_heads ({self.num_kv_heads}), got {self.num_heads}"
            )
        return self


class LatentAttention(Value):
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1)."""

    kind: Literal["mla"] = "mla"
    num_heads: Count
    q_lora_rank: Count | None
    kv_lora_rank: Count
    qk_nope_head_dim: Count
    qk_rope_head_dim: Count
    v_head_dim: Count
    bias: bool = False
    """On the down-projections (or none of the queries, where they have none) and on the output."""
    causal: bool = True

    @property
    def qk_head_dim(self) -> int:
        """Channels of one query or key head, rotary part included."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim


Attention = Annotated[GroupedQueryAttention | LatentAttention, Field(discriminator="kind")]


class DenseFeedForward(Value):
    """Two matrices, or three when gated (SwiGLU and kin)."""

    kind: Literal["dense"] = "dense"
    width: Count
    gated: bool = True
    bias: bool = False


class MoeFeedForward(Value):
    """A router, `num_experts` experts of `expert_width`, `top_k` of them for each token, and shared experts for all."""

    kind: Literal["moe"] = "moe"
    num_experts: Count
    top_k: Count
    expert_width: Count
    gated: bool = True
    bias: bool = False
    router_bias: bool = False
    shared_width: Index = 0
    """Summed width of the experts that every token passes; 0: none."""
    shared_gate: bool = False

    @model_validator(mode="after")
    def _top_k_within_experts(self) -> MoeFeedForward:
        if self.top_k > self.num_experts:
            raise ValueError(f"top_k: must not exceed num_experts ({self.num_experts}), got {self.top_k}")
        return self


FeedForward = Annotated[DenseFeedForward | MoeFeedForward, Field(discriminator="kind")]


class Embedding(Value):
    """Token embedding, with learned position embeddings where `num_positions` is above 0."""

    kind: Literal["embedding"] = "embedding"
    vocab_size: Count
    num_positions: Index = 0


class Block(Value):
    """One Transformer block: norm, attention, norm, feed-forward, two residual additions."""

    kind: Literal["block"] = "block"
    attention: Attention
    feed_forward: FeedForward
    norm: Norm = Norm.RMS

    @property
    def moe(self) -> MoeFeedForward | None:
        """The feed-forward part if it is a Mixture of Experts."""
        return self.feed_forward if isinstance(self.feed_forward, MoeFeedForward) else None


class Head(Value):
    """Final norm, projection to the vocabulary, cross-entropy."""

    kind: Literal["head"] = "head"
    vocab_size: Count
    norm: Norm = Norm.RMS
    tied: bool = False
    """Shares its matrix with the embedding."""


Layer = Annotated[Embedding | Block | Head, Field(discriminator="kind")]


class LayerRun(Value):
    """`num_layers` equal neighbours."""

    layer: Layer
    num_layers: Count = 1


class Model(Value):
    """A stack of layers with one hidden size; equal neighbours are written as one run."""

    name: Name
    hidden_size: Count
    runs: Annotated[tuple[LayerRun, ...], Field(min_length=1)]
    max_sequence_length: Count | None = None

    @model_validator(mode="after")
    def _in_order(self) -> Model:
        if (total := sum(run.num_layers for run in self.runs)) > MAX_LAYERS:
            raise ValueError(f"runs: a model may have at most {MAX_LAYERS} layers, this has {total}")
        for number, layer in enumerate(self.layers):
            if isinstance(layer, Embedding) and number != 0:
                raise ValueError(f"runs: layer {number} is an embedding; only layer 0 may be one")
            if isinstance(layer, Head) and number != len(self.layers) - 1:
                raise ValueError(f"runs: layer {number} is a head; only the last layer may be one")
        first = self.layers[0]
        last = self.layers[-1]
        if isinstance(last, Head) and last.tied:
            if not isinstance(first, Embedding) or first.vocab_size != last.vocab_size:
                raise ValueError("runs: a tied head needs an embedding of the same vocab_size as layer 0")
        if not any(isinstance(layer, Block) for layer in self.layers):
            raise ValueError("runs: a model needs at least one block")
        return self

    @cached_property
    def layers(self) -> tuple[Embedding | Block | Head, ...]:
        """All layers in order, the embedding first."""
        return tuple(run.layer for run in self.runs for _ in range(run.num_layers))

    @cached_property
    def _run_ends(self) -> tuple[int, ...]:
        return tuple(accumulate(run.num_layers for run in self.runs))

    def stretches(self, first: int, end: int) -> Iterator[tuple[Embedding | Block | Head, int, int]]:
        """(layer, its first number, the number after its last) of equal neighbours among layers `first` to `end`."""
        number = bisect_right(self._run_ends, first)
        while first < end:
            stop = min(self._run_ends[number], end)
            yield self.runs[number].layer, first, stop
            first, number = stop, number + 1

    @cached_property
    def moe_layers(self) -> tuple[int, ...]:
        """Numbers of the layers with experts, in order."""
        return tuple(n for n, layer in enumerate(self.layers) if isinstance(layer, Block) and layer.moe)

    def moe(self, layer: int) -> MoeFeedForward:
        """The experts of a layer in `moe_layers`."""
        block = self.layers[layer]
        assert isinstance(block, Block) and block.moe is not None
        return block.moe
