"""The time of a step as one bar of its named parts, in the order of the estimate."""

from __future__ import annotations

from planner.spec.estimate import Estimate
from planner.view.legend import draw_legend
from planner.view.parts import part_name, time_parts
from planner.view.quantities import percent, seconds
from planner.view.svg import MARGIN, WIDTH, Area, Panel, box, group, label, tooltip
from planner.view.theme import part_look

_BAR = 34.0


def time_panel(estimate: Estimate) -> Panel:
    """The bar under a heading, over its legend; parts of no time are left out."""
    panel = group()
    label(panel, 0, 14, f"Time of a step: {seconds(estimate.step_time_s)}", "h2")
    parts = time_parts(estimate)
    looks = {key: part_look(key, position) for position, key in enumerate(parts)}
    left = 0.0
    for position, (key, part_s) in enumerate(parts.items()):
        width = (WIDTH - 2 * MARGIN) * part_s / sum(parts.values())
        part = group(panel, left, 28)
        tooltip(part, f"{part_name(key)}: {seconds(part_s)}, {percent(part_s / estimate.step_time_s)}")
        box(part, Area(0, 0, width, _BAR), looks[key])
        if width >= 9 * len(str(position + 1)) + 5:
            label(part, width / 2, _BAR / 2 + 5, str(position + 1), "on strong", anchor="middle")
        left += width
    entries = [
        (part_name(key), looks[key], f"{seconds(part_s)} · {percent(part_s / estimate.step_time_s)}")
        for key, part_s in parts.items()
    ]
    legend = draw_legend(group(panel, 0, _BAR + 42), entries, columns=3)
    return Panel(panel, _BAR + 42 + legend)
