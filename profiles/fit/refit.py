"""A fit of all constants, and for each publication one without it: the whole of what `make fit` computes."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context

import numpy as np

from profiles.fit.parameters import Parameter, Presets
from profiles.fit.rows import THINNED, thinned
from profiles.fit.search import Floats, Row, fit, predicted_s, weigh

ROUNDS = 26
"""Of least squares from the start, which is enough for the loss to stand still in its third digit."""
ROUNDS_LEFT_OUT = 10
LEFT_OUT_THINNED = 50
"""Rows of a source at most, for the many fits without one publication."""


def fit_all(rows: list[Row], parameters: tuple[Parameter, ...]) -> dict[str, float]:
    """Constants from all sources."""
    return _from_the_start(rows, parameters, THINNED, ROUNDS)


def left_out_s(
    rows: list[Row],
    parameters: tuple[Parameter, ...],
    processes: int,
    report: Callable[[str], None],
) -> Floats:
    """Step times of each publication by constants that were fitted without it; `report` gets each when it is done."""
    publications = sorted({row.publication for row in rows})
    found = np.zeros(len(rows))
    with ProcessPoolExecutor(processes, get_context("forkserver")) as pool:
        work = partial(_without, rows, parameters)
        for name, predicted in zip(publications, pool.map(work, publications), strict=True):
            found[[number for number, row in enumerate(rows) if row.publication == name]] = predicted
            report(name)
    return found


def _without(rows: list[Row], parameters: tuple[Parameter, ...], publication: str) -> Floats:
    others = [row for row in rows if row.publication != publication]
    refitted = _from_the_start(others, parameters, LEFT_OUT_THINNED, ROUNDS_LEFT_OUT)
    return predicted_s([row for row in rows if row.publication == publication], Presets(parameters, refitted))


def _from_the_start(rows: list[Row], parameters: tuple[Parameter, ...], at_most: int, rounds: int) -> dict[str, float]:
    start = {parameter.name: parameter.start for parameter in parameters}
    return fit(weigh(thinned(rows, at_most), rows), parameters, start, rounds)
