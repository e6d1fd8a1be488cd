"""Rows on their way between ranks, with gradients that travel back, and what is computed meanwhile.

Each exchange is two nodes of the autograd graph, one that sends and one that waits. The backward pass visits them in
reverse: where the forward pass waited, the gradient is sent, and where it sent, the gradient is waited for. So what
overlaps in the forward pass overlaps in the backward pass, and all ranks send in the same order, since nodes that are
ready run in the reverse order of their making. Gradients of gradients are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from runtime.topology import Counts, Topology


class _Parcel:
    """One exchange: how many rows go where, and what is under way."""

    def __init__(self, topology: Topology, counts: Counts) -> None:
        self._topology = topology
        self._counts = counts
        self._finish: Callable[[], None] | None = None
        self._returned: Tensor | None = None

    def send(self, rows: Tensor) -> Tensor:
        """Rows that may be read after `wait`."""
        received, self._finish = self._topology.begin(rows, self._counts)
        return received

    def wait(self) -> None:
        """Until the rows are there."""
        assert self._finish is not None
        self._finish()
        self._finish = None

    def send_back(self, gradient: Tensor) -> None:
        """Send the gradient of what came to where that came from."""
        self._returned, self._finish = self._topology.begin(gradient.contiguous(), self._counts.T)

    def wait_back(self) -> Tensor:
        """The gradient of what was sent."""
        self.wait()
        assert self._returned is not None
        returned, self._returned = self._returned, None
        return returned


class _Send(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, parcel: _Parcel) -> Tensor:
        ctx.parcel = parcel
        return parcel.send(rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.parcel.wait_back(), None


class _Wait(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, parcel: _Parcel) -> Tensor:
        ctx.parcel = parcel
        parcel.wait()
        return rows

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        ctx.parcel.send_back(gradients[0])
        return gradients[0], None  # its shape alone is needed: `_Send` returns what comes back


class Crossing:
    """Rows that were sent to the ranks of a topology; `arrived` waits for them. Differentiable."""

    def __init__(self, rows: Tensor, topology: Topology, counts: Counts) -> None:
        """Send `rows` by `counts` [R, R], see `Topology.exchange`."""
        self._parcel = _Parcel(topology, counts)
        self._rows = _called(_Send, rows, self._parcel)

    def arrived(self) -> Tensor:
        """The rows that came here; to be called once."""
        return _called(_Wait, self._rows, self._parcel)


def there_and_back(
    pieces: Sequence[Tensor],
    counts: Sequence[Counts],
    compute: Callable[[int, Tensor], Tensor],
    topology: Topology,
) -> list[Tensor]:
    """Send each piece of rows to other ranks by its `counts` [R, R], `compute(number, rows)` there, and send it back.

    While a piece is computed, the next is on its way there and the last on its way back.
    Source: FasterMoE (He and others, PPoPP 2022), smart scheduling; Tutel, arXiv 2206.03382, pipelining degree.
    """
    if topology.num_ranks == 1:
        return [compute(number, rows) for number, rows in enumerate(pieces)]
    back: list[Crossing] = []
    coming = Crossing(pieces[0], topology, counts[0])
    for number in range(len(pieces)):
        now = coming
        if number + 1 < len(pieces):
            coming = Crossing(pieces[number + 1], topology, counts[number + 1])
        back.append(Crossing(compute(number, now.arrived()), topology, counts[number].T))
    return [crossing.arrived() for crossing in back]


def _called(function: type[torch.autograd.Function], *arguments: Any) -> Tensor:
    return cast(Tensor, function.apply(*arguments))  # type: ignore[no-untyped-call]
