"""Which rows of a table no other row beats: the one dominance test of the search."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.search.progress import Tick, nothing

Table = NDArray[Any]

_BLOCK = 256


def undominated(values: Table, labels: NDArray[np.int64] | None = None, tick: Tick = nothing) -> NDArray[np.int64]:
    """Indices, ascending, of the rows of `values` [rows, criteria] that no row of their group beats or equals.

    Smaller is better. Of equal rows the first stays. `labels` [rows]: rows are compared within equal labels only.
    `tick()` is called between blocks of rows.
    """
    if len(values) == 0:
        return np.zeros(0, dtype=np.int64)
    if labels is None:
        return np.sort(_undominated(values, tick))
    order = np.argsort(labels, kind="stable")
    starts = np.flatnonzero(np.diff(labels[order], prepend=labels[order[0]] - 1))
    kept = [members[_undominated(values[members], tick)] for members in np.split(order, starts[1:])]
    return np.sort(np.concatenate(kept))


def beaten(values: Table, by: Table, tick: Tick = nothing) -> NDArray[np.bool_]:
    """[rows] of `values` [rows, criteria] that a row of `by` beats or equals in every number."""
    found = np.zeros(len(values), dtype=bool)
    for start in range(0, len(values), _BLOCK):
        tick()
        found[start : start + _BLOCK] = _no_worse(by, values[start : start + _BLOCK]).any(axis=1)
    return found


def _undominated(values: Table, tick: Tick) -> NDArray[np.int64]:
    # In lexicographic order a row can only be beaten by an earlier one; a stable sort lets the first of equals win.
    order = np.lexsort(values.T[::-1])
    tick()
    ordered = values[order]
    kept = values[:0]
    kept_at: list[NDArray[np.int64]] = []
    for start in range(0, len(ordered), _BLOCK):
        tick()
        block = ordered[start : start + _BLOCK]
        positions = np.flatnonzero(np.logical_not(np.any(_no_worse(kept, block), axis=1)))
        block = block[positions]
        earlier = np.tri(len(block), k=-1, dtype=bool)
        survivors = np.flatnonzero(np.logical_not(np.any(_no_worse(block, block) & earlier, axis=1)))
        kept = np.concatenate([kept, block[survivors]])
        kept_at.append(order[start + positions[survivors]])
    return np.concatenate(kept_at)


def _no_worse(rows: Table, than: Table) -> NDArray[np.bool_]:
    """[than, rows]: whether a row of `rows` is no worse in any criterion than a row of `than`."""
    flags = np.ones((len(than), len(rows)), dtype=bool)
    for criterion in range(rows.shape[1]):
        flags &= rows[None, :, criterion] <= than[:, None, criterion]
    return flags
