"""The price of one layer under one strategy: seconds and bytes on its busiest device."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from planner.cost.attention import (
    attention,
    cross_attention,
    head_exchange,
    kept_cross_products_bytes,
    kept_products_bytes,
)
from planner.cost.copies import ONE_EACH, Copies
from planner.cost.dense import dense_feed_forward, edges_of, residual_stream
from planner.cost.experts import moe_feed_forward
from planner.cost.joints import encoder_end, merging, patch_embedding
from planner.cost.kernels import Rates, hidden_s, overlapped_s
from planner.cost.message import messages_s
from planner.cost.numbers import Numbers, whole_number
from planner.cost.part import Conditions, Part, Share, add, computed_tokens, of_layer, share
from planner.cost.state import State, add_states, state_of_experts, state_without_experts
from planner.cost.vocabulary import embedding, head
from planner.spec.model import AnyLayer, Block, DenseFeedForward, Embedding, Head, Merging, PatchEmbedding
from planner.spec.stack import Stack
from planner.spec.strategy import Recompute, Strategy

PassTime = tuple[Numbers, Numbers, Numbers, Numbers, Numbers, Numbers, Numbers, Numbers]
"""Seconds of one pass over one micro-batch, by the names in PASS_PARTS."""

PASS_PARTS = (
    "compute",
    "recompute",
    "tensor_parallel_communication",
    "context_parallel_communication",
    "expert_all_to_all",
    "expert_imbalance",
    "data_parallel_communication",
    "host",
)


class LayerCost(NamedTuple):
    """One layer on its busiest device. Seconds are not hidden behind anything else; bytes are whole."""

    forward: PassTime
    backward: PassTime
    once_communication_s: Numbers
    """Data-parallel traffic once per step that no compute hides."""
    optimizer_s: Numbers
    weights_bytes: Numbers
    gradients_bytes: Numbers
    optimizer_bytes: Numbers
    activation_bytes: Numbers
    """Kept for each micro-batch in flight."""
    logits_bytes: Numbers
    """Kept for each micro-batch in flight, scores over the vocabulary."""
    workspace_bytes: Numbers
    """Needed while this layer is computed; layers of a stage use it in turn."""
    weight_gradient_s: Numbers = 0.0
    """Of the backward pass, gradients of weights that may be put off; 0 for embedding and head."""
    host_bytes: Numbers = 0
    """In the memory of the host."""

    @property
    def fixed_bytes(self) -> Numbers:
        """Held through the whole step."""
        return self.weights_bytes + self.gradients_bytes + self.optimizer_bytes

    @property
    def forward_s(self) -> Numbers:
        """Forward pass of one micro-batch."""
        return sum(self.forward)

    @property
    def backward_s(self) -> Numbers:
        """Backward pass of one micro-batch, recomputation included."""
        return sum(self.backward)

    @property
    def once_s(self) -> Numbers:
        """Work once per step."""
        return self.once_communication_s + self.optimizer_s


class Unrouted(NamedTuple):
    """A layer but for its routed experts: what does not depend on any load."""

    conditions: Conditions
    """Of the layer."""
    part_of: Share
    whole: Part
    held: State


def layer_cost(
    conditions: Conditions,
    layer: AnyLayer,
    strategy: Strategy,
    samples: int,
    sequence_length: int,
    load_ratio: Numbers = 1.0,
    own_copy: bool = True,
    copies: Copies = ONE_EACH,
) -> LayerCost:
    """Price a layer for a micro-batch of `samples` over all data-parallel ranks.

    `load_ratio` is the busiest expert-parallel rank's tokens over the mean; `own_copy` says whether a tied head
    holds its matrix itself (it does on another stage than the embedding). `copies`: what replicas and shadows of
    experts add. `sequence_length` is that of the training; which tokens and width are the layer's, planner.cost.part
    knows.
    """
    found = unrouted(conditions, layer, strategy, samples, sequence_length, own_copy)
    return with_experts(found, layer, strategy, load_ratio, copies)


def unrouted(
    conditions: Conditions, layer: AnyLayer, strategy: Strategy, samples: int, sequence_length: int, own_copy: bool
) -> Unrouted:
    """What `layer_cost` prices once for all loads of a layer."""
    conditions = of_layer(conditions, layer)
    tokens = computed_tokens(layer, sequence_length, conditions.training.encoder_length)
    part_of = share(strategy, samples, tokens)
    whole = part_without_experts(conditions, layer, strategy, part_of)
    held = state_without_experts(conditions, layer, strategy, own_copy)
    return Unrouted(conditions, part_of, whole, held)


def with_experts(
    found: Unrouted, layer: AnyLayer, strategy: Strategy, load_ratio: Numbers = 1.0, copies: Copies = ONE_EACH
) -> LayerCost:
    """The price of a layer under one load, or arrays of prices under arrays of loads; see `layer_cost`."""
    conditions, part_of, whole, held = found
    if isinstance(layer, Block) and layer.moe is not None:
        slots_ratio = copies.own_ratio + copies.shadow_ratio
        whole = add((whole, moe_feed_forward(conditions, layer.moe, strategy, part_of, load_ratio, slots_ratio)))
        held = add_states(held, state_of_experts(conditions, layer, strategy, copies))
    cost = compose(conditions, strategy.recompute, part_of.edge_tokens, whole, held)
    whole_bytes = map(whole_number, cost[4:-2])
    whole_cost = LayerCost(*cost[:4], *whole_bytes)
    return whole_cost._replace(weight_gradient_s=put_off_s(layer, cost), host_bytes=whole_number(cost.host_bytes))


def put_off_s(layer: AnyLayer, cost: LayerCost) -> Numbers:
    """Of a layer's backward pass, what zero-bubble puts off: the gradients of the weights of blocks.

    An embedding has no other gradient; a head that put its own off would hold the logits of many micro-batches.
    """
    return cost.weight_gradient_s if isinstance(layer, Block) else np.zeros_like(cost.weight_gradient_s)[()]


def part_without_experts(conditions: Conditions, layer: AnyLayer, strategy: Strategy, part_of: Share) -> Part:
    """All of a layer that its axes alone decide: everything but the Mixture-of-Experts part of a block.

    `conditions` are the layer's (`of_layer`), `part_of` is of its `computed_tokens`.
    """
    if isinstance(layer, Block):
        return _block_without_experts(conditions, layer, strategy, part_of)
    if isinstance(layer, Embedding):
        return embedding(conditions, layer, strategy, part_of)
    if isinstance(layer, Head):
        return head(conditions, layer, strategy, part_of)
    if isinstance(layer, PatchEmbedding):
        return patch_embedding(conditions, layer, part_of)
    if isinstance(layer, Merging):
        return merging(conditions, layer, part_of)
    return encoder_end(conditions, part_of)


def _block_without_experts(conditions: Conditions, layer: Block, strategy: Strategy, part_of: Share) -> Part:
    parts = [
        attention(conditions, layer.attention, strategy, part_of),
        residual_stream(conditions, part_of, edges_of(layer)),
    ]
    if layer.cross_attention:
        parts.append(cross_attention(conditions, layer.cross_attention, strategy, part_of))
    if isinstance(layer.feed_forward, DenseFeedForward):
        network = dense_feed_forward(conditions, layer.feed_forward, strategy, part_of)
        # Outputs of parallel parts are added up before they are reduced: one region for both.
        parts.append(network._replace(tensor_forward_s=0.0, tensor_backward_s=0.0) if layer.parallel else network)
    whole = add(parts)
    if not conditions.stack.selective_products:
        return whole
    return _keeping_products(conditions, layer, whole, strategy, part_of)


def _keeping_products(conditions: Conditions, layer: Block, whole: Part, strategy: Strategy, part_of: Share) -> Part:
    """A block under the other kind of selective recomputation, which keeps every second matrix product.

    Kept: the input, the attention core's output, and half of what the matrices of attention and of a dense network put
    out; all else is computed again, but not the core and its ring. Experts keep all.
    Source: torchtitan, torchtitan/distributed/activation_checkpoint.py ("op" mode).
    """
    network = layer.feed_forward if isinstance(layer.feed_forward, DenseFeedForward) else None
    inner = network.width / strategy.tp * (2 if network.gated else 1) if network else 0.0
    # Input; half of each attention's last product; half of the network's.
    edges = conditions.hidden_size * (1.0 + len(layer.attentions) / 2 + (0.5 if network else 0.0))
    kept = conditions.rate.element_bytes * (part_of.tokens * inner / 2 + part_of.edge_tokens * edges)
    kept += kept_products_bytes(conditions, layer.attention, strategy, part_of)
    if layer.cross_attention:
        kept += kept_cross_products_bytes(conditions, layer.cross_attention, strategy, part_of)
    return whole._replace(
        core_bytes=max(0.0, whole.stored_bytes - kept),
        core_forward_s=(whole.forward_s - whole.core_forward_s) / 2,
        context_again_s=messages_s(conditions.levels, head_exchange(conditions, layer.attention, strategy, part_of)),
    )


def compose(conditions: Conditions, recompute: Recompute, edge_tokens: Numbers, whole: Part, held: State) -> LayerCost:
    """From what a layer computes and holds to its cost: recomputation, and traffic that compute hides.

    `edge_tokens`, `whole` and `held` may hold arrays, for many strategies at once; then so does the cost.

    Work hides traffic once: what hides one kind is not free for the next. So more work never makes a pass shorter: of
    a second more, less than a second hides what it did not hide before.
    """
    rate, stack = conditions.rate, conditions.stack
    whole = whole._replace(backward_s=whole.backward_s + held.accumulate_s)
    forth = _left(stack, whole.forward_s - whole.ring_forward_s, whole.tensor_forward_s, whole.all_to_all_s)
    back = _left(stack, whole.backward_s - whole.ring_backward_s, whole.tensor_backward_s, whole.all_to_all_s)
    seen = whole._replace(tensor_forward_s=forth.tensor_s, all_to_all_s=forth.exchange_s)
    again = _recomputed(seen, recompute)
    forward_work_s = forth.work_s + whole.imbalance_forward_s
    backward_work_s = back.work_s + whole.imbalance_backward_s
    beside_forward = _beside(rate, stack.data_overlap_ratio, forward_work_s, held.micro_forward_s)
    all_work_s = backward_work_s + _hiding_again(whole, forth, recompute)
    beside_backward = _beside(rate, stack.data_overlap_ratio, all_work_s, held.micro_backward_s)
    kept = _kept(conditions, whole, recompute, edge_tokens)
    allocated = 1.0 + stack.fragmentation_ratio
    forward = (
        whole.forward_s,
        0.0,
        forth.tensor_s,
        whole.context_forward_s,
        forth.exchange_s,
        whole.imbalance_forward_s,
        beside_forward,
    )
    backward = (
        whole.backward_s,
        again[0],
        back.tensor_s + again[1],
        whole.context_backward_s + again[2],
        back.exchange_s + again[3],
        whole.imbalance_backward_s + again[4],
        beside_backward,
    )
    passes = _host_passes(recompute)
    forward_wait_s = np.maximum(0.0, whole.host_s - sum(forward))
    backward_wait_s = np.maximum(0.0, whole.host_s * passes - sum(backward))
    # What the traffic of every micro-batch leaves free, and the wait for the host, hide the traffic once per step.
    # Recomputation is not counted here: it would pay to recompute, on a stage that waits anyway, only to hide that
    # traffic.
    free_forward_s = np.maximum(0.0, forward_work_s - held.micro_forward_s) + forward_wait_s
    free_backward_s = np.maximum(0.0, backward_work_s - held.micro_backward_s) + backward_wait_s
    once_s = _beside(rate, stack.data_overlap_ratio, free_forward_s, held.once_forward_s)
    once_s += _beside(rate, stack.data_overlap_ratio, free_backward_s, held.once_backward_s)
    # What is put off hides no traffic of its pass any more, and shortens no pass that waits for the host.
    put_off = _weight_gradient_s(whole, back.work_s, recompute)
    put_off += beside_backward - _beside(rate, stack.data_overlap_ratio, all_work_s - put_off, held.micro_backward_s)
    put_off = np.minimum(put_off, np.maximum(0.0, sum(backward) - whole.host_s * passes))
    return LayerCost(
        forward=(*forward, forward_wait_s + whole.stall_s),
        backward=(*backward, backward_wait_s + whole.stall_s * (passes - 1.0)),
        once_communication_s=once_s,
        optimizer_s=held.optimizer_s,
        weights_bytes=np.ceil(held.weights_bytes),
        gradients_bytes=np.ceil(held.gradients_bytes),
        optimizer_bytes=np.ceil(held.optimizer_bytes),
        activation_bytes=np.ceil(kept * allocated),
        logits_bytes=np.ceil(whole.logits_bytes * allocated),
        workspace_bytes=np.ceil(_workspace(whole, held, kept) * allocated),
        weight_gradient_s=np.minimum(np.minimum(put_off, sum(forward)), sum(backward) / 2.0),
        host_bytes=np.ceil(held.host_bytes),
    )


class _Left(NamedTuple):
    """Of one pass: traffic that no work hides, and work that hides no traffic yet."""

    tensor_s: Numbers
    exchange_s: Numbers
    work_s: Numbers


def _left(stack: Stack, work_s: Numbers, tensor_s: Numbers, exchange_s: Numbers) -> _Left:
    """What is left when work has hidden tensor-parallel traffic first, then what is free of it the all-to-all."""
    tensor_hidden_s = hidden_s(tensor_s, work_s, stack.tensor_overlap_ratio)
    exchange_hidden_s = hidden_s(exchange_s, work_s - tensor_hidden_s, stack.expert_overlap_ratio)
    return _Left(
        tensor_s - tensor_hidden_s, exchange_s - exchange_hidden_s, work_s - tensor_hidden_s - exchange_hidden_s
    )


def _hiding_again(whole: Part, forth: _Left, recompute: Recompute) -> Numbers:
    """Of what the backward pass computes again, what hides no traffic of its own."""
    if recompute is Recompute.FULL:
        return forth.work_s
    if recompute is Recompute.SELECTIVE:
        return np.maximum(0.0, whole.core_forward_s - whole.ring_forward_s)
    return 0.0


def _weight_gradient_s(whole: Part, left_s: Numbers, recompute: Recompute) -> Numbers:
    """Gradients of weights: for each product of the forward pass one of as many FLOPs, and the attention core has none.

    Element-wise work of the forward pass is counted too. Of it, as much hides traffic of the pass, and so cannot be put
    off, as of the whole pass, of which `left_s` hides none. A layer that is recomputed whole puts nothing off: it would
    have to keep what it has just computed again.
    """
    if recompute is Recompute.FULL:
        return 0.0 * whole.forward_s
    gradients_s = np.minimum(whole.forward_s - whole.weightless_forward_s, whole.backward_s / 2.0)
    return gradients_s * left_s / whole.backward_s


def _beside(rate: Rates, hidden_ratio: float, compute_s: Numbers, traffic_s: Numbers) -> Numbers:
    """What traffic adds to compute, when only a part of it may run beside."""
    hidden_s = hidden_ratio * traffic_s
    # Rounding must not make it less than nothing.
    return np.maximum(0.0, overlapped_s(rate, compute_s, hidden_s) - compute_s) + (traffic_s - hidden_s)


def _host_passes(recompute: Recompute) -> float:
    """Passes that the host submits during the backward pass."""
    return 2.0 if recompute is Recompute.FULL else 1.0


def _recomputed(whole: Part, recompute: Recompute) -> tuple[Numbers, Numbers, Numbers, Numbers, Numbers]:
    """What the backward pass does again: compute, and traffic of tensor, context and expert parallelism, imbalance."""
    if recompute is Recompute.FULL:
        return (
            whole.forward_s,
            whole.tensor_forward_s,
            whole.context_forward_s,
            whole.all_to_all_s,
            whole.imbalance_forward_s,
        )
    if recompute is Recompute.SELECTIVE:
        return (whole.core_forward_s, 0.0, whole.context_again_s, 0.0, 0.0)
    return (0.0, 0.0, 0.0, 0.0, 0.0)


def _kept(conditions: Conditions, whole: Part, recompute: Recompute, edge_tokens: Numbers) -> Numbers:
    """Activations kept by micro-batch: all, all but the attention core's, or the layer's input alone."""
    if recompute is Recompute.FULL:
        layer_input = edge_tokens * conditions.hidden_size * conditions.rate.element_bytes
        return np.minimum(whole.stored_bytes, layer_input)
    if recompute is Recompute.SELECTIVE:
        return whole.stored_bytes - whole.core_bytes
    return whole.stored_bytes


def _workspace(whole: Part, held: State, kept: Numbers) -> Numbers:
    """Activations made again, gradients of activations, gathered weights (this layer's and the next one's).

    Whole gradients are scattered while the next layer is computed; what this layer kept is free by then.
    """
    gathered = 2.0 * held.whole_weights_bytes + np.maximum(0.0, held.whole_gradients_bytes - kept)
    return whole.stored_bytes - kept + whole.transient_bytes + gathered
