"""From layers and strategies to numbers: what solvers see. Every number comes from planner.cost."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from planner.cost.boundary import Entry, arrival_s, entry, layout, tied_gradient_s
from planner.cost.layer import LayerCost
from planner.cost.pipeline import Beats, beat
from planner.search.grid import Grid, Shape
from planner.search.pareto import undominated
from planner.search.pricing import Pricing
from planner.spec.model import Head
from planner.spec.strategy import Strategy

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


class Choices(NamedTuple):
    """The strategies of one layer class, a row each."""

    strategies: Grid | Sequence[Strategy]
    beats_s: Floats
    """[strategies, beats]: passes over one micro-batch, in the columns of planner.cost.pipeline.beat."""
    once_s: Floats
    fixed_bytes: Integers
    flight_bytes: Integers
    """For each micro-batch in flight."""
    workspace_bytes: Integers
    layout: Integers
    """Index of the activation's layout; equal ones follow each other for free."""
    entry_s: Floats
    """[strategies, tiers]: one message from the stage before, by the tier of links that it crosses."""
    entry_bytes: Integers

    def row_of(self, part: Choices, row: int) -> int:
        """The row of a strategy that is given as a row of some of these choices."""
        assert isinstance(self.strategies, Grid)
        assert isinstance(part.strategies, Grid)
        return int(np.searchsorted(self.strategies.codes(), part.strategies.codes()[row]))

    def rows(self, kept: Integers) -> Choices:
        """Only these rows."""
        strategies = self.strategies
        return Choices(
            strategies=strategies.rows(kept) if isinstance(strategies, Grid) else [strategies[row] for row in kept],
            beats_s=self.beats_s[kept],
            once_s=self.once_s[kept],
            fixed_bytes=self.fixed_bytes[kept],
            flight_bytes=self.flight_bytes[kept],
            workspace_bytes=self.workspace_bytes[kept],
            layout=self.layout[kept],
            entry_s=self.entry_s[kept],
            entry_bytes=self.entry_bytes[kept],
        )


class Table(NamedTuple):
    """All classes for one stage size and one number of samples per micro-batch."""

    choices: tuple[Choices, ...]
    transition_s: Floats
    """[layouts, layouts, beats]: from the layout before to the one after."""
    message_beats: tuple[float, ...]
    """[beats]: of one second of messages in each pass."""


class Priced(NamedTuple):
    """What a table is made of, whatever the schedule."""

    grids: tuple[Grid, ...]
    """By class."""
    costs: tuple[LayerCost, ...]


class Boundaries:
    """What crosses from layer to layer on stages of one size, for micro-batches of one size."""

    def __init__(self, pricing: Pricing, shapes: Sequence[Shape], samples: int) -> None:
        self._pricing = pricing
        self._samples = samples
        self._shapes = shapes
        self._layouts: dict[object, int] = {}
        self._first: list[Strategy] = []
        self._entries: dict[int, list[Entry]] = {}

    def layout(self, shape: int) -> int:
        """The number of the layout that a shape hands over."""
        strategy = self._shapes[shape].strategy()
        known = self._layouts.setdefault(layout(strategy), len(self._layouts))
        if known == len(self._first):
            self._first.append(strategy)
        return known

    def entries(self, shape: int) -> list[Entry]:
        """One message over each tier of links."""
        if shape not in self._entries:
            conditions = self._pricing.conditions
            # The nearest device that only this tier reaches.
            peers = [0, *(level.num_devices for level in conditions.levels)]
            hops = [(0, max(1, below) if level > 1 else 0) for below, level in pairwise(peers)]
            strategy, length = self._shapes[shape].strategy(), conditions.training.sequence_length
            self._entries[shape] = [entry(conditions, strategy, self._samples, length, hop) for hop in hops]
        return self._entries[shape]

    def transitions(self, beats: Beats) -> Floats:
        """[layouts, layouts, beats] of all layouts that were asked for."""
        conditions, length = self._pricing.conditions, self._pricing.conditions.training.sequence_length
        arrival = np.array([arrival_s(conditions, each, self._samples, length) for each in self._first])
        # Activations arrive in the layout after, their gradients in the layout before.
        table = np.stack(np.broadcast_arrays(*beat(beats, arrival[None, :], arrival[:, None], 0.0)), axis=2)
        table[np.arange(len(arrival)), np.arange(len(arrival))] = 0.0
        return table


def all_choices(
    pricing: Pricing, priced: Priced, boundaries: Boundaries, beats: Beats, tied_hop: int
) -> tuple[Choices, ...]:
    """The numbers of every strategy of every class; `tied_hop` devices lie between embedding and tied head, if any."""
    return tuple(
        _choices(pricing, number, grid, costs, boundaries, beats, tied_hop)
        for number, (grid, costs) in enumerate(zip(priced.grids, priced.costs, strict=True))
    )


def _choices(
    pricing: Pricing,
    number: int,
    grid: Grid,
    costs: LayerCost,
    boundaries: Boundaries,
    beats: Beats,
    tied_hop: int,
) -> Choices:
    layer = pricing.layer_classes[0][number].layer
    present = np.flatnonzero(np.bincount(grid.shape, minlength=len(grid.shapes))).tolist()
    entries = {shape: boundaries.entries(shape) for shape in present}
    flying = costs.activation_bytes + costs.logits_bytes
    # planner.cost.pipeline.head_in_flight: one micro-batch, but for GPipe, which alone parts its passes here.
    held = flying if isinstance(layer, Head) and beats is not Beats.PASSES else np.zeros(len(grid))
    tied = np.zeros(len(grid.shapes))
    if tied_hop:
        for shape in present:
            tied[shape] = tied_gradient_s(pricing.conditions, layer, grid.shapes[shape].strategy(), (0, tied_hop))
    entry_s = np.zeros((len(grid.shapes), len(pricing.conditions.levels)))
    entry_bytes = np.zeros(len(grid.shapes), dtype=np.int64)
    layouts = np.zeros(len(grid.shapes), dtype=np.int64)
    for shape, found in entries.items():
        entry_s[shape] = [message.pass_s for message in found]
        entry_bytes[shape] = found[0].buffer_bytes
        layouts[shape] = boundaries.layout(shape)
    return Choices(
        strategies=grid,
        beats_s=np.stack(beat(beats, costs.forward_s, costs.backward_s, costs.weight_gradient_s), axis=1),
        once_s=costs.once_s + tied[grid.shape],
        fixed_bytes=(costs.fixed_bytes + held).astype(np.int64),
        flight_bytes=(flying - held).astype(np.int64),
        workspace_bytes=costs.workspace_bytes.astype(np.int64),
        layout=layouts[grid.shape],
        entry_s=entry_s[grid.shape],
        entry_bytes=entry_bytes[grid.shape],
    )


def without_dominated(choices: Choices) -> Choices:
    """Only strategies that no other with the same layout and entry beats or equals in every number."""
    places = np.column_stack([choices.layout, choices.entry_bytes, choices.entry_s])
    _, labels = np.unique(places, axis=0, return_inverse=True)
    values = np.column_stack(
        [choices.beats_s, choices.once_s, choices.fixed_bytes, choices.flight_bytes, choices.workspace_bytes]
    )
    return choices.rows(undominated(values, labels.reshape(-1)))
