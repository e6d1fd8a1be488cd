"""A training job's life as one self-contained SVG: loads of its experts, imbalance, decisions and what they gain.

Like the picture of a plan it has no script and nothing from outside, and is legible on light and dark pages.
"""

from __future__ import annotations

import numpy as np

from planner.spec.decision import Action
from planner.view.heat import cells_of, draw_map, draw_scale, words_on
from planner.view.run_course import (
    LEFT,
    axis_of,
    draw_row_name,
    gain_panel,
    hottest_panel,
    imbalance_panel,
    row_height,
    signed_seconds,
)
from planner.view.run_life import Ledger, Life, end_steps, ledger, load_ratios, spread
from planner.view.svg import MARGIN, WIDTH, Area, Panel, document, fitted, group, label, rectangle, tooltip

MOST_MAPS = 3
_TEXT_WIDTH = WIDTH - 2 * MARGIN
_MAP_WIDTH = _TEXT_WIDTH - LEFT
_CELL_FOR_WORDS = 30.0


def run_picture(life: Life) -> str:
    """The picture as SVG text; see `life_of` for what it is drawn from."""
    panels = [_headline_panel(life)]
    if life.marks:
        panels += [imbalance_panel(life), gain_panel(life), hottest_panel(life), *_maps(life)]
    return document(f"Run {life.name} of {life.context.model.name}", _description(life), panels)


def _final(life: Life) -> Ledger:
    last = axis_of(life)
    return ledger(life, end_steps(life, [last.first + last.num_windows - 1]))


def _counts(life: Life) -> tuple[tuple[str, str], ...]:
    """(name, value) of what a reader looks for first; a dash where every window that would tell it is gone."""
    known = life.marks or not life.num_windows
    moved = sum(mark.num_moves for mark in life.marks)
    moving = sum(mark.action is Action.REBALANCE and mark.num_moves > 0 for mark in life.marks)
    counted = (
        ("times experts were moved", f"{moving:,}"),
        ("splits of tokens alone", f"{sum(mark.only_splits for mark in life.marks):,}"),
        ("plans changed", f"{sum(mark.action is Action.SWITCH_PLAN for mark in life.marks):,}"),
        ("moves of experts", f"{moved:,}"),
        ("predicted gain, moves paid", signed_seconds(float(_final(life).net_s[0])) if life.marks else "–"),
    )
    return ("windows", f"{life.num_windows:,}"), *(pair if known else (pair[0], "–") for pair in counted)


def _headline_panel(life: Life) -> Panel:
    panel = group()
    label(panel, 0, 20, fitted(life.name, _TEXT_WIDTH, 22), "h1")
    label(panel, 0, 44, fitted(f"{life.context.model.name}{_plan_in_force(life)}", _TEXT_WIDTH))
    label(panel, 0, 64, _scope(life), "muted")
    counts = _counts(life)
    each = (_TEXT_WIDTH + 10) / len(counts)
    for number, (name, value) in enumerate(counts):
        tile = group(panel, number * each, 82)
        rectangle(tile, Area(0, 0, each - 10, 58), "panel", radius=6)
        label(tile, 14, 27, value, "big num")
        label(tile, 14, 46, name, "small muted")
    return Panel(panel, 140)


def _plan_in_force(life: Life) -> str:
    """Nothing where it may have changed in windows that are gone."""
    if life.num_windows and not life.marks:
        return ""
    plan_id = life.marks[-1].plan_id if life.marks else life.first_plan_id
    return f" under {life.context.plan(plan_id).summary}"


def _scope(life: Life) -> str:
    if not life.marks:
        gone = "No window is kept any more, so nothing is drawn or counted; the decisions are kept"
        return gone if life.num_windows else "No window has come in yet"
    left_out = life.num_windows - len(life.marks)
    first, last = life.marks[0].window, life.marks[-1].window
    begun, ended = life.windows[0].first_step, life.windows[-1].first_step + life.windows[-1].num_steps
    more = f"; {left_out:,} earlier windows are not drawn nor counted" if left_out else ""
    return f"Windows {first:,} to {last:,}, steps {begun:,} to {ended - 1:,}{more}"


def _maps(life: Life) -> list[Panel]:
    """Layers and experts of the first, a middle and the last window."""
    chosen = spread(range(len(life.windows)), MOST_MAPS)
    names = {1: ["the last"], 2: ["the first", "the last"], 3: ["the first", "a middle", "the last"]}[len(chosen)]
    return [_map_panel(life, number, name) for number, name in zip(chosen, names, strict=True)]


def _map_panel(life: Life, number: int, name: str) -> Panel:
    window, layers = life.windows[number], life.context.model.moe_layers
    ratios = [load_ratios(window, row) for row in range(len(layers))]
    most = max(len(each) for each in ratios)
    height, width = row_height(len(layers)), _MAP_WIDTH / most
    panel = group()
    label(panel, 0, 14, f"Load of each expert in {name} window, number {window.index:,}", "h2")
    label(panel, 0, 31, f"experts 0 to {most - 1} from left to right; 1 is the mean of the layer", "small muted")
    draw_scale(group(panel, _TEXT_WIDTH - 380, 0), 380)
    draw_map(group(panel, LEFT, 46), cells_of(ratios), (width, height))
    for row, layer in enumerate(layers):
        line = group(panel, 0, 46 + row * height)
        hottest, coldest = int(np.argmax(ratios[row])), int(np.argmin(ratios[row]))
        tooltip(
            line,
            f"layer {layer}: most on expert {hottest}, {ratios[row][hottest]:.2f} times the mean; "
            f"least on expert {coldest}, {ratios[row][coldest]:.2f} times",
        )
        rectangle(line, Area(LEFT, 0, _MAP_WIDTH, height), "clear")
        draw_row_name(line, 0, height, f"layer {layer}", row)
        if width >= _CELL_FOR_WORDS and height >= 16:
            for expert, ratio in enumerate(ratios[row]):
                label(
                    line,
                    LEFT + (expert + 0.5) * width,
                    13,
                    f"{ratio:.2f}",
                    f"tiny num {words_on(ratio)}".strip(),
                    anchor="middle",
                )
    return Panel(panel, 46 + len(layers) * height)


def _description(life: Life) -> str:
    """What the picture shows, in sentences."""
    told = "; ".join(f"{name}: {value}" for name, value in _counts(life))
    if not life.marks:
        return f"{_scope(life)}. {told}."
    last = life.marks[-1]
    return (
        f"{_scope(life)}. {told}. In the last window imbalance was {last.imbalance_before:.3f}, "
        f"{last.imbalance_after:.3f} after the decision; no placement has less than {last.imbalance_bound:.3f}."
    )
