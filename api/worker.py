"""What happens in a worker process: one search, with its news sent over a pipe."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Protocol

from api.problems import ProblemDocument, problem_of
from api.values import SearchJob
from planner.spec.errors import InternalError, TrimtabError
from planner.spec.mixed_cluster import AnyCluster
from planner.spec.model import Model
from planner.spec.request import Options
from planner.spec.shortlist import Shortlist
from planner.spec.training import Training

log = logging.getLogger(__name__)
REPORT_INTERVAL_S = 0.2
Report = Callable[[float, str], None]


class SearchFunction(Protocol):
    """The offline stage: planner.search.search. It crosses to the worker by name, so it is a module's function."""

    def __call__(
        self, model: Model, cluster: AnyCluster, training: Training, options: Options, report: Report
    ) -> Shortlist:
        """The shortlist; raises InputError and NoPlanFitsError."""
        ...


@dataclass(frozen=True)
class Progress:
    """How far the search is."""

    progress: float
    message: str


@dataclass(frozen=True)
class Succeeded:
    """The search has ended well."""

    shortlist: Shortlist


@dataclass(frozen=True)
class Failed:
    """The search has ended without a shortlist."""

    problem: ProblemDocument


News = Progress | Succeeded | Failed


def work(connection: Connection, search: SearchFunction, job: SearchJob) -> None:
    """Do one search; the last news is Succeeded or Failed. Ends at once when the service ends."""
    os.setpgid(0, 0)
    threading.Thread(target=_end_with_service, daemon=True).start()
    connection.send(_outcome(search, job, _throttled(connection)))
    connection.close()


def _outcome(search: SearchFunction, job: SearchJob, report: Report) -> News:
    try:
        return Succeeded(search(job.model, job.cluster, job.training, job.options, report))
    except TrimtabError as error:
        if isinstance(error, InternalError):
            log.exception("search %s", job.id)
        return Failed(problem_of(error))
    except Exception:  # whatever it is, it is a bug in the search, and its client waits for an answer
        log.exception("search %s", job.id)
        return Failed(problem_of(InternalError("the search broke")))


def _throttled(connection: Connection) -> Report:
    """A report function that sends the first news at once, later ones at intervals, and drops those between."""
    due = 0.0

    def report(progress: float, message: str) -> None:
        nonlocal due
        now = time.monotonic()
        if now >= due:
            due = now + REPORT_INTERVAL_S
            connection.send(Progress(min(1.0, max(0.0, progress)), message))

    return report


def _end_with_service() -> None:
    """A search whose service is gone has nobody to answer: end it, with the solvers that it started."""
    service = multiprocessing.parent_process()
    assert service is not None
    service.join()
    os.killpg(0, signal.SIGKILL)
