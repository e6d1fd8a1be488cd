"""What each plan of a shortlist loses in each scenario: a table with bars."""

from __future__ import annotations

from xml.etree.ElementTree import Element

from planner.spec.shortlist import Shortlist, ShortlistEntry
from planner.view.quantities import percent
from planner.view.svg import MARGIN, WIDTH, Area, Panel, fitted, group, label, rectangle, tooltip

MOST_SCENARIOS = 8
_LEFT, _HEAD, _ROW = 70.0, 60.0, 30.0


def regret_panel(shortlist: Shortlist) -> Panel:
    """A column for each scenario, the most probable ones if there are many; a bar as long as the loss."""
    order = sorted(shortlist.scenarios, key=lambda scenario: -scenario.probability)[:MOST_SCENARIOS]
    shown = [scenario for scenario in shortlist.scenarios if scenario in order]
    width = (WIDTH - 2 * MARGIN - _LEFT) / len(shown)
    most = max((ratio for entry in shortlist.plans for ratio in entry.scenario_regret_ratio.values()), default=0.0)
    panel = group()
    left_out = len(shortlist.scenarios) - len(shown)
    more = f"; {left_out} less probable scenarios are not shown" if left_out else ""
    label(panel, 0, 14, f"Regret in each scenario (★: none of these is faster){more}", "h2")
    for place, scenario in enumerate(shown):
        left = _LEFT + place * width
        label(panel, left, 36, fitted(scenario.name, width - 16), "strong")
        label(panel, left, 52, f"probability {percent(scenario.probability)}", "small muted num")
    for number, entry in enumerate(shortlist.plans):
        row = group(panel, 0, _HEAD + number * _ROW)
        label(row, 0, 19, f"plan {entry.rank}", "num")
        for place, scenario in enumerate(shown):
            _draw_cell(group(row, _LEFT + place * width, 0), entry, scenario.name, width - 16, most)
    return Panel(panel, _HEAD + len(shortlist.plans) * _ROW)


def _draw_cell(cell: Element, entry: ShortlistEntry, name: str, width: float, most: float) -> None:
    ratio = entry.scenario_regret_ratio.get(name)
    rectangle(cell, Area(0, 3, width, _ROW - 6), "panel", radius=3)
    if ratio is None:
        text = "cannot run" if name in entry.cannot_run_in else "out of memory"
        tooltip(cell, f"plan {entry.rank}, {name}: {text}")
        label(cell, 8, 19, fitted(text, width - 10, 11.5), "small alarm")
        return
    best = " (none of these is faster)" if name in entry.best_for else ""
    tooltip(cell, f"plan {entry.rank}, {name}: {percent(ratio)}{best}")
    text = f"{percent(ratio)}{' ★' if best else ''}"
    label(cell, 8, 19, text, "num strong" if best else "num")
    room = width - 84
    if most and ratio and room > 0:
        rectangle(cell, Area(76, 9, max(1.0, room * ratio / most), _ROW - 18), "gold")
