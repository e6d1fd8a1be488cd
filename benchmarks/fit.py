"""`make fit RUNS=runs.json DATE=2026-11-21`: fit the constants of the presets, write them and their record."""

from __future__ import annotations

import argparse
from importlib.resources import files
from pathlib import Path

from profiles.fit.bands import ANY, Band, bands
from profiles.fit.parameters import Presets, read_parameters
from profiles.fit.record import errors_by_source, write_presets, write_record
from profiles.fit.refit import fit_all, left_out_s
from profiles.fit.rows import rows_of
from profiles.fit.search import Floats, Row, predicted_s
from profiles.runs import read_runs


def main() -> None:
    """Fit, leave each publication out in turn, and write."""
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
    classes = _classes(rows, predicted, left_out)
    folder = Path(str(files("profiles")))
    write_presets(folder, parameters, values)
    write_record(folder / "fit" / "record.json", arguments.date, values, {"sources": by_source, "errors": classes})


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, help="measured runs; docs/runs-format.md says how")
    parser.add_argument("--date", required=True, help="of the fit, for the record: 2026-11-21")
    parser.add_argument("--processes", type=int, default=2)
    return parser.parse_args()


def _classes(rows: list[Row], predicted: Floats, left_out: Floats) -> list[Band]:
    """Bands: of a device with a stack that was fitted to from the sample, of wider classes from what was left out.

    A pair that has runs of its own is priced with constants that know them; one that has none is not.
    """
    found = []
    for step_s, exact in ((predicted, True), (left_out, False)):
        entries = [
            (row.case.cluster.device.name, row.case.cluster.stack.name, _kind(row), row.measured_s / float(each))
            for row, each in zip(rows, step_s, strict=True)
        ]
        found += [band for band in bands(entries) if (ANY not in (band["device"], band["stack"])) is exact]
    return sorted(found, key=lambda band: (band["device"], band["stack"], band["kind"]))


def _kind(row: Row) -> str:
    return "moe" if row.case.model.moe_layers else "dense"


if __name__ == "__main__":
    main()
