"""Rows of tokens in other orders; what autograd needs to know of it is written out, so that gradients are summed in the
order of choices (not of slots: a placement changes no sum) and nothing is added by atomic operations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor


def pack(tokens: Tensor, place: Tensor, num_rows: int) -> Tensor:
    """`tokens` [T, n] → [num_rows, n]: token t stands in each of the rows `place`[t]; other rows are 0.

    `place` [T, k]: numbers that differ, or `num_rows`, which is nowhere.
    """
    return cast(Tensor, _Pack.apply(tokens, place, num_rows))  # type: ignore[no-untyped-call]


def unpack(parts: Sequence[Tensor], place: Tensor) -> Tensor:
    """Rows, in parts → [T, k, n]: row `place`[t, i] for choice i of token t; 0 where that is nowhere."""
    return cast(Tensor, _Unpack.apply(place, *parts))  # type: ignore[no-untyped-call]


def reordered(rows: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
    """`rows`[order], for a permutation and its inverse."""
    return cast(Tensor, _Reorder.apply(rows, order, inverse))  # type: ignore[no-untyped-call]


class _Pack(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tokens: Tensor, place: Tensor, num_rows: int) -> Tensor:
        ctx.save_for_backward(place)
        return _scattered(tokens.unsqueeze(1).expand(*place.shape, -1), place, num_rows)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (place,) = ctx.saved_tensors
        return _gathered(gradients, place).sum(dim=1), None, None


class _Unpack(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, place: Tensor, *parts: Tensor) -> Tensor:
        ctx.save_for_backward(place)
        ctx.lengths = [len(part) for part in parts]
        return _gathered(parts, place)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (place,) = ctx.saved_tensors
        return None, *torch.split(_scattered(gradients[0], place, sum(ctx.lengths)), ctx.lengths)


class _Reorder(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return rows.index_select(0, order)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (inverse,) = ctx.saved_tensors
        return gradients[0].index_select(0, inverse), None, None


def _scattered(by_choice: Tensor, place: Tensor, num_rows: int) -> Tensor:
    """[T, k, n] → [num_rows, n]."""
    rows = by_choice.new_zeros((num_rows + 1, by_choice.shape[2]))
    for choice in range(place.shape[1]):
        rows.index_copy_(0, place[:, choice], by_choice[:, choice])
    return rows[:num_rows]


def _gathered(parts: Sequence[Tensor], place: Tensor) -> Tensor:
    """Rows, in parts → [T, k, n]."""
    nothing = parts[0].new_zeros((1, parts[0].shape[1]))
    return torch.cat([*parts, nothing]).index_select(0, place.flatten()).view(*place.shape, nothing.shape[1])
