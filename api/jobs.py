"""Searches as jobs: a queue in the store, and an executor that runs those whose turn it is.

The store is the truth about states; this module only sends, hears and cancels. Queued searches wait for their turn
there, so a restart loses none, and several services can work on one store: each renews the leases of the searches that
it runs, and every `TICK_S` it looks for what the others did: searches to take, cancelled or ended.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection
from concurrent.futures import Future
from math import inf

from sqlalchemy.exc import SQLAlchemyError

from api.database import is_away
from api.executors.port import STARTING, Died, Executor, Failed, Interrupted, Outcome, Succeeded
from api.problems import problem_of
from api.search_queue import SearchQueue
from api.search_store import SearchStore
from api.values import Search, SearchJob, SearchState
from planner.spec.errors import InternalError, TrimtabError, UnavailableError

log = logging.getLogger(__name__)
RETRY_S = 1.0
TICK_S = 0.5
RENEWALS = 4
"""Of a lease before it ends: a holder that misses all but one still holds on."""
END_S = 5.0
"""What the dispatcher gets for what it is at, when the service ends."""
GRACE_S = 60.0
"""Beyond its time limit, what a search gets to hand over its best plan so far. About a second is enough once a plan is
known; a first one takes as long as it takes, and on a busy machine longer."""
AFTER_DEATH = {SearchState.QUEUED: "; it waits to start again", SearchState.FAILED: "; it is not started again"}
"""What the log says of a search whose worker died, by its state then."""
OnEnd = Callable[[SearchState, float], None]


class Running:
    """One search at the executor, as far as it was heard."""

    def __init__(self, job: SearchJob, bell: threading.Event) -> None:
        self.job = job
        self.outcome: Future[Outcome]
        self.began = time.monotonic()
        self.deadline = inf
        """Counts from the first news: where searches queue for a worker, that time is not theirs."""
        self._bell = bell
        self._said = self._told = (0.0, STARTING)

    def hear(self, progress: float, message: str) -> None:
        """The executor's news; from any thread."""
        if self.deadline == inf:
            self.deadline = time.monotonic() + (self.job.options.time_limit_s or 0.0) + GRACE_S
        self._said = (progress, message)
        self._bell.set()

    def news(self) -> tuple[float, str] | None:
        """The latest progress and message, if they were not asked for before."""
        said = self._said
        if said == self._told:
            return None
        self._told = said
        return said


