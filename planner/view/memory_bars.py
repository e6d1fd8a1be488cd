"""Bytes per device as bars of named parts on one scale, with the limit; what is beyond it is struck through in red."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate
from typing import NamedTuple
from xml.etree.ElementTree import Element

from planner.spec.estimate import StageEstimate
from planner.view.parts import part_name
from planner.view.quantities import gibibytes, memory
from planner.view.svg import Area, box, group, label, rectangle, tooltip, upright
from planner.view.theme import Look

BAR_LEFT, BAR_WIDTH = 716.0, 316.0
_VALUE_LEFT = BAR_LEFT + BAR_WIDTH + 10
_GIB = 2**30


class Scale(NamedTuple):
    """From bytes to places along the bars."""

    most_bytes: float

    def place(self, value_bytes: float) -> float:
        """Where the value lies between the ends of the scale."""
        return BAR_LEFT + BAR_WIDTH * value_bytes / self.most_bytes


class Bar(NamedTuple):
    """A stage by its number."""

    number: int
    stage: StageEstimate


def draw_axis(panel: Element, scale: Scale, baseline: float, bottom: float) -> None:
    """Round numbers of GiB above thin lines."""
    step = round_step(scale.most_bytes / _GIB / 5)
    for tick in range(int(scale.most_bytes / _GIB / step) + 1):
        x = scale.place(tick * step * _GIB)
        upright(panel, x, baseline + 6, bottom)
        label(panel, x, baseline, f"{tick * step:,g}", "small muted num", anchor="middle")


def round_step(least: float) -> float:
    """The smallest of 1, 2, 2.5, 5 times a power of ten that is not below `least`."""
    power = 1.0
    while power > least:
        power /= 10
    while power * 10 < least:
        power *= 10
    return next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= least)


def draw_bar(element: Element, bar: Bar, looks: Mapping[str, Look], scale: Scale, height: float) -> None:
    """One bar in a row of this height; `looks` names the parts to draw, in order."""
    top, thick = (5.0, height - 10) if height > 30 else (3.0, height - 6)
    amounts = [bar.stage.memory.get(key, 0) for key in looks]
    starts = [0, *accumulate(amounts[:-1])]
    for position, (key, start, amount) in enumerate(zip(looks, starts, amounts, strict=True), start=1):
        if amount <= 0:
            continue
        left, right = scale.place(start), scale.place(start + amount)
        part = group(element)
        tooltip(part, f"stage {bar.number}, {part_name(key)}: {memory(amount)}")
        box(part, Area(left, top, right - left, thick), looks[key])
        if right - left >= 14:
            label(part, (left + right) / 2, top + thick / 2 + 4.5, str(position), "on small", anchor="middle")
    if bar.stage.missing_bytes:
        left, right = scale.place(bar.stage.limit_bytes), scale.place(bar.stage.peak_memory_bytes)
        excess = group(element)
        tooltip(excess, f"stage {bar.number} lacks {memory(bar.stage.missing_bytes)}")
        rectangle(excess, Area(left, top - 1, right - left, thick + 2), "excess")


def draw_limit(element: Element, bar: Bar, scale: Scale, height: float) -> None:
    """The piece of the limit line in one row."""
    upright(element, scale.place(bar.stage.limit_bytes), 0, height, "limit")


def draw_peak(element: Element, bar: Bar, note: str, height: float) -> None:
    """The peak in figures, and below or beside it what is missing, or the note."""
    lacking = bar.stage.missing_bytes
    style = "small num alarm strong" if lacking else "small num muted"
    if height < 30:
        label(element, _VALUE_LEFT, height / 2 + 4, gibibytes(bar.stage.peak_memory_bytes), "small num strong")
        text = f"lacks {gibibytes(lacking)}" if lacking else note
        label(element, _VALUE_LEFT + 42, height / 2 + 4, text, style)
    else:
        text = f"lacks {memory(lacking)}" if lacking else note
        peak = memory(bar.stage.peak_memory_bytes)
        label(element, _VALUE_LEFT, height / 2 + (-2 if text else 5), peak, "num strong")
        label(element, _VALUE_LEFT, height / 2 + 13, text, style)
