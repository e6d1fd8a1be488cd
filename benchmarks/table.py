"""Aim beside measurement: the rows that `make bench-online` prints as one table.

Each part's benchmark (`bench_*.py`) has `rows() -> list[Row]`, which measures when called.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Row(NamedTuple):
    """One number of a part, as text with its unit."""

    what: str
    """What was measured, with its size: `place 58 x 256, 320 slots, 64 ranks, zipf`."""
    aim: str
    measured: str
    met: bool | None
    """None: there is no aim, or it cannot be told on this machine; `measured` says why."""


def row(what: str, measured: float, at_most: float, unit: str = "", digits: int = 3) -> Row:
    """A row whose aim is an upper limit."""
    suffix = f" {unit}" if unit else ""
    return Row(what, f"≤ {at_most:g}{suffix}", f"{measured:.{digits}f}{suffix}", measured <= at_most)


def row_at_least(what: str, measured: float, at_least: float, unit: str = "", digits: int = 3) -> Row:
    """A row whose aim is a lower limit."""
    suffix = f" {unit}" if unit else ""
    return Row(what, f"≥ {at_least:g}{suffix}", f"{measured:.{digits}f}{suffix}", measured >= at_least)


def surely(low: float, high: float, at_most: float) -> bool | None:
    """Whether an interval keeps an upper limit; None where it holds the limit: it cannot be told."""
    return True if high <= at_most else False if low > at_most else None


def show(rows: Sequence[Row]) -> None:
    """Print the rows in columns, and how many aims were met."""
    words = {True: "yes", False: "NO", None: "–"}
    lines = [("what", "aim", "measured", "met?"), *((*each[:3], words[each.met]) for each in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(4)]
    for number, line in enumerate(lines):
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
        if number == 0:
            print("  ".join("─" * width for width in widths))
    aims = [each.met for each in rows if each.met is not None]
    untold = sum(each.met is None and bool(each.aim) for each in rows)
    print(f"{sum(aims)} of {len(aims)} aims met" + (f"; {untold} cannot be told here" if untold else ""))
