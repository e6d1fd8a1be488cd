"""Kernels of one device: matrix products, fused attention, memory-bound work, launches.

Results are fresh tensors, as in training: on a processor the allocation of memory is part of the work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from math import prod
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from planner.spec.cluster import Precision
from profiles.measure.stopwatch import Backend, Stopwatch
from profiles.measurement import (
    ROUTED_EXPERTS,
    ROUTED_TOP_K,
    AttentionSample,
    ElementwiseSample,
    ElementwiseWork,
    LaunchSample,
    MatmulSample,
    Sample,
)

DTYPES = {Precision.FP32: torch.float32, Precision.FP16: torch.float16, Precision.BF16: torch.bfloat16}
LAUNCHES = 100
"""Empty kernels that are timed as one piece."""
CHAIN = 4
"""Blocks in a row: the backward pass finds what the forward pass kept as a training step does, long out of caches."""
HELD = {
    ElementwiseWork.STREAM: 2,
    ElementwiseWork.RESIDUAL: 16 * CHAIN,
    ElementwiseWork.ACTIVATION: 8 * CHAIN,
    ElementwiseWork.LOSS: 8,
    ElementwiseWork.ROUTING: 8 * ROUTED_TOP_K * CHAIN,
    ElementwiseWork.UPDATE: 8,
}
"""Tensors of [rows, columns] that the work holds at most at a time."""
_HEAD_DIM = 64


class Bench(NamedTuple):
    """Where kernels are measured, and within what."""

    watch: Stopwatch
    precision: Precision
    limit_bytes: int
    """Of tensors at a time."""
    allowance_s: float
    """For one sample."""

    @property
    def device(self) -> torch.device:
        """Where tensors live."""
        return self.watch.team.device

    @property
    def largest(self) -> int:
        """The longest side of a matrix."""
        return 2048 if self.watch.team.backend is Backend.CPU else 16384

    def fits(self, elements: int) -> bool:
        """Whether so many numbers may be held."""
        return elements * self.precision_bytes <= self.limit_bytes

    @property
    def precision_bytes(self) -> int:
        """Bytes of a number."""
        return DTYPES[self.precision].itemsize

    def tensor(self, *shape: int) -> Tensor:
        """Random numbers."""
        return torch.randn(shape, device=self.device, dtype=DTYPES[self.precision])


Shape = tuple[int, int, int, int]
"""(rows, columns, depth, groups) of products."""


def matmul_shapes(largest: int) -> list[Shape]:
    """Linear layers: few and many tokens, wide and narrow, two with odd sides, three of experts; small to large."""
    sides = [largest >> shift for shift in (4, 3, 2, 1, 0)]
    shapes = [(rows, columns, depth) for rows in sides[:4] for columns in sides[:4] for depth in sides[:4]]
    # Of the 64 every third, which still has every side with every other; and large ones.
    thinned = [shape for number, shape in enumerate(shapes) if number % 3 == 0]
    odd = [(sides[1], sides[2] + 1, sides[1] + 1), (sides[2], sides[1] + 1, sides[2] + 1)]
    single = [(*shape, 1) for shape in (*thinned, *odd, (sides[4], sides[3], sides[3]))]
    grouped = [(sides[0], sides[1], sides[1], 8), (sides[1], sides[2], sides[1], 8), (sides[0], sides[1], sides[2], 8)]
    return sorted([*single, *grouped], key=prod)


def matmuls(bench: Bench, shapes: list[Shape]) -> Iterator[Sample | None]:
    """The three products of linear layers, in turn over the shapes; groups one after the other, as torch's experts."""
    kinds: tuple[Literal["forward", "input_gradient", "weight_gradient"], ...]
    kinds = ("forward", "input_gradient", "weight_gradient")
    for number, (rows, columns, depth, groups) in enumerate(shapes):
        operands = kinds[number % 3]
        seconds = None
        if bench.fits(2 * groups * (rows * depth + depth * columns + rows * columns)):
            left = [_matrix(bench, rows, depth, operands == "weight_gradient") for _ in range(groups)]
            right = [_matrix(bench, depth, columns, operands == "forward") for _ in range(groups)]
            seconds = bench.watch.seconds(partial(_products, left, right), bench.allowance_s)
        yield (
            None
            if seconds is None
            else MatmulSample(
                precision=bench.precision,
                rows=rows,
                columns=columns,
                depth=depth,
                groups=groups,
                operands=operands,
                time_s=seconds,
            )
        )


