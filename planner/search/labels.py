"""Partial choices of strategies for the first layers of a stage, as rows of whole numbers. Sees numbers only."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from planner.search.bar import Bar
from planner.search.table import Table

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


class Position(NamedTuple):
    """One layer of a stage."""

    class_number: int
    entered: int | None
    """Tier of links over which its activation arrives from another stage; None: from the layer before it."""
    first: bool = False
    """The first layer of the model: nothing arrives."""


class Room(NamedTuple):
    """Memory of a stage."""

    flight: Fraction
    """Micro-batches in flight."""
    limit_bytes: int
    host_limit_bytes: int
    """Of the host, the share of one device."""

    def flying(self, flight_bytes: Integers) -> Integers:
        """Bytes of all micro-batches in flight, times the denominator of their number.

        What exceeds the limit by far is cut down, so that no sum over the layers of a model overflows.
        """
        numerator = self.flight.numerator
        most = max(2 * self.limit_bytes * self.flight.denominator, 2**48) // numerator + 1
        found: Integers = np.minimum(flight_bytes, most) * numerator
        return found


class Labels(NamedTuple):
    """Choices for the first layers of a stage, a row each."""

    beats: Integers
    once: Integers
    memory: Integers
    """Bytes without workspace, times the denominator of the number in flight."""
    workspace: Integers
    host: Integers
    """Bytes on the host."""
    layout: Integers
    chosen: Integers

    def rows(self, kept: Integers) -> Labels:
        """Only these rows."""
        return Labels(*(column[kept] for column in self))


class Step(NamedTuple):
    """The options of one layer."""

    beats_s: Floats
    once_s: Floats
    beats: Integers
    """In ticks: sums of whole numbers are equal in any order, so that equal choices are seen to be equal."""
    once: Integers
    memory: Integers
    workspace: Integers
    host: Integers
    layout: Integers
    follows: bool
    """Takes its activation from the layer before, so that a change of layout costs."""


def step_of(position: Position, table: Table, room: Room) -> Step:
    """The options of a layer on a stage with such room; ticks are not counted yet."""
    choices, flight = table.choices[position.class_number], room.flight
    beats = choices.beats_s
    memory = choices.fixed_bytes * flight.denominator + room.flying(choices.flight_bytes)
    if position.entered is not None:
        beats = beats + choices.entry_s[:, position.entered, None] * np.array(table.message_beats)
        memory = memory + choices.entry_bytes * flight.denominator + room.flying(choices.carried_bytes)
    follows = position.entered is None and not position.first
    none = np.zeros(0, dtype=np.int64)
    workspace = choices.workspace_bytes * flight.denominator
    return Step(beats, choices.once_s, none, none, memory, workspace, choices.host_bytes, choices.layout, follows)


def tick_of(steps: Sequence[Step], table: Table, bar: Bar) -> float:
    """A unit of time in which no sum over a step overflows 63 bits, some 10^-18 of the longest possible step."""
    beats = sum(float(step.beats_s.sum(axis=1).max(initial=0.0)) for step in steps)
    beats += len(steps) * float(table.transition_s.sum(axis=2).max(initial=0.0))
    once = sum(float(step.once_s.max(initial=0.0)) for step in steps)
    return (max(1.0, *bar.weights) * beats + once) / 2**61 or 1.0


def in_ticks(step: Step, tick_s: float) -> Step:
    """With times in whole ticks."""
    beats, once = (np.rint(seconds / tick_s).astype(np.int64) for seconds in (step.beats_s, step.once_s))
    return step._replace(beats=beats, once=once)


def in_seconds(ticks: Integers, tick_s: float) -> Floats:
    """Times in seconds again."""
    found: Floats = ticks.astype(np.float64) * tick_s
    return found


def no_layers(rhythms: int, layers: int) -> Labels:
    """The one choice for no layer."""
    zero = np.zeros(1, dtype=np.int64)
    beats, chosen = np.zeros((1, rhythms), dtype=np.int64), np.zeros((1, layers), dtype=np.int64)
    return Labels(beats, zero, zero, zero, zero, zero, chosen)


def grow(labels: Labels, step: Step, useful: Integers, transitions: Integers) -> tuple[Labels, Integers, Integers]:
    """Every label with every useful option for the next layer; the label and the option that each row comes from."""
    rows = len(labels.once)
    old = np.repeat(np.arange(rows), len(useful))
    new = np.tile(useful, rows)
    beats = labels.beats[old] + step.beats[new]
    if step.follows:
        beats = beats + transitions[labels.layout[old], step.layout[new]]
    grown = Labels(
        beats,
        labels.once[old] + step.once[new],
        labels.memory[old] + step.memory[new],
        np.maximum(labels.workspace[old], step.workspace[new]),
        labels.host[old] + step.host[new],
        step.layout[new],
        np.zeros((len(old), 0), dtype=np.int64),
    )
    return grown, old, new


def some_options(step: Step, rows: Integers) -> Step:
    """Only these options."""
    return step._replace(
        beats_s=step.beats_s[rows],
        once_s=step.once_s[rows],
        beats=step.beats[rows],
        once=step.once[rows],
        memory=step.memory[rows],
        workspace=step.workspace[rows],
        host=step.host[rows],
        layout=step.layout[rows],
    )
