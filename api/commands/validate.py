"""`trimtab validate`: predicted against measured, for runs that others published."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from api.commands.lines import say
from api.commands.options import JsonOption
from api.commands.terminal import progress_bar, show
from planner.spec.errors import InputError
from planner.view import Column, Table
from planner.view.quantities import memory, percent, seconds
from profiles.runs import Errors, Outcome, RunRecord, Summary, outcomes_of, read_runs, summarise

_PICTURES = (".svg", ".png")
_NOTE_WIDTH = 40


def validate(
    runs: Annotated[Path, typer.Argument(metavar="RUNS.json", help="Measured runs; docs/runs-format.md says how")],
    source: Annotated[str | None, typer.Option(metavar="TEXT", help="Only rows whose source holds TEXT")] = None,
    only_usable: Annotated[bool, typer.Option("--only-usable", help="Only rows that are usable_for_accuracy")] = False,
    only_summary: Annotated[bool, typer.Option("--only-summary", help="Leave out the line of each run")] = False,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE.svg|.png", help="Draw predicted against measured steps")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Price the measured runs of RUNS.json and say how far off the prices are."""
    if plot is not None:
        _check_picture(plot)
    chosen = _chosen(read_runs(runs), source, only_usable)
    with progress_bar("Pricing") as report:
        outcomes = outcomes_of(chosen, report)
    summary = summarise(outcomes)
    if plot is not None:
        _draw(outcomes, plot)
    if as_json:
        say(json.dumps({"rows": [row_of(outcome) for outcome in outcomes], "summary": summary}, indent=2))
        return
    if not only_summary:
        show(_rows_table(outcomes), whole_lines=True)
    show(*_summary_tables(summary), whole_lines=True)


def row_of(outcome: Outcome) -> dict[str, Any]:
    """One row of the machine output; null where nothing is known."""
    case = outcome.case
    return {
        "id": outcome.record.id,
        "predicted_step_time_s": outcome.predicted_step_time_s,
        "measured_step_time_s": outcome.measured_step_time_s,
        "error_ratio": outcome.error_ratio,
        "predicted_peak_memory_bytes": outcome.predicted_peak_memory_bytes,
        "measured_peak_memory_bytes": outcome.measured_peak_memory_bytes,
        "skipped": outcome.skipped,
        "note": _note(outcome),
        "source": outcome.record.source,
        "group": outcome.record.group,
        "usable_for_accuracy": outcome.record.usable_for_accuracy,
        "oom": outcome.record.oom,
        "fits": outcome.fits,
        "device": None if case is None else case.cluster.device.name,
        "stack": None if case is None else case.stack,
        "precision": None if case is None else case.training.precision.value,
        "moe": None if case is None else bool(case.model.moe_layers),
        "plan": None if case is None else case.plan.summary,
        "recompute_known": None if case is None else case.recompute_known,
    }


def _note(outcome: Outcome) -> str | None:
    """Why a row has no price, or no error."""
    return outcome.skipped or outcome.unmeasured


def _chosen(records: Sequence[RunRecord], source: str | None, only_usable: bool) -> list[RunRecord]:
    """The rows to price; raises InputError if the filters leave none."""
    wanted = (source or "").lower()
    rows = [r for r in records if wanted in r.source.lower() and (r.usable_for_accuracy or not only_usable)]
    if rows:
        return rows
    if not records:
        raise InputError.at("runs", "must hold at least one row")
    known = sorted({record.source for record in records})
    raise InputError.at("--source", f"no such row; sources are {', '.join(known[:5])}{', …' if known[5:] else ''}")


def _check_picture(path: Path) -> None:
    """Raise InputError for a picture that could not be written, before anything is priced."""
    if path.suffix.lower() not in _PICTURES:
        raise InputError.at("--plot", f"must end in {' or '.join(_PICTURES)}, got {str(path)!r}")
    if not path.parent.is_dir():
        raise InputError.at("--plot", f"cannot write {path}: there is no directory {path.parent}")


def _draw(outcomes: Sequence[Outcome], path: Path) -> None:
    # A drawing library takes a second to start, which no other command should wait for.
    from api.scatter import draw_scatter  # noqa: PLC0415

    draw_scatter(outcomes, path)


