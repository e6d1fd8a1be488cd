"""A run over its windows: imbalance with the decisions above it, the predicted gain so far, the hottest experts."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from typing import NamedTuple
from xml.etree.ElementTree import Element

import numpy as np
from numpy.typing import NDArray

from planner.spec.decision import Action
from planner.view.heat import Cell, draw_map, draw_scale
from planner.view.memory_bars import round_step
from planner.view.quantities import seconds
from planner.view.run_life import Life, Mark, end_steps, ledger, load_ratios
from planner.view.svg import MARGIN, WIDTH, Panel, group, label, path, tooltip, upright

LEFT = 94.0
RIGHT = 164.0
_WIDTH = WIDTH - 2 * MARGIN - LEFT - RIGHT
_MOST_POINTS = 500
_MOST_SIGNS = 150
_LANE, _LANES, _CHART = 16.0, 4, 130.0
Values = NDArray[np.float64]


class Axis(NamedTuple):
    """Windows from left to right."""

    first: int
    num_windows: int

    @property
    def unit(self) -> float:
        """Width of one window."""
        return _WIDTH / self.num_windows

    def place(self, index: float) -> float:
        """Where the middle of a window stands."""
        return LEFT + (index - self.first + 0.5) * self.unit


def axis_of(life: Life) -> Axis:
    """From the first to the last window that is drawn."""
    first, last = life.marks[0].window, life.marks[-1].window
    return Axis(first, last - first + 1)


def imbalance_panel(life: Life) -> Panel:
    """Lines of imbalance before and after the decisions, over what no placement can be better than."""
    axis, panel = axis_of(life), group()
    each = -(-len(life.marks) // _MOST_POINTS)
    label(panel, 0, 14, f"Imbalance and decisions{f', means of {each} windows' if each > 1 else ''}", "h2")
    _draw_decisions(group(panel, 0, 26), life, axis)
    top = 26 + _LANE * _LANES + 12
    most = max(max(mark.imbalance_before, mark.imbalance_after) for mark in life.marks)
    step = round_step(max(most - 1, 0.01) / 4)
    ends = 1.0, 1.0 + step * int(np.ceil((max(most - 1, 0.01)) / step - 1e-9))
    chart = group(panel, 0, top)
    _draw_levels(chart, ends, step, lambda value: f"{value:g}")
    x = [axis.place(index) for index in _means([float(mark.window) for mark in life.marks], each)]
    styles = {
        "imbalance_bound": "draw-grey dot",
        "imbalance_before": "draw-orange",
        "imbalance_after": "draw-blue dash",
    }
    for name, style in styles.items():
        values = _means([getattr(mark, name) for mark in life.marks], each)
        _draw_line(chart, x, [_height(value, ends) for value in values], style)
    words = {
        "draw-orange": ("before", life.marks[-1].imbalance_before),
        "draw-blue dash": ("after", life.marks[-1].imbalance_after),
        "draw-grey dot": ("no placement below", life.marks[-1].imbalance_bound),
    }
    for place, (style, (text, last)) in enumerate(words.items()):
        _draw_key(group(chart, LEFT + _WIDTH + 12, 12 + place * 40), style, text, f"{last:.3f} now")
    _draw_indices(group(panel, 0, top + _CHART), axis)
    return Panel(panel, top + _CHART + 40)


def gain_panel(life: Life) -> Panel:
    """Predicted seconds gained less those that moves cost."""
    axis, panel = axis_of(life), group()
    label(panel, 0, 14, "Predicted gain so far, moves paid", "h2")
    rule = "each against the placement before it, from the end of its window, as long as its forecast was to hold"
    label(panel, 0, 31, rule, "small muted")
    indices = np.linspace(axis.first, axis.first + axis.num_windows - 1, min(axis.num_windows, _MOST_POINTS))
    found = ledger(life, end_steps(life, indices.tolist()))
    low, high = min(0.0, float(found.net_s.min())), max(0.0, float(found.net_s.max()))
    step = round_step(max(high - low, 1e-3) / 4)
    ends = step * np.floor(low / step), step * max(np.ceil(high / step), 1.0)
    chart = group(panel, 0, 46)
    _draw_levels(chart, ends, step, lambda value: seconds(value) if value >= 0 else f"−{seconds(-value)}")
    _draw_line(chart, [axis.place(i) for i in indices], [_height(v, ends) for v in found.net_s], "draw-green")
    key = group(chart, LEFT + _WIDTH + 12, 12)
    _draw_key(key, "draw-green", "net", signed_seconds(float(found.net_s[-1])))
    label(key, 0, 40, f"gained {seconds(float(found.gained_s[-1]))}", "small muted num")
    label(key, 0, 57, f"moves cost {seconds(float(found.cost_s[-1]))}", "small muted num")
    _draw_indices(group(panel, 0, 46 + _CHART), axis)
    return Panel(panel, 46 + _CHART + 40)


def hottest_panel(life: Life) -> Panel:
    """For each MoE layer a row: its hottest expert's load over the mean, window by window."""
    axis, panel = axis_of(life), group()
    layers = life.context.model.moe_layers
    label(panel, 0, 14, "Hottest expert of each MoE layer, over the mean of its experts", "h2")
    some = len(life.windows) < len(life.marks)
    drawn = f"{len(life.windows):,} of {len(life.marks):,} windows, evenly spread" if some else "every window"
    label(panel, 0, 31, f"{drawn}; load is tokens of an expert over the mean of the layer's experts", "small muted")
    draw_scale(group(panel, LEFT + _WIDTH - 380, 0), 380)
    height = row_height(len(layers))
    rows = group(panel, LEFT, 46)
    indices = [window.index for window in life.windows]
    present = {mark.window for mark in life.marks}
    ends = [_unbroken(present, index, after) for index, after in zip(indices, [*indices[1:], None], strict=True)]
    peaks = [[float(load_ratios(window, row).max()) for window in life.windows] for row in range(len(layers))]
    cells = [
        Cell(row, index - axis.first, end - axis.first, ratio)
        for row, ratios in enumerate(peaks)
        for index, end, ratio in zip(indices, ends, ratios, strict=True)
    ]
    draw_map(rows, cells, (axis.unit, height))
    for row, layer in enumerate(layers):
        hottest = int(np.argmax(load_ratios(life.windows[-1], row)))
        text = f"{peaks[row][-1]:.2f} × (expert {hottest})"
        draw_row_name(panel, 46 + row * height, height, f"layer {layer}", row)
        if row % rows_apart(height) == 0:
            label(panel, LEFT + _WIDTH + 12, 46 + (row + 0.5) * height + 4, text, "small num muted")
    bottom = 46 + len(layers) * height
    _draw_indices(group(panel, 0, bottom), axis)
    return Panel(panel, bottom + 40)


