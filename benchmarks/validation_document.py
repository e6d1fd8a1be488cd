"""The figures of docs/validation.md: tables in Markdown, between markers.

A part begins with `<!-- figures: NAME -->` and ends with `<!-- end -->`, each on a line of its own. Equal outcomes give
equal text.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from planner.spec.errors import InputError
from planner.view import Column, Table
from planner.view.quantities import memory, percent, seconds
from profiles.fit.rows import family
from profiles.runs import Errors, Outcome, Summary, errors

_PART = re.compile(r"(?P<begin><!-- figures: (?P<name>\w+) -->\n).*?(?P<end><!-- end -->)", re.DOTALL)
_KEYS = ("date", "method", "constants", "sources", "errors")
_MOST_LOST = 10
"""Groups to name."""


def sections(
    numbers: Table, outcomes: Sequence[Outcome], summary: Summary, record: Mapping[str, Any]
) -> dict[str, str]:
    """Text of each part by its name; `record` is of the last fit."""
    tables = {
        "numbers": numbers,
        "sources": _sources(outcomes, record),
        "classes": _classes(summary),
        "bands": _bands(record),
        "ranking": _ranking(summary),
        "groups": _groups(summary),
        "memory": _memory(outcomes),
        "skipped": _skipped(outcomes),
        "worst": _worst(outcomes, summary),
    }
    return {"fit": _fit(record)} | {name: markdown(table) for name, table in tables.items()}


def write_sections(document: Path, texts: Mapping[str, str]) -> None:
    """Put each text between its markers; raises InputError if the document lacks one or has one of another name."""
    try:
        text = document.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError.at("--write", f"cannot read {document}: {error.strerror or error}") from None
    found = [match["name"] for match in _PART.finditer(text)]
    if sorted(found) != sorted(texts):
        raise InputError.at("--write", f"{document} must have the parts {', '.join(sorted(texts))}, has {found}")
    written = _PART.sub(lambda match: f"{match['begin']}{texts[match['name']]}\n{match['end']}", text)
    document.write_text(written, encoding="utf-8")


def markdown(table: Table) -> str:
    """The table as Markdown has it."""
    heads = [column.title for column in table.columns]
    rules = ["--:" if column.numeric else "---" for column in table.columns]
    lines = [heads, rules, *([cell.replace("|", "\\|") for cell in row] for row in table.rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def read_record(file: Path) -> dict[str, Any]:
    """What a fit wrote; raises InputError if it is not there or holds no errors left out."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError.at("--record", f"cannot read {file}: {error}") from None
    lacking = [key for key in _KEYS if key not in found]
    if lacking:
        raise InputError.at("--record", f"{file} lacks {', '.join(lacking)}; `make fit` writes them")
    return dict(found)


def _fit(record: Mapping[str, Any]) -> str:
    rows = sum(line["rows"] for line in record["sources"])
    return f"{record['constants']} constants, fitted on {record['date']} to {rows} rows. Method: {record['method']}."


def _error_columns(*heads: str) -> tuple[Column, ...]:
    names = ("rows", "mean", "median", "bias")
    return (*(Column(head) for head in heads), *(Column(name, True) for name in names))


def _error_cells(found: Errors) -> tuple[str, ...]:
    mean, median = found["mean_absolute_error"], found["median_absolute_error"]
    return (str(found["rows"]), percent(mean), percent(median), _signed(found["bias"]))


def _sources(outcomes: Iterable[Outcome], record: Mapping[str, Any]) -> Table:
    """By source as the fit knows them, in the sample and left out."""
    left_out = {line["source"]: line for line in record["sources"]}
    rows = []
    for source, ratios in _ratios(outcomes, lambda outcome: family(outcome.record.source)).items():
        line, found = left_out.get(source), errors(ratios)
        names = ("left_out_mean_absolute_error", "left_out_median_absolute_error")
        beside = tuple(percent(line[name]) if line else "–" for name in names)
        if found is not None:
            rows.append((source, *_error_cells(found), *beside))
    columns = (*_error_columns("source"), Column("left out: mean", True), Column("left out: median", True))
    return Table("", columns, tuple(rows))


def _ratios(outcomes: Iterable[Outcome], key: Callable[[Outcome], str]) -> dict[str, list[float]]:
    """Errors of the rows that count for accuracy, by key in alphabetical order."""
    found: dict[str, list[float]] = defaultdict(list)
    for outcome in outcomes:
        if outcome.record.usable_for_accuracy and outcome.error_ratio is not None:
            found[key(outcome)].append(outcome.error_ratio)
    return dict(sorted(found.items()))