class Jobs:
    """Sends searches of the store to the executor, as many as it has places for; first come, first served."""

    def __init__(
        self,
        store: SearchStore,
        queue: SearchQueue,
        executor: Executor,
        time_limit_s: float,
        on_end: OnEnd = lambda state, seconds: None,
    ) -> None:
        """`on_end` hears how each search that ran here has ended, and after how many seconds."""
        self._store = store
        self._queue = queue
        self._executor = executor
        self._time_limit_s = time_limit_s
        self._on_end = on_end
        self._lock = threading.Lock()
        self._running: dict[str, Running] = {}
        self._ends: dict[str, Future[None]] = {}
        self._closed = False
        self._tick_due = self._renewal_due = 0.0
        self._bell = threading.Event()
        self._thread = threading.Thread(target=self._dispatch, name="trimtab-jobs", daemon=True)

    def start(self) -> None:
        """Begin to take searches."""
        self._executor.start()
        self._thread.start()

    def close(self) -> None:
        """Stop what runs. Its searches wait for another service, or the next.

        Their work ends first, so that none runs here and elsewhere at once. They are handed back before the dispatcher
        has ended: it may wait for the database for long, and whoever ends a service does not.
        """
        self._closed = True
        for running in self._all_running():
            running.outcome.cancel()
        self.wake()
        self._hand_back()
        self._thread.join(END_S)
        if self._thread.is_alive():
            log.error("the dispatcher still waits for the database; what it took last waits until its lease is over")
        self._executor.close()
        self._hand_back()

    def _hand_back(self) -> None:
        try:
            handed_back = self._queue.hand_back()
        except SQLAlchemyError:
            log.exception("interrupted searches could not be handed back; they wait again when their leases are over")
        else:
            if handed_back:
                log.info("%d interrupted searches wait to start again", handed_back)

    def check(self) -> None:
        """Raises UnavailableError where searches are not started or not heard."""
        if not self._thread.is_alive():
            raise UnavailableError("no searches are started: the dispatcher has ended")
        self._executor.places()

    def wake(self) -> None:
        """Look at the queue now: something was added."""
        self._bell.set()

    def cancel(self, search_id: str) -> Search:
        """End a search and its work; raises NotFoundError, or ConflictError if it has ended otherwise."""
        search = self._store.cancel(search_id)
        with self._lock:
            running = self._running.pop(search_id, None)
        if running:
            running.outcome.cancel()
            self._tell_state(search_id, search.state, time.monotonic() - running.began)
        self._tell_ended([search_id])
        self.wake()
        return search

    def ended(self, search_id: str) -> Future[None]:
        """Done when the search has ended, whichever way; raises NotFoundError."""
        self._store.search(search_id)
        with self._lock:
            ended = self._ends.setdefault(search_id, Future())
        self._tell_ended([search_id])
        return ended

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
        while not self._closed and len(self._running) < self._places() and self._queue.work_waits():
            job = self._queue.take_next()
            if job is None:
                return
            running = self._submit(job)
            with self._lock:
                self._running[job.id] = running
            if self._closed:  # while it started: `close` may not have seen it
                running.outcome.cancel()
            elif self._store.ended([job.id]):  # cancelled while it started
                self._lost(running)

    def _places(self) -> int:
        try:
            return self._executor.places()
        except UnavailableError:
            return 0

    def _submit(self, job: SearchJob) -> Running:
        limit_s = min(job.options.time_limit_s or self._time_limit_s, self._time_limit_s)
        limited = job.model_copy(update={"options": job.options.model_copy(update={"time_limit_s": limit_s})})
        running = Running(limited, self._bell)
        running.outcome = self._executor.submit(limited, running.hear)
        running.outcome.add_done_callback(lambda _: self.wake())
        return running

    def _listen(self) -> None:
        """Wait for news, for the next deadline or tick; then handle what there is."""
        due = min((running.deadline for running in self._all_running()), default=self._tick_due)
        self._bell.wait(max(0.0, min(due, self._tick_due) - time.monotonic()))
        self._bell.clear()
        for running in self._all_running():
            try:
                self._attend(running)
            except Exception as error:
                if is_away(error):
                    raise  # of none more is to be heard
                # Of this one search, which must not keep the others waiting.
                log.exception("search %s", running.job.id)
                self._give_up(running, InternalError("its outcome could not be kept"))

    def _attend(self, running: Running) -> None:
        if running.outcome.done():
            self._end(running)
        elif (news := running.news()) is not None:
            self._queue.report(running.job.id, *news)
        elif time.monotonic() > running.deadline:
            self._overdue(running)

    def _all_running(self) -> tuple[Running, ...]:
        with self._lock:
            return tuple(self._running.values())

    def _end(self, running: Running) -> None:
        """Keep the outcome, and free the place."""
        if not running.outcome.cancelled():
            self._keep(running, running.outcome.result())
        self._forget(running)

    def _keep(self, running: Running, outcome: Outcome) -> None:
        """Without effect on a search that has ended, or that another service has taken."""
        search_id = running.job.id
        state: SearchState | None
        match outcome:
            case Succeeded(shortlist):
                state = self._queue.succeed(search_id, shortlist)
            case Failed(problem):
                state = self._queue.fail(search_id, problem)
            case Died(reason):
                state = self._queue.worker_died(search_id, reason)
                log.warning("search %s: %s%s", search_id, reason, "" if state is None else AFTER_DEATH.get(state, ""))
            case Interrupted(reason):
                log.warning("search %s was interrupted: %s", search_id, reason)
                state = self._queue.interrupted(search_id, reason)
        self._tell_state(search_id, state, time.monotonic() - running.began)

    def _tell_state(self, search_id: str, state: SearchState | None, seconds: float) -> None:
        """The one place from which the end of a search is counted; nothing where it has not ended."""
        if state is None or not state.is_final:
            return
        log.info("search %s: %s after %.1f s", search_id, state.value, seconds)
        self._on_end(state, seconds)

    def _forget(self, running: Running) -> bool:
        """Whether it was here until now."""
        with self._lock:
            was_here = self._running.get(running.job.id) is running
            if was_here:
                del self._running[running.job.id]
        self._tell_ended([running.job.id])
        return was_here

    def _overdue(self, running: Running) -> None:
        """A search that outlives its limit by that much hangs or starves: the service's failure, not the request's."""
        error = UnavailableError(
            f"the search was stopped: it found no end {GRACE_S:g} s after its time limit of "
            f"{running.job.options.time_limit_s:g} s; try again when this service has less to do"
        )
        self._give_up(running, error)

    def _give_up(self, running: Running, error: TrimtabError) -> None:
        """End its work; it has failed."""
        state = self._queue.fail(running.job.id, problem_of(error))
        self._tell_state(running.job.id, state, time.monotonic() - running.began)
        running.outcome.cancel()
        self._forget(running)

    def _lost(self, running: Running) -> None:
        """End the work on a search that is no longer ours: it was cancelled elsewhere, or taken."""
        running.outcome.cancel()
        if self._forget(running):
            state, _, _ = self._store.marks([running.job.id])[running.job.id]
            if state is SearchState.CANCELLED:
                self._tell_state(running.job.id, state, time.monotonic() - running.began)
            else:
                log.warning("search %s is no longer held here, and was stopped", running.job.id)

    def _look_around(self) -> None:
        """Every tick: hold on to what runs here, end what other services cancelled or took, tell what has ended."""
        now = time.monotonic()
        if now < self._tick_due:
            return
        self._tick_due = now + TICK_S
        if self._running and now >= self._renewal_due:  # before others' leases, for ours may be over too
            self._queue.renew()
            self._renewal_due = now + self._queue.lease_s / RENEWALS
        for taken in self._queue.take_back():
            log.warning("search %s was taken back from a service that is gone", taken.search_id)
            self._tell_state(*taken)
        held = self._queue.held()
        for running in self._all_running():
            if running.job.id not in held:
                self._lost(running)
        for search_id in held - self._running.keys():
            self._queue.interrupted(search_id, "the database broke off when it was taken")
        self._tell_ended(self._all_awaited())

    def _all_awaited(self) -> tuple[str, ...]:
        with self._lock:
            return tuple(self._ends)

    def _tell_ended(self, search_ids: Collection[str]) -> None:
        """The store is asked outside the lock: it may be slow, and others want the lock."""
        with self._lock:
            awaited = [search_id for search_id in search_ids if search_id in self._ends]
        ended = self._store.ended(awaited) if awaited else ()
        with self._lock:
            waiting = [self._ends.pop(search_id) for search_id in ended if search_id in self._ends]
        for one in waiting:
            one.set_result(None)
