"""Least squares over the logarithms of predicted by measured step times, with a loss that outliers move little."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from planner.cost.estimate import estimate
from planner.spec.cluster import Cluster
from profiles.fit.parameters import Parameter, Presets
from profiles.runs.case import Case

Floats = NDArray[np.float64]
_LARGE_RESIDUAL = 0.1
"""Beyond ten percent, residuals count by their size rather than their square."""
_STEP = 2e-3
"""Of a constant's range, for finite differences."""
_DIGITS = 4


class Row(NamedTuple):
    """One measured run."""

    source: str
    publication: str
    """What the source is a part of."""
    case: Case
    measured_s: float
    weight: float


def weigh(rows: Sequence[Row], of: Sequence[Row]) -> list[Row]:
    """Rows such that a source counts as the square root of its rows in `of`: no source drowns the others."""
    rows_of, kept = Counter(row.source for row in of), Counter(row.source for row in rows)
    return [row._replace(weight=rows_of[row.source] ** 0.5 / kept[row.source]) for row in rows]


def predicted_s(rows: Sequence[Row], presets: Presets) -> Floats:
    """Step time of each row."""
    clusters: dict[Cluster, Cluster] = {}
    for row in rows:
        if row.case.cluster not in clusters:
            clusters[row.case.cluster] = presets.applied(row.case.cluster)
    return np.array(
        [
            estimate(row.case.model, clusters[row.case.cluster], row.case.training, row.case.plan).step_time_s
            for row in rows
        ]
    )


def fit(
    rows: Sequence[Row], parameters: tuple[Parameter, ...], start: Mapping[str, float], rounds: int
) -> dict[str, float]:
    """Constants that bring predictions closest to the rows, to four digits; constants no row depends on stay.

    The same rows and start give the same constants. Bounds are each constant's range.
    """
    problem = _Problem(rows, parameters, start)
    x = problem.scaled(start)
    found = least_squares(
        problem.residuals,
        x,
        problem.jacobian,
        bounds=(0.0, 1.0),
        loss="soft_l1",
        f_scale=_LARGE_RESIDUAL,
        max_nfev=rounds,
    )
    return {name: float(f"%.{_DIGITS}g" % value) for name, value in problem.values(found.x).items()}


class _Problem:
    """Constants scaled to 0..1 of their range; a row is priced again only for constants that it depends on."""

    def __init__(self, rows: Sequence[Row], parameters: tuple[Parameter, ...], start: Mapping[str, float]) -> None:
        self._rows = rows
        self._parameters = parameters
        self._start = dict(start)
        self._weights = np.sqrt([row.weight for row in rows])
        self._measured = np.array([row.measured_s for row in rows])
        self._touched = [_touched(parameter, rows) for parameter in parameters]

    def scaled(self, values: Mapping[str, float]) -> Floats:
        """Values as parts of their range, off its ends."""
        parts = [(values[p.name] - p.low) / (p.high - p.low) for p in self._parameters]
        return np.asarray(np.clip(parts, 1e-3, 1 - 1e-3), dtype=np.float64)

    def values(self, x: Floats) -> dict[str, float]:
        """Constants from parts of their range; those that no row depends on as they were."""
        return {
            p.name: p.low + float(part) * (p.high - p.low) if len(touched) else self._start[p.name]
            for p, part, touched in zip(self._parameters, x, self._touched, strict=True)
        }

    def residuals(self, x: Floats) -> Floats:
        """Weighted logarithms of predicted by measured."""
        return self._some_residuals(x, np.arange(len(self._rows)))

    def jacobian(self, x: Floats) -> Floats:
        """By differences, one constant after the other."""
        now = self.residuals(x)
        slopes = np.zeros((len(now), len(x)))
        for column, touched in enumerate(self._touched):
            if len(touched):
                step = _STEP if x[column] < 0.5 else -_STEP
                moved = x.copy()
                moved[column] += step
                slopes[touched, column] = (self._some_residuals(moved, touched) - now[touched]) / step
        return slopes

    def _some_residuals(self, x: Floats, which: NDArray[np.intp]) -> Floats:
        presets = Presets(self._parameters, self.values(x))
        predicted = predicted_s([self._rows[i] for i in which], presets)
        return np.asarray(np.log(predicted / self._measured[which]) * self._weights[which], dtype=np.float64)


def _touched(parameter: Parameter, rows: Sequence[Row]) -> NDArray[np.intp]:
    devices, stacks = parameter.presets("hardware"), parameter.presets("software")
    return np.array(
        [
            number
            for number, row in enumerate(rows)
            if row.case.cluster.device.name in devices or row.case.cluster.stack.name in stacks
        ],
        dtype=np.intp,
    )
