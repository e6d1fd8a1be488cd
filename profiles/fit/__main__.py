"""`make fit RUNS=runs.json DATE=2026-11-21`: fit the constants of the presets, write them and their record."""

from __future__ import annotations

import argparse
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib.resources import files
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from profiles.fit.bands import bands
from profiles.fit.parameters import Parameter, Presets, read_parameters
from profiles.fit.record import errors_by_source, write_presets, write_record
from profiles.fit.rows import rows_of, thinned
from profiles.fit.search import Floats, Row, fit, predicted_s, weigh
from profiles.runs import read_runs

ROUNDS = 16
"""Of least squares from the start, which is enough for the loss to stand still in its third digit."""
ROUNDS_LEFT_OUT = 4
"""From the constants of all rows; those that no other source depends on begin from their start."""


def main() -> None:
    """Fit, leave each source out in turn, and write."""
    arguments = _arguments()
    parameters = read_parameters()
    rows = rows_of(read_runs(arguments.runs))
    start = {parameter.name: parameter.start for parameter in parameters}
    print(f"{len(rows)} rows, {len(parameters)} constants", flush=True)
    values = fit(weigh(thinned(rows), rows), parameters, start, ROUNDS)
    predicted = predicted_s(rows, Presets(parameters, values))
    left_out = _left_out(rows, parameters, values, arguments.processes)
    by_source = errors_by_source(rows, predicted, left_out)
    for line in by_source:
        print("{source:90.90} {rows:4d} {mean_absolute_error:.3f} {left_out_mean_absolute_error:.3f}".format(**line))
    ratios = np.array([row.measured_s for row in rows]) / left_out
    classes = bands(
        (row.case.cluster.device.name, row.case.cluster.stack.name, _kind(row), float(ratio))
        for row, ratio in zip(rows, ratios, strict=True)
    )
    folder = Path(str(files("profiles")))
    write_presets(folder, parameters, values)
    write_record(folder / "fit" / "record.json", arguments.date, values, {"sources": by_source, "errors": classes})


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, help="measured runs; docs/runs-format.md says how")
    parser.add_argument("--date", required=True, help="of the fit, for the record: 2026-11-21")
    parser.add_argument("--processes", type=int, default=2)
    return parser.parse_args()


def _left_out(rows: list[Row], parameters: tuple[Parameter, ...], values: dict[str, float], processes: int) -> Floats:
    """Step times of each source by constants that were fitted without it."""
    sources = sorted({row.source for row in rows})
    found = np.zeros(len(rows))
    with ProcessPoolExecutor(processes, get_context("forkserver")) as pool:
        work = partial(_without, rows, parameters, values)
        for source, predicted in zip(sources, pool.map(work, sources), strict=True):
            found[[number for number, row in enumerate(rows) if row.source == source]] = predicted
            print(f"left out: {source}", flush=True)
    return found


def _without(rows: list[Row], parameters: tuple[Parameter, ...], values: dict[str, float], source: str) -> Floats:
    others = [row for row in rows if row.source != source]
    names = {(row.case.cluster.device.name, row.case.cluster.stack.name) for row in others}
    devices, stacks = {device for device, _ in names}, {stack for _, stack in names}
    start = {
        p.name: values[p.name] if p.presets("hardware") & devices or p.presets("software") & stacks else p.start
        for p in parameters
    }
    refitted = fit(weigh(thinned(others), others), parameters, start, ROUNDS_LEFT_OUT)
    return predicted_s([row for row in rows if row.source == source], Presets(parameters, refitted))


def _kind(row: Row) -> str:
    return "moe" if row.case.model.moe_layers else "dense"


if __name__ == "__main__":
    main()
