"""The same policy as the service's, run beside the training: for the time when the service is away.

It thinks in a process of its own, at a low priority: in a thread of the training job it would hold Python's lock
for as long as it thinks (figures in docs/log.md), and steps would wait. The process knows no torch and no device. It
begins when the run is known, ends with the job however that ends, and if it dies, nothing but its advice is missed.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import planner
from planner.spec.decision import Decision
from planner.spec.errors import InputError, UnavailableError
from planner.spec.parse import parse, read_json
from planner.spec.run import Run
from planner.spec.window import Window

logger = logging.getLogger("trimtab.agent")

MAX_WINDOWS_WAITING = 16
"""For a policy that is slower than windows come; the oldest are left out."""


class Policy(Protocol):
    """Decides about the windows of one run, in order; remembers what it needs."""

    def __call__(self, window: Window) -> Decision:
        """The decision, however long it takes; may raise what it likes."""
        ...

    def close(self) -> None:
        """No window comes any more; may be called while another thread waits for a decision."""
        ...


class LocalPolicy:
    """The policy of `planner.online` for this run, from its beginning, in a process of its own."""

    def __init__(self, run: Run) -> None:
        self._head = run.model_dump_json().encode() + b"\n"
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._closed = False
        with suppress(UnavailableError):  # said when the first window comes
            self._started()

    def __call__(self, window: Window) -> Decision:
        """Raises InputError if the window does not fit the run, UnavailableError if the process is no more."""
        process = self._started()
        assert process.stdin is not None and process.stdout is not None
        head, self._head = self._head, b""
        try:
            process.stdin.write(head + window.model_dump_json().encode() + b"\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except (OSError, ValueError):  # ValueError: closed meanwhile
            line = b""
        if not line.endswith(b"\n"):
            raise UnavailableError("its process has ended")
        answer = read_json(line, "answer")
        if "problem" in answer:
            raise InputError.at("window", answer["problem"])
        return parse(Decision, answer["decision"])

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._closed = True
            if self._process is None:
                return
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                with suppress(OSError):  # what was not read is lost
                    assert pipe is not None
                    pipe.close()

    def _started(self) -> subprocess.Popen[bytes]:
        """The process; begun once. Raises UnavailableError."""
        with self._lock:
            if self._closed:
                raise UnavailableError("it was closed")
            if self._process is None:
                self._process = _start()
            return self._process


def _start() -> subprocess.Popen[bytes]:
    root = str(Path(planner.__file__).parent.parent)
    script = str(Path(__file__).with_name("thinking.py"))
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    # Run by its path, not as `-m runtime.thinking`: that would import torch, which it does not need.
    command = [sys.executable, "-c", f"from runpy import run_path; run_path({json.dumps(script)}, run_name='__main__')"]
    try:
        return subprocess.Popen(
            [*command, str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        )
    except OSError as error:
        raise UnavailableError(f"its process cannot begin: {error}") from None


class Thinker:
    """Lets a policy decide about one window after the other in a thread, and keeps the newest decision."""

    def __init__(self, policy: Policy, numbered: Callable[[Window], Window]) -> None:
        """`numbered`: the window as the policy's run counts windows and steps; called in the thread."""
        self._policy = policy
        self._numbered = numbered
        self._waiting: deque[Window] = deque(maxlen=MAX_WINDOWS_WAITING)
        self._newest: Decision | None = None
        self._changed = threading.Condition()
        self._closing = False
        self._troubled = False
        self._thread = threading.Thread(target=self._think, name="trimtab-policy", daemon=True)
        self._thread.start()

    def submit(self, window: Window) -> None:
        """Take over a window; does not wait."""
        with self._changed:
            self._waiting.append(window)
            self._changed.notify()

    def decision(self, index: int) -> Decision | None:
        """What was decided about the window of this index, if it was the last that was decided about; does not wait."""
        newest = self._newest
        return newest if newest is not None and newest.window == index else None

    def close(self) -> None:
        """Stop; what waits is forgotten."""
        with self._changed:
            self._closing = True
            self._waiting.clear()
            self._changed.notify()
        self._policy.close()

    def _think(self) -> None:
        while (window := self._next()) is not None:
            try:
                self._newest = self._policy(self._numbered(window))
            except Exception as error:
                self._note(window, error)
            else:
                self._troubled = False

    def _next(self) -> Window | None:
        with self._changed:
            while not self._waiting and not self._closing:
                self._changed.wait()
            return None if self._closing else self._waiting.popleft()

    def _note(self, window: Window, error: Exception) -> None:
        """Log the first of a series of failures."""
        if not self._troubled and not self._closing:
            logger.warning("the local policy cannot decide about window %d: %s", window.index, error)
        self._troubled = True
