"""Writes the windows of a job to a trace, which `trimtab replay` reads (docs/trace-format.md).

The file is written anew from a background thread and put in the place of the old one in a single move, so at every
moment it is whole: a job that is killed leaves all windows but the last few. Writing takes at most one part in
`1 + REST` of a thread's time, however long the trace gets: a window comes into the file later then. `close` waits for
the last ones. What goes wrong with the file is a warning, once; the job goes on.

A trace of W windows of L layers and E experts takes 8 W L E bytes of memory on rank 0.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from planner.online.recorded.trace import Trace, arrays_of
from planner.spec.errors import InputError
from planner.spec.window import Window

logger = logging.getLogger("trimtab.record")

REST = 19
"""After a write the writer rests for so many times what that took."""


class Recorder:
    """Appends windows to a trace file; every method may be called from the training thread, and only `close` waits."""

    def __init__(
        self, path: Path | str, top_k: int | None = None, model: str | None = None, first_step: int = 0
    ) -> None:
        """Nothing is written before the first window. Where `name.npz` exists, `name-2.npz`, … is taken instead.

        `top_k`: experts that the gate picks for each token; `model`: its name; None: not known. `first_step`: of the
        job, which counts its own from 0 on.
        """
        self.path = _unused(Path(path))
        self._top_k = top_k
        self._model = model
        self._first_step = first_step
        self._windows: list[_Counts] = []
        self._written = 0
        self._closing = False
        self._failed = False
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def append(self, window: Window, top_k: int | None = None) -> None:
        """Take over a window, later than those before; returns at once. `top_k`: if it became known only now."""
        with self._changed:
            self._top_k = self._top_k or top_k
            self._windows.append(_counts(window))
            self._changed.notify()
        if self._thread is None:
            self._thread = threading.Thread(target=self._write_all, name="trimtab-record", daemon=True)
            self._thread.start()

    @property
    def waiting(self) -> int:
        """Windows that nobody has tried to write yet."""
        with self._changed:
            return len(self._windows) - self._written

    def close(self) -> None:
        """Write what is not in the file yet, and stop."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _write_all(self) -> None:
        resting_until = 0.0
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closing or len(self._windows) > self._written)
                self._changed.wait_for(lambda: self._closing, max(0.0, resting_until - time.monotonic()))
                windows, closing = tuple(self._windows), self._closing
            began = time.monotonic()
            if len(windows) > self._written or (closing and self._failed):
                self._write(windows)
            resting_until = time.monotonic() + REST * (time.monotonic() - began)
            if closing:
                return

    def _write(self, windows: tuple[_Counts, ...]) -> None:
        draft = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        try:
            with draft.open("wb") as file:
                np.savez_compressed(file, allow_pickle=False, **arrays_of(self._trace(windows)))
            draft.replace(self.path)
            self._failed = False
        except OSError as error:
            if not self._failed:
                logger.warning("the trace %s cannot be written: %s", self.path, error)
            self._failed = True
            with contextlib.suppress(OSError):
                draft.unlink(missing_ok=True)
        self._written = len(windows)

    def _trace(self, windows: tuple[_Counts, ...]) -> Trace:
        tokens, steps, counted = zip(*windows, strict=True)
        return Trace(np.stack(tokens), np.array(steps) + self._first_step, np.array(counted), self._top_k, self._model)


class _Counts(NamedTuple):
    """What a trace keeps of a window."""

    tokens: NDArray[np.int64]
    """[layers, experts]"""
    first_step: int
    num_steps: int


def _counts(window: Window) -> _Counts:
    return _Counts(np.array(window.tokens, dtype=np.int64), window.first_step, window.num_steps)


def check_recordable(path: Path | str, num_experts: Sequence[int]) -> None:
    """Raises InputError at `record` unless there is a folder to write to, and all layers have as many experts."""
    wanted = Path(path)
    if not (wanted.parent.is_dir() and os.access(wanted.parent, os.W_OK)):
        raise InputError.at("record", f"cannot write {path}: there is no folder {wanted.parent} to write to")
    if len(set(num_experts)) > 1:
        sizes = " and ".join(map(str, sorted(set(num_experts))))
        raise InputError.at("record", f"a trace needs MoE layers of one number of experts, not of {sizes}")


def _unused(path: Path) -> Path:
    if not path.exists():
        return path
    numbered = (path.with_stem(f"{path.stem}-{number}") for number in count(2))
    free = next(other for other in numbered if not other.exists())
    logger.warning("%s exists: this job records to %s", path, free)
    return free
