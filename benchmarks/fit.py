"""`make fit RUNS=runs.json DATE=2026-11-21`: fit the constants of the presets, write them and their record."""

from __future__ import annotations

import argparse
from importlib.resources import files
from pathlib import Path

import numpy as np

from profiles.fit.bands import bands
from profiles.fit.parameters import Presets, read_parameters
from profiles.fit.record import errors_by_source, write_presets, write_record
from profiles.fit.refit import fit_all, left_out_s
from profiles.fit.rows import rows_of
from profiles.fit.search import Row, predicted_s
from profiles.runs import read_runs


def main() -> None:
    """Fit, leave each source out in turn, and write."""
    arguments = _arguments()
    parameters = read_parameters()
    rows = rows_of(read_runs(arguments.runs))
    print(f"{len(rows)} rows, {len(parameters)} constants", flush=True)
    values = fit_all(rows, parameters)
    predicted = predicted_s(rows, Presets(parameters, values))
    left_out = left_out_s(rows, parameters, arguments.processes, lambda done: print(f"without {done}", flush=True))
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


def _kind(row: Row) -> str:
    return "moe" if row.case.model.moe_layers else "dense"


if __name__ == "__main__":
    main()