def _classes(summary: Summary) -> Table:
    parts = (
        ("device", summary["by_device"]),
        ("stack", summary["by_stack"]),
        ("kind", summary["by_kind"]),
        ("precision", summary["by_precision"]),
    )
    rows = tuple((title, name, *_error_cells(found)) for title, part in parts for name, found in part.items())
    return Table("", _error_columns("by", "class"), rows)


def _bands(record: Mapping[str, Any]) -> Table:
    columns = (Column("device"), Column("stack"), Column("kind"), Column("rows", True), Column("measured / predicted"))
    rows = tuple(
        (
            *("any" if band[name] == "*" else band[name] for name in ("device", "stack", "kind")),
            str(band["rows"]),
            f"{band['low_ratio']:.2f} – {band['high_ratio']:.2f}",
        )
        for band in record["errors"]
    )
    return Table("", columns, rows)


def _ranking(summary: Summary) -> Table:
    """Groups by source."""
    by_source = defaultdict(list)
    for group in summary["ranking"]["by_group"]:
        by_source[group["source"]].append(group)
    columns = (
        Column("source"),
        *(Column(name, True) for name in ("groups", "Spearman, mean", "lost, mean", "lost, most")),
    )
    rows = []
    for source, groups in sorted(by_source.items()):
        lost = [group["regret_ratio"] for group in groups]
        order = sum(group["spearman"] for group in groups) / len(groups)
        rows.append((source, str(len(groups)), f"{order:.2f}", percent(sum(lost) / len(lost)), percent(max(lost))))
    return Table("", columns, tuple(rows))


def _groups(summary: Summary) -> Table:
    """The groups in which the predicted best plan loses most."""
    groups = sorted(summary["ranking"]["by_group"], key=lambda group: (-group["regret_ratio"], group["group"]))
    columns = (Column("group"), *(Column(name, True) for name in ("plans", "Spearman", "lost")))
    rows = tuple(
        (f"`{group['group']}`", str(group["plans"]), f"{group['spearman']:.2f}", percent(group["regret_ratio"]))
        for group in groups[:_MOST_LOST]
    )
    return Table("", columns, rows)


def _memory(outcomes: Iterable[Outcome]) -> Table:
    """By source: the error of peaks, runs out of memory that are called, false alarms."""
    by_source: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        if outcome.fits is not None:
            by_source[outcome.source].append(outcome)
    names = ("rows with a peak", "mean", "median", "bias", "out of memory: called", "ran: false alarms")
    rows = tuple((source, *_memory_cells(rows)) for source, rows in sorted(by_source.items()))
    return Table("", (Column("source"), *(Column(name, True) for name in names)), rows)


def _memory_cells(outcomes: Sequence[Outcome]) -> tuple[str, ...]:
    found = errors([o.memory_error_ratio for o in outcomes if o.memory_error_ratio is not None])
    oom = [o for o in outcomes if o.record.oom]
    ran = [o for o in outcomes if not o.record.oom and o.measured_step_time_s is not None]
    called = f"{sum(not o.fits for o in oom)} of {len(oom)}" if oom else "–"
    cells = ("–", "–", "–", "–") if found is None else _error_cells(found)
    return (*cells, called, f"{sum(not o.fits for o in ran)} of {len(ran)}")


def _skipped(outcomes: Iterable[Outcome]) -> Table:
    reasons: dict[str, list[bool]] = defaultdict(list)
    for outcome in outcomes:
        if outcome.skipped is not None:
            reasons[outcome.skipped].append(outcome.record.usable_for_accuracy)
    ordered = sorted(reasons.items(), key=lambda item: (-len(item[1]), item[0]))
    rows = tuple((reason, str(len(usable)), str(sum(usable))) for reason, usable in ordered)
    return Table("", (Column("reason"), Column("rows", True), Column("of them usable for accuracy", True)), rows)


def _worst(outcomes: Iterable[Outcome], summary: Summary) -> Table:
    by_id = {outcome.record.id: outcome for outcome in outcomes}
    columns = (
        Column("run"),
        *(Column(name, True) for name in ("measured", "predicted", "error", "predicted peak")),
        Column("plan as priced"),
        Column("recomputation"),
    )
    return Table("", columns, tuple(_worst_row(by_id[each["id"]]) for each in summary["worst"]))


def _worst_row(outcome: Outcome) -> tuple[str, ...]:
    case = outcome.case
    assert case is not None and outcome.error_ratio is not None
    return (
        f"`{outcome.record.id}`",
        seconds(outcome.measured_step_time_s or 0.0),
        seconds(outcome.predicted_step_time_s or 0.0),
        _signed(outcome.error_ratio),
        memory(outcome.predicted_peak_memory_bytes or 0),
        case.plan.summary,
        case.plan.main_strategy.recompute.value + ("" if case.recompute_known else ", assumed"),
    )


def _signed(ratio: float) -> str:
    return f"{100 * ratio:+.1f} %"
