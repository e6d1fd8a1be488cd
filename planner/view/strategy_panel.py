"""The strategies of a plan, each with its letter, what it does, and how the devices of a stage group under it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple
from xml.etree.ElementTree import Element

from planner.spec.plan import Plan
from planner.spec.strategy import Strategy
from planner.view.captions import degrees, expert_degrees, strategy_lines, strategy_short
from planner.view.device_grid import attention_grid, draw_grid, expert_grid, grid_height
from planner.view.svg import MARGIN, WIDTH, Area, Panel, box, group, label, rectangle
from planner.view.theme import Look, nth_look

MOST_CARDS = 6
"""So many strategies are drawn with their groups of devices; the others have one line."""
_GRIDS_LEFT = (470.0, 822.0)
_PADDING, _LINE, _GAP = 14.0, 19.0, 10.0


class StrategyMark(NamedTuple):
    """How a strategy shows in the picture."""

    letter: str
    look: Look


def strategy_marks(plan: Plan) -> dict[Strategy, StrategyMark]:
    """A letter and a look for each strategy; A is the one with most layers, ties go by first layer."""
    ordered = [strategy for strategy, _ in _num_layers(plan).most_common()]
    return {strategy: StrategyMark(_letter(number), nth_look(number)) for number, strategy in enumerate(ordered)}


def _num_layers(plan: Plan) -> Counter[Strategy]:
    """Layers under each strategy, in order of their first layers."""
    counts: Counter[Strategy] = Counter()
    for run in sorted((run for stage in plan.stages for run in stage.runs), key=lambda run: run.first_layer):
        counts[run.strategy] += run.num_layers
    return counts


def _letter(number: int) -> str:
    """A … Z, AA, AB, … for 0 … 25, 26, 27, …"""
    before, last = divmod(number, 26)
    return (_letter(before - 1) if before else "") + chr(ord("A") + last)


def strategy_names(marks: Mapping[Strategy, StrategyMark]) -> str:
    """All strategies in one line of text, for screen readers."""
    return "; ".join(f"{mark.letter}: {strategy_short(strategy)}" for strategy, mark in marks.items())


def strategy_panel(plan: Plan, marks: Mapping[Strategy, StrategyMark]) -> Panel:
    """One card per strategy, in the order of their letters."""
    num_layers = _num_layers(plan)
    panel = group()
    label(panel, 0, 14, "Strategies", "h2")
    top = 28.0
    for number, (strategy, mark) in enumerate(marks.items()):
        draw = _draw_card if number < MOST_CARDS else _draw_line
        top += draw(group(panel, 0, top), strategy, mark, num_layers[strategy]) + _GAP
    return Panel(panel, top - _GAP)


def _draw_mark(element: Element, mark: StrategyMark) -> None:
    box(element, Area(0, 0, 28, 20), mark.look)
    label(element, 14, 15, mark.letter, "on strong", anchor="middle")


def _draw_line(element: Element, strategy: Strategy, mark: StrategyMark, num_layers: int) -> float:
    _draw_mark(group(element, _PADDING), mark)
    label(element, _PADDING + 40, 15, f"{strategy_short(strategy)} · {_extent(strategy, num_layers)}")
    return 20.0


def _draw_card(element: Element, strategy: Strategy, mark: StrategyMark, num_layers: int) -> float:
    experts = strategy.experts
    grids = [attention_grid(strategy), *([expert_grid(experts)] if experts else [])]
    headings = [degrees(strategy), *([f"experts: {expert_degrees(experts)}"] if experts else [])]
    phrases = [*strategy_lines(strategy), _extent(strategy, num_layers)]
    text_height = _LINE * (len(headings) + len(phrases)) + 4
    height = 2 * _PADDING + max(text_height, *(grid_height(grid) for grid in grids))
    rectangle(element, Area(0, 0, WIDTH - 2 * MARGIN, height), "panel", radius=6)
    body = group(element, _PADDING, _PADDING)
    _draw_mark(body, mark)
    for position, heading in enumerate(headings):
        label(body, 40, 15 + _LINE * position, heading, "strong")
    for position, phrase in enumerate(phrases, start=len(headings)):
        label(body, 40, 19 + _LINE * position, phrase, "muted")
    for left, grid in zip(_GRIDS_LEFT, grids, strict=False):
        draw_grid(group(element, left, _PADDING), grid, mark.look)
    return height


def _extent(strategy: Strategy, num_layers: int) -> str:
    """`34 layers, on stages of 16 devices`."""
    layers = f"{num_layers} layer{'s' if num_layers > 1 else ''}"
    return f"{layers}, on stages of {strategy.num_devices:,} device{'s' if strategy.num_devices > 1 else ''}"
