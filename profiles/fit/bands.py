"""From predicted and measured step times to error bands by class: device, stack, dense or MoE, each or any.

A class of several devices or stacks is asked about by those that have no class of their own. So that none of its
members drowns the others, each counts as the square root of its number of runs (as sources do in the fit itself).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TypedDict

import numpy as np

ANY = "*"
LEAST_ROWS = 8
"""Runs from which on a class has percentiles."""
PERCENTILES = (10.0, 90.0)
_DIGITS = 4
Member = tuple[str, str, str]
"""(device, stack, kind); kind is `dense` or `moe`."""
Entry = tuple[str, str, str, float]
"""(device, stack, kind, measured over predicted step time)."""


class Band(TypedDict):
    """One class, with `*` for what may be any; the ratios are its 10th and 90th percentile."""

    device: str
    stack: str
    kind: str
    rows: int
    low_ratio: float
    high_ratio: float


def bands(entries: Iterable[Entry]) -> list[Band]:
    """The band of each class of at least eight runs, in the order of the names, whatever the order of the entries."""
    rows: dict[Member, list[tuple[Member, float]]] = {}
    for device, stack, kind, ratio in sorted(entries):
        member = (device, stack, kind)
        for found in (member, (ANY, stack, kind), (device, ANY, kind), (ANY, ANY, kind), (ANY, ANY, ANY)):
            rows.setdefault(found, []).append((member, ratio))
    return [_band(name, found) for name, found in sorted(rows.items()) if len(found) >= LEAST_ROWS]


def _band(name: Member, rows: Sequence[tuple[Member, float]]) -> Band:
    counts = Counter(member for member, _ in rows)
    weights = [counts[member] ** -0.5 for member, _ in rows]
    low, high = (percentile([ratio for _, ratio in rows], weights, rank) for rank in PERCENTILES)
    device, stack, kind = name
    return Band(device=device, stack=stack, kind=kind, rows=len(rows), low_ratio=low, high_ratio=high)


def percentile(values: Sequence[float], weights: Sequence[float], rank: float) -> float:
    """The value below which `rank` percent of the weight lies, to four digits; between values, by a straight line.

    Each value stands in the middle of its weight: with equal weights, value i of n (from 1) is percentile (i - 1/2)/n.
    Source: Hazen's plotting position (Hyndman and Fan 1996, "Sample Quantiles in Statistical Packages", definition 5).
    """
    order = np.argsort(values, kind="stable")
    sorted_weights = np.asarray(weights)[order]
    middles = (np.cumsum(sorted_weights) - sorted_weights / 2.0) / sorted_weights.sum()
    found = float(np.interp(rank / 100.0, middles, np.asarray(values)[order]))
    return float(f"{found:.{_DIGITS}g}")
