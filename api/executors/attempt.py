"""One attempt at a search, where it runs: the search itself, and its news at a bearable rate."""

from __future__ import annotations

import logging
import time

from api.executors.port import Failed, Report, SearchFunction, Succeeded
from api.problems import problem_of
from api.values import SearchJob
from planner.spec.errors import InternalError, TrimtabError, UnavailableError

log = logging.getLogger(__name__)
REPORT_INTERVAL_S = 0.2
TOO_LITTLE_MEMORY = (
    "the search needs more memory than its worker may use; who runs the service can allow more (search_memory_bytes)"
)


def attempt(search: SearchFunction, job: SearchJob, report: Report) -> Succeeded | Failed:
    """Do the search; what `report` raises stops it. Whatever happens is an outcome."""
    try:
        return Succeeded(search(job.model, job.cluster, job.training, job.options, report))
    except TrimtabError as error:
        if isinstance(error, InternalError):
            log.exception("search %s", job.id)
        return Failed(problem_of(error))
    except MemoryError:
        return Failed(problem_of(UnavailableError(TOO_LITTLE_MEMORY)))
    except Exception:  # whatever it is, it is a bug in the search, and its client waits for an answer
        log.exception("search %s", job.id)
        return Failed(problem_of(InternalError("the search broke")))


def throttled(report: Report) -> Report:
    """A report function that passes on the first news at once, later ones at intervals, and drops those between."""
    due = 0.0

    def seldom(progress: float, message: str) -> None:
        nonlocal due
        now = time.monotonic()
        if now >= due:
            due = now + REPORT_INTERVAL_S
            report(min(1.0, max(0.0, progress)), message)

    return seldom
