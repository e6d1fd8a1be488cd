"""The exact choice of a strategy for each layer of one stage, under the memory of its devices.

    minimise   (beats, work once per step), as a Pareto front
    over       one strategy for each layer of the stage
    subject to fixed + in flight x activations + largest workspace + buffers <= limit

Labels (partial choices) grow layer by layer; a label goes when another with the same last layout is no worse in every
number, or when no completion can fit or beat the bar. Nothing is rounded: bytes are whole numbers. Sees numbers only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from planner.search.ahead import Ahead, Rest
from planner.search.bar import Bar
from planner.search.labels import Position, Room, grow, in_seconds, in_ticks, no_layers, some_options, step_of, tick_of
from planner.search.table import Table

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
_SPARE = 16
"""How many times its width a quick pass looks for labels that others beat."""


class Front(NamedTuple):
    """Undominated choices for a stage, a row each."""

    beats_s: Floats
    once_s: Floats
    chosen: Integers
    """[rows, layers]: row in the Choices of the layer's class."""


def solve_stage(
    positions: Sequence[Position],
    table: Table,
    room: Room,
    bar: Bar,
    spend: Callable[[int], None],
    width: int | None = None,
) -> Front:
    """All undominated (beats, once) of a stage that fits its room and can pass the bar; maybe none.

    `spend(comparisons)` is called before each layer's comparison of labels, with 0 in between; it may raise. `width`:
    keep only so many labels after each layer, those of least bound; the front is then feasible, but not all of it.
    """
    budget = room.limit_bytes * room.flight.denominator
    distinct = {position: step_of(position, table, room) for position in positions}
    tick_s = tick_of([distinct[position] for position in positions], table, bar)
    ticked = {position: in_ticks(step, tick_s) for position, step in distinct.items()}
    steps = [ticked[position] for position in positions]
    transitions = np.rint(table.transition_s / tick_s).astype(np.int64)
    rest = Rest(steps, table.transition_s, tick_s, bar, budget)
    useful = {id(step): rest.useful(step) for step in ticked.values()}
    ahead = Ahead(
        [some_options(step, useful[id(step)]) for step in steps],
        transitions,
        tick_s,
        bar,
        budget,
        room.host_limit_bytes,
    )
    tick = partial(spend, 0)
    labels = no_layers(steps[0].beats.shape[1], len(positions))
    for number, step in enumerate(steps):
        grown, old, new = grow(labels, step, useful[id(step)], transitions)
        tick()
        bounds = rest.at_least_s(grown, number + 1, tick)
        kept = np.flatnonzero((bounds < bar.best_s) & ahead.fit_host(grown, number + 1))
        if width is not None:
            kept = _least(kept, bounds, width * _SPARE)
        spend(len(kept) * len(labels.once))
        kept = kept[ahead.undominated(grown.rows(kept), number + 1, tick)]
        if width is not None:
            kept = _least(kept, bounds, width)
        chosen = labels.chosen[old[kept]]
        chosen[:, number] = new[kept]
        labels = grown.rows(kept)._replace(chosen=chosen)
    return Front(in_seconds(labels.beats, tick_s), in_seconds(labels.once, tick_s), labels.chosen)


def _least(rows: Integers, bounds: Floats, count: int) -> Integers:
    """The rows of least bound, as many as `count`, in order."""
    if len(rows) <= count:
        return rows
    return np.sort(rows[np.argsort(bounds[rows], kind="stable")[:count]])
