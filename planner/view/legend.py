"""Numbered legends: the number stands in the bar too, so that nobody has to tell colours apart."""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree.ElementTree import Element

from planner.view.svg import MARGIN, WIDTH, Area, box, fitted, group, label
from planner.view.theme import Look

_LINE = 24.0


def draw_legend(parent: Element, entries: Sequence[tuple[str, Look, str]], columns: int) -> float:
    """Draw (name, look, value) entries, numbered from 1 in reading order; returns the height that they take."""
    column_width = (WIDTH - 2 * MARGIN) / columns
    for position, (name, look, value) in enumerate(entries):
        entry = group(parent, position % columns * column_width, position // columns * _LINE)
        box(entry, Area(0, 0, 24, 17), look)
        label(entry, 12, 13, str(position + 1), "on small", anchor="middle")
        label(entry, 32, 13, fitted(name, column_width - (170 if value else 40)))
        if value:
            label(entry, column_width - 28, 13, value, "num muted", anchor="end")
    return -(-len(entries) // columns) * _LINE
