"""A model as planning sees it: layers with shapes. Knows no framework, no file format, no weights.

A layer is an embedding, one Transformer block, what stands between two stacks of blocks, or the head; layers are
numbered from 0 (the embedding) on. Layers may differ in width and in tokens: see `Shaped`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Annotated, Literal

from pydantic import Field, model_validator

from planner.spec.value import Count, Index, Name, StrEnum, Value

MAX_LAYERS = 10_000
"""Layers of one model; more is a mistake, or an attack on the planner's memory."""


MAX_EXPERTS = 2**20
"""Experts of all layers together, likewise."""


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
    """Causal: tokens that one token may look back on, itself included. Not causal: tokens of a window that attend to
    each other only, windows side by side (Swin). None: all."""
    position_buckets: Index = 0
    """Learned biases of each head by relative position (T5, Swin); 0: none, or those of another block."""
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
    relu: bool = False
    """Without gate: the activation function is ReLU, which needs not keep its input."""

    @model_validator(mode="after")
    def _relu_without_gate(self) -> DenseFeedForward:
        if self.relu and self.gated:
            raise ValueError("relu: must be false with gated")
        return self


class MoeFeedForward(Value):
    """A router, `num_experts` experts of `expert_width`, `top_k` of them for each token, and shared experts for all."""

    kind: Literal["moe"] = "moe"
    num_experts: Count
    top_k: Count
    expert_width: Count
    gated: bool = True
    bias: bool = False
    relu: bool = False
    """As in a dense network."""
    router_bias: bool = False
    shared_width: Index = 0
    """Summed width of the experts that every token passes; 0: none."""
    shared_gate: bool = False
    num_groups: Count = 1
    """Of experts that stand side by side; a token's experts come from `groups_per_token` of them (node-limited routing,
    DeepSeek-V3, arXiv 2412.19437, section 2.1.2). No limit where both are 1."""
    groups_per_token: Count = 1

    @model_validator(mode="after")
    def _top_k_within_experts(self) -> MoeFeedForward:
        if self.top_k > self.num_experts:
            raise ValueError(f"top_k: must not exceed num_experts ({self.num_experts}), got {self.top_k}")
        if self.relu and self.gated:
            raise ValueError("relu: must be false with gated")
        return self

    @model_validator(mode="after")
    def _groups_hold_the_experts_of_a_token(self) -> MoeFeedForward:
        if self.num_experts % self.num_groups:
            raise ValueError(f"num_groups: must divide num_experts ({self.num_experts}), got {self.num_groups}")
        if self.groups_per_token > self.num_groups:
            raise ValueError(f"groups_per_token: must be at most num_groups ({self.num_groups})")
        if self.top_k > self.groups_per_token * (self.num_experts // self.num_groups):
            raise ValueError(f"groups_per_token: {self.groups_per_token} groups have fewer than top_k experts")
        return self


FeedForward = Annotated[DenseFeedForward | MoeFeedForward, Field(discriminator="kind")]


class Shaped(Value):
    """What every layer has: the width and the number of tokens of what it puts out."""

    hidden_size: Count | None = None
    """Channels of each token; None: the model's."""
    tokens_per_sample: Count | Literal["encoder"] | None = None
    """`encoder`: the training's encoder_sequence_length, None: its sequence_length."""


class Embedding(Shaped):
    """Token embedding, with learned positions where `num_positions` is above 0.

    With `encoder` tokens it embeds what the encoder reads and what the decoder reads, and puts both out.
    """

    kind: Literal["embedding"] = "embedding"
    vocab_size: Count
    num_positions: Index = 0
    num_token_types: Index = 0
    norm: Norm | None = None
    """Of the sum (BERT, BLOOM)."""


class PatchEmbedding(Shaped):
    """Patches of an image, each through one matrix with a bias; tensor-parallel ranks all hold it."""

    kind: Literal["patch_embedding"] = "patch_embedding"
    tokens_per_sample: Count
    """The class token included."""
    patch_values: Count
    """Numbers of a patch: its pixels times their channels."""
    num_positions: Index = 0
    class_token: bool = False
    norm: Norm | None = None


class Block(Shaped):
    """One Transformer block: norm, attention, norm, feed-forward, two residual additions.

    Norms may stand before or after what they belong to; with `cross_attention` there is one part more, norm and
    residual addition included.
    """

    kind: Literal["block"] = "block"
    attention: Attention
    cross_attention: GroupedQueryAttention | None = None
    """Its keys and values come from the encoder's output (T5's decoder)."""
    feed_forward: FeedForward
    norm: Norm = Norm.RMS
    norms_both_sides: bool = False
    """Each part has a norm before and one after it (Gemma 2)."""
    parallel: bool = False
    """Attention and a dense feed-forward network read the same input, and their outputs are added up (GPT-NeoX)."""
    shared_norm: bool = False
    """Parallel parts read it through one norm (Phi)."""

    @model_validator(mode="after")
    def _parallel_parts_are_two(self) -> Block:
        if self.parallel and (self.cross_attention or self.moe or self.norms_both_sides):
            raise ValueError("parallel: must be false with cross_attention, experts or norms_both_sides")
        if self.shared_norm and not self.parallel:
            raise ValueError("shared_norm: must be false unless parallel is true")
        return self

    @model_validator(mode="after")
    def _cross_attention_sees_all(self) -> Block:
        if self.cross_attention and (self.cross_attention.causal or self.cross_attention.window):
            raise ValueError("cross_attention: must have causal false and no window: a token sees all of the encoder's")
        return self

    @property
    def attentions(self) -> tuple[GroupedQueryAttention | LatentAttention, ...]:
        """Self-attention, and cross-attention if there is one."""
        return (self.attention, self.cross_attention) if self.cross_attention else (self.attention,)

    @property
    def moe(self) -> MoeFeedForward | None:
        """The feed-forward part if it is a Mixture of Experts."""
        return self.feed_forward if isinstance(self.feed_forward, MoeFeedForward) else None


class Merging(Shaped):
    """Neighbouring tokens become one: their channels side by side, a norm, one matrix (Swin's patch merging)."""

    kind: Literal["merging"] = "merging"
    hidden_size: Count
    tokens_per_sample: Count
    input_size: Count
    """Channels of each token that comes in."""
    merged_tokens: Count
    """Tokens that become one."""
    norm: Norm = Norm.LAYER


class EncoderEnd(Shaped):
    """Between encoder and decoder: a norm, whose output all cross-attention reads."""

    kind: Literal["encoder_end"] = "encoder_end"
    tokens_per_sample: Literal["encoder"] = "encoder"
    norm: Norm = Norm.RMS


class Head(Shaped):
    """Final norm, projection to the vocabulary (or to classes), cross-entropy."""

    kind: Literal["head"] = "head"
    vocab_size: Count
    norm: Norm | None = Norm.RMS
    tied: bool = False
    """Shares its matrix with the embedding."""
    bias: bool = False
    transform: bool = False
    """A square matrix with a bias before the norm (BERT)."""
    pooled: bool = False
    """Scores one token of a sample, the class token or the mean of all, after the norm."""


AnyLayer = Embedding | PatchEmbedding | Block | Merging | EncoderEnd | Head
Layer = Annotated[AnyLayer, Field(discriminator="kind")]
Flow = tuple[int | None, int | str | None]
"""Width and tokens of what goes from layer to layer, as layers write them."""


class LayerRun(Value):
    """`num_layers` equal neighbours."""

    layer: Layer
    num_layers: Count = 1


class Model(Value):
    """A stack of layers; equal neighbours are written as one run."""

    name: Name
    hidden_size: Count
    """Of layers that do not give their own."""
    runs: Annotated[tuple[LayerRun, ...], Field(min_length=1, fail_fast=True)]
    max_sequence_length: Count | None = None

    @model_validator(mode="after")
    def _in_order(self) -> Model:
        if (total := sum(run.num_layers for run in self.runs)) > MAX_LAYERS:
            raise ValueError(f"runs: a model may have at most {MAX_LAYERS} layers, this has {total}")
        if (total := sum(run.num_layers * _num_experts(run.layer) for run in self.runs)) > MAX_EXPERTS:
            raise ValueError(f"runs: a model may have at most {MAX_EXPERTS} experts in all layers, this has {total}")
        for number, layer in enumerate(self.layers):
            if isinstance(layer, Embedding | PatchEmbedding) and number != 0:
                raise ValueError(f"runs: layer {number} is an embedding; only layer 0 may be one")
            if isinstance(layer, Head) and number != len(self.layers) - 1:
                raise ValueError(f"runs: layer {number} is a head; only the last layer may be one")
        self._check_tied()
        if not any(isinstance(layer, Block) for layer in self.layers):
            raise ValueError("runs: a model needs at least one block")
        self._check_encoder()
        self._check_flow()
        return self

    def _check_tied(self) -> None:
        first, last = self.layers[0], self.layers[-1]
        if not isinstance(last, Head) or not last.tied:
            return
        if not isinstance(first, Embedding) or first.vocab_size != last.vocab_size:
            raise ValueError("runs: a tied head needs an embedding of the same vocab_size as layer 0")
        if self.width(0) != self.width(len(self.layers) - 1):
            raise ValueError("runs: a tied head needs the hidden_size of the embedding")

    def _check_encoder(self) -> None:
        """Encoder layers come first, then one encoder_end, then blocks with cross-attention."""
        ends = [number for number, layer in enumerate(self.layers) if isinstance(layer, EncoderEnd)]
        if len(ends) > 1:
            raise ValueError(f"runs: layer {ends[1]} is a second encoder_end; there may be one")
        for number, layer in enumerate(self.layers):
            before = bool(ends) and number <= ends[0]
            if before != (layer.tokens_per_sample == "encoder"):
                wanted = "have tokens_per_sample encoder: an encoder_end follows" if before else "not have it"
                raise ValueError(f"runs: layer {number} must {wanted}")
            if ends and layer.hidden_size not in (None, self.hidden_size):
                raise ValueError(f"runs: layer {number} must have the model's hidden_size, as a model with an encoder")
            if isinstance(layer, Block) and layer.cross_attention and (before or not ends):
                raise ValueError(f"runs: layer {number} has cross_attention, but no encoder_end stands before it")

    def _check_flow(self) -> None:
        """Each layer takes what the one before puts out."""
        for number, (before, after) in enumerate(pairwise(self.layers), start=1):
            out, taken = self._put_out(before), self._taken(after)
            if out != taken and not isinstance(before, EncoderEnd):
                raise ValueError(
                    f"runs: layer {number} takes {_flow(taken)}, but layer {number - 1} puts out {_flow(out)}"
                )

    def _put_out(self, layer: AnyLayer) -> Flow:
        return layer.hidden_size or self.hidden_size, layer.tokens_per_sample

    def _taken(self, layer: AnyLayer) -> Flow:
        if isinstance(layer, Merging):
            return layer.input_size, layer.tokens_per_sample * layer.merged_tokens
        return self._put_out(layer)

    def width(self, layer: int) -> int:
        """Channels of what a layer puts out."""
        return self.layers[layer].hidden_size or self.hidden_size

    @cached_property
    def has_encoder(self) -> bool:
        """Whether an encoder stands before the decoder, with a sequence length of its own."""
        return any(isinstance(run.layer, EncoderEnd) for run in self.runs)

    @cached_property
    def layers(self) -> tuple[AnyLayer, ...]:
        """All layers in order, the embedding first."""
        return tuple(run.layer for run in self.runs for _ in range(run.num_layers))

    @cached_property
    def _run_ends(self) -> tuple[int, ...]:
        return tuple(accumulate(run.num_layers for run in self.runs))

    def stretches(self, first: int, end: int) -> Iterator[tuple[AnyLayer, int, int]]:
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


def _num_experts(layer: AnyLayer) -> int:
    return layer.moe.num_experts if isinstance(layer, Block) and layer.moe else 0


def _flow(flow: Flow) -> str:
    width, tokens = flow
    return f"{'sequence_length' if tokens is None else tokens} tokens of {width} channels"
