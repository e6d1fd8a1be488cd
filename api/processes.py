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
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerProcess
from types import FrameType

from api.metrics_folder import SHARED_FOLDER
from api.settings import LOCAL, Settings, local_places

SERVING = "api.serving"
"""What children run. The parent never loads it: it needs no web framework, and the Prometheus client must find the
folder of the metrics when it is loaded."""
log = logging.getLogger(__name__)
LOOK_S = 0.2
RETRY_S = 1.0
"""Between two starts of a child that ends at once: what keeps it from living may pass."""
END_S = 15.0
"""What the children get to answer open requests and to hand back their searches, once they are told to end."""


def share_of(settings: Settings, place: int) -> Settings:
    """The settings of one child: all serve the same, and they divide what works in processes of its own."""
    local = settings.executor == LOCAL
    shares = {
        # May be none. Without a number, each sends to a Dask cluster as many as that takes; the rest waits there.
        "workers": _share(local_places(settings), settings.processes, place) if local or settings.workers else None,
        "deciders": max(1, _share(settings.deciders, settings.processes, place)),
    }
    return Settings.model_construct(**{**settings.model_dump(), **shares})


def _share(whole: int, processes: int, place: int) -> int:
    return (whole + processes - 1 - place) // processes


def supervise(settings: Settings, listener: socket.socket) -> None:
    """Serve with `settings.processes` children until SIGTERM or SIGINT; in the main thread.

    The program then ends with status 0, as a service of one process does.
    """
    told = threading.Event()

    def end(_number: int, _frame: FrameType | None) -> None:
        told.set()

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        with tempfile.TemporaryDirectory(prefix="trimtab-metrics-") as folder:
            os.environ[SHARED_FOLDER] = folder
            _keep_alive(settings, listener, told)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _keep_alive(settings: Settings, listener: socket.socket, told: threading.Event) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([SERVING])

    def started(place: int) -> ForkServerProcess:
        process = context.Process(target=_child, args=(share_of(settings, place), listener))
        process.start()
        return process

    children: list[ForkServerProcess] = []
    try:
        for place in range(settings.processes):
            children.append(started(place))
        while not told.is_set():
            wait([child.sentinel for child in children], LOOK_S)
            for place, child in enumerate(children):
                if child.exitcode is not None and not told.is_set():
                    log.error("process %d ended with exit code %d; another takes its place", child.pid, child.exitcode)
                    _forget_gauges(child.pid)
                    children[place] = started(place)
                    told.wait(RETRY_S)
    finally:
        _end(children)


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


def _child(settings: Settings, listener: socket.socket) -> None:
    from api.serving import serve_alone  # noqa: PLC0415 - after the folder of the metrics is known, see SERVING

    threading.Thread(target=_end_with_parent, daemon=True).start()
    with suppress(KeyboardInterrupt):  # of a terminal, which sends it to all; the server has ended in order by then
        serve_alone(settings, listener)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
