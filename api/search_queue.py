"""Searches that wait and run, as one service process sees them: it takes, holds and ends them.

Any number of services may share a database. A search that runs is leased to the process that took it, its **holder**,
which renews the lease while it works; what a process says of a search that it no longer holds is without effect. When
a lease is over, its holder is taken for dead, and the search waits again, but not for ever: what kills a service is
seldom one of its searches. A worker that dies is more telling: the second time the search has failed. So no search runs
twice at once, but for a holder that is cut off from the database until it looks again, and none is lost. A question
that is being searched is not searched a second time: who asks it too waits for the answer.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from http import HTTPStatus
from typing import NamedTuple

from pydantic import ValidationError
from sqlalchemy import ColumnElement, and_, exists, or_, select, update
from sqlalchemy.orm import Session, aliased

from api.database import Database
from api.executors.port import STARTING
from api.problems import ProblemDocument, problem_of
from api.search_store import UNREADABLE, finish, job_of, search_row, succeed
from api.tables import SearchRow
from api.values import SearchJob, SearchState
from planner.spec.errors import UnavailableError
from planner.spec.shortlist import Shortlist

log = logging.getLogger(__name__)
WAITS = 4
"""Of a lease: no transaction waits longer for others than one of so many parts, for the next may be to renew leases."""
LAST_S = 2.0
"""How long the last transaction of a service that ends waits for others, at most."""
MAX_WORKERS_DIED = 2
MAX_LOST_SERVICES = 10
TIMES = {MAX_WORKERS_DIED: "twice", MAX_LOST_SERVICES: "ten times"}
LOST = "the service that ran it was killed, or lost the database"


class TakenBack(NamedTuple):
    """A search whose holder is taken for dead."""

    search_id: str
    state: SearchState
    """Queued again, or failed."""
    seconds: float
    """Since it was taken."""


class SearchQueue:
    """The searches of a database in the name of one holder. Each method is one transaction.

    Those that say how a search went on tell its state by now, or None where it is not held and nothing happened.
    """

    def __init__(self, database: Database, now: Callable[[], datetime], holder: str, lease_s: float) -> None:
        self._database = database
        self._now = now
        self._holder = holder
        self.lease_s = lease_s
        self._patience_s = lease_s / WAITS

    def work_waits(self) -> bool:
        """Whether there is a search to take."""
        return self._any(_takeable())

    def take_next(self) -> SearchJob | None:
        """The search that waits longest, which now runs and is held; None if none waits.

        One that cannot be read, for another version wrote it, has failed, and keeps none behind it waiting.
        """
        waiting = select(SearchRow.number).where(_takeable()).order_by(SearchRow.number).limit(1)
        with self._database.writing(patience_s=self._patience_s) as session:
            while (number := session.scalar(waiting.with_for_update(skip_locked=True))) is not None:
                begun = {"state": SearchState.RUNNING, "started_at": self._now(), "message": STARTING}
                held = {"holder": self._holder, "lease_until": self._lease_end()}
                session.execute(update(SearchRow).where(SearchRow.number == number).values(begun | held))
                try:
                    return job_of(session.get_one(SearchRow, number))
                except ValidationError:
                    log.exception("the search of number %d", number)
                    session.execute(update(SearchRow).where(SearchRow.number == number).values(self._unreadable()))
            return None

    def take_back(self) -> tuple[TakenBack, ...]:
        """Let what dead services held wait again; what had begun and was taken back too often has failed."""
        now = self._now()
        interrupted = _interrupted(now)
        if not self._any(interrupted):  # nearly always, and reading locks nobody out
            return ()
        taken_back = []
        with self._database.writing(patience_s=self._patience_s) as session:
            lost = select(SearchRow).where(interrupted).with_for_update(skip_locked=True)
            for row in session.scalars(lost).all():
                seconds = (now - (row.started_at or now)).total_seconds()
                row.lost_services += row.message != STARTING
                self._try_again(row, row.lost_services, MAX_LOST_SERVICES, LOST)
                taken_back.append(TakenBack(row.id, row.state, seconds))
        return tuple(taken_back)

    def renew(self) -> None:
        """Hold on to everything for another lease."""
        with self._database.writing(alone=False, patience_s=self._patience_s) as session:
            session.execute(update(SearchRow).where(self._held()).values(lease_until=self._lease_end()))

    def held(self) -> frozenset[str]:
        """Ids of the searches that run in this holder's name."""
        with self._database.reading() as session:
            return frozenset(session.scalars(select(SearchRow.id).where(self._held())))

    def report(self, search_id: str, progress: float, message: str) -> None:
        """Note how far a search is; without effect on one that is not held."""
        with self._database.writing(alone=False, patience_s=self._patience_s) as session:
            session.execute(
                update(SearchRow)
                .where(SearchRow.id == search_id, self._held())
                .values(progress=progress, message=message)
            )

    def succeed(self, search_id: str, shortlist: Shortlist) -> SearchState | None:
        """Keep the result, for those too that wait with the same question; without effect on a search not held."""
        with self._database.writing(patience_s=self._patience_s) as session:
            row = search_row(session, search_id, to_change=True)
            if not self._holds(row):
                return None
            for one in (row, *_twins(session, row)):
                succeed(session, one, shortlist, self._now())
            return row.state

    def fail(self, search_id: str, problem: ProblemDocument) -> SearchState | None:
        """Keep why it failed; without effect on a search that is not held.

        Where the question itself is to blame, those that wait with the same one have failed too.
        """
        with self._database.writing(patience_s=self._patience_s) as session:
            row = search_row(session, search_id, to_change=True)
            if not self._holds(row):
                return None
            to_blame = problem.status < HTTPStatus.INTERNAL_SERVER_ERROR
            for one in (row, *(_twins(session, row) if to_blame else ())):
                self._fail(one, problem)
            return row.state

    def worker_died(self, search_id: str, reason: str) -> SearchState | None:
        """After the first death the search waits again, after the second it has failed."""
        with self._database.writing(patience_s=self._patience_s) as session:
            row = search_row(session, search_id, to_change=True)
            if not self._holds(row):
                return None
            row.deaths += 1
            self._try_again(row, row.deaths, MAX_WORKERS_DIED, reason)
            return row.state

    def interrupted(self, search_id: str, reason: str) -> SearchState | None:
        """The search waits again, and that is no death; without effect on one that is not held."""
        with self._database.writing(patience_s=self._patience_s) as session:
            row = search_row(session, search_id, to_change=True)
            if not self._holds(row):
                return None
            _wait_again(row, f"waiting to start again: {reason}")
            return row.state

    def hand_back(self) -> int:
        """Let everything that is held wait again, for the holder ends in order; how many searches."""
        if not self.held():
            return 0
        with self._database.writing(patience_s=min(LAST_S, self._patience_s)) as session:
            rows = session.scalars(select(SearchRow).where(self._held()).with_for_update()).all()
            for row in rows:
                _wait_again(row, "waiting to start again: the service that ran it ended")
            return len(rows)

    def _lease_end(self) -> datetime:
        return self._now() + timedelta(seconds=self.lease_s)

    def _held(self) -> ColumnElement[bool]:
        return and_(SearchRow.holder == self._holder, SearchRow.state == SearchState.RUNNING)

    def _holds(self, row: SearchRow) -> bool:
        return row.state is SearchState.RUNNING and row.holder == self._holder

    def _any(self, condition: ColumnElement[bool]) -> bool:
        with self._database.reading() as session:
            return session.scalar(select(SearchRow.number).where(condition).limit(1)) is not None

    def _try_again(self, row: SearchRow, number: int, most: int, reason: str) -> None:
        if number < most:
            _wait_again(row, f"waiting to start again: {reason}")
        else:
            blame = "perhaps the machine has too little memory"
            self._fail(row, problem_of(UnavailableError(f"{reason}, {TIMES[most]}; {blame}")))

    def _unreadable(self) -> dict[str, object]:
        problem = problem_of(UnavailableError(UNREADABLE))
        failed = {"state": SearchState.FAILED, "error": problem, "message": problem.detail}
        return failed | {"finished_at": self._now(), "holder": None, "lease_until": None}

    def _fail(self, row: SearchRow, problem: ProblemDocument) -> None:
        row.error = problem
        finish(row, SearchState.FAILED, problem.detail, self._now())


def _takeable() -> ColumnElement[bool]:
    """Searches that wait, but for those whose question is being searched."""
    running = aliased(SearchRow)
    asked = exists().where(running.question == SearchRow.question, running.state == SearchState.RUNNING)
    return and_(SearchRow.state == SearchState.QUEUED, ~asked)


def _twins(session: Session, row: SearchRow) -> Sequence[SearchRow]:
    """Searches that wait with the same question."""
    same = select(SearchRow).where(SearchRow.question == row.question, SearchRow.state == SearchState.QUEUED)
    return session.scalars(same.with_for_update(skip_locked=True)).all()


def _interrupted(now: datetime) -> ColumnElement[bool]:
    """Searches that run in nobody's name any more."""
    over = or_(SearchRow.lease_until.is_(None), SearchRow.lease_until < now)
    return and_(SearchRow.state == SearchState.RUNNING, over)


def _wait_again(row: SearchRow, message: str) -> None:
    row.state, row.message, row.progress, row.started_at = SearchState.QUEUED, message, 0.0, None
    row.holder = row.lease_until = None
