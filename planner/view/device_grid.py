"""How the devices of one stage group: a grid whose rows are the groups of the innermost axis.

Devices are numbered from the first of the stage. Large grids show their first devices and their last.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import NamedTuple
from xml.etree.ElementTree import Element

from planner.spec.strategy import ExpertStrategy, Strategy
from planner.view.svg import Area, group, label, rectangle
from planner.view.theme import Look

MOST_COLUMNS, MOST_ROWS = 8, 5
_CELL_WIDTH, _CELL_HEIGHT, _ROW = 30.0, 15.0, 19.0
_TOP = 38.0


class Grid(NamedTuple):
    """Axes by name and degree, innermost (nearest devices) first; at least one."""

    title: str
    axes: tuple[tuple[str, int], ...]

    @property
    def num_columns(self) -> int:
        """Devices in a group of the innermost axis."""
        return self.axes[0][1]

    @property
    def num_rows(self) -> int:
        """Groups of the innermost axis."""
        return prod(degree for _, degree in self.axes[1:])

    @property
    def reading(self) -> str:
        """How to read the grid: `a row is a tp2 group, a column dp8`."""
        (name, degree), *outer = self.axes
        row = f"a row is {_article(name)} {name}{degree} group"
        return row + (f", a column {' × '.join(f'{name}{degree}' for name, degree in outer)}" if outer else "")

    def row_name(self, row: int) -> str:
        """Coordinates of a row on the outer axes, outermost first: `dp3 cp1`."""
        words = []
        for name, degree in self.axes[1:]:
            row, coordinate = divmod(row, degree)
            words.append(f"{name} {coordinate}")
        return ", ".join(reversed(words))


def attention_grid(strategy: Strategy) -> Grid:
    """Devices as attention, dense feed-forward parts, embedding and head see them."""
    axes = tuple((axis.kind.value, axis.degree) for axis in reversed(strategy.axes))
    return Grid("Devices outside the experts" if strategy.experts else "Devices", axes or (("dp", 1),))


def expert_grid(experts: ExpertStrategy) -> Grid:
    """Devices as the experts see them; axes of degree 1 are left out, save the expert-parallel one if it is alone."""
    axes = (
        ("etp", experts.expert_tensor_parallel_size),
        ("ep", experts.expert_parallel_size),
        ("edp", experts.expert_data_parallel_size),
    )
    return Grid("Devices of the experts", tuple(axis for axis in axes if axis[1] > 1) or (("ep", 1),))


def grid_height(grid: Grid) -> float:
    """Height that the grid takes when drawn."""
    return _TOP + _ROW * len(_shown(grid.num_rows, MOST_ROWS)) - (_ROW - _CELL_HEIGHT)


def draw_grid(element: Element, grid: Grid, look: Look) -> None:
    """Title, how to read it, and the rows; what is left out shows as an ellipsis."""
    label(element, 0, 11, grid.title, "small strong")
    label(element, 0, 27, grid.reading, "small muted")
    columns = _shown(grid.num_columns, MOST_COLUMNS)
    for place, row in enumerate(_shown(grid.num_rows, MOST_ROWS)):
        line = group(element, 0, _TOP + place * _ROW)
        if row is None:
            label(line, len(columns) * _CELL_WIDTH / 2, 12, "⋮", "muted strong", anchor="middle")
        else:
            _draw_row(line, grid, row, columns, look)


def _draw_row(line: Element, grid: Grid, row: int, columns: Sequence[int | None], look: Look) -> None:
    width = len(columns) * _CELL_WIDTH
    rectangle(line, Area(-2, -2, width + 4, _CELL_HEIGHT + 4), "frame", radius=3)
    label(line, width + 8, 11.5, grid.row_name(row), "tiny muted")
    for place, column in enumerate(columns):
        middle = (place + 0.5) * _CELL_WIDTH
        if column is None:
            label(line, middle, 11, "…", "muted strong", anchor="middle")
            continue
        rectangle(line, Area(place * _CELL_WIDTH + 1, 0, _CELL_WIDTH - 2, _CELL_HEIGHT), look.fill)
        label(line, middle, 11.5, str(row * grid.num_columns + column), "on tiny num", anchor="middle")


def _shown(count: int, most: int) -> Sequence[int | None]:
    """Numbers from 0 to count - 1; if there are more than `most`, the first ones, None for the rest, the last."""
    return range(count) if count <= most else (*range(most - 2), None, count - 1)


def _article(name: str) -> str:
    return "an" if name[0] in "ae" else "a"
