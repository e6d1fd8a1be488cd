"""Matrix products and element-wise work that dense parts share; feed-forward networks; tensor-parallel traffic."""

from __future__ import annotations

from typing import NamedTuple

from planner.cost.kernels import elementwise_s, is_aligned, matmul_s, quantise_s
from planner.cost.message import Collective, Message, Messages, messages_s
from planner.cost.numbers import Numbers, peak
from planner.cost.parameters import num_norms
from planner.cost.part import Conditions, Part, Share, tensor_group
from planner.spec.model import Block, DenseFeedForward, FeedForward
from planner.spec.strategy import Strategy

# Element-wise work on a block's residual stream, in passes over [tokens, hidden] (reads and writes): a norm, and a
# residual addition.
_NORM_FORWARD, _NORM_BACKWARD = 2, 3
_ADDITION = 3


def linear_s(
    conditions: Conditions, rows: Numbers, columns: float, depth: float, groups: Numbers = 1
) -> tuple[Numbers, Numbers]:
    """(forward, backward) of a weight matrix [depth, columns]; backward makes the gradients of input and weight."""
    rate = conditions.rate
    slower = rate.grouped_matmul_ratio if peak(groups) > 1 else 1.0
    aligned = is_aligned(rate, columns, depth)
    forward = matmul_s(rate, rows, columns, depth, groups, aligned)
    backward = matmul_s(rate, rows, depth, columns, groups, aligned)
    backward += matmul_s(rate, depth, columns, rows, groups, aligned)
    forward_s = forward / slower + quantise_s(rate, groups * rows * depth)
    return forward_s, backward / slower + quantise_s(rate, groups * rows * columns)


def feed_forward(
    conditions: Conditions, width: float, gated: bool, rows: Numbers, groups: Numbers = 1
) -> tuple[Numbers, Numbers]:
    """(forward, backward) seconds of `groups` networks of local `width` on `rows` tokens each."""
    inner = 2 * width if gated else width
    up = linear_s(conditions, rows, inner, conditions.hidden_size, groups)
    down = linear_s(conditions, rows, conditions.hidden_size, width, groups)
    element = conditions.rate.element_bytes * rows * groups
    # Activation function: reads the inner values and writes the outer; backward reads both and writes the inner.
    forward = elementwise_s(conditions.rate, element * (inner + width))
    backward = elementwise_s(conditions.rate, element * (2 * inner + width))
    return up[0] + down[0] + forward, up[1] + down[1] + backward


def feed_forward_bytes(conditions: Conditions, kind: FeedForward, width: float, rows: Numbers) -> Numbers:
    """Activations that a network of local `width` keeps: inner values, and the input of its second matrix.

    Gated and fused: gate, other half and product; as operations of their own also the activated gate. ReLU keeps what
    it puts out, and nothing else.
    Source: Korthikanti et al. 2022 (arXiv 2205.05198), section 4.1: 16 of the 24 sbh; tests/oracle for gated ones.
    """
    rate = conditions.rate
    inner = (3 if conditions.stack.eager_blocks else 2) if kind.gated else 0 if kind.relu else 1
    return rows * width * (rate.element_bytes * inner + rate.operand_bytes)


def dense_feed_forward(conditions: Conditions, kind: DenseFeedForward, strategy: Strategy, part_of: Share) -> Part:
    """A dense feed-forward network under tensor parallelism."""
    local = kind.width / strategy.tp
    forward, backward = feed_forward(conditions, local, kind.gated, part_of.tokens)
    stored = feed_forward_bytes(conditions, kind, local, part_of.tokens)
    traffic = messages_s(conditions.levels, tensor_region(conditions, strategy, part_of))
    inner = conditions.rate.element_bytes * part_of.tokens * local * (2 if kind.gated else 1)
    return Part(
        forward_s=forward,
        backward_s=backward,
        tensor_forward_s=traffic,
        tensor_backward_s=traffic,
        stored_bytes=stored,
        transient_bytes=inner,
    )