def _rows_table(outcomes: Iterable[Outcome]) -> Table:
    columns = (
        Column("run"),
        Column("predicted", True),
        Column("measured", True),
        Column("error", True),
        Column("peak", True),
        Column("measured peak", True),
        Column("fits"),
        Column("note"),
    )
    return Table("Runs", columns, tuple(_row(outcome) for outcome in outcomes))


def _row(outcome: Outcome) -> tuple[str, ...]:
    return (
        outcome.record.id,
        _shown(outcome.predicted_step_time_s, seconds),
        _shown(outcome.measured_step_time_s, seconds),
        _shown(outcome.error_ratio, _signed),
        _shown(outcome.predicted_peak_memory_bytes, memory),
        "OOM" if outcome.record.oom else _shown(outcome.measured_peak_memory_bytes, memory),
        "" if outcome.fits is None else "yes" if outcome.fits else "no",
        _cut(_note(outcome) or ""),
    )


def _summary_tables(summary: Summary) -> list[Table]:
    tables = [_errors_table("Step time", summary["step_time"])]
    for title, part in (
        ("By source", summary["by_source"]),
        ("By stack", summary["by_stack"]),
        ("By device", summary["by_device"]),
        ("Dense and MoE", summary["by_kind"]),
        ("By precision", summary["by_precision"]),
    ):
        tables.append(_errors_table(title, part))
    tables.append(_other_table(summary))
    if summary["worst"]:
        worst = tuple((row["id"], _signed(row["error_ratio"])) for row in summary["worst"])
        tables.append(
            Table(
                "Farthest off by factor (half and twice are equally far)", (Column("run"), Column("error", True)), worst
            )
        )
    if summary["skipped"]["reasons"]:
        reasons = tuple((reason, str(count)) for reason, count in summary["skipped"]["reasons"].items())
        tables.append(Table("Skipped", (Column("reason"), Column("rows", True)), reasons))
    return [table for table in tables if table.rows]


def _errors_table(title: str, lines: Mapping[str, Errors]) -> Table:
    columns = (
        Column(title),
        Column("rows", True),
        Column("mean error", True),
        Column("median", True),
        Column("bias", True),
    )
    rows = tuple(
        (
            name,
            str(each["rows"]),
            percent(each["mean_absolute_error"]),
            percent(each["median_absolute_error"]),
            _signed(each["bias"]),
        )
        for name, each in lines.items()
    )
    return Table("", columns, rows)


def _other_table(summary: Summary) -> Table:
    """What is not the error of a step: skipped rows, ranking, memory."""
    skipped, ranking, oom = summary["skipped"], summary["ranking"], summary["out_of_memory"]
    rows = [
        ("rows", f"{summary['rows']}, of them {summary['priced']} priced"),
        ("skipped of the usable rows", f"{skipped['usable_rows']} ({percent(skipped['usable_ratio'])})"),
    ]
    if summary["unmeasured_rows"]:
        rows.append(("usable rows with a price of which no step time can be derived", str(summary["unmeasured_rows"])))
    if ranking["mean_spearman"] is not None and ranking["mean_regret_ratio"] is not None:
        rows += [
            ("groups of at least 3 plans", str(ranking["groups"])),
            ("rank correlation (Spearman), mean", f"{ranking['mean_spearman']:.2f}"),
            ("time lost by taking the predicted best, mean", percent(ranking["mean_regret_ratio"])),
        ]
    peak = summary["memory"]
    if peak is not None:
        rows += [
            ("rows with a measured peak memory", str(peak["rows"])),
            ("error of peak memory, mean", percent(peak["mean_absolute_error"])),
            ("error of peak memory, median", percent(peak["median_absolute_error"])),
            ("bias of peak memory", _signed(peak["bias"])),
        ]
    if oom["oom_rows"]:
        rows.append(("out-of-memory runs called", f"{oom['oom_called']} of {oom['oom_rows']}"))
    rows.append(("false alarms on runs that fitted", f"{oom['false_alarms']} of {oom['ran_rows']}"))
    return Table("", (Column("Coverage, ranking, memory"), Column("", True)), tuple(rows))


def _cut(text: str) -> str:
    """In a terminal one line stays one line; whole reasons stand below, in the table of skipped rows."""
    return text if len(text) <= _NOTE_WIDTH or not sys.stdout.isatty() else f"{text[: _NOTE_WIDTH - 1]}…"


def _shown(value: float | None, render: Callable[[float], str]) -> str:
    return "" if value is None else render(value)


def _signed(ratio: float) -> str:
    return f"{100 * ratio:+.1f} %"
