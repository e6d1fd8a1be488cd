"""How many parameters a layer has, part by part. Exact counts; knows nothing of devices or bytes."""

from __future__ import annotations

from typing import NamedTuple

from planner.spec.model import (
    AnyLayer,
    Block,
    DenseFeedForward,
    Embedding,
    GroupedQueryAttention,
    Head,
    LatentAttention,
    Merging,
    Model,
    MoeFeedForward,
    Norm,
    PatchEmbedding,
)


class LayerParameters(NamedTuple):
    """Parameters of one layer by how tensor and expert parallelism treat them."""

    split: int
    """Cut by tensor parallelism: matrices of attention, feed-forward, vocabulary, shared experts."""
    replicated: int
    """On every tensor-parallel rank: norms, router, low-rank down-projections, patch embedding and merging."""
    experts: int
    """All experts together; cut by expert and expert-tensor parallelism."""
    active_experts: int
    """The experts that one token passes."""

    @property
    def total(self) -> int:
        """All parameters."""
        return self.split + self.replicated + self.experts

    @property
    def active(self) -> int:
        """Parameters that take part in the forward pass of one token."""
        return self.split + self.replicated + self.active_experts


def norm_parameters(norm: Norm | None, hidden_size: int) -> int:
    """One norm; None: no norm."""
    if norm is None:
        return 0
    return hidden_size * (2 if norm is Norm.LAYER else 1)


def num_norms(block: Block) -> int:
    """Norms of a block beside those of queries and keys."""
    if block.shared_norm:
        return 1
    return (1 + len(block.attentions)) * (2 if block.norms_both_sides else 1)


def attention_parameters(attention: GroupedQueryAttention | LatentAttention, hidden_size: int) -> tuple[int, int]:
    """(cut by tensor parallelism, replicated)."""
    if isinstance(attention, LatentAttention):
        return _latent_parameters(attention, hidden_size)
    queries = attention.num_heads * attention.head_dim
    keys_values = 2 * attention.num_kv_heads * attention.head_dim
    split = hidden_size * (queries + keys_values) + queries * hidden_size
    split += (queries + keys_values) if attention.qkv_bias else 0
    split += attention.num_heads * ((1 if attention.sinks else 0) + attention.position_buckets)
    replicated = hidden_size if attention.output_bias else 0
    if attention.qk_norm == "per_head":
        replicated += 2 * attention.head_dim
    elif attention.qk_norm == "full":
        replicated += queries + keys_values // 2
    return split, replicated


def _latent_parameters(attention: LatentAttention, hidden_size: int) -> tuple[int, int]:
    # Source: DeepSeek-V2 (arXiv 2405.04434), section 2.1 and appendix C; norms on both latents.
    queries = attention.num_heads * attention.qk_head_dim
    if attention.q_lora_rank is None:
        split, replicated = hidden_size * queries, 0
    else:
        split = attention.q_lora_rank * queries
        replicated = hidden_size * attention.q_lora_rank + attention.q_lora_rank
    replicated += hidden_size * (attention.kv_lora_rank + attention.qk_rope_head_dim) + attention.kv_lora_rank
    split += attention.kv_lora_rank * attention.num_heads * (attention.qk_nope_head_dim + attention.v_head_dim)
    split += attention.num_heads * attention.v_head_dim * hidden_size
    if attention.bias:
        replicated += (attention.q_lora_rank or 0) + attention.kv_lora_rank + attention.qk_rope_head_dim + hidden_size
    return split, replicated


def feed_forward_parameters(width: int, gated: bool, bias: bool, hidden_size: int) -> tuple[int, int]:
    """(cut by tensor parallelism, replicated) of one feed-forward network or expert."""
    inner = 2 * width if gated else width
    return hidden_size * (inner + width) + (inner if bias else 0), hidden_size if bias else 0


