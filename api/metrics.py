"""What a Prometheus server reads of one address: requests, searches, windows and decisions.

Counts are of the processes behind the address since the service started; searches by state and the age of the queue are
of the database, so that any one of several services tells them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from datetime import datetime

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector
from sqlalchemy.exc import SQLAlchemyError

from api.deciders import Deciders
from api.metrics_folder import SHARED_FOLDER
from api.search_store import SearchStore
from api.values import SearchState
from planner.spec.decision import Action

REQUEST_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
SEARCH_SECONDS = (0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
DECISION_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
disable_created_metrics()  # type: ignore[no-untyped-call]  # a series more for each, that nobody reads


class Metrics:
    """Of one service process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._shared = os.environ.get(SHARED_FOLDER)
        self._of_database: list[Collector] = []
        self._deciders: Deciders | None = None
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self.registry)
        of_request = ["method", "operation", "status"]
        self._requests = Counter(
            "trimtab_http_requests", "Requests that were answered", of_request, registry=self.registry
        )
        self._request_seconds = Histogram(
            "trimtab_http_request_seconds",
            "Time to a request's whole answer",
            ["method", "operation"],
            buckets=REQUEST_SECONDS,
            registry=self.registry,
        )
        self._search_seconds = Histogram(
            "trimtab_search_seconds",
            "Time that searches of this process took, by how they ended",
            ["state"],
            buckets=SEARCH_SECONDS,
            registry=self.registry,
        )
        self._decisions = Counter(
            "trimtab_decisions", "Windows that were answered for the first time", ["action"], registry=self.registry
        )
        self._decision_seconds = Histogram(
            "trimtab_decision_seconds",
            "Time from a window to its decision in the store",
            buckets=DECISION_SECONDS,
            registry=self.registry,
        )
        self._windows_waiting = Gauge(
            "trimtab_windows_waiting",
            "Windows whose decision is not there yet",
            registry=self.registry,
            multiprocess_mode="livesum",
        )
        self._decider_deaths = Gauge(
            "trimtab_decider_deaths",
            "Decider processes that ended before the service",
            registry=self.registry,
            multiprocess_mode="sum",
        )
        self._windows_removed = Counter(
            "trimtab_windows_removed", "Old windows that were removed", registry=self.registry
        )
        for action in Action:
            self._decisions.labels(action.value)

    def search_ended(self, state: SearchState, seconds: float) -> None:
        """A search that ran here has ended."""
        self._search_seconds.labels(state.value).observe(seconds)

    def decided(self, action: Action, seconds: float) -> None:
        """A window was answered for the first time."""
        self._decisions.labels(action.value).inc()
        self._decision_seconds.observe(seconds)

    def windows_removed(self, number: int) -> None:
        """Windows were removed for their age."""
        self._windows_removed.inc(number)

    def answered(self, method: str, operation: str, status: int, seconds: float) -> None:
        """A request was answered."""
        self._requests.labels(method, operation, str(status)).inc()
        self._request_seconds.labels(method, operation).observe(seconds)
        if self._shared is not None:  # another process may be the one that is asked for the counts
            self._note_deciders()

    def watch(self, searches: SearchStore, now: Callable[[], datetime]) -> None:
        """Tell with each reading how the searches of the database stand."""
        queue = _Queue(searches, now)
        self.registry.register(queue)
        self._of_database.append(queue)

    def watch_deciders(self, deciders: Deciders) -> None:
        """Tell with each reading how many windows wait for a decision, and how many deciders have died."""
        self._deciders = deciders

    def _note_deciders(self) -> None:
        if self._deciders is not None:
            self._windows_waiting.set(self._deciders.num_waiting)
            self._decider_deaths.set(self._deciders.deaths)

    def text(self) -> bytes:
        """Everything, in Prometheus' text format; where the database does not answer, without what it would tell."""
        self._note_deciders()
        return generate_latest(self.registry) if self._shared is None else self._text_of_all(self._shared)

    def _text_of_all(self, folder: str) -> bytes:
        """The counts of all processes behind this address, those that have ended too."""
        together = CollectorRegistry()
        MultiProcessCollector(together, folder)  # type: ignore[no-untyped-call]
        for collector in self._of_database:
            together.register(collector)
        return generate_latest(together)


class _Queue(Collector):
    def __init__(self, searches: SearchStore, now: Callable[[], datetime]) -> None:
        self._searches = searches
        self._now = now

    def describe(self) -> Iterable[Metric]:
        """Nothing beforehand: registering must not ask the database."""
        return ()

    def collect(self) -> Iterable[Metric]:
        database_up = GaugeMetricFamily("trimtab_database_up", "1 where the database answers, 0 where it does not")
        try:
            numbers, oldest = self._searches.standing()
        except SQLAlchemyError:  # as for /readyz: away or without its tables
            database_up.add_metric([], 0.0)
            yield database_up
            return
        database_up.add_metric([], 1.0)
        yield database_up
        by_state = GaugeMetricFamily("trimtab_searches", "Searches in the database", labels=["state"])
        for state in SearchState:
            by_state.add_metric([state.value], numbers.get(state, 0))
        waits_s = 0.0 if oldest is None else (self._now() - oldest).total_seconds()
        yield by_state
        yield GaugeMetricFamily("trimtab_queue_age_seconds", "How long the first of the queue waits", max(0.0, waits_s))
