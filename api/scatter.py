"""The picture of a validation: predicted against measured step times, and below it their ratio, one point per run.

Equal outcomes give equal bytes: no date, and ids that hash from a fixed salt.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from planner.spec.errors import InputError
from planner.view.quantities import percent
from planner.view.theme import FILLS, LIGHT
from profiles.runs import Outcome, errors

BAND_RATIO = 0.1
"""Half the width of the band around equality."""
LEAST_SPREAD = 1.5
"""The ratios' axis reaches at least this factor to both sides."""
_RATIO_TICKS = (0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0)
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

    @property
    def ratio(self) -> float:
        """Predicted over measured."""
        return self.predicted_s / self.measured_s


class _Cloud(NamedTuple):
    """The runs of one stack, and how they look."""

    stack: str
    points: tuple[_Point, ...]
    colour: str
    marker: str

    @property
    def label(self) -> str:
        """Hollow points, which are not usable for accuracy, are not in its figure."""
        label = f"{self.stack}: {len(self.points):,} runs"
        found = errors([point.ratio - 1 for point in self.points if point.usable])
        return label if found is None else f"{label}, median error {percent(found['median_absolute_error'])}"


def draw_scatter(outcomes: Sequence[Outcome], path: Path) -> None:
    """Write the picture as SVG or PNG, as the ending of `path` says; raises InputError at `--plot`."""
    clouds = _clouds(outcomes)
    if not clouds:
        raise InputError.at("--plot", "no run has both a predicted and a measured step time; there is nothing to draw")
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(9, 12), layout="constrained")
        times, ratios = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
        _fill_times(times, clouds)
        _fill_ratios(ratios, clouds)
        kind = path.suffix.lower().removeprefix(".")
        metadata = {"Date": None, "Creator": "trimtab"} if kind == "svg" else {"Software": "trimtab"}
        try:
            figure.savefig(path, format=kind, dpi=120, metadata=metadata)
        except OSError as error:
            raise InputError.at("--plot", f"cannot write {path}: {error.strerror or error}") from None


def _clouds(outcomes: Iterable[Outcome]) -> tuple[_Cloud, ...]:
    """By software stack, those with most runs first: small clouds are drawn over large ones."""
    found: dict[str, list[_Point]] = defaultdict(list)
    for outcome in outcomes:
        if outcome.case and outcome.predicted_step_time_s is not None and outcome.measured_step_time_s is not None:
            point = _Point(
                outcome.measured_step_time_s, outcome.predicted_step_time_s, outcome.record.usable_for_accuracy
            )
            found[outcome.case.stack].append(point)
    fills = [name for name in FILLS if name != "warning"]
    ordered = sorted(found.items(), key=lambda item: (-len(item[1]), item[0]))
    return tuple(
        _Cloud(stack, tuple(points), FILLS[fills[number % len(fills)]], _MARKERS[number % len(_MARKERS)])
        for number, (stack, points) in enumerate(ordered)
    )


def _fill_times(axes: Axes, clouds: Sequence[_Cloud]) -> None:
    """Predicted against measured, with legend."""
    points = [point for cloud in clouds for point in cloud.points]
    every = [value for point in points for value in (point.measured_s, point.predicted_s)]
    low, high = min(every) / 1.5, max(every) * 1.5
    _band(axes, (low, high), lambda end: end)
    for cloud in clouds:
        _draw(axes, cloud, lambda point: point.predicted_s, cloud.label)
    axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high), ylabel="predicted step time, s")
    _mark(axes)
    axes.yaxis.set_major_formatter(FuncFormatter(_plain))
    axes.legend(loc="upper left", frameon=False, labelcolor=LIGHT.text, markerscale=1.6)
    axes.set_title(f"{len(points):,} runs, predicted against measured", loc="left", color=LIGHT.text)
    if any(not point.usable for point in points):
        text = "hollow: not usable for accuracy, not in the median"
        axes.text(0.98, 0.02, text, transform=axes.transAxes, ha="right", color=LIGHT.muted)


def _fill_ratios(axes: Axes, clouds: Sequence[_Cloud]) -> None:
    """Predicted over measured: what four decades of seconds hide."""
    ratios = [point.ratio for cloud in clouds for point in cloud.points]
    low, high = min(1 / LEAST_SPREAD, *ratios) / 1.05, max(LEAST_SPREAD, *ratios) * 1.05
    _band(axes, axes.get_xlim(), lambda end: 1.0)
    for cloud in clouds:
        _draw(axes, cloud, lambda point: point.ratio, None)
    axes.set(yscale="log", ylim=(low, high), xlabel="measured step time, s", ylabel="predicted over measured")
    _mark(axes)
    axes.xaxis.set_major_formatter(FuncFormatter(_plain))
    axes.yaxis.set_major_locator(FixedLocator([tick for tick in _RATIO_TICKS if low <= tick <= high]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _plain(value: float, _: int | None) -> str:
    """Powers of ten without an exponent."""
    return f"{value:,.0f}" if value >= 1 else f"{value:g}"


def _band(axes: Axes, ends: tuple[float, float], equality: Callable[[float], float]) -> None:
    """Equality, and the band around it."""
    middle = [equality(end) for end in ends]
    low, high = ([value * factor for value in middle] for factor in (1 - BAND_RATIO, 1 + BAND_RATIO))
    axes.fill_between(
        ends, low, high, color=LIGHT.line, alpha=0.6, linewidth=0, label=f"within {BAND_RATIO * 100:.0f} %"
    )
    axes.plot(ends, middle, color=LIGHT.muted, linewidth=0.8, zorder=1)


def _mark(axes: Axes) -> None:
    axes.grid(True, which="major", color=LIGHT.panel, linewidth=0.8)
    axes.set_axisbelow(True)


def _draw(axes: Axes, cloud: _Cloud, height: Callable[[_Point], float], label: str | None) -> None:
    """Points of one stack; hollow where a row is not usable for accuracy."""
    usable = [point for point in cloud.points if point.usable]
    others = [point for point in cloud.points if not point.usable]
    for shown, fill, text in ((usable, cloud.colour, label), (others, "none", None)):
        if shown or text:
            axes.scatter(
                [point.measured_s for point in shown],
                [height(point) for point in shown],
                s=14,
                marker=cloud.marker,
                facecolor=fill,
                edgecolor=cloud.colour if fill == "none" else LIGHT.surface,
                linewidth=0.7 if fill == "none" else 0.3,
                label=text,
            )