def _unbroken(present: Set[int], index: int, after: int | None) -> int:
    """Where the windows end that came in one after the other from this one on, before the next that is drawn."""
    end = index + 1
    while end in present and end != after:
        end += 1
    return end


def row_height(count: int) -> float:
    """Of a row of a heat map with so many."""
    return 18.0 if count <= 16 else 10.0 if count <= 40 else 7.0


def rows_apart(height: float) -> int:
    """Every how many rows words fit."""
    return max(1, int(np.ceil(15 / height)))


def draw_row_name(panel: Element, top: float, height: float, name: str, row: int) -> None:
    """Left of a row, if there is room for words."""
    if row % rows_apart(height) == 0:
        label(panel, LEFT - 8, top + height / 2 + 4, name, "small num", anchor="end")


def signed_seconds(value_s: float) -> str:
    """With a minus where it is below zero."""
    return seconds(value_s) if value_s >= 0 else f"−{seconds(-value_s)}"


def _draw_decisions(panel: Element, life: Life, axis: Axis) -> None:
    """A row for each kind of decision, with a sign at its window, or a tick where there are many."""
    kinds: tuple[tuple[str, str, str, Callable[[Mark], bool]], ...] = (
        ("switch plan", "m0,1 l5,5 l-5,5 l-5,-5 z", "magenta", lambda mark: mark.action is Action.SWITCH_PLAN),
        (
            "move experts",
            "m0,1 l5,9 h-10 z",
            "blue",
            lambda mark: mark.action is Action.REBALANCE and mark.num_moves > 0,
        ),
        ("split anew", "m-3,3 h6 v6 h-6 z", "teal", lambda mark: mark.only_splits),
        ("keep", "m0,1 v8", "tick", lambda mark: not mark.acts),
    )
    for row, (name, shape, style, belongs) in enumerate(kinds):
        lane = group(panel, 0, row * _LANE)
        marks = [mark for mark in life.marks if belongs(mark)]
        label(lane, LEFT - 8, 10, name, "small", anchor="end")
        label(lane, LEFT + _WIDTH + 12, 10, f"{len(marks):,}", "small num muted")
        if len(marks) > _MOST_SIGNS or style == "tick":
            places = dict.fromkeys(f"M{axis.place(mark.window):.1f},0 m0,1 v8" for mark in marks)
            if places:
                path(lane, " ".join(places), "tick")
            continue
        for mark in marks:
            sign = group(lane)
            tooltip(sign, _told(mark))
            path(sign, f"M{axis.place(mark.window):.1f},0 {shape}", style)


