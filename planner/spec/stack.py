"""The software that drives the devices: what it adds to the work of kernels and links, and what it hides.

A value without arguments is the ideal stack: nothing is added, and what formulas let overlap overlaps whole. Real
stacks are data, in `profiles/software`.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from planner.spec.value import Count, MeasuredRatio, Name, Value

Share = Annotated[float, Field(ge=0, le=1)]
"""A part of something, from nothing to all of it."""
AtLeastOne = Annotated[float, Field(ge=1, le=1000)]
NonNegative = Annotated[float, Field(ge=0, le=1000)]
"""Seconds, bytes for a parameter or a ratio: more is a slip."""


class Stack(Value):
    """One framework of one time, with its kernels."""

    name: Name = "ideal"
    fitted: bool = False
    """Whether any of its numbers was chosen so that prices come close to published runs."""
    block_host_s: NonNegative = 0.0
    """Time in which the host submits one pass of a dense block; a device that is quicker waits for it."""
    dropless_host_s: NonNegative = 0.0
    """For each forward pass of experts without a capacity factor: how long the device waits for the host, which waits
    for the token counts."""
    step_host_s: NonNegative = 0.0
    """Once per step, whatever the plan: loop, data, norm of the gradients, logs."""
    message_host_s: NonNegative = 0.0
    """For each message between stages: how long both wait for the host, which waits for the message."""
    elementwise_ratio: AtLeastOne = 1.0
    """Bytes that element-wise kernels move, over what fused ones would."""
    loss_ratio: AtLeastOne = 1.0
    """Bytes that the loss moves over the vocabulary, over what two fused kernels would."""
    quantise_ratio: AtLeastOne = 1.0
    """Bytes that casts to 8 or 4 bits move, over what one fused kernel for each operand would."""
    accumulate_bytes: NonNegative = 0.0
    """For each parameter and micro-batch: what adding up gradients moves beyond the product that makes them."""
    optimizer_ratio: AtLeastOne = 1.0
    """Bytes that the update of the weights moves, over what one fused kernel would."""
    fused_softmax_batch: Count = 1
    """Samples x heads of a rank must be a multiple of it for scale, mask and softmax of unfused attention to be one
    kernel, not four."""
    unfused_softmax_host_ratio: NonNegative = 0.0
    """Of `block_host_s`, what submitting those kernels takes more."""
    attention_ratio: MeasuredRatio = 1.0
    """Of the rate of the device's best fused attention, what the stack's reaches."""
    grouped_matmul_ratio: MeasuredRatio = 1.0
    """Of the rate of one large product, what the products of many experts reach."""
    tensor_overlap_ratio: Share = 0.0
    """Of the tensor-parallel traffic, what hides behind the products beside it."""
    expert_overlap_ratio: Share = 0.0
    """Of the all-to-all, what hides behind other work."""
    data_overlap_ratio: Share = 1.0
    """Of the data-parallel traffic, what may hide behind passes."""
    eager_blocks: bool = False
    """Norms and gated activations are operations of their own that keep results in between, not one kernel each."""
    eager_loss: bool = False
    """Cross-entropy is operations of its own: log-probabilities and two gradients stand side by side in fp32."""
    selective_products: bool = False
    """Selective recomputation keeps the attention core and every second matrix product, not all but the core."""
    casts_shards: bool = False
    """Fully sharded weights are held in fp32 alone, and cast to fewer bits as they are gathered."""
    computed_gradient_bytes: NonNegative = 0.0
    """For each parameter: gradients in 16 bits as the backward pass leaves them, beside their sums in fp32."""
    update_gradient_bytes: NonNegative = 0.0
    """For each parameter that is updated: its gradient in fp32, where gradients are summed in 16 bits."""
    fragmentation_ratio: NonNegative = 0.0
    """What the allocator holds beyond activations and workspace, over them."""
    library_bytes: Annotated[int, Field(ge=0, strict=True)] = 0
    """What buckets and communicators take beyond the reserve of the device."""