def _matrix(bench: Bench, rows: int, columns: int, transposed: bool) -> Tensor:
    return bench.tensor(columns, rows).t() if transposed else bench.tensor(rows, columns)


def _products(left: list[Tensor], right: list[Tensor]) -> list[Tensor]:
    return [a @ b for a, b in zip(left, right, strict=True)]


def attention_shapes(backend: Backend) -> list[tuple[int, int, int]]:
    """(samples, heads, tokens of a sample)."""
    if backend is Backend.CPU:
        return [(4, 4, 128), (2, 8, 256), (2, 8, 512), (1, 8, 1024)]
    return [(8, 16, 1024), (4, 16, 2048), (2, 32, 4096), (1, 32, 8192)]


def attentions(bench: Bench, shapes: list[tuple[int, int, int]]) -> Iterator[Sample | None]:
    """Causal attention with 64 (processor) or 128 channels of a head."""
    head_dim = _HEAD_DIM if bench.watch.team.backend is Backend.CPU else 2 * _HEAD_DIM
    for samples, heads, tokens in shapes:
        found = None
        if bench.fits(12 * samples * heads * tokens * head_dim):
            inputs = [bench.tensor(samples, heads, tokens, head_dim) for _ in range(3)]
            found = _both_ways(bench, _causal_attention, inputs)
        yield (
            None
            if found is None
            else AttentionSample(
                precision=bench.precision,
                samples=samples,
                num_heads=heads,
                head_dim=head_dim,
                sequence_length=tokens,
                forward_s=found[0],
                backward_s=found[1],
            )
        )


