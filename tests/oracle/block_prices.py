"""The planner's price of the blocks in kept_blocks."""

from __future__ import annotations

from kept_blocks import Sizes

from planner.cost.layer import LayerCost, layer_cost
from planner.cost.part import conditions
from planner.spec.cluster import Precision
from planner.spec.model import Block, DenseFeedForward, GroupedQueryAttention, Head, MoeFeedForward, Norm
from planner.spec.stack import Stack
from planner.spec.strategy import Axis, AxisKind, ExpertStrategy, Recompute, Sharding, Strategy
from planner.spec.training import AttentionKernel, Training
from profiles import cluster_from_shorthand, resolve_cluster

CLUSTER = resolve_cluster(cluster_from_shorthand("1x8:a100-80g"))
FUSED, EAGER = Stack(), Stack(eager_blocks=True, eager_loss=True)
ALONE = ExpertStrategy(expert_parallel_size=1, expert_tensor_parallel_size=1, expert_data_parallel_size=1)


def llama_block(sizes: Sizes) -> Block:
    """The block of kept_blocks.Block."""
    attention = GroupedQueryAttention(num_heads=sizes.heads, num_kv_heads=sizes.kv_heads, head_dim=sizes.head_dim)
    if not sizes.experts:
        return Block(attention=attention, feed_forward=DenseFeedForward(width=sizes.width))
    experts = MoeFeedForward(
        num_experts=sizes.experts, top_k=sizes.top_k, expert_width=sizes.width, shared_width=sizes.shared
    )
    return Block(attention=attention, feed_forward=experts)


def gpt_block(sizes: Sizes) -> Block:
    """The block of kept_blocks.GptBlock."""
    attention = GroupedQueryAttention(
        num_heads=sizes.heads,
        num_kv_heads=sizes.heads,
        head_dim=sizes.head_dim,
        qkv_bias=True,
        output_bias=True,
    )
    network = DenseFeedForward(width=sizes.width, gated=False, bias=True)
    return Block(attention=attention, feed_forward=network, norm=Norm.LAYER)


def strategy(recompute: Recompute, shards: int = 1, moe: bool = False) -> Strategy:
    """One device, or `shards` that split weights, gradients and optimizer state."""
    axes = (Axis(AxisKind.DP, shards),) if shards > 1 else ()
    sharding = Sharding.FULL if shards > 1 else Sharding.NONE
    experts = ALONE.model_copy(update={"expert_data_parallel_size": shards}) if moe else None
    return Strategy(axes=axes, sharding=sharding, recompute=recompute, experts=experts)


def training(tokens: int, unfused: bool = False, dropout: bool = False) -> Training:
    """In bf16 with Adam."""
    kernel = AttentionKernel.UNFUSED if unfused else AttentionKernel.FLASH
    return Training(
        global_batch_size=64,
        sequence_length=tokens,
        precision=Precision.BF16,
        attention_kernel=kernel,
        dropout=dropout,
    )


def price(
    hidden: int, layer: Block | Head, spread: Strategy, recipe: Training, samples: int, stack: Stack = FUSED
) -> LayerCost:
    """The layer with `samples` on each device."""
    where = conditions(hidden, CLUSTER.model_copy(update={"stack": stack}), recipe)
    return layer_cost(where, layer, spread, samples * spread.data_parallel_size, recipe.sequence_length)