def expert_parameters(moe: MoeFeedForward, hidden_size: int) -> int:
    """One routed expert."""
    return sum(feed_forward_parameters(moe.expert_width, moe.gated, moe.bias, hidden_size))


def router_parameters(moe: MoeFeedForward, hidden_size: int) -> int:
    """The router's matrix, and its bias if it has one."""
    return hidden_size * moe.num_experts + (moe.num_experts if moe.router_bias else 0)


def layer_parameters(layer: AnyLayer, hidden_size: int) -> LayerParameters:
    """Parameters of one layer in a model of this width; a tied head does not count its matrix."""
    width = layer.hidden_size or hidden_size
    if isinstance(layer, Block):
        return _block_parameters(layer, width)
    if isinstance(layer, Embedding):
        replicated = (layer.num_positions + layer.num_token_types) * width + norm_parameters(layer.norm, width)
        return LayerParameters(layer.vocab_size * width, replicated, 0, 0)
    if isinstance(layer, Head):
        return _head_parameters(layer, width)
    if isinstance(layer, Merging):
        merged = layer.merged_tokens * layer.input_size
        return LayerParameters(0, merged * width + norm_parameters(layer.norm, merged), 0, 0)
    if isinstance(layer, PatchEmbedding):
        vectors = layer.patch_values + 1 + layer.num_positions + (1 if layer.class_token else 0)
        return LayerParameters(0, vectors * width + norm_parameters(layer.norm, width), 0, 0)
    return LayerParameters(0, norm_parameters(layer.norm, width), 0, 0)


def _head_parameters(head: Head, hidden_size: int) -> LayerParameters:
    split = (0 if head.tied else head.vocab_size * hidden_size) + (head.vocab_size if head.bias else 0)
    replicated = norm_parameters(head.norm, hidden_size)
    return LayerParameters(split, replicated + (hidden_size + 1) * hidden_size * head.transform, 0, 0)


def _block_parameters(block: Block, hidden_size: int) -> LayerParameters:
    parts = [attention_parameters(attention, hidden_size) for attention in block.attentions]
    split, replicated = (sum(column) for column in zip(*parts, strict=True))
    replicated += num_norms(block) * norm_parameters(block.norm, hidden_size)
    feed_forward = block.feed_forward
    if isinstance(feed_forward, DenseFeedForward):
        cut, whole = feed_forward_parameters(feed_forward.width, feed_forward.gated, feed_forward.bias, hidden_size)
        return LayerParameters(split + cut, replicated + whole, 0, 0)
    if feed_forward.shared_width:
        split += sum(feed_forward_parameters(feed_forward.shared_width, feed_forward.gated, False, hidden_size))
    replicated += router_parameters(feed_forward, hidden_size) + (hidden_size if feed_forward.shared_gate else 0)
    expert = expert_parameters(feed_forward, hidden_size)
    return LayerParameters(split, replicated, feed_forward.num_experts * expert, feed_forward.top_k * expert)


def total_parameters(model: Model) -> int:
    """All parameters of the model; tied matrices once."""
    return sum(run.num_layers * layer_parameters(run.layer, model.hidden_size).total for run in model.runs)


def active_parameters(model: Model, embedding: bool = True) -> int:
    """Parameters that take part in the forward pass of one token, head included.

    Publishers differ on the embedding, of which a token reads one row: Mistral and Qwen count it (Mixtral-8x7B:
    12.9e9), OpenAI and DeepSeek do not (gpt-oss-20b: 3.6e9, DeepSeek-V3: 36.7e9). A tied head is the embedding's matrix
    and counts.
    """
    counted = [run for run in model.runs if embedding or not isinstance(run.layer, Embedding)]
    active = sum(run.num_layers * layer_parameters(run.layer, model.hidden_size).active for run in counted)
    last = model.layers[-1]
    if not embedding and isinstance(last, Head) and last.tied:
        active += last.vocab_size * model.width(len(model.layers) - 1)
    return active
