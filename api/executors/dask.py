"""Searches on a Dask cluster. It may be away, come and go: a thread of ours keeps one client connected."""

from __future__ import annotations

import logging
import secrets
import threading
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import Any

from distributed import Client
from distributed import Future as Task
from distributed.scheduler import KilledWorker

from api.executors.port import Died, Failed, Interrupted, Outcome, Report, SearchFunction, settle
from api.executors.task import run_search
from api.problems import problem_of
from api.values import SearchJob
from planner.spec.errors import UnavailableError

VERSION = version("trimtab")
log = logging.getLogger(__name__)
CONNECT_S = 5.0
FETCH_S = 30.0
"""To bring a result from its worker."""
LOOK_S = 0.5
"""How often the connection is looked at."""
RETRY_S = 5.0
"""After what nobody expected, which may come again: the log is not to be full of it."""
ALL = "all"
"""The topic under which a scheduler tells of its workers."""


@dataclass
class Sent:
    """One search on the cluster."""

    client: Client
    task: Task[Any]
    report: Report
    outcome: Future[Outcome]
    worker: str | None = None
    """Address of the worker that has begun it."""


class DaskExecutor:
    """Searches as tasks of a Dask cluster, which may have other work too."""

    def __init__(self, search: SearchFunction, address: str, num_places: int | None) -> None:
        """`address`: dask://HOST:PORT of the scheduler; `num_places`: None: as many as its workers have threads."""
        self._search = search
        self._address = address
        self._num_places = num_places
        self._topic = f"trimtab-{secrets.token_hex(8)}"
        self._lock = threading.Lock()
        self._sent: dict[str, Sent] = {}
        self._client: Client | None = None
        self._num_threads = 0
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._stay_connected, name="trimtab-dask", daemon=True)

    def start(self) -> None:
        """Begin to connect."""
        self._thread.start()

    def places(self) -> int:
        """As many as were asked for, or as the cluster has threads; one where it has none yet, for it may grow."""
        self._connected()
        return max(1, self._num_threads) if self._num_places is None else self._num_places

    def submit(self, job: SearchJob, report: Report) -> Future[Outcome]:
        """Send a search; cancelling lets go of it, which the worker notices when the search reports next."""
        outcome: Future[Outcome] = Future()
        key = f"trimtab-{job.id}-{secrets.token_hex(4)}"
        order = (run_search, key, self._topic, VERSION, self._search, job.model_dump_json())
        try:
            client = self._connected()
            task = client.submit(*order, key=key, pure=False)
        except UnavailableError as away:
            settle(outcome, Interrupted(str(away)))
            return outcome
        except Exception as error:  # Dask has many; what fails each time must not be tried for ever
            log.exception("a search could not be sent to the Dask cluster")
            settle(outcome, Died(f"it could not be sent to the Dask cluster: {type(error).__name__}"))
            return outcome
        with self._lock:
            self._sent[key] = Sent(client, task, report, outcome)
        outcome.add_done_callback(lambda _: self._let_go(key))
        task.add_done_callback(partial(self._task_ended, outcome))
        return outcome

    def close(self) -> None:
        """Let go of all that runs: the cluster stops it when the searches report next."""
        self._closed.set()
        self._thread.join()
        for sent in self._all_sent():
            sent.outcome.cancel()
        self._disconnect()

    def _connected(self) -> Client:
        client = self._client
        if client is None or client.status != "running":
            raise UnavailableError(f"the Dask scheduler at {self._address} does not answer; searches wait for it")
        return client

    def _stay_connected(self) -> None:
        told, pause_s = False, 0.0
        while not self._closed.wait(pause_s):
            pause_s = LOOK_S
            try:
                told = self._look(told)
            except Exception:  # the connection may end at any moment, in many ways, and begin with another's answer
                log.exception("the connection to the Dask scheduler stumbled; it is tried again in %g s", RETRY_S)
                pause_s = RETRY_S

    def _look(self, told: bool) -> bool:
        """Connect where that is needed; whether the log knows by now that the scheduler is away."""
        try:
            self._num_threads = self._connected().scheduler_info(n_workers=0)["total_threads"]
            return False
        except UnavailableError as away:
            if not told:
                log.error("%s", away)
            self._disconnect()
            self._connect()
            return True
        finally:
            self._interrupt_lost()

    def _connect(self) -> None:
        try:
            client = Client(self._address.replace("dask://", "tcp://"), timeout=CONNECT_S, set_as_default=False)
        except (OSError, ImportError, TimeoutError) as error:
            log.debug("no connection to the Dask scheduler: %s", error)
            return
        client.subscribe_topic(self._topic, self._hear)
        client.subscribe_topic(ALL, self._hear_of_workers)
        self._client = client
        log.info("connected to the Dask scheduler at %s", self._address)

    def _disconnect(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.close(timeout=CONNECT_S)

    def _interrupt_lost(self) -> None:
        """What was sent over a connection that is no more will never be heard of."""
        for sent in self._all_sent():
            if sent.client is not self._client:
                settle(sent.outcome, Interrupted("the Dask scheduler was lost"))

    def _hear(self, event: tuple[float, dict[str, Any]]) -> None:
        """News of a search."""
        _, news = event
        with self._lock:
            sent = self._sent.get(news["key"])
        if sent is None:
            return
        if sent.worker not in (None, news["worker"]):
            _lost_worker(sent)
            return
        sent.worker = news["worker"]
        sent.report(news["progress"], news["message"])

    def _hear_of_workers(self, event: tuple[float, dict[str, Any]]) -> None:
        """A worker that leaves takes its searches along; Dask itself would run them again, three times."""
        _, news = event
        if news.get("action") == "remove-worker":
            for sent in self._all_sent():
                if sent.worker == news["worker"]:
                    _lost_worker(sent)

    def _all_sent(self) -> tuple[Sent, ...]:
        with self._lock:
            return tuple(self._sent.values())

    def _let_go(self, key: str) -> None:
        with self._lock:
            sent = self._sent.pop(key)
        sent.task.release()

    def _task_ended(self, outcome: Future[Outcome], task: Task[Any]) -> None:
        if not outcome.done():
            settle(outcome, _outcome(task))


def _lost_worker(sent: Sent) -> None:
    settle(sent.outcome, Died(f"its Dask worker {sent.worker} ended"))


def _outcome(task: Task[Any]) -> Outcome:
    """Of a task that has ended."""
    try:
        ended: Outcome = task.result(timeout=FETCH_S)
    except KilledWorker as error:
        return Died(f"its Dask workers ended: {error}")
    except Exception as error:
        if task.status != "error":
            return Interrupted(f"the Dask cluster lost it: {type(error).__name__}")
        log.exception("a search broke on the Dask cluster")
        return Failed(problem_of(UnavailableError(_broken(error))))
    return ended


def _broken(error: Exception) -> str:
    """One line for whoever asked."""
    cause = error.__cause__ or error
    return (
        f"the Dask cluster could not run the search: {type(cause).__name__}: {' '.join(str(cause).split())}; its "
        f"scheduler and workers need Trimtab {version('trimtab')}"
    )
