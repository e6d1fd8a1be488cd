"""The body of the picture: one row per stage, or per fold of equal ones; its layers on the left, its memory right."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple
from xml.etree.ElementTree import Element

from planner.spec.estimate import Estimate
from planner.spec.model import Model
from planner.spec.plan import Plan
from planner.spec.strategy import Strategy
from planner.view.folds import Fold, fold_stages, single_stages
from planner.view.layer_map import MAP_LEFT, draw_kinds, draw_layers
from planner.view.legend import draw_legend
from planner.view.memory_bars import BAR_LEFT, Bar, Scale, draw_axis, draw_bar, draw_limit, draw_peak
from planner.view.parts import memory_parts, part_name
from planner.view.quantities import memory
from planner.view.strategy_panel import StrategyMark
from planner.view.svg import Panel, fitted, group, label, tooltip
from planner.view.theme import part_look

MOST_SINGLE_STAGES = 16
"""Up to so many stages each has a row of its own, so that the staircase of the pipeline shows."""
_HEAD = 70.0
_LIMIT_WIDTH = 110.0
"""Of the words beside a limit."""


class Row(NamedTuple):
    """Stages that share a row, and the fullest of them."""

    fold: Fold
    fullest: Bar

    @property
    def note(self) -> str:
        """Which of several stages the bar belongs to."""
        return f"in stage {self.fullest.number}" if self.fold.num_stages > 1 else ""


def stage_panel(model: Model, plan: Plan, estimate: Estimate, marks: Mapping[Strategy, StrategyMark]) -> Panel:
    """Rows of stages under their headings, over the legend of the memory's parts."""
    rows = _rows(model, plan, estimate)
    height = _row_height(len(rows))
    bottom = _HEAD + len(rows) * height
    scale = Scale(1.04 * max(max(stage.peak_memory_bytes, stage.limit_bytes) for stage in estimate.stages))
    parts = memory_parts(estimate)
    looks = {key: part_look(key, position) for position, key in enumerate(parts)}
    panel = group()
    _draw_headings(panel, rows, scale)
    draw_kinds(panel, model)
    draw_axis(panel, scale, 52, bottom)
    for position, row in enumerate(rows):
        element = group(panel, 0, _HEAD + position * height)
        _draw_name(element, row.fold, height)
        draw_layers(element, row.fold, plan.num_layers, marks, height)
        draw_bar(element, row.fullest, looks, scale, height)
        draw_limit(element, row.fullest, scale, height)
        draw_peak(element, row.fullest, row.note, height)
    entries = [(part_name(key), looks[key], "") for key in parts]
    legend_height = draw_legend(group(panel, 0, bottom + 20), entries, columns=4)
    return Panel(panel, bottom + 20 + legend_height)


def _rows(model: Model, plan: Plan, estimate: Estimate) -> tuple[Row, ...]:
    few = len(plan.stages) <= MOST_SINGLE_STAGES
    folds = single_stages(model, plan, estimate) if few else fold_stages(model, plan, estimate)
    bars = [Bar(number, stage) for number, stage in enumerate(estimate.stages)]
    return tuple(
        Row(fold, max((bars[number] for number in fold.numbers), key=lambda bar: bar.stage.peak_memory_bytes))
        for fold in folds
    )


def _row_height(num_rows: int) -> float:
    return 42.0 if num_rows <= 8 else 32.0 if num_rows <= 16 else 22.0


def _draw_headings(panel: Element, rows: Sequence[Row], scale: Scale) -> None:
    label(panel, 0, 14, "Stages", "h2")
    label(panel, MAP_LEFT, 14, "Layers and their strategies", "h2")
    folded = any(row.fold.num_stages > 1 for row in rows)
    label(panel, BAR_LEFT, 14, "Memory per device, GiB" + (" (fullest stage)" if folded else ""), "h2")
    for place, text in _limits(sorted({row.fullest.stage.limit_bytes for row in rows}), scale):
        label(panel, place, 35, text, "small alarm strong", anchor="middle")


def _limits(limits: Sequence[int], scale: Scale) -> Iterator[tuple[float, str]]:
    """Where to write which limits, from low to high; those too near to each other share their words."""
    near = [limits[0]]
    for limit in (*limits[1:], None):
        if limit is not None and scale.place(limit) - scale.place(near[-1]) < _LIMIT_WIDTH:
            near.append(limit)
            continue
        text = f"limit {memory(near[0])}" if len(near) == 1 else f"limits {memory(near[0])} to {memory(near[-1])}"
        yield (scale.place(near[0]) + scale.place(near[-1])) / 2, text
        if limit is not None:
            near = [limit]


def _draw_name(element: Element, fold: Fold, height: float) -> None:
    several = fold.num_stages > 1 or fold.first_stage.num_devices > 1
    devices = fold.devices if fold.device else f"device{'s' if several else ''} {fold.device_span}"
    if height < 30:
        label(element, 0, height / 2 + 4, fitted(f"{fold.name}: {devices}", MAP_LEFT - 8, 11.5), "small num")
    else:
        label(element, 0, height / 2 - 2, fitted(fold.name, MAP_LEFT - 8), "strong num")
        label(element, 0, height / 2 + 13, fitted(devices, MAP_LEFT - 8, 11.5), "small muted num")
    if fold.device:
        tooltip(element, f"{fold.name}: devices {fold.devices}")
