"""What Megatron-LM's `pretrain_gpt.py` cannot be told of a model or a recipe, as rules with names.

Source: `megatron/training/arguments.py` of Megatron-LM 000c4ac and d98e8a6; megatron-core 0.16.1: `TransformerConfig`,
`moe/router.py`, `moe/experts.py` and `moe/shared_experts.py` (biases).
"""

from __future__ import annotations

from planner.export.job import Job
from planner.export.rules import ExportRule, decoder_only, gradients_as_weights, nodes_of_one_size
from planner.spec.model import (
    Block,
    DenseFeedForward,
    Embedding,
    GroupedQueryAttention,
    Head,
    LatentAttention,
    MoeFeedForward,
)


def megatron_plain_edges(job: Job) -> str | None:
    """Embedding: tokens and learned positions. Head: final norm and projection, without a bias."""
    first, last = job.model.layers[0], job.model.layers[-1]
    if isinstance(first, Embedding) and (first.norm or first.num_token_types):
        return "the embedding must have no norm and no token types for Megatron-LM's GPT"
    if isinstance(last, Head) and (last.norm is None or last.bias or last.transform or last.pooled):
        return "the head must be a norm and a projection without bias for Megatron-LM's GPT"
    if isinstance(last, Head) and isinstance(first, Embedding) and first.vocab_size != last.vocab_size:
        return "embedding and head must have one vocabulary for Megatron-LM's GPT"
    return None


def megatron_plain_blocks(job: Job) -> str | None:
    """Norm, attention, norm, feed-forward, one after the other, with one kind of norm."""
    if any(block.parallel or block.norms_both_sides or block.cross_attention for block in job.blocks):
        return "blocks must have a norm before attention and one before a feed-forward network for Megatron-LM's GPT"
    if len({layer.norm for layer in (*job.blocks, job.model.layers[-1]) if isinstance(layer, Block | Head)}) > 1:
        return "all norms must be of one kind for Megatron-LM"
    return None


def megatron_one_attention(job: Job) -> str | None:
    """One attention for all blocks; windows may be in some of them, all of one size."""
    kinds = {
        block.attention.model_copy(update={"window": None}) if _grouped(block) else block.attention
        for block in job.blocks
    }
    if len(kinds) > 1:
        return "all blocks must have the same attention, windows aside, for Megatron-LM"
    if len(windows(job) - {None}) > 1:
        return "all windows must have one size for Megatron-LM"
    attention = job.blocks[0].attention
    if isinstance(attention, GroupedQueryAttention) and (attention.position_buckets or attention.qk_norm == "full"):
        return "attention must have no learned relative positions, and norms for each head, for Megatron-LM's GPT"
    return None


def megatron_one_feed_forward(job: Job) -> str | None:
    """One width of dense blocks, one kind of experts; one activation function, which is GELU or gated SiLU."""
    if len({block.feed_forward for block in job.blocks if block.moe is None}) > 1 or len(experts_of(job)) > 1:
        return "all dense blocks must be alike, and all blocks with experts, for Megatron-LM"
    if len({block.feed_forward.gated for block in job.blocks}) > 1:
        return "all blocks must be gated, or none, for Megatron-LM"
    if any(block.feed_forward.relu for block in job.blocks):
        return "the activation function must not be ReLU for Megatron-LM"
    return None


def megatron_biases_together(job: Job) -> str | None:
    """`--disable-bias-linear`: all linear layers and the router have a bias, or none but queries, keys and values."""
    feed_forward = {block.feed_forward.bias for block in job.blocks}
    routers = {experts.router_bias for experts in experts_of(job)}
    attention = job.blocks[0].attention
    if isinstance(attention, LatentAttention):
        beside = {attention.bias}
    else:
        beside = {attention.output_bias}
        if feed_forward == {True} and not attention.qkv_bias:
            return "queries, keys and values must have a bias where all else has one, for Megatron-LM"
    if len(feed_forward | routers | beside) > 1:
        return "all linear layers must have a bias, or none but those of queries, keys and values, for Megatron-LM"
    if feed_forward == {True} and any(experts.shared_width for experts in experts_of(job)):
        return "linear layers must have no bias beside shared experts for Megatron-LM"
    return None


def experts_of(job: Job) -> tuple[MoeFeedForward, ...]:
    """The kinds of experts of the model."""
    return tuple(dict.fromkeys(block.moe for block in job.blocks if block.moe is not None))


def dense_of(job: Job) -> DenseFeedForward | None:
    """The dense network of the blocks that have no experts, if any has none."""
    return next((b.feed_forward for b in job.blocks if isinstance(b.feed_forward, DenseFeedForward)), None)


def windows(job: Job) -> frozenset[int | None]:
    """Of all blocks; None: a block that sees all."""
    return frozenset(b.attention.window for b in job.blocks if isinstance(b.attention, GroupedQueryAttention))


def _grouped(block: Block) -> bool:
    return isinstance(block.attention, GroupedQueryAttention)


MEGATRON_EXPORT_RULES: tuple[ExportRule, ...] = (
    nodes_of_one_size,
    decoder_only,
    gradients_as_weights,
    megatron_plain_edges,
    megatron_plain_blocks,
    megatron_one_attention,
    megatron_one_feed_forward,
    megatron_biases_together,
)
