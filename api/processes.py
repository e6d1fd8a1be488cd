"""Several processes that answer requests at one address: a parent that holds the socket, and children that serve.

The parent starts each child anew that dies, hands a signal on, and ends all of them before it ends. The children share
the database and nothing else; they end when the parent is gone, however it went.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import socket
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerProcess
from multiprocessing.synchronize import Event
from types import FrameType

from api.metrics_folder import SHARED_FOLDER
from api.settings import LOCAL, Settings, local_places
from planner.spec.errors import UnavailableError

SERVING = "api.serving"
"""What children run. The parent never loads it: it needs no web framework, and the Prometheus client must find the
folder of the metrics when it is loaded."""
log = logging.getLogger(__name__)
LOOK_S = 0.2
RETRY_S = 1.0
"""Between two starts of a child that ends at once: what keeps it from living may pass."""
MOST_IN_VAIN = 6
"""Processes that may end before any has answered: what keeps them from it does not pass by itself."""
END_S = 15.0
"""What the children get to answer open requests and to hand back their searches, once they are told to end."""


def share_of(settings: Settings, place: int) -> Settings:
    """The settings of one child: all serve the same, and they divide what works in processes of its own."""
    is_known = settings.executor == LOCAL or settings.workers is not None
    shares = {
        # May be none. Without a number, each sends to a Dask cluster as many as that takes; the rest waits there.
        "workers": _share(local_places(settings), settings.processes, place) if is_known else None,
        "deciders": max(1, _share(settings.deciders, settings.processes, place)),
    }
    return settings.model_copy(update=shares)


def _share(whole: int, processes: int, place: int) -> int:
    return (whole + processes - 1 - place) // processes


def supervise(settings: Settings, listener: socket.socket) -> None:
    """Serve with `settings.processes` children until SIGTERM or SIGINT; in the main thread.

    The program then ends with status 0, as a service of one process does. Raises UnavailableError where no child can
    live.
    """
    told = threading.Event()

    def end(_number: int, _frame: FrameType | None) -> None:
        told.set()

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        with tempfile.TemporaryDirectory(prefix="trimtab-metrics-") as folder:
            os.environ[SHARED_FOLDER] = folder  # for the children
            _keep_alive(settings, listener, told)
    finally:
        os.environ.pop(SHARED_FOLDER, None)
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclass(frozen=True)
class _Child:
    """A process, and whether it has ever answered requests."""

    process: ForkServerProcess
    ready: Event


def _keep_alive(settings: Settings, listener: socket.socket, told: threading.Event) -> None:
    """Raises UnavailableError where one process after the other ends, and none was ever ready."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([SERVING])

    def started(place: int) -> _Child:
        ready = context.Event()
        process = context.Process(target=_child, args=(share_of(settings, place), listener, ready))
        process.start()
        return _Child(process, ready)

    children: list[_Child] = []
    in_vain = 0
    try:
        for place in range(settings.processes):
            children.append(started(place))
        while not told.is_set():
            wait([child.process.sentinel for child in children], LOOK_S)
            for place, child in enumerate(children):
                if child.process.exitcode is not None and not told.is_set():
                    in_vain = 0 if any(one.ready.is_set() for one in children) else in_vain + 1
                    _tell_end(child.process, in_vain)
                    children[place] = started(place)
                    told.wait(RETRY_S)
    finally:
        _end([child.process for child in children])


def _tell_end(process: ForkServerProcess, in_vain: int) -> None:
    """Of a process that nobody told to end; raises UnavailableError where the next would fare no better."""
    if in_vain == MOST_IN_VAIN:
        raise UnavailableError(
            f"{in_vain} processes ended before one answered requests, the last with exit code {process.exitcode}; "
            "the lines above say why"
        )
    log.error("process %d ended with exit code %d; another takes its place", process.pid, process.exitcode)
    _forget_gauges(process.pid)


def _forget_gauges(pid: int | None) -> None:
    """What a dead process last said of itself; what it has counted stays."""
    from prometheus_client.multiprocess import mark_process_dead  # noqa: PLC0415 - see SERVING

    mark_process_dead(pid)  # type: ignore[no-untyped-call]


def _end(children: list[ForkServerProcess]) -> None:
    for child in children:
        with suppress(ProcessLookupError):
            if child.pid is not None and child.exitcode is None:
                os.kill(child.pid, signal.SIGTERM)
    end = time.monotonic() + END_S
    for child in children:
        child.join(max(0.0, end - time.monotonic()))
        if child.exitcode is None:
            log.error("process %d did not end within %g s and is killed", child.pid, END_S)
            child.kill()
            child.join()


def _child(settings: Settings, listener: socket.socket, ready: Event) -> None:
    from api.serving import serve_alone  # noqa: PLC0415 - after the folder of the metrics is known, see SERVING

    threading.Thread(target=_end_with_parent, daemon=True).start()
    with suppress(KeyboardInterrupt):  # of a terminal, which sends it to all; the server has ended in order by then
        serve_alone(settings, listener, ready.set)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
