"""One instance of the pipeline problem: what the solvers are asked. Sees numbers only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from planner.cost.pipeline import Rhythm
from planner.search.table import Choices, Table
from planner.spec.stretches import Stretches

Floats = NDArray[np.float64]


class Pipeline(NamedTuple):
    """One instance of the problem."""

    tables: tuple[Table, ...]
    """Of each stage; equal stages share one."""
    sequence: tuple[int, ...]
    """Class of each layer."""
    pieces: tuple[tuple[tuple[int, int], ...], ...] | None
    """With virtual stages: for each stage its stretches (first layer, end layer); None: to be found."""
    flights: tuple[Fraction, ...]
    """Micro-batches in flight on each stage."""
    tiers: tuple[int, ...]
    """Tier of links over which each stage is entered."""
    limits_bytes: tuple[int, ...]
    """What the layers of each stage may take of a device."""
    host_limits_bytes: tuple[int, ...]
    """And of its share of the host."""
    rhythm: Rhythm
    """How the stages' beats make a step."""


class Interval(NamedTuple):
    """Layers for a stage: where the pipeline before it ends, where it ends itself, and its stretches of layers."""

    begin: int
    end: int
    stretches: Stretches


def least_by_class(problem: Pipeline, least: Callable[[Choices], Floats | float]) -> Floats:
    """[classes, ...] of the least over the stages' tables."""
    found: Floats = np.array([[least(c) for c in table.choices] for table in distinct(problem.tables)]).min(axis=0)
    return found


def with_tables(problem: Pipeline, change: Callable[[Table], Table]) -> Pipeline:
    """The problem with each table changed, once; equal stages still share theirs."""
    changed = {id(table): change(table) for table in distinct(problem.tables)}
    return problem._replace(tables=tuple(changed[id(table)] for table in problem.tables))


def distinct(tables: Sequence[Table]) -> list[Table]:
    """Each table once."""
    return list({id(table): table for table in tables}.values())
