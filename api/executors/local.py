"""Searches in processes of this machine: one for each, so that it can be killed and dies alone."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess

from api.executors.port import STARTING, Died, Outcome, Report, SearchFunction, settle
from api.executors.process import News, Progress, work
from api.fork_server import start_fork_server
from api.logs import LogFormat
from api.values import SearchJob

EXIT_S = 5.0
"""What a process gets to end by itself after its last news."""


class LocalExecutor:
    """At most `num_places` worker processes at once, if whoever submits heeds `places`."""

    def __init__(
        self, search: SearchFunction, num_places: int, memory_bytes: int, log_format: LogFormat = "text"
    ) -> None:
        """`memory_bytes`: what each process may use; `log_format`: of what it logs."""
        self._search = search
        self._num_places = num_places
        self._memory_bytes = memory_bytes
        self._log_format = log_format
        self._context = multiprocessing.get_context("forkserver")
        self._lock = threading.Lock()
        self._watched: dict[Future[Outcome], threading.Thread] = {}

    def start(self) -> None:
        """Have what the workers are forked from."""
        start_fork_server()

    def places(self) -> int:
        """As many as were asked for."""
        return self._num_places

    def submit(self, job: SearchJob, report: Report) -> Future[Outcome]:
        """Run a search in a process of its own; cancelling kills it, with everything that it started."""
        outcome: Future[Outcome] = Future()
        try:
            process, news = self._start(job)
        except Exception as error:  # OSError here, EOFError where it is the fork server that cannot fork
            settle(outcome, Died(f"no worker could be started: {str(error) or type(error).__name__}"))
            return outcome
        outcome.add_done_callback(partial(_kill_if_cancelled, process))
        report(0.0, STARTING)
        thread = threading.Thread(target=self._watch, args=(process, news, outcome, report), daemon=True)
        with self._lock:
            self._watched[outcome] = thread
        thread.start()
        return outcome

    def close(self) -> None:
        """Kill what runs."""
        with self._lock:
            watched = dict(self._watched)
        for outcome in watched:
            outcome.cancel()
        for thread in watched.values():
            thread.join()

    def _start(self, job: SearchJob) -> tuple[ForkServerProcess, Connection]:
        news, voice = self._context.Pipe(duplex=False)
        task = (voice, self._search, job, self._memory_bytes, self._log_format)
        process = self._context.Process(target=work, args=task, daemon=True)
        with voice:
            try:
                process.start()
            except BaseException:
                news.close()
                raise
        return process, news

    def _watch(self, process: ForkServerProcess, news: Connection, outcome: Future[Outcome], report: Report) -> None:
        """Hear the process until it has ended."""
        with news:
            while (said := _heard(news)) is not None:
                if isinstance(said, Progress):
                    report(said.progress, said.message)
                else:
                    settle(outcome, said)
        process.join(EXIT_S)
        if process.exitcode is None:
            _kill(process)
            process.join()
        settle(outcome, Died(f"its worker ended with {_how(process.exitcode)}"))
        with self._lock:
            del self._watched[outcome]


def _heard(news: Connection) -> News | None:
    """What the process says next; None when it says no more."""
    try:
        said: News = news.recv()
    except (EOFError, OSError):
        return None
    return said


def _kill_if_cancelled(process: ForkServerProcess, outcome: Future[Outcome]) -> None:
    if outcome.cancelled():
        _kill(process)


def _kill(process: ForkServerProcess) -> None:
    """End the process at once, with everything that it started."""
    pid = process.pid
    process.kill()
    with suppress(ProcessLookupError):
        if pid is not None:
            os.killpg(pid, signal.SIGKILL)


def _how(exit_code: int | None) -> str:
    if exit_code is not None and exit_code < 0:
        return f"signal {signal.Signals(-exit_code).name}"
    return f"exit code {exit_code}"
