"""The plans of a shortlist side by side as one self-contained SVG: time in named parts, regret, memory.

Like the picture of a plan it has no script and nothing from outside, and is legible on light and dark pages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple
from xml.etree.ElementTree import Element

from planner.spec.estimate import Estimate, StageEstimate
from planner.spec.model import Model
from planner.spec.shortlist import CertificateStatus, Shortlist, ShortlistEntry
from planner.view.captions import joined
from planner.view.legend import draw_legend
from planner.view.match import check_estimate, check_model
from planner.view.parts import part_name, time_parts
from planner.view.quantities import memory, percent, seconds
from planner.view.regret_panel import regret_panel
from planner.view.svg import (
    MARGIN,
    WIDTH,
    Area,
    Panel,
    box,
    document,
    fitted,
    group,
    label,
    rectangle,
    text_width,
    tooltip,
    upright,
    wrapped,
)
from planner.view.theme import PART_LOOKS, Look, part_look

_LEFT = 30.0
_TIME_WIDTH = 480.0
_REGRET_LEFT = 700.0
_MEMORY_LEFT, _MEMORY_WIDTH = 860.0, 200.0
_HEAD, _ROW, _BAR_TOP, _BAR = 52.0, 82.0, 26.0, 24.0
_TEXT_WIDTH = WIDTH - 2 * MARGIN


class _Scales(NamedTuple):
    """What fills a bar."""

    longest_s: float
    most_bytes: float
    samples: Mapping[str, int]
    """By plan id, over how many samples its step is spread: 1 where all plans have the same batch."""

    def time_s(self, entry: ShortlistEntry) -> float:
        """What is compared."""
        return entry.estimate.step_time_s / self.samples[entry.plan.id]


def shortlist_picture(model: Model, shortlist: Shortlist) -> str:
    """The picture as SVG text; raises InputError if model and plans do not belong together."""
    for entry in shortlist.plans:
        check_model(model, entry.plan)
        check_estimate(entry.plan, entry.estimate)
    scales = _scales(shortlist)
    panels = [_headline_panel(model, shortlist), _plans_panel(shortlist, scales)]
    if len(shortlist.scenarios) > 1:
        panels.append(regret_panel(shortlist))
    panels.append(_footer_panel(shortlist))
    title = f"Shortlist of {_plans(shortlist)} for {model.name}"
    return document(title, _description(shortlist), panels)


def _plans(shortlist: Shortlist) -> str:
    count = len(shortlist.plans)
    return f"{count} plan{'' if count == 1 else 's'}"


def _scales(shortlist: Shortlist) -> _Scales:
    batches = {entry.plan.id: entry.plan.global_batch_size for entry in shortlist.plans}
    samples = batches if len(set(batches.values())) > 1 else dict.fromkeys(batches, 1)
    fullest = [fullest_stage(entry.estimate) for entry in shortlist.plans]
    return _Scales(
        max(entry.estimate.step_time_s / samples[entry.plan.id] for entry in shortlist.plans),
        1.04 * max(max(stage.peak_memory_bytes, stage.limit_bytes) for stage in fullest),
        samples,
    )


def fullest_stage(estimate: Estimate) -> StageEstimate:
    """The stage that has least room."""
    return max(estimate.stages, key=lambda stage: stage.peak_memory_bytes - stage.limit_bytes)


def _headline_panel(model: Model, shortlist: Shortlist) -> Panel:
    panel = group()
    best = shortlist.plans[0].plan
    label(panel, 0, 20, fitted(model.name, _TEXT_WIDTH, 22), "h1")
    devices = f"{best.num_devices:,} device{'' if best.num_devices == 1 else 's'}"
    label(panel, 0, 44, f"Shortlist of {_plans(shortlist)} for {devices}, samples of {best.sequence_length:,} tokens")
    label(panel, 0, 64, _sureness(shortlist), "muted")
    return Panel(panel, 68)


def _sureness(shortlist: Shortlist) -> str:
    certificate = shortlist.certificate
    if certificate.status is CertificateStatus.OPTIMAL:
        return "For balanced load nothing in the declared space is faster than plan 1"
    return (
        f"For balanced load nothing in the declared space is faster than {seconds(certificate.lower_bound_s)}; "
        f"plan 1 is {percent(certificate.gap_ratio)} above that"
    )


def _plans_panel(shortlist: Shortlist, scales: _Scales) -> Panel:
    """A row for each plan, over the legend of the parts of time."""
    found = {key for entry in shortlist.plans for key in time_parts(entry.estimate)}
    keys = [key for key in PART_LOOKS if key in found]
    keys += sorted(found - set(keys))
    looks = {key: part_look(key, position) for position, key in enumerate(keys)}
    panel = group()
    per_sample = len(set(scales.samples.values())) > 1
    label(panel, 0, 14, f"Time of a {'sample' if per_sample else 'step'}, balanced load", "h2")
    label(panel, _REGRET_LEFT, 14, "Regret", "h2")
    label(panel, _REGRET_LEFT, 32, "where the plan fits", "small muted")
    label(panel, _MEMORY_LEFT, 14, "Memory per device", "h2")
    label(panel, _MEMORY_LEFT, 32, "fullest stage, and its limit", "small muted")
    for number, entry in enumerate(shortlist.plans):
        row = group(panel, 0, _HEAD + number * _ROW)
        _draw_words(row, entry, per_sample)
        _draw_time(row, entry, scales, looks, shortlist.plans[0])
        _draw_regret(row, entry)
        _draw_memory(row, entry, scales)
    bottom = _HEAD + len(shortlist.plans) * _ROW + 4
    legend = draw_legend(group(panel, 0, bottom), [(part_name(key), looks[key], "") for key in keys], columns=4)
    return Panel(panel, bottom + legend)


def _draw_words(row: Element, entry: ShortlistEntry, per_sample: bool) -> None:
    label(row, 0, 15, str(entry.rank), "strong num")
    summary = f"batch {entry.plan.global_batch_size:,} · {entry.plan.summary}" if per_sample else entry.plan.summary
    label(row, _LEFT, 15, fitted(summary, _REGRET_LEFT - _LEFT - 20), "strong" if entry.rank == 1 else "")
    tooltip(row, f"plan {entry.rank}: {entry.plan.id}, {entry.plan.summary}")
    notes = [
        (f"{words} {joined(names)}", style)
        for words, names, style in (
            ("best for", entry.best_for, "small muted"),
            ("out of memory in", entry.out_of_memory_in, "small alarm"),
            ("cannot run in", entry.cannot_run_in, "small alarm"),
        )
        if names
    ]
    left, room = _LEFT, (_REGRET_LEFT - _LEFT - 20) / max(1, len(notes))
    for text, style in notes:
        words = fitted(text, room - 12, 11.5)
        label(row, left, _BAR_TOP + _BAR + 15, words, style)
        left += text_width(words, 11.5) + 16


def _draw_time(
    row: Element, entry: ShortlistEntry, scales: _Scales, looks: Mapping[str, Look], best: ShortlistEntry
) -> None:
    parts, whole = time_parts(entry.estimate), entry.estimate.step_time_s
    width = _TIME_WIDTH * scales.time_s(entry) / scales.longest_s
    left = _LEFT
    for position, (key, look) in enumerate(looks.items(), start=1):
        part_s = parts.get(key, 0.0)
        if not part_s:
            continue
        part_width = width * part_s / sum(parts.values())
        part = group(row)
        tooltip(part, f"plan {entry.rank}, {part_name(key)}: {seconds(part_s)}, {percent(part_s / whole)}")
        box(part, Area(left, _BAR_TOP, part_width, _BAR), look)
        if part_width >= 8 * len(str(position)) + 6:
            label(part, left + part_width / 2, _BAR_TOP + 16, str(position), "on small", anchor="middle")
        left += part_width
    behind = scales.time_s(entry) / scales.time_s(best) - 1
    text = seconds(scales.time_s(entry))
    label(row, left + 8, _BAR_TOP + 17, text, "strong num")
    if entry is not best:
        more = f"{'+' if behind >= 0 else '−'}{percent(abs(behind))}"
        label(row, left + 20 + 9 * len(text), _BAR_TOP + 17, more, "small muted num")


def _draw_regret(row: Element, entry: ShortlistEntry) -> None:
    label(row, _REGRET_LEFT, 15, f"expected {percent(entry.regret_ratio)}", "num")
    label(row, _REGRET_LEFT, _BAR_TOP + 17, f"worst {percent(entry.worst_regret_ratio)}", "num muted")


def _draw_memory(row: Element, entry: ShortlistEntry, scales: _Scales) -> None:
    stage = fullest_stage(entry.estimate)
    unit = _MEMORY_WIDTH / scales.most_bytes
    bar = group(row)
    tooltip(bar, f"plan {entry.rank}, memory: {memory(stage.peak_memory_bytes)} of {memory(stage.limit_bytes)}")
    width, limit = stage.peak_memory_bytes * unit, _MEMORY_LEFT + stage.limit_bytes * unit
    rectangle(bar, Area(_MEMORY_LEFT, _BAR_TOP, _MEMORY_WIDTH, _BAR), "panel")
    rectangle(bar, Area(_MEMORY_LEFT, _BAR_TOP, width, _BAR), "grey")
    if stage.missing_bytes:
        rectangle(bar, Area(limit, _BAR_TOP - 1, _MEMORY_LEFT + width - limit, _BAR + 2), "excess")
    upright(bar, limit, _BAR_TOP - 6, _BAR_TOP + _BAR + 6, "limit")
    right = _MEMORY_LEFT + _MEMORY_WIDTH + 10
    label(row, right, _BAR_TOP + 17, memory(stage.peak_memory_bytes), "num strong")
    note = f"lacks {memory(stage.missing_bytes)}" if stage.missing_bytes else f"of {memory(stage.limit_bytes)}"
    style = "small num alarm strong" if stage.missing_bytes else "small num muted"
    label(row, right, _BAR_TOP + _BAR + 9, note, style)


def _footer_panel(shortlist: Shortlist) -> Panel:
    panel = group()
    text = f"prices: {shortlist.provenance.value} · space: {shortlist.certificate.space}"
    lines = wrapped(text, _TEXT_WIDTH, 11.5)
    for number, line in enumerate(lines):
        label(panel, 0, 11 + 18 * number, line, "small muted")
    return Panel(panel, 18 * len(lines) - 6)


def _description(shortlist: Shortlist) -> str:
    """What the picture shows, in sentences."""
    return " ".join([f"{_sureness(shortlist)}.", *map(_sentence, shortlist.plans)])


def _sentence(entry: ShortlistEntry) -> str:
    stage = fullest_stage(entry.estimate)
    notes: Sequence[tuple[str, tuple[str, ...]]] = (
        ("best for", entry.best_for),
        ("out of memory in", entry.out_of_memory_in),
        ("cannot run in", entry.cannot_run_in),
    )
    more = "".join(f"; {words} {joined(names)}" for words, names in notes if names)
    return (
        f"Plan {entry.rank}, {entry.plan.summary}: {seconds(entry.estimate.step_time_s)} a step, "
        f"regret {percent(entry.regret_ratio)} expected and {percent(entry.worst_regret_ratio)} at worst, "
        f"{memory(stage.peak_memory_bytes)} of {memory(stage.limit_bytes)} in its fullest stage{more}."
    )
