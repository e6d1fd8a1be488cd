"""What a fit found: constants into the presets, and a record of how, on what, and how well."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from profiles.fit.parameters import Parameter, Presets
from profiles.fit.search import Floats, Row

RATE = "device.efficiency.matmul_ratio"
"""A device whose rate of products is fitted is fitted; others share some constants of all devices."""
METHOD = (
    "least squares over logarithms of predicted by measured step times, soft L1 loss, each source weighted "
    "by the square root of its rows; constants to 4 digits; left out: fitted without that publication, from "
    "the same start, in fewer rounds and on fewer rows; bands of a device with a stack are of the sample, wider "
    "ones of what was left out"
)


def write_presets(folder: Path, parameters: tuple[Parameter, ...], values: Mapping[str, float]) -> None:
    """Put the constants into the presets' files; devices and stacks that hold some are `fitted` from then on."""
    presets = Presets(parameters, values)
    touched: dict[tuple[Literal["hardware", "software"], str], set[str]] = {}
    for target in (target for parameter in parameters for target in parameter.targets):
        for name in target.presets:
            touched.setdefault((target.shelf, name), set()).add(target.path)
    for (shelf, name), paths in sorted(touched.items()):
        content = presets.content(shelf, name)
        if shelf == "hardware":
            if RATE in paths:
                content["device"]["provenance"] = "fitted"
        else:
            content["stack"]["fitted"] = True
        _write(folder / shelf / f"{name}.json", content)


def write_record(file: Path, date: str, values: Mapping[str, float], tables: Mapping[str, Any]) -> None:
    """The record beside the parameters."""
    _write(file, {"date": date, "method": METHOD, "constants": len(values), "values": dict(values), **tables})


def errors_by_source(rows: Sequence[Row], predicted: Floats, left_out: Floats) -> list[dict[str, Any]]:
    """For each source: rows, and the mean and median absolute error in the sample and left out."""
    errors = [np.abs(each / np.array([row.measured_s for row in rows]) - 1.0) for each in (predicted, left_out)]
    return [
        {
            "source": source,
            "rows": int(which.sum()),
            "mean_absolute_error": _short(errors[0][which].mean()),
            "median_absolute_error": _short(float(np.median(errors[0][which]))),
            "left_out_mean_absolute_error": _short(errors[1][which].mean()),
            "left_out_median_absolute_error": _short(float(np.median(errors[1][which]))),
        }
        for source in sorted({row.source for row in rows})
        for which in (np.array([row.source == source for row in rows]),)
    ]


def _short(number: float) -> float:
    return float(f"{number:.4g}")


def _write(file: Path, content: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
