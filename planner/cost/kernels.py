"""Seconds of kernels on one device. Knows shapes and the device; knows no parallelism.

Every function grows with every size it is given, and shrinks with every rate of the device; products are quicker where
sizes are aligned.
"""

from __future__ import annotations

from math import ceil
from typing import NamedTuple

import numpy as np

from planner.cost.numbers import Numbers, are_many, larger, peak, where
from planner.spec.cluster import Device, Precision
from planner.spec.errors import InputError
from planner.spec.stack import Stack


class Rates(NamedTuple):
    """What the device does per second in the training's number format, and how its kernels are shaped."""

    matmul_flops_per_s: float
    """Reached by a large product with a weight matrix."""
    stored_matmul_flops_per_s: float
    """Reached by a large product that stays in the stored format."""
    matmul_half_depth: float
    tiles: tuple[tuple[int, int, float], ...]
    """Rows and columns that a compute unit makes at a time, and what the rate is with them, over that of the first."""
    last_wave_ratio: float
    misaligned_ratio: float
    compute_units: int
    attention_forward_flops_per_s: float
    attention_backward_flops_per_s: float
    bytes_per_s: float
    """Reached by kernels that memory bounds."""
    elementwise_bytes_per_s: float
    """Of a fused kernel's bytes, what the stack's element-wise kernels get done."""
    optimizer_bytes_per_s: float
    """Of a fused kernel's bytes, what the stack's update of the weights gets done."""
    quantised_bytes_per_s: float | None
    """The same for casts to quantised formats; None where products run in the stored format."""
    grouped_matmul_ratio: float
    launch_s: float
    overlap_slowdown_ratio: float
    element_bytes: int
    """Of an activation or weight as stored."""
    operand_bytes: int
    """Of an operand of a product with weights, as kept for the backward pass."""


def rates(device: Device, stack: Stack, precision: Precision) -> Rates:
    """Rates of a device under a stack in one number format; raises InputError if the device cannot compute in it.

    Quantised formats hold for the matrix products of weights; attention and everything stored stay in bf16.
    """
    peak = device.peak(precision)
    if peak is None:
        known = [p.value for p in Precision if device.peak(p)]
        raise InputError.at("training.precision", f"{device.name} has no {precision.value}; it has {', '.join(known)}")
    stored = Precision.BF16 if precision.is_quantised else precision
    attention_peak = device.peak(stored)
    if attention_peak is None:
        raise InputError.at("training.precision", f"{device.name} needs {stored.value} beside {precision.value}")
    efficiency = device.efficiency
    quantised = efficiency.quantised_matmul_ratio if precision.is_quantised else None
    ratio = quantised or efficiency.matmul_ratio
    bytes_per_s = device.memory_bandwidth_bytes_per_s * efficiency.memory_ratio
    return Rates(
        matmul_flops_per_s=peak * ratio,
        stored_matmul_flops_per_s=attention_peak * efficiency.matmul_ratio,
        matmul_half_depth=efficiency.matmul_half_depth,
        tiles=_tiles(*efficiency.matmul_tile, efficiency.half_tile_ratio),
        last_wave_ratio=efficiency.last_wave_ratio,
        misaligned_ratio=efficiency.misaligned_ratio,
        compute_units=device.compute_units,
        attention_forward_flops_per_s=attention_peak * efficiency.attention_forward_ratio * stack.attention_ratio,
        attention_backward_flops_per_s=attention_peak * efficiency.attention_backward_ratio * stack.attention_ratio,
        bytes_per_s=bytes_per_s,
        elementwise_bytes_per_s=bytes_per_s / stack.elementwise_ratio,
        optimizer_bytes_per_s=bytes_per_s / stack.optimizer_ratio,
        quantised_bytes_per_s=bytes_per_s / stack.quantise_ratio if precision.is_quantised else None,
        grouped_matmul_ratio=stack.grouped_matmul_ratio,
        launch_s=efficiency.kernel_launch_s,
        overlap_slowdown_ratio=efficiency.overlap_slowdown_ratio,
        element_bytes=4 if precision is Precision.FP32 else 2,
        operand_bytes=4 if precision is Precision.FP32 else 1 if precision.is_quantised else 2,
    )


