"""Layers that begin a model of images or stand between stacks of blocks: patch embedding, merging, end of an encoder.

Tensor-parallel ranks all hold them whole, and with sequence parallelism compute on tokens of their own: no messages.
"""

from __future__ import annotations

from planner.cost.dense import linear_s, part_norm
from planner.cost.kernels import elementwise_s
from planner.cost.part import Conditions, Part, Share, add
from planner.spec.model import Merging, PatchEmbedding


def patch_embedding(conditions: Conditions, layer: PatchEmbedding, part_of: Share) -> Part:
    """One product for each patch, positions added, a norm where there is one; pixels are kept, and have no gradient."""
    rate, hidden = conditions.rate, conditions.hidden_size
    forward, backward = linear_s(conditions, part_of.edge_tokens, hidden, layer.patch_values)
    added = elementwise_s(rate, 3.0 * part_of.edge_tokens * hidden * rate.element_bytes) if layer.num_positions else 0.0
    product = Part(
        forward_s=forward + added,
        # Of the two gradients that linear_s counts, that of the weight.
        backward_s=backward / 2.0 + added,
        stored_bytes=part_of.edge_tokens * layer.patch_values * rate.operand_bytes,
    )
    return add((product, part_norm(conditions, part_of))) if layer.norm else product


def merging(conditions: Conditions, layer: Merging, part_of: Share) -> Part:
    """Tokens side by side (a copy), a norm, one product; `part_of` is of the tokens that come in.

    Kept: the input of the norm and that of the product.
    """
    rate = conditions.rate
    elements = part_of.edge_tokens * layer.input_size
    merged = layer.merged_tokens * layer.input_size
    rows = part_of.edge_tokens / layer.merged_tokens
    forward, backward = linear_s(conditions, rows, conditions.hidden_size, merged)
    copy_s = elementwise_s(rate, 2.0 * elements * rate.element_bytes)
    product = Part(
        forward_s=forward + copy_s,
        backward_s=backward + copy_s,
        stored_bytes=elements * rate.operand_bytes,
        transient_bytes=elements * rate.element_bytes,
    )
    return add((product, part_norm(conditions._replace(hidden_size=layer.input_size), part_of)))


def encoder_end(conditions: Conditions, part_of: Share) -> Part:
    """A norm, and its output, which cross-attention on this stage reads in both passes."""
    output = part_of.edge_tokens * conditions.hidden_size * conditions.rate.operand_bytes
    return add((part_norm(conditions, part_of), Part(stored_bytes=output)))