def _causal_attention(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
    return (F.scaled_dot_product_attention(query, key, value, is_causal=True),)


def elementwise_shapes(largest: int) -> list[tuple[ElementwiseWork, int, int]]:
    """(work, rows, columns) from small to large; of the stream, which shows the bandwidth of the memory, one."""
    works = [work for work in ElementwiseWork if work is not ElementwiseWork.STREAM]
    sizes = [(largest // 4, largest // 8), (largest // 2, largest // 4), (largest // 2, largest // 2)]
    many = 8  # Weights are many times more than the activations of a block.
    return [
        (ElementwiseWork.STREAM, 4 * largest, largest),
        *(
            (work, rows * (many if work is ElementwiseWork.UPDATE else 1), columns)
            for rows, columns in sizes
            for work in works
        ),
    ]


def elementwise(bench: Bench, shapes: list[tuple[ElementwiseWork, int, int]]) -> Iterator[Sample | None]:
    """Memory-bound work as training does it."""
    measure = {
        ElementwiseWork.STREAM: _stream_s,
        ElementwiseWork.RESIDUAL: _residual_s,
        ElementwiseWork.ACTIVATION: _activation_s,
        ElementwiseWork.LOSS: _loss_s,
        ElementwiseWork.ROUTING: _routing_s,
        ElementwiseWork.UPDATE: _update_s,
    }
    for work, rows, columns in shapes:
        while not bench.fits(HELD[work] * rows * columns) and rows > 1:
            rows //= 2  # noqa: PLW2901 - fewer rows show the same, as far as memory goes
        found = measure[work](bench, rows, columns)
        yield (
            None
            if found is None
            else ElementwiseSample(
                precision=bench.precision,
                work=work,
                rows=rows,
                columns=columns,
                forward_s=found[0],
                backward_s=found[1],
            )
        )


def launches(bench: Bench) -> Sample | None:
    """The least kernel, again and again."""
    one = torch.ones(1, device=bench.device)

    def work() -> None:
        for _ in range(LAUNCHES):
            one.add_(1.0)

    seconds = bench.watch.seconds(work, bench.allowance_s)
    return None if seconds is None else LaunchSample(time_s=seconds / LAUNCHES)


_Both = tuple[float, float]
_Found = tuple[float, float | None] | None


def _stream_s(bench: Bench, rows: int, columns: int) -> _Found:
    target, added = bench.tensor(rows, columns), bench.tensor(rows, columns)
    seconds = bench.watch.seconds(lambda: target.add_(added), bench.allowance_s)
    return None if seconds is None else (seconds, None)


def _residual_s(bench: Bench, rows: int, columns: int) -> _Found:
    scale = bench.tensor(columns)

    def forward(stream: Tensor, scale: Tensor) -> tuple[Tensor, ...]:
        for _ in range(2 * CHAIN):
            stream = stream + F.rms_norm(stream, (columns,), scale)
        return (stream,)

    return _of_one(_both_ways(bench, forward, [bench.tensor(rows, columns), scale]))


def _activation_s(bench: Bench, rows: int, columns: int) -> _Found:
    inner = bench.tensor(rows, 2 * columns)

    def forward(inner: Tensor) -> tuple[Tensor, ...]:
        gate, value = inner.chunk(2, dim=-1)
        return tuple(F.silu(gate) * value for _ in range(CHAIN))

    return _of_one(_both_ways(bench, forward, [inner]))


def _routing_s(bench: Bench, rows: int, columns: int) -> _Found:
    """Each token to its experts in order of the experts, through them one after the other, and back."""
    copies = rows * ROUTED_TOP_K
    order = torch.randperm(copies, device=bench.device)
    weights = bench.tensor(rows, ROUTED_TOP_K)

    def forward(hidden: Tensor, weights: Tensor) -> tuple[Tensor, ...]:
        for _ in range(CHAIN):
            sent = hidden[order // ROUTED_TOP_K]
            computed = torch.cat(sent.tensor_split(ROUTED_EXPERTS))
            back = computed.new_zeros((copies, columns)).index_copy(0, order, computed)
            hidden = torch.einsum("tk,tkh->th", weights, back.view(rows, ROUTED_TOP_K, columns))
        return (hidden,)

    return _of_one(_both_ways(bench, forward, [bench.tensor(rows, columns), weights]))


def _loss_s(bench: Bench, rows: int, columns: int) -> _Found:
    targets = torch.randint(columns, (rows,), device=bench.device)
    return _both_ways(bench, lambda logits: (F.cross_entropy(logits.float(), targets),), [bench.tensor(rows, columns)])


def _update_s(bench: Bench, rows: int, columns: int) -> _Found:
    """AdamW on fp32 weights, in one kernel; weights that passes read in fewer bits are written too."""
    weight = torch.nn.Parameter(torch.randn(rows, columns, device=bench.device))
    weight.grad = torch.randn_like(weight)
    optimizer = torch.optim.AdamW([weight], fused=True)
    low = None if bench.precision is Precision.FP32 else bench.tensor(rows, columns)

    def work() -> None:
        optimizer.step()
        if low is not None:
            low.copy_(weight.detach())

    seconds = bench.watch.seconds(work, bench.allowance_s)
    return None if seconds is None else (seconds, None)


def _of_one(chain: _Both | None) -> _Found:
    return chain and (chain[0] / CHAIN, chain[1] / CHAIN)


def _both_ways(bench: Bench, function: Callable[..., tuple[Tensor, ...]], inputs: list[Tensor]) -> _Both | None:
    """(forward, backward) seconds of a function that autograd follows; graphs are made and freed as in training."""
    tracked = [tensor.requires_grad_() for tensor in inputs]
    made: list[tuple[Tensor, ...]] = []

    def forward() -> None:
        made[:] = [function(*tracked)]

    def backward() -> None:
        torch.autograd.grad(made[0], tracked, gradients)

    forward_s = bench.watch.seconds(forward, bench.allowance_s / 4)
    if forward_s is None:
        return None
    forward()
    gradients = [torch.randn_like(output) for output in made[0]]
    backward_s = bench.watch.seconds(backward, bench.allowance_s * 3 / 4, forward)
    return None if backward_s is None else (forward_s, backward_s)
