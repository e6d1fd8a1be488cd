"""A plan as one self-contained SVG: headline, stages with layers and memory, time of the step, strategies.

No script, no font, nothing from outside; legible on light and dark pages and without colours. Equal neighbouring stages
and large groups of devices are drawn once, so that the picture of 100,000 devices is as small as that of a hundred.
"""

from __future__ import annotations

from planner.spec.estimate import Estimate
from planner.spec.model import Model
from planner.spec.plan import Plan
from planner.view.captions import batch, error_band, schedule
from planner.view.folds import fold_stages
from planner.view.match import check_estimate, check_model
from planner.view.quantities import memory, percent, seconds, significant
from planner.view.stage_panel import stage_panel
from planner.view.strategy_panel import strategy_marks, strategy_names, strategy_panel
from planner.view.svg import MARGIN, WIDTH, Area, Panel, document, fitted, group, label, rectangle, wrapped
from planner.view.time_panel import time_panel


def plan_picture(model: Model, plan: Plan, estimate: Estimate) -> str:
    """The picture as SVG text; raises InputError if model, plan and estimate do not belong together."""
    check_model(model, plan)
    check_estimate(plan, estimate)
    marks = strategy_marks(plan)
    panels = [
        _headline_panel(model, plan, estimate),
        stage_panel(model, plan, estimate, marks),
        time_panel(estimate),
        strategy_panel(plan, marks),
        _footer_panel(plan, estimate),
    ]
    description = f"{_description(model, plan, estimate)} Strategies: {strategy_names(marks)}."
    return document(f"Plan {plan.summary} for {model.name}", description, panels)


def _headline_panel(model: Model, plan: Plan, estimate: Estimate) -> Panel:
    panel = group()
    width = WIDTH - 2 * MARGIN
    label(panel, 0, 20, fitted(model.name, width, 22), "h1")
    label(panel, 0, 44, fitted(plan.summary, width))
    label(panel, 0, 64, f"{schedule(plan.schedule)}; {batch(plan)}", "muted")
    tiles = _tiles(plan, estimate)
    for number, (name, value) in enumerate(tiles):
        tile = group(panel, number * (width + 10) / len(tiles), 82)
        rectangle(tile, Area(0, 0, (width + 10) / len(tiles) - 10, 58), "panel", radius=6)
        label(tile, 14, 27, value, "big num")
        label(tile, 14, 46, name, "small muted")
    if estimate.fits:
        return Panel(panel, 140)
    rectangle(panel, Area(1.5, 154, 20, 20), "warning")
    rectangle(panel, Area(1.5, 154, 20, 20), "excess")
    label(panel, 30, 169, _misfit(estimate), "alarm strong")
    return Panel(panel, 176)


def _tiles(plan: Plan, estimate: Estimate) -> tuple[tuple[str, str], ...]:
    """(name, value) of what a reader looks for first."""
    return (
        ("step time", seconds(estimate.step_time_s)),
        ("tokens/s per device", significant(estimate.tokens_per_s_per_device)),
        ("tokens/s", significant(estimate.tokens_per_s)),
        ("model FLOPs utilisation (MFU)", percent(estimate.mfu)),
        (f"device{_s(plan.num_devices)} in {len(plan.stages)} stage{_s(len(plan.stages))}", f"{plan.num_devices:,}"),
    )


def _s(count: int) -> str:
    return "" if count == 1 else "s"


def _misfit(estimate: Estimate) -> str:
    """Which stage lacks most memory; of its host where no device lacks any."""
    number, worst = max(enumerate(estimate.stages), key=lambda numbered: numbered[1].missing_host_bytes)
    if not any(stage.missing_bytes for stage in estimate.stages):
        return (
            f"This plan does not fit: stage {number} lacks {memory(worst.missing_host_bytes)} "
            f"of {memory(worst.host_bytes)} of its host's memory for each device."
        )
    number, worst = max(enumerate(estimate.stages), key=lambda numbered: numbered[1].missing_bytes)
    return (
        f"This plan does not fit: stage {number} lacks {memory(worst.missing_bytes)} "
        f"of {memory(worst.peak_memory_bytes)} on each device."
    )


def _footer_panel(plan: Plan, estimate: Estimate) -> Panel:
    panel = group()
    assumptions = f"; {len(estimate.assumptions)} assumptions, listed in the estimate" if estimate.assumptions else ""
    text = f"plan {plan.id} · workload: {estimate.workload} · prices: {estimate.provenance.value}{assumptions}"
    lines = wrapped(text, WIDTH - 2 * MARGIN, 11.5)
    if estimate.error_band is not None:
        band = f"step time with its error band: {error_band(estimate.error_band)}"
        lines = [*wrapped(band, WIDTH - 2 * MARGIN, 11.5), *lines]
    for number, line in enumerate(lines):
        label(panel, 0, 11 + 18 * number, line, "small muted")
    return Panel(panel, 18 * len(lines) - 6)


def _description(model: Model, plan: Plan, estimate: Estimate) -> str:
    """What the picture shows, in sentences."""
    fullest = max(estimate.stages, key=lambda stage: stage.peak_memory_bytes - stage.limit_bytes)
    stages = "; ".join(
        f"{fold.name} on devices {fold.devices}, "
        f"at most {memory(max(estimate.stages[number].peak_memory_bytes for number in fold.numbers))}"
        for fold in fold_stages(model, plan, estimate)
    )
    return (
        f"{len(model.layers)} layers in {len(plan.stages)} stage{_s(len(plan.stages))} on {plan.num_devices} "
        f"device{_s(plan.num_devices)}. A step takes {seconds(estimate.step_time_s)}: "
        f"{significant(estimate.tokens_per_s_per_device)} tokens per second and device, MFU {percent(estimate.mfu)}. "
        f"{f'Error band: {error_band(estimate.error_band)}. ' if estimate.error_band else ''}"
        f"The fullest stage takes {memory(fullest.peak_memory_bytes)} of {memory(fullest.limit_bytes)} per device. "
        f"{'' if estimate.fits else _misfit(estimate) + ' '}{stages}."
    )