def unquantised(rate: Rates) -> Rates:
    """Rates for parts that stay in the stored format: the head, and attention without fusion."""
    return rate._replace(matmul_flops_per_s=rate.stored_matmul_flops_per_s, quantised_bytes_per_s=None)


def matmul_s(
    rate: Rates, rows: Numbers, columns: Numbers, depth: Numbers, groups: Numbers = 1, aligned: bool = True
) -> Numbers:
    """`groups` products [rows, depth] x [depth, columns], in one launch.

    The result is made in tiles, as many at a time as there are compute units; a tile takes as long when it is partly
    filled, and a last wave its share and `last_wave_ratio` of the rest. Of several tiles the quickest is taken.
    Short inner loops do not reach the full rate: depth / (depth + half_depth) of it, nor do products that are not
    `aligned`.
    Source: tile and wave quantisation, NVIDIA "Matrix Multiplication Background User's Guide", sections 2-4.
    """
    if peak(groups) <= 0:
        return 0.0
    tile_s = 2.0 * (depth + rate.matmul_half_depth) * rate.compute_units / rate.matmul_flops_per_s
    many = are_many(rows) or are_many(columns) or are_many(groups)
    up, longer, shortest = (np.ceil, np.maximum, np.minimum.reduce) if many else (ceil, max, min)
    areas = []
    for high, wide, ratio in rate.tiles:
        waves = groups * up(rows / high) * up(columns / wide) / rate.compute_units
        waves = longer(1.0, waves + rate.last_wave_ratio * (up(waves) - waves))
        areas.append(waves * high * wide / ratio)
    busy_s = tile_s * shortest(areas)
    if not aligned:
        busy_s /= rate.misaligned_ratio
    moved = groups * rate.element_bytes * (rows * depth + depth * columns + rows * columns)
    return where(rows <= 0, 0.0, larger(busy_s, moved / rate.bytes_per_s) + rate.launch_s)


def is_aligned(rate: Rates, *sizes: float) -> bool:
    """Whether rows of these sizes are multiples of 16 bytes, as the quick kernels need them.

    For sizes that the model gives; tokens are padded where they stand for one. Source: as `matmul_s`, section 2.
    """
    return not any(size * rate.element_bytes % 16 for size in sizes)


def _tiles(rows: int, columns: int, half_ratio: float) -> tuple[tuple[int, int, float], ...]:
    """The largest tile both ways, its half, quarter and eighth."""
    sizes = {(rows, columns): 1.0, (columns, rows): 1.0}
    small, ratio = (min(rows, columns), max(rows, columns)), 1.0
    for _ in range(3):
        small = tuple(sorted((small[0], max(1, small[1] // 2))))  # type: ignore[assignment]
        ratio *= half_ratio
        sizes.setdefault(small, ratio)
    return tuple((high, wide, ratio) for (high, wide), ratio in sizes.items())


def elementwise_s(rate: Rates, moved_bytes: Numbers, kernels: int = 1) -> Numbers:
    """Element-wise kernels that read and write `moved_bytes` together, if they are fused."""
    return moved_bytes / rate.elementwise_bytes_per_s + kernels * rate.launch_s


def quantise_s(rate: Rates, elements: Numbers) -> Numbers:
    """Casts of the operand of a product: 2 bytes read, one written as it is and one transposed; 0 in 16 bits.

    Source: NVIDIA Transformer Engine's cast-transpose, which the products of both passes read.
    """
    if rate.quantised_bytes_per_s is None:
        return 0.0
    return 4.0 * elements / rate.quantised_bytes_per_s + rate.launch_s


def hidden_s(traffic_s: Numbers, beside_s: Numbers, hidden_ratio: float) -> Numbers:
    """Of traffic, what hides behind the work beside it: a part, as far as that work reaches."""
    return hidden_ratio * np.minimum(traffic_s, beside_s)


def overlapped_s(rate: Rates, compute_s: Numbers, communication_s: Numbers) -> Numbers:
    """Both at once: the longer of the two, plus what each slows the other down while both are busy.

    At worst it takes as long as one after the other: else hiding less, or a slower link, would help.
    Source: Galvatron (arXiv 2211.13878), section 4.1, with its one measured slowdown coefficient.
    """
    shorter = np.minimum(compute_s, communication_s)
    return np.maximum(compute_s, communication_s) + min(rate.overlap_slowdown_ratio - 1.0, 1.0) * shorter
