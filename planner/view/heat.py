"""Heat maps of loads: how many times the mean an expert gets, in ten steps from cold to hot.

A map is one line per row and step, so that thousands of cells stay small. Numbers stand beside it, and in the cells
where there is room.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import NamedTuple
from xml.etree.ElementTree import Element, SubElement

import numpy as np
from numpy.typing import NDArray

from planner.view.svg import group, label, number
from planner.view.theme import HEAT, HEAT_STEPS

LIMITS = (0.25, 0.5, 0.8, 1.25, 2.0, 3.0, 4.5, 7.0, 10.0)
"""Ratios at which the next step begins."""
assert len(LIMITS) == HEAT_STEPS - 1


class Cell(NamedTuple):
    """A stretch of a row, in units of columns."""

    row: int
    begin: float
    end: float
    ratio: float


def step_of(ratio: float) -> int:
    """0 for less than half the mean, and so on."""
    return int(np.searchsorted(LIMITS, ratio, side="right"))


def words_on(ratio: float) -> str:
    """The style of words on a cell: dark where the fill covers the page, else those of the page."""
    return "on" if HEAT[step_of(ratio)][1] == 1.0 else ""


def cells_of(ratios: Sequence[NDArray[np.float64]]) -> list[Cell]:
    """A row for each array, a column for each of its numbers."""
    return [
        Cell(row, column, column + 1, float(ratio))
        for row, each in enumerate(ratios)
        for column, ratio in enumerate(each)
    ]


def draw_map(parent: Element, cells: Sequence[Cell], unit: tuple[float, float]) -> None:
    """Cells on columns and rows of this width and height."""
    scaled = SubElement(
        parent, "g", {"transform": f"scale({unit[0]:.4f},{number(unit[1])})", "shape-rendering": "crispEdges"}
    )
    by_step: dict[int, list[str]] = {}
    for row, in_row in groupby(cells, key=lambda cell: cell.row):
        for step, (begin, end) in _stretches(in_row):
            by_step.setdefault(step, []).append(f"M{begin:g} {row + 0.5:g}H{end:g}")
    for step in sorted(by_step):
        SubElement(scaled, "path", {"class": f"heat-{step}", "d": "".join(by_step[step])})


def _stretches(cells: Iterable[Cell]) -> list[tuple[int, tuple[float, float]]]:
    """Neighbours of one step joined."""
    found: list[tuple[int, tuple[float, float]]] = []
    for cell in cells:
        step = step_of(cell.ratio)
        if found and found[-1][0] == step and found[-1][1][1] == cell.begin:
            found[-1] = (step, (found[-1][1][0], cell.end))
        else:
            found.append((step, (cell.begin, cell.end)))
    return found


def draw_scale(parent: Element, width: float) -> None:
    """The steps with their limits below."""
    each = width / HEAT_STEPS
    for step in range(HEAT_STEPS):
        cell = group(parent, step * each, 0)
        SubElement(cell, "path", {"class": f"heat-{step} thick", "d": f"M0 8H{number(each - 3)}"})
    for step, limit in enumerate(LIMITS, start=1):
        label(parent, step * each - 1.5, 31, f"{limit:g}", "small muted num", anchor="middle")
