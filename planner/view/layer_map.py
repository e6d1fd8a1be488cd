"""Layers from left to right: what kinds the model has, and which of them a row of stages holds under which strategy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple
from xml.etree.ElementTree import Element

from planner.spec.model import Model
from planner.spec.strategy import Strategy
from planner.view.captions import layer_kinds, strategy_short
from planner.view.folds import Fold
from planner.view.quantities import span
from planner.view.strategy_panel import StrategyMark
from planner.view.svg import Area, box, group, label, rectangle, tooltip, upright
from planner.view.theme import Look

MAP_LEFT, MAP_WIDTH = 176.0, 500.0
_CHARACTER = 6.3
"""Mean width of a character of the small labels."""
_KIND_LOOKS = {
    "embedding": Look("gold"),
    "patch embedding": Look("gold"),
    "merging": Look("gold", "dots"),
    "encoder end": Look("gold", "dots"),
    "dense block": Look("grey"),
    "MoE block": Look("grey", "dots"),
    "head": Look("gold", "bars"),
}


class Stretch(NamedTuple):
    """Neighbouring layers under one strategy."""

    first: int
    end: int
    strategy: Strategy


def _place(layer: int, num_layers: int) -> float:
    return MAP_LEFT + MAP_WIDTH * layer / num_layers


def draw_kinds(panel: Element, model: Model) -> None:
    """A strip of the model's kinds of layers with their numbers, on two lines where they would touch on one."""
    total = len(model.layers)
    ends = {46.0: MAP_LEFT - 8, 31.0: MAP_LEFT - 8}
    first = 0
    for kind, count in layer_kinds(model, 0, total):
        text = f"{span(first, first + count - 1)} {kind}{'s' if count > 1 else ''}"
        left, right = _place(first, total), _place(first + count, total)
        strip = group(panel)
        tooltip(strip, text)
        box(strip, Area(left, 52, right - left, 9), _KIND_LOOKS[kind])
        width = _CHARACTER * len(text)
        begin = min(max((left + right - width) / 2, MAP_LEFT), MAP_LEFT + MAP_WIDTH - width)
        baseline = next((y for y, end in ends.items() if begin >= end + 8), None)
        if baseline is not None:
            label(panel, begin, baseline, text, "small muted")
            ends[baseline] = begin + width
        first += count


def draw_layers(
    element: Element, fold: Fold, num_layers: int, marks: Mapping[Strategy, StrategyMark], height: float
) -> None:
    """One row of the map: a box per stretch of layers, and a seam where one folded stage ends and the next begins."""
    rectangle(element, Area(MAP_LEFT, 2, MAP_WIDTH, height - 4), "panel")
    stretches = _stretches(fold)
    ends = [stretch.first for stretch in stretches[1:]] + [num_layers]
    for stretch, free_until in zip(stretches, ends, strict=True):
        mark = marks[stretch.strategy]
        layers = span(stretch.first, stretch.end - 1)
        cell = group(element)
        tooltip(cell, f"{fold.name}, layers {layers}: {mark.letter}, {strategy_short(stretch.strategy)}")
        left, right = _place(stretch.first, num_layers), _place(stretch.end, num_layers)
        box(cell, Area(left, 2, right - left, height - 4), mark.look)
        below = height > 40 and right - left >= 6 * len(layers) + 4
        _draw_letter(cell, mark.letter, (left, right, _place(free_until, num_layers)), height / 2 + (1 if below else 5))
        if below:
            label(cell, (left + right) / 2, height / 2 + 13, layers, "on tiny num", anchor="middle")
    if fold.num_stages > 1 and MAP_WIDTH / num_layers >= 3:
        for start in sorted({piece[0].first_layer for stage in fold.stages for piece in stage.pieces}):
            upright(element, _place(start, num_layers), height - 7, height - 2, "seam")


def _draw_letter(cell: Element, letter: str, places: tuple[float, float, float], y: float) -> None:
    """The strategy's letter in its box, or on its right if that is narrow; `places`: left, right, next box."""
    left, right, free_until = places
    letter_width = 11.0 * len(letter)
    if right - left >= letter_width + 2:
        label(cell, (left + right) / 2, y, letter, "on strong", anchor="middle")
    elif free_until - right >= letter_width + 4 or right >= MAP_LEFT + MAP_WIDTH - 1:
        label(cell, right + 4, y, letter, "small strong")


def _stretches(fold: Fold) -> tuple[Stretch, ...]:
    """All layers of the stages in order, neighbours under one strategy joined."""
    runs = sorted((run for stage in fold.stages for run in stage.runs), key=lambda run: run.first_layer)
    stretches: list[Stretch] = []
    for run in runs:
        if stretches and stretches[-1][1:] == (run.first_layer, run.strategy):
            stretches[-1] = stretches[-1]._replace(end=run.end_layer)
        else:
            stretches.append(Stretch(run.first_layer, run.end_layer, run.strategy))
    return tuple(stretches)
