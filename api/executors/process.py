"""What happens in a worker process: one search, with its news sent over a pipe."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import threading
from dataclasses import dataclass
from multiprocessing.connection import Connection

from api.executors.attempt import attempt, throttled
from api.executors.port import Failed, SearchFunction, Succeeded
from api.logs import LogFormat, install_logs
from api.values import SearchJob

NICENESS = 10
"""Below deciders: a search takes minutes, and somebody waits for a decision."""


@dataclass(frozen=True)
class Progress:
    """How far the search is."""

    progress: float
    message: str


News = Progress | Succeeded | Failed


def work(
    connection: Connection, search: SearchFunction, job: SearchJob, memory_bytes: int, log_format: LogFormat
) -> None:
    """Do one search with so much memory; the last news is its outcome. Ends at once when the service ends."""
    install_logs(log_format)
    os.nice(NICENESS)
    os.setpgid(0, 0)
    threading.Thread(target=_end_with_service, daemon=True).start()
    _limit_memory(memory_bytes)
    report = throttled(lambda progress, message: connection.send(Progress(progress, message)))
    connection.send(attempt(search, job, report))
    connection.close()


def _limit_memory(memory_bytes: int) -> None:
    """Beyond, this process gets no more: Python raises MemoryError. Of private memory, and on Linux alone."""
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    allowed = memory_bytes if hard == resource.RLIM_INFINITY else min(memory_bytes, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (allowed, hard))


def _end_with_service() -> None:
    """A search whose service is gone has nobody to answer: end it, with the solvers that it started."""
    service = multiprocessing.parent_process()
    assert service is not None
    service.join()
    os.killpg(0, signal.SIGKILL)
