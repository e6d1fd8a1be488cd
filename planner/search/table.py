"""From layers and strategies to numbers: what solvers see. Every number comes from planner.cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from planner.cost.boundary import Entry, Layout, arrival_s, entry_into, layout, tied_gradient_s
from planner.cost.layer import LayerCost
from planner.cost.part import Conditions
from planner.cost.pipeline import Beats, beat
from planner.search.grid import Grid, Shape
from planner.search.pareto import undominated
from planner.search.pricing import Pricing
from planner.search.progress import Tick
from planner.spec.cluster import Link
from planner.spec.model import Block, Head
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
    """Index of the layout of the activation that arrives."""
    entry_s: Floats
    """[strategies, tiers]: one message from the stage before, by the way that it comes: see `Boundaries.ways`."""
    entry_bytes: Integers
    carried_bytes: Integers
    """What a piece that is entered here keeps for each micro-batch in flight, beside what its layers keep."""
    host_bytes: Integers
    """In the memory of the host, of offloaded optimizer state."""

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
            carried_bytes=self.carried_bytes[kept],
            host_bytes=self.host_bytes[kept],
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


class Way(NamedTuple):
    """How a stage is reached from the one before."""

    link: Link
    senders: int | None = None
    """Devices of the stage before; None: as many as here."""


class Boundaries:
    """What crosses from layer to layer on stages of one size, for micro-batches of one size."""

    def __init__(self, pricing: Pricing, shapes: Sequence[Shape], samples: int, beyond: Sequence[Way] = ()) -> None:
        self.ways = [*(Way(level.link) for level in pricing.conditions.levels), *beyond]
        """Over each tier of links, nearest first; then from elsewhere."""
        self._pricing = pricing
        self._samples = samples
        self._shapes = shapes
        self._layouts: dict[tuple[int, int, Layout], int] = {}
        self._first: list[tuple[Conditions, int, Strategy]] = []
        self._entries: dict[tuple[int, int, bool, int], list[Entry]] = {}

    def layout(self, number: int, shape: int) -> int:
        """The number of the layout in which a shape takes what arrives at a layer of class `number`.

        Activations of another width or length have layouts of their own, so that a change is priced by what arrives.
        """
        conditions, tokens = self._pricing.at_entry(number)
        strategy = self._shapes[shape].strategy()
        key = (conditions.hidden_size, tokens, layout(strategy))
        known = self._layouts.setdefault(key, len(self._layouts))
        if known == len(self._first):
            self._first.append((conditions, tokens, strategy))
        return known

    def entries(self, number: int, shape: int) -> list[Entry]:
        """One message on each way, into a layer of class `number`."""
        conditions, layer = self._pricing.conditions, self._pricing.layer_classes[0][number].layer
        arriving, tokens = self._pricing.at_entry(number)
        carries = isinstance(layer, Block) and layer.cross_attention is not None
        key = (arriving.hidden_size, tokens, carries, shape)
        if key not in self._entries:
            strategy = self._shapes[shape].strategy()
            self._entries[key] = [entry_into(conditions, layer, strategy, self._samples, *way) for way in self.ways]
        return self._entries[key]

    def transitions(self, beats: Beats) -> Floats:
        """[layouts, layouts, beats] of all layouts that were asked for."""
        arriving: dict[tuple[int, int], Conditions] = {(c.hidden_size, n): c for c, n, _ in self._first}
        strategies = [strategy for *_, strategy in self._first]
        # [layouts, layouts]: seconds for what arrives in the layout after to take the cut of the one before.
        by_size = {
            (width, tokens): [arrival_s(given, each, self._samples, tokens) for each in strategies]
            for (width, tokens), given in arriving.items()
        }
        arrival = np.array([by_size[(given.hidden_size, tokens)] for given, tokens, _ in self._first]).T
        # Activations arrive in the layout after, their gradients in the layout before.
        table = np.stack(np.broadcast_arrays(*beat(beats, arrival.diagonal()[None, :], arrival, 0.0)), axis=2)
        known: dict[Layout, int] = {}
        cuts = np.array([known.setdefault(layout(strategy), len(known)) for strategy in strategies], dtype=np.int64)
        table[cuts[:, None] == cuts[None, :]] = 0.0
        return table


def all_choices(
    pricing: Pricing, priced: Priced, boundaries: Boundaries, beats: Beats, tied_link: Link | None
) -> tuple[Choices, ...]:
    """The numbers of every strategy of every class; `tied_link` joins embedding and tied head on two stages, if any."""
    return tuple(
        _choices(pricing, number, grid, costs, boundaries, beats, tied_link)
        for number, (grid, costs) in enumerate(zip(priced.grids, priced.costs, strict=True))
    )


def _choices(
    pricing: Pricing,
    number: int,
    grid: Grid,
    costs: LayerCost,
    boundaries: Boundaries,
    beats: Beats,
    tied_link: Link | None,
) -> Choices:
    layer = pricing.layer_classes[0][number].layer
    present = np.flatnonzero(np.bincount(grid.shape, minlength=len(grid.shapes))).tolist()
    entries = {shape: boundaries.entries(number, shape) for shape in present}
    flying = costs.activation_bytes + costs.logits_bytes
    # planner.cost.pipeline.head_in_flight: one micro-batch, but for GPipe, which alone parts its passes here.
    held = flying if isinstance(layer, Head) and beats is not Beats.PASSES else np.zeros(len(grid))
    tied = np.zeros(len(grid.shapes))
    if tied_link is not None:
        for shape in present:
            tied[shape] = tied_gradient_s(pricing.conditions, layer, grid.shapes[shape].strategy(), tied_link)
    entry_s = np.zeros((len(grid.shapes), len(boundaries.ways)))
    entry_bytes = np.zeros(len(grid.shapes), dtype=np.int64)
    carried, layouts = (np.zeros(len(grid.shapes), dtype=np.int64) for _ in range(2))
    for shape, found in entries.items():
        entry_s[shape] = [message.pass_s for message in found]
        entry_bytes[shape] = found[0].buffer_bytes
        carried[shape] = found[0].carried_bytes
        layouts[shape] = boundaries.layout(number, shape)
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
        carried_bytes=carried[grid.shape],
        host_bytes=np.asarray(costs.host_bytes).astype(np.int64),
    )


def without_dominated(choices: Choices, tick: Tick) -> Choices:
    """Only strategies that no other with the same layout and entry beats or equals in every number."""
    places = np.column_stack([choices.layout, choices.entry_bytes, choices.carried_bytes, choices.entry_s])
    _, labels = np.unique(places, axis=0, return_inverse=True)
    values = np.column_stack(
        [
            choices.beats_s,
            choices.once_s,
            choices.fixed_bytes,
            choices.flight_bytes,
            choices.workspace_bytes,
            choices.host_bytes,
        ]
    )
    return choices.rows(undominated(values, labels.reshape(-1), tick))
