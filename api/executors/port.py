"""What `api.jobs` needs of a place where searches run, and nothing about how it is done."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from api.problems import ProblemDocument
from api.values import SearchJob
from planner.spec.mixed_cluster import AnyCluster
from planner.spec.model import Model
from planner.spec.request import Options
from planner.spec.shortlist import Shortlist
from planner.spec.training import Training

STARTING = "starting"
"""The first message of a search that was sent, until it says something itself."""
Report = Callable[[float, str], None]
"""Told the progress from 0 to 1 and what goes on; from any thread, and quick."""


class SearchFunction(Protocol):
    """The offline stage: planner.search.search. It crosses to workers by name, so it is a module's function."""

    def __call__(
        self, model: Model, cluster: AnyCluster, training: Training, options: Options, report: Report
    ) -> Shortlist:
        """The shortlist; raises InputError and NoPlanFitsError, and whatever `report` raises."""
        ...


@dataclass(frozen=True)
class Succeeded:
    """The search has ended well."""

    shortlist: Shortlist


@dataclass(frozen=True)
class Failed:
    """The search has ended without a shortlist."""

    problem: ProblemDocument


@dataclass(frozen=True)
class Died:
    """What ran the search is gone, perhaps because of the search."""

    reason: str


@dataclass(frozen=True)
class Interrupted:
    """The search was lost, and that was not its fault."""

    reason: str


Outcome = Succeeded | Failed | Died | Interrupted


class Executor(Protocol):
    """Runs searches. All methods may be called from any thread, those but `start` and `close` while it is open."""

    def start(self) -> None:
        """Get ready to take searches; returns at once, also where what runs them is away."""
        ...

    def places(self) -> int:
        """How many searches may run at once, 0 where none may; raises UnavailableError while none can be sent."""
        ...

    def submit(self, job: SearchJob, report: Report) -> Future[Outcome]:
        """Run a search. Never raises, nor does the future: what goes wrong is an outcome.

        `report` is called when the work begins, and some times a second as it goes on. The future can be cancelled
        until it is done: the work then stops, within about a second where the search reports as often as it should.
        """
        ...

    def close(self) -> None:
        """End all that runs, and wait for it; what has no outcome by then is cancelled."""
        ...


def settle(future: Future[Outcome], outcome: Outcome) -> None:
    """Give the future its outcome, unless it was cancelled or has one."""
    with suppress(InvalidStateError):  # at once or not at all: two threads may come with an outcome
        future.set_result(outcome)
