"""Searches as jobs: a queue in the store, one worker process for each search that runs.

The store is the truth about states; this module only starts, hears and ends processes. Queued searches wait for their
turn there, so a restart loses none, and several services can work on one store: each renews the leases of the searches
that it runs, and every `TICK_S` it looks for what the others did: searches to take, cancelled or ended.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Collection
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from multiprocessing.forkserver import ensure_running

from sqlalchemy.exc import SQLAlchemyError

from api import decider
from api.problems import problem_of
from api.search_queue import SearchQueue
from api.search_store import SearchStore
from api.values import Search, SearchJob, SearchState
from api.worker import News, Progress, SearchFunction, Succeeded, work
from planner.spec.errors import UnavailableError

log = logging.getLogger(__name__)
PRELOADED = (decider.__name__, "pulp")
"""What processes need besides the modules of searches: the fork server has it ready."""
RETRY_S = 1.0
TICK_S = 0.5
RENEWALS = 4
"""Of a lease before it ends: a holder that misses all but one still holds on."""
EXIT_S = 5.0
"""What a process gets to end by itself after its last news."""
GRACE_S = 60.0
"""Beyond its time limit, what a search gets to hand over its best plan so far. About a second is enough once a plan is
known; a first one takes as long as it takes, and on a busy machine longer."""


OnEnd = Callable[[SearchState, float], None]


@dataclass(frozen=True)
class Worker:
    """One process at one search."""

    job: SearchJob
    process: ForkServerProcess
    news: Connection
    began: float
    deadline: float

    def kill(self) -> None:
        """End the process at once, with everything that it started."""
        pid = self.process.pid
        self.process.kill()
        with suppress(ProcessLookupError):
            if pid is not None:
                os.killpg(pid, signal.SIGKILL)


class Jobs:
    """Runs at most `num_workers` searches of the store at once, first come, first served."""

    def __init__(
        self,
        store: SearchStore,
        queue: SearchQueue,
        search: SearchFunction,
        num_workers: int,
        time_limit_s: float,
        on_end: OnEnd = lambda state, seconds: None,
    ) -> None:
        """`on_end` hears how each search that ran here has ended, and after how many seconds."""
        self._store = store
        self._queue = queue
        self._search = search
        self._num_workers = num_workers
        self._time_limit_s = time_limit_s
        self._on_end = on_end
        self._context = multiprocessing.get_context("forkserver")
        self._lock = threading.Lock()
        self._workers: dict[str, Worker] = {}
        self._ends: dict[str, Future[None]] = {}
        self._closed = False
        self._tick_due = self._renewal_due = 0.0
        self._ears, self._bell = multiprocessing.Pipe(duplex=False)
        self._thread = threading.Thread(target=self._dispatch, name="trimtab-jobs", daemon=True)

    def start(self) -> None:
        """Begin to take searches."""
        self._context.set_forkserver_preload([self._search.__module__, work.__module__, *PRELOADED])
        ensure_running()
        self._thread.start()

    def close(self) -> None:
        """End all workers. Their searches wait for another service, or the next."""
        with self._lock:
            self._closed = True
            for worker in self._workers.values():
                worker.kill()
        self.wake()
        self._thread.join()
        for worker in self._workers.values():
            worker.process.join()
            worker.news.close()
        self._hand_back()
        self._bell.close()
        self._ears.close()

    def _hand_back(self) -> None:
        try:
            handed_back = self._queue.hand_back()
        except SQLAlchemyError:
            log.exception("interrupted searches could not be handed back; they wait again when their leases are over")
        else:
            log.info("%d interrupted searches wait to start again", handed_back)

    @property
    def alive(self) -> bool:
        """Whether searches are being started and heard."""
        return self._thread.is_alive()

    def wake(self) -> None:
        """Look at the queue now: something was added."""
        if not self._ears.poll():
            self._bell.send(None)

    def cancel(self, search_id: str) -> Search:
        """End a search and its process; raises NotFoundError, or ConflictError if it has ended otherwise."""
        with self._lock:
            search = self._store.cancel(search_id)
            worker = self._workers.get(search_id)
            if worker:
                worker.kill()
            self._tell_ended([search_id])
        return search

    def ended(self, search_id: str) -> Future[None]:
        """Done when the search has ended, whichever way; raises NotFoundError."""
        with self._lock:
            if self._store.search(search_id).state.is_final:
                done: Future[None] = Future()
                done.set_result(None)
                return done
            return self._ends.setdefault(search_id, Future())

    def _dispatch(self) -> None:
        while not self._closed:
            try:
                self._look_around()
                self._start_waiting()
                self._listen()
            except Exception:  # a store that fails for a moment must not end the service's only dispatcher
                log.exception("the queue of searches stumbled; it goes on in %g s", RETRY_S)
                time.sleep(RETRY_S)

    def _start_waiting(self) -> None:
        """Give free places to the searches that wait longest."""
        while not self._closed and len(self._workers) < self._num_workers and self._queue.work_waits():
            job = self._queue.take_next()
            if job is None:
                return
            try:
                worker = self._start_worker(job)
            except OSError as error:
                self._lost(job.id, f"no worker could be started: {error}")
                continue
            with self._lock:
                self._workers[job.id] = worker
                if self._closed or self._store.search(job.id).state.is_final:  # closed or cancelled while it started
                    worker.kill()

    def _start_worker(self, job: SearchJob) -> Worker:
        limit_s = min(job.options.time_limit_s or self._time_limit_s, self._time_limit_s)
        limited = job.model_copy(update={"options": job.options.model_copy(update={"time_limit_s": limit_s})})
        news, voice = self._context.Pipe(duplex=False)
        process = self._context.Process(target=work, args=(voice, self._search, limited), daemon=True)
        process.start()
        voice.close()
        now = time.monotonic()
        return Worker(limited, process, news, now, now + limit_s + GRACE_S)

    def _listen(self) -> None:
        """Wait for news, for the bell, for the next deadline or tick; then handle what there is."""
        by_news = {worker.news: worker for worker in self._workers.values()}
        due = min((worker.deadline for worker in by_news.values()), default=self._tick_due)
        for source in wait([self._ears, *by_news], max(0.0, min(due, self._tick_due) - time.monotonic())):
            if source is self._ears:
                self._ears.recv()
            else:
                assert isinstance(source, Connection)
                self._hear(by_news[source])
        for worker in list(self._workers.values()):
            if time.monotonic() > worker.deadline:
                self._overdue(worker)

    def _hear(self, worker: Worker) -> None:
        try:
            news: News = worker.news.recv()
        except (EOFError, OSError):
            self._process_ended(worker)
            return
        if isinstance(news, Progress):
            self._queue.report(worker.job.id, news.progress, news.message)
            return
        if isinstance(news, Succeeded):
            self._queue.succeed(worker.job.id, news.shortlist)
        else:
            self._queue.fail(worker.job.id, news.problem)
        self._on_end(
            SearchState.SUCCEEDED if isinstance(news, Succeeded) else SearchState.FAILED,
            time.monotonic() - worker.began,
        )
        with self._lock:
            self._tell_ended([worker.job.id])

    def _process_ended(self, worker: Worker) -> None:
        """Free the place; a search that has not ended by then lost its worker."""
        worker.process.join(EXIT_S)
        if worker.process.exitcode is None:
            worker.kill()
            worker.process.join()
        if self._closed:  # it was killed by close(), which hands its search back
            return
        self._lost(worker.job.id, f"its worker ended with {_how(worker.process.exitcode)}")
        with self._lock:
            del self._workers[worker.job.id]
        worker.news.close()

    def _lost(self, search_id: str, reason: str) -> None:
        """Without effect on a search that has ended, or that another service has taken."""
        self._queue.worker_died(search_id, reason)
        with self._lock:
            self._tell_ended([search_id])

    def _overdue(self, worker: Worker) -> None:
        """A search that outlives its limit by that much hangs or starves: the service's failure, not the request's."""
        error = UnavailableError(
            f"the search was stopped: it found no end {GRACE_S:g} s after its time limit of "
            f"{worker.job.options.time_limit_s:g} s; try again when this service has less to do"
        )
        self._queue.fail(worker.job.id, problem_of(error))
        worker.kill()

    def _look_around(self) -> None:
        """Every tick: hold on to what runs here, end what other services cancelled or took, tell what has ended."""
        now = time.monotonic()
        if now < self._tick_due:
            return
        self._tick_due = now + TICK_S
        self._queue.take_back()
        if self._workers:
            if now >= self._renewal_due:
                self._renewal_due = now + self._queue.lease_s / RENEWALS
                self._queue.renew()
            held = self._queue.held()
            for search_id, worker in self._workers.items():
                if search_id not in held:
                    worker.kill()
        with self._lock:
            self._tell_ended(tuple(self._ends))

    def _tell_ended(self, search_ids: Collection[str]) -> None:
        awaited = [search_id for search_id in search_ids if search_id in self._ends]
        for search_id in self._store.ended(awaited) if awaited else ():
            self._ends.pop(search_id).set_result(None)


def _how(exit_code: int | None) -> str:
    if exit_code is not None and exit_code < 0:
        return f"signal {signal.Signals(-exit_code).name}"
    return f"exit code {exit_code}"