def tensor_region(conditions: Conditions, strategy: Strategy, part_of: Share) -> Messages:
    """Messages of one tensor-parallel region in one direction: an all-reduce of its [tokens, hidden].

    With sequence parallelism, an all-gather before and a reduce-scatter after: the same bytes.
    Source: Megatron-LM (arXiv 1909.08053), section 3; Korthikanti et al. 2022 (arXiv 2205.05198), section 4.2.2.
    """
    if not strategy.sequence_parallel:
        return (whole_tokens(Collective.ALL_REDUCE, conditions, strategy, part_of),)
    return (
        whole_tokens(Collective.ALL_GATHER, conditions, strategy, part_of),
        whole_tokens(Collective.REDUCE_SCATTER, conditions, strategy, part_of),
    )


def whole_tokens(collective: Collective, conditions: Conditions, strategy: Strategy, part_of: Share) -> Message:
    """A message about [tokens, hidden] between tensor-parallel ranks."""
    moved_bytes = part_of.tokens * conditions.hidden_size * conditions.rate.element_bytes
    return Message(collective, tensor_group(strategy), moved_bytes)


def norm_extra_bytes(conditions: Conditions) -> float:
    """For each value that enters a norm, what it keeps beyond its input."""
    return 4.0 if conditions.stack.eager_blocks else 0.0


def part_norm(conditions: Conditions, part_of: Share) -> Part:
    """A norm outside blocks, and the input that it keeps."""
    elements, element = part_of.edge_tokens * conditions.hidden_size, conditions.rate.element_bytes
    return Part(
        forward_s=elementwise_s(conditions.rate, elements * element * _NORM_FORWARD),
        backward_s=elementwise_s(conditions.rate, elements * element * _NORM_BACKWARD),
        stored_bytes=elements * (element + norm_extra_bytes(conditions)),
    )


class Edges(NamedTuple):
    """What the residual stream of a block has: by default norm, attention, addition, norm, network, addition."""

    norms: int = 2
    normed: int = 2
    """Different inputs of the norms."""
    read: int = 2
    """Different inputs of attention and networks."""
    additions: int = 2


_USUAL = Edges()


def edges_of(block: Block) -> Edges:
    """Of a block of any kind."""
    norms, parts = num_norms(block), 1 + len(block.attentions)
    return Edges(norms, 1 if block.parallel else norms, 1 if block.shared_norm else parts, parts)


def residual_stream(conditions: Conditions, part_of: Share, edges: Edges = _USUAL) -> Part:
    """Norms, residual additions and dropout of one block, and the inputs that they keep.

    Kept: inputs of the norms, of attention and of the feed-forward network; with dropout a mask of a byte for each
    addition. A norm of operations of its own keeps its input in fp32 and the normalised values instead of its input.
    Source: Korthikanti et al. 2022 (arXiv 2205.05198), section 4.1: the 10 sbh that tensor parallelism leaves whole.
    """
    dropout = conditions.training.dropout
    elements = part_of.edge_tokens * conditions.hidden_size
    element = conditions.rate.element_bytes
    masks = float(edges.additions) * elements if dropout else 0.0
    undo_dropout = edges.additions * elements * (2 * element + 1) if dropout else 0.0
    kernels = edges.norms + edges.additions
    forward_passes, backward_passes = (
        each * edges.norms + _ADDITION * edges.additions for each in (_NORM_FORWARD, _NORM_BACKWARD)
    )
    forward = elementwise_s(conditions.rate, elements * element * forward_passes + masks, kernels)
    backward = elementwise_s(conditions.rate, elements * element * backward_passes + undo_dropout, kernels)
    kept = edges.normed * element + edges.norms * norm_extra_bytes(conditions)
    kept += edges.read * conditions.rate.operand_bytes
    stored = elements * kept + masks
    return Part(forward_s=forward, backward_s=backward, host_s=conditions.stack.block_host_s, stored_bytes=stored)
