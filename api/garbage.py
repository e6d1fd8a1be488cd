"""How often Python looks for garbage, where thousands of objects are made that are none."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

GARBAGE_THRESHOLDS = (50_000, 20, 100)
"""New objects before a collection, young ones before one of the middle generation, those before a full one. A decision
can hold thousands of moves, and none is garbage: with Python's own 700, collecting takes as long as making them."""


@contextmanager
def uncollected() -> Iterator[None]:
    """While a process loads what it needs: none of it is garbage, and looking takes a tenth of the time.

    Inside, `spare_the_collector` has it look again.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def spare_the_collector() -> None:
    """What the process has loaded lives as long as it does: no collection looks at it again, nor does one now, for a
    hundred objects of 150,000 are garbage then, and to find them takes a tenth of a second."""
    gc.freeze()
    gc.set_threshold(*GARBAGE_THRESHOLDS)
    gc.enable()
