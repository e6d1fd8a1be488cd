"""What cannot be computed at all: each rule has a name and says what would be right."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from planner.cost.part import arriving_tokens
from planner.spec.cluster import Device
from planner.spec.model import (
    AnyLayer,
    Block,
    DenseFeedForward,
    GroupedQueryAttention,
    Head,
    Merging,
    PatchEmbedding,
)
from planner.spec.strategy import Strategy
from planner.spec.training import AttentionKernel, Training


class Broken(NamedTuple):
    """A rule that a strategy breaks."""

    rule: str
    message: str


Rule = Callable[[AnyLayer, Strategy, Training], str | None]


def heads_divide(layer: AnyLayer, strategy: Strategy, training: Training) -> str | None:
    """Tensor parallelism cuts between heads; groups of keys and values are cut or replicated whole."""
    if not isinstance(layer, Block):
        return None
    for attention in layer.attentions:
        if attention.num_heads % strategy.tp:
            return f"tp {strategy.tp} must divide the {attention.num_heads} attention heads"
        if isinstance(attention, GroupedQueryAttention):
            groups = attention.num_kv_heads
            if groups % strategy.tp and strategy.tp % groups:
                return f"tp {strategy.tp} must divide, or be a multiple of, the {groups} key-value heads"
    return None


def ulysses_cuts_heads(layer: AnyLayer, strategy: Strategy, training: Training) -> str | None:
    """Ulysses gives each rank whole heads of what tensor parallelism leaves; groups are cut or replicated whole."""
    if not isinstance(layer, Block) or strategy.ulysses == 1:
        return None
    parts, heads = strategy.tp * strategy.ulysses, layer.attention.num_heads
    named = f"tp {strategy.tp} x ulysses {strategy.ulysses}" if strategy.tp > 1 else f"ulysses {strategy.ulysses}"
    if heads % parts:
        return f"{named} must divide the {heads} attention heads"
    if isinstance(layer.attention, GroupedQueryAttention):
        groups = layer.attention.num_kv_heads
        if groups % parts and parts % groups:
            return f"{named} must divide, or be a multiple of, the {groups} key-value heads"
    return None


def widths_divide(layer: AnyLayer, strategy: Strategy, training: Training) -> str | None:
    """Tensor parallelism cuts feed-forward widths evenly."""
    if not isinstance(layer, Block):
        return None
    feed_forward = layer.feed_forward
    width = feed_forward.width if isinstance(feed_forward, DenseFeedForward) else feed_forward.shared_width
    if width % strategy.tp:
        return f"tp {strategy.tp} must divide the feed-forward width {width}"
    return None


def sequence_divides(layer: AnyLayer, strategy: Strategy, training: Training) -> str | None:
    """Context parallelism gives each rank two equal chunks (balance under a causal mask); Ulysses and sequence
    parallelism cut them once more.
    """
    chunks = (2 * strategy.cp if strategy.cp > 1 else 1) * strategy.ulysses
    for tokens in sequence_cuts(layer, training):
        if tokens % chunks:
            cuts = [f"twice cp {strategy.cp}"] if strategy.cp > 1 else []
            cuts += [f"ulysses {strategy.ulysses}"] if strategy.ulysses > 1 else []
            return f"{' x '.join(cuts)} must divide the sequence length {tokens}"
        part = tokens // strategy.sequence_parts
        if strategy.sequence_parallel and part % strategy.tp:
            return f"tp {strategy.tp} must divide the {part} tokens of a sequence part"
    return None


def sequence_cuts(layer: AnyLayer, training: Training) -> tuple[int, ...]:
    """Numbers of tokens of a sample that are cut evenly when the sequence is.

    A merging is cut between what it puts out; what a pooled head scores is one token.
    """
    if isinstance(layer, Head) and layer.pooled:
        return (1,)
    if isinstance(layer, Merging):
        return (layer.tokens_per_sample,)
    return arriving_tokens(layer, training.sequence_length, training.encoder_length)


def context_parallel_needs_one_sequence(layer: AnyLayer, strategy: Strategy, training: Training) -> str | None:
    """Cuts of the sequence are for text: the tokens of an image are neighbours in two directions.

    Ulysses beside cross-attention is not known either: it would exchange heads of two sequences.
    """
    windows = isinstance(layer, Block) and not layer.attention.causal and getattr(layer.attention, "window", None)
    if strategy.sequence_parts > 1 and (windows or isinstance(layer, PatchEmbedding | Merging)):
        return "cp and ulysses must be 1 for a patch embedding, a merging, and attention in windows side by side"
    if strategy.ulysses > 1 and isinstance(layer, Block) and layer.cross_attention:
        return "ulysses must be 1 for a block with cross-attention"
    return None


def experts_on_moe_layers(layer: AnyLayer, strategy: Strategy, training: Training) -> str | None:
    """MoE layers need an expert strategy, others must not have one."""
    moe = isinstance(layer, Block) and layer.moe is not None
    if moe and strategy.experts is None:
        return "experts must be given for an MoE layer"
    if not moe and strategy.experts is not None:
        return f"experts must not be given for {'a block without experts' if layer.kind == 'block' else layer.kind}"
    return None


def experts_divide(layer: AnyLayer, strategy: Strategy, training: Training) -> str | None:
    """Expert parallelism gives each rank equally many experts, expert-tensor parallelism cuts their width."""
    if not isinstance(layer, Block) or layer.moe is None or strategy.experts is None:
        return None
    parallel, tensor = strategy.experts.expert_parallel_size, strategy.experts.expert_tensor_parallel_size
    if layer.moe.num_experts % parallel:
        return f"expert_parallel_size {parallel} must divide the {layer.moe.num_experts} experts"
    if layer.moe.expert_width % tensor:
        return f"expert_tensor_parallel_size {tensor} must divide the expert width {layer.moe.expert_width}"
    return None


def experts_need_sequence_parallel(layer: AnyLayer, strategy: Strategy, training: Training) -> str | None:
    """Under tensor parallelism each rank dispatches tokens of its own, which it has with sequence parallelism only."""
    moe = isinstance(layer, Block) and layer.moe is not None
    if moe and strategy.tp > 1 and not strategy.sequence_parallel:
        return "sequence_parallel must be true for an MoE layer under tensor parallelism"
    return None


def context_parallel_needs_flash(layer: AnyLayer, strategy: Strategy, training: Training) -> str | None:
    """Ring attention merges blocks of fused attention."""
    if strategy.cp > 1 and training.attention_kernel is not AttentionKernel.FLASH:
        return "cp must be 1 without flash attention"
    return None


def offload_needs_host(strategy: Strategy, device: Device) -> Iterator[Broken]:
    """Optimizer state goes to a host whose memory and link are known."""
    if strategy.offload and device.host is None:
        message = f"offload must be false: nothing is known of the host of {device.name}; give the device's host"
        yield Broken("offload-needs-host", message)


SHAPE_RULES: tuple[Rule, ...] = (
    heads_divide,
    ulysses_cuts_heads,
    widths_divide,
    sequence_divides,
    context_parallel_needs_one_sequence,
    experts_need_sequence_parallel,
    context_parallel_needs_flash,
)
"""What these say depends on the layer, the axes and sequence parallelism alone."""

EXPERT_RULES: tuple[Rule, ...] = (experts_on_moe_layers, experts_divide)
"""What these say depends on the layer and the degrees of its experts alone."""


def broken_rules(
    layer: AnyLayer, strategy: Strategy, training: Training, rules: tuple[Rule, ...] = SHAPE_RULES + EXPERT_RULES
) -> Iterator[Broken]:
    """All of the rules that the strategy breaks on this layer."""
    for rule in rules:
        message = rule(layer, strategy, training)
        if message:
            yield Broken(rule.__name__.replace("_", "-"), message)