def _told(mark: Mark) -> str:
    what = f"plan {mark.plan_id}" if mark.action is Action.SWITCH_PLAN else f"{mark.num_moves:,} moves"
    action = mark.action.value.replace("_", " ")
    return (
        f"window {mark.window}, {action}: {what}, imbalance {mark.imbalance_before:.3f} to {mark.imbalance_after:.3f}, "
        f"{seconds(mark.gain_s_per_step)} less a step for {seconds(mark.cost_s)} once"
    )


def _means(values: Sequence[float], each: int) -> list[float]:
    return [float(np.mean(values[begin : begin + each])) for begin in range(0, len(values), each)]


def _height(value: float, ends: tuple[float, float]) -> float:
    return _CHART * (1 - (value - ends[0]) / (ends[1] - ends[0]))


def _draw_levels(chart: Element, ends: tuple[float, float], step: float, written: Callable[[float], str]) -> None:
    for tick in range(round((ends[1] - ends[0]) / step) + 1):
        value = round(ends[0] + tick * step, 12)
        y = _height(value, ends)
        path(chart, f"M{LEFT:g},{y:.1f} H{LEFT + _WIDTH:g}", "line")
        label(chart, LEFT - 8, y + 4, written(value), "small muted num", anchor="end")


def _draw_line(chart: Element, x: Sequence[float], y: Sequence[float], style: str) -> None:
    points = [f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True)]
    # A line of one point would not be seen.
    path(chart, f"M{' L'.join(points)}" + (" h6" if len(points) == 1 else ""), style)


def _draw_key(key: Element, style: str, name: str, value: str) -> None:
    path(key, "M0,0 H24", style)
    label(key, 30, 4, name, "small")
    label(key, 30, 20, value, "small num strong")


def _draw_indices(axis_line: Element, axis: Axis) -> None:
    step = max(1, int(round_step(axis.num_windows / 10)))
    for index in range(-(-axis.first // step) * step, axis.first + axis.num_windows, step):
        upright(axis_line, axis.place(index), 0, 5)
        label(
            axis_line,
            axis.place(index),
            19,
            f"{index:,}",
            "small muted num",
            anchor="middle",
        )
    label(axis_line, LEFT + _WIDTH + 12, 19, "window", "small muted")
