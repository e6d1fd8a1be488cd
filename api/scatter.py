"""The picture of a validation: predicted against measured step times, one point per run.

Equal outcomes give equal bytes: no date, and ids that hash from a fixed salt.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from planner.spec.errors import InputError
from planner.view.theme import FILLS, LIGHT
from profiles.runs import Outcome, errors

BAND_RATIO = 0.1
"""Half the width of the band around equality."""
_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "trimtab",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.edgecolor": LIGHT.line,
    "axes.labelcolor": LIGHT.text,
    "xtick.color": LIGHT.muted,
    "ytick.color": LIGHT.muted,
}
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")


class _Point(NamedTuple):
    measured_s: float
    predicted_s: float
    usable: bool


def draw_scatter(outcomes: Sequence[Outcome], path: Path) -> None:
    """Write the picture as SVG or PNG, as the ending of `path` says; raises InputError at `--plot`."""
    points = _points(outcomes)
    if not points:
        raise InputError.at("--plot", "no run has both a predicted and a measured step time; there is nothing to draw")
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(8, 8), layout="constrained")
        _fill(figure.add_subplot(), points)
        kind = path.suffix.lower().removeprefix(".")
        metadata = {"Date": None, "Creator": "trimtab"} if kind == "svg" else {"Software": "trimtab"}
        try:
            figure.savefig(path, format=kind, dpi=150, metadata=metadata)
        except OSError as error:
            raise InputError.at("--plot", f"cannot write {path}: {error.strerror or error}") from None


def _points(outcomes: Iterable[Outcome]) -> dict[str, list[_Point]]:
    """By software stack, those with most runs first: small clouds are drawn over large ones."""
    found: dict[str, list[_Point]] = defaultdict(list)
    for outcome in outcomes:
        if outcome.case and outcome.predicted_step_time_s is not None and outcome.measured_step_time_s is not None:
            point = _Point(
                outcome.measured_step_time_s, outcome.predicted_step_time_s, outcome.record.usable_for_accuracy
            )
            found[outcome.case.stack].append(point)
    return dict(sorted(found.items(), key=lambda item: (-len(item[1]), item[0])))


def _fill(axes: Axes, points: dict[str, list[_Point]]) -> None:
    every = [value for group in points.values() for point in group for value in (point.measured_s, point.predicted_s)]
    low, high = min(every) / 1.5, max(every) * 1.5
    ends = [low, high]
    axes.fill_between(
        ends,
        [end * (1 - BAND_RATIO) for end in ends],
        [end * (1 + BAND_RATIO) for end in ends],
        color=LIGHT.line,
        alpha=0.6,
        linewidth=0,
        label=f"within {BAND_RATIO:.0%}",
    )
    axes.plot(ends, ends, color=LIGHT.muted, linewidth=0.8, zorder=1)
    fills = [name for name in FILLS if name != "warning"]
    for number, (stack, group) in enumerate(points.items()):
        _draw_stack(axes, stack, group, FILLS[fills[number % len(fills)]], _MARKERS[number % len(_MARKERS)])
    axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high), aspect="equal")
    axes.set_xlabel("measured step time, s")
    axes.set_ylabel("predicted step time, s")
    axes.grid(True, which="major", color=LIGHT.panel, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.legend(loc="upper left", frameon=False, labelcolor=LIGHT.text, markerscale=1.4)
    count = sum(len(group) for group in points.values())
    axes.set_title(f"{count} runs, predicted against measured", loc="left", color=LIGHT.text)
    if any(not point.usable for group in points.values() for point in group):
        text = "hollow: not usable for accuracy, not in the median"
        axes.text(0.98, 0.02, text, transform=axes.transAxes, ha="right", color=LIGHT.muted)


def _draw_stack(axes: Axes, stack: str, group: Sequence[_Point], colour: str, marker: str) -> None:
    """Points of one stack; hollow where a row is not usable for accuracy and so is not in the legend's figure."""
    usable = [point for point in group if point.usable]
    found = errors([point.predicted_s / point.measured_s - 1 for point in usable])
    label = f"{stack}: {len(group)} runs"
    if found is not None:
        label += f", median error {found['median_absolute_error']:.1%}"
    for shown, fill, text in ((usable, colour, label), ([p for p in group if not p.usable], "none", None)):
        if shown or text:
            axes.scatter(
                [point.measured_s for point in shown],
                [point.predicted_s for point in shown],
                s=16,
                marker=marker,
                facecolor=fill,
                edgecolor=colour if fill == "none" else LIGHT.surface,
                linewidth=0.7 if fill == "none" else 0.3,
                label=text,
            )
