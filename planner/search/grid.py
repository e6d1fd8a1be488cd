"""The strategies of one layer on the devices of a stage, as rows of small numbers.

A strategy is one choice for each of five things that are free of one another: recomputation, offload, sharding, the
shape (axes and sequence parallelism), the spread of the experts. Rows are in this order; a Strategy is built for a row
that somebody looks at.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from math import prod
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from planner.spec.strategy import Axis, AxisKind, ExpertStrategy, Recompute, Sharding, Strategy

Integers = NDArray[np.int64]
RECOMPUTE = tuple(Recompute)
SHARDING = tuple(Sharding)


class Shape(NamedTuple):
    """How a layer is cut, but for its experts."""

    axes: tuple[Axis, ...]
    sequence_parallel: bool

    def strategy(self) -> Strategy:
        """The strategy of this shape that does nothing else; an sdp axis beside dp shards fully, or it is none."""
        hybrid = any(axis.kind is AxisKind.SDP for axis in self.axes)
        sharding = Sharding.FULL if hybrid else Sharding.NONE
        return Strategy(axes=self.axes, sharding=sharding, sequence_parallel=self.sequence_parallel)


class Grid:
    """Strategies as rows; a sequence of Strategy for those who want one."""

    def __init__(
        self,
        shapes: tuple[Shape, ...],
        spreads: tuple[ExpertStrategy | None, ...],
        recompute: Integers,
        offload: Integers,
        sharding: Integers,
        shape: Integers,
        spread: Integers,
    ) -> None:
        self.shapes = shapes
        """Shared by all layers on as many devices."""
        self.spreads = spreads
        """Shared by all layers with experts on as many devices; only None for the others."""
        self.recompute = recompute
        """[rows] of indices into RECOMPUTE; `sharding` into SHARDING, and so on."""
        self.offload = offload
        self.sharding = sharding
        self.shape = shape
        self.spread = spread

    @cached_property
    def ranks(self) -> Integers:
        """[shapes] of parts into which the samples are cut."""
        data = (AxisKind.DP, AxisKind.SDP)
        return np.array([prod(axis.degree for axis in shape.axes if axis.kind in data) for shape in self.shapes])

    @cached_property
    def tensor_degrees(self) -> Integers:
        """[shapes] of the tensor-parallel degree."""
        return np.array([shape.strategy().tp for shape in self.shapes], dtype=np.int64)

    @cached_property
    def shards_dense(self) -> NDArray[np.bool_]:
        """[shapes] whether some ranks hold the same weights of what is no expert."""
        return np.array([any(axis.kind is not AxisKind.TP for axis in shape.axes) for shape in self.shapes], dtype=bool)

    def __len__(self) -> int:
        return len(self.shape)

    def __getitem__(self, row: int) -> Strategy:
        shape = self.shapes[self.shape[row]]
        return Strategy(
            axes=shape.axes,
            sharding=SHARDING[self.sharding[row]],
            sequence_parallel=shape.sequence_parallel,
            recompute=RECOMPUTE[self.recompute[row]],
            offload=bool(self.offload[row]),
            experts=self.spreads[self.spread[row]],
        )

    def __iter__(self) -> Iterator[Strategy]:
        return (self[row] for row in range(len(self)))

    @property
    def has_experts(self) -> bool:
        """Whether the layer spreads experts."""
        return self.spreads != (None,)

    def rows(self, kept: Integers) -> Grid:
        """Only these rows."""
        return Grid(
            self.shapes,
            self.spreads,
            self.recompute[kept],
            self.offload[kept],
            self.sharding[kept],
            self.shape[kept],
            self.spread[kept],
        )

    def codes(self) -> Integers:
        """[rows] of one number for each row, ascending, equal for equal strategies of layers of one kind."""
        return self.code(self.recompute, self.offload, self.sharding, self.shape, self.spread)

    def code(
        self, recompute: Integers, offload: Integers, sharding: Integers, shape: Integers, spread: Integers
    ) -> Integers:
        """The numbers of rows given by their parts."""
        combined: Integers = (recompute * 2 + offload) * len(SHARDING) + sharding
        return (combined * len(self.shapes) + shape) * len(self.spreads) + spread

    def find(
        self, recompute: Integers, offload: Integers, sharding: Integers, shape: Integers, spread: Integers
    ) -> Integers:
        """Row of each strategy that is given by its parts; -1 where the layer has none such."""
        if not len(self):
            return np.full(len(shape), -1)
        known, wanted = self.codes(), self.code(recompute, offload, sharding, shape, spread)
        place = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
        return np.where(known[place] == wanted, place, -1)
