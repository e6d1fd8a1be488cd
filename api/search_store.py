"""Searches and the plans that they found. Each method is one transaction; all SQL about searches is here."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from http import HTTPStatus
from importlib.metadata import version
from math import inf
from typing import NamedTuple

from pydantic import ValidationError
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from api.database import Database
from api.problems import ProblemDocument
from api.short_names import cluster_name, model_name
from api.tables import PlanRow, SearchRow
from api.values import Search, SearchJob, SearchState
from planner.spec.errors import ConflictError, InputError, NotFoundError, UnavailableError
from planner.spec.mixed_cluster import AnyCluster
from planner.spec.model import Model
from planner.spec.request import SearchRequest
from planner.spec.shortlist import Shortlist, ShortlistEntry
from planner.spec.training import Training
from planner.spec.value import content_id

VERSION = version("trimtab")
UNREADABLE = "another version of Trimtab wrote this search, and this one cannot read it"
log = logging.getLogger(__name__)
Mark = tuple[SearchState, float, str]
"""State, progress and message: what changes of a search, its times and its end included."""


@dataclass(frozen=True)
class Found:
    """A plan with all that its search knew."""

    search_id: str
    entry: ShortlistEntry
    shortlist: Shortlist
    """Of which the entry is one."""
    model: Model
    cluster: AnyCluster
    training: Training


class Glance(NamedTuple):
    """What a list of searches shows of one. Names are None where the request is of another version."""

    id: str
    state: SearchState
    progress: float
    message: str
    created_at: datetime
    model_name: str | None
    cluster_name: str | None
    best_plan_id: str | None
    best_plan_summary: str | None
    best_step_time_s: float | None


_GLANCE = tuple(getattr(SearchRow, name) for name in Glance._fields)


class SearchStore:
    """What clients ask for, in order of arrival; `api.search_queue` runs it. Times and ids come from outside."""

    def __init__(self, database: Database, now: Callable[[], datetime], new_id: Callable[[], str]) -> None:
        self._database = database
        self._now = now
        self._new_id = new_id

    def add(
        self,
        request: SearchRequest,
        model: Model,
        cluster: AnyCluster,
        key: str | None = None,
        max_waiting: int = 1000,
        time_limit_s: float = inf,
    ) -> Search:
        """Queue a search, or find the one that the same key and request made before.

        Where the same question was answered before, and no time limit (`time_limit_s` for who asks for none) cut that
        answer off, the search has it at once; where it is being searched, it
        waits for that answer (`api.search_queue`). Raises ConflictError if the key came with another request,
        UnavailableError if too many wait already.
        """
        request_hash = content_id(request.model_dump(mode="json"))
        with self._database.writing() as session:
            earlier = session.scalar(select(SearchRow).where(SearchRow.idempotency_key == key)) if key else None
            if earlier:
                if earlier.request_hash != request_hash:
                    raise ConflictError(f"the idempotency key {key!r} was used for another request: {earlier.id}")
                return _search(earlier)
            question = content_id(
                {
                    "version": VERSION,
                    "model": model.model_dump(mode="json"),
                    "cluster": cluster.model_dump(mode="json"),
                    "training": request.training.model_dump(mode="json"),
                    "options": request.options.model_dump(mode="json"),
                }
            )
            limit_s = min(request.options.time_limit_s or inf, time_limit_s)
            twin = session.scalar(
                select(SearchRow)
                .where(SearchRow.question == question, SearchRow.shortlist.is_not(None))
                .order_by(SearchRow.number.desc())
                .limit(1)
            )
            if twin is not None and twin.shortlist is not None and twin.shortlist.search_time_s >= limit_s:
                twin = None
            waiting = session.scalar(select(func.count()).where(SearchRow.state == SearchState.QUEUED)) or 0
            if twin is None and waiting >= max_waiting:
                raise UnavailableError(f"{waiting} searches wait already; try again later")
            row = SearchRow(
                id=self._new_id(),
                state=SearchState.QUEUED,
                message="waiting for a worker",
                created_at=self._now(),
                idempotency_key=key,
                request_hash=request_hash,
                question=question,
                request=request,
                model_name=model_name(request.model),
                cluster_name=cluster_name(request.cluster),
                model=model,
                cluster=cluster,
            )
            session.add(row)
            session.flush()
            if twin is not None and twin.shortlist is not None:
                succeed(session, row, twin.shortlist, self._now())
            return _search(row)

    def search(self, search_id: str) -> Search:
        """One search; raises NotFoundError, or UnavailableError where another version wrote it."""
        with self._database.reading() as session:
            return _search(search_row(session, search_id))

    def searches(self, search_ids: Collection[str]) -> tuple[Search, ...]:
        """Those of the searches that there are, and that can be read."""
        with self._database.reading() as session:
            return _readable(session.scalars(select(SearchRow).where(SearchRow.id.in_(search_ids))).all())

    def marks(self, search_ids: Collection[str]) -> dict[str, Mark]:
        """By id, whether something has changed: quick to read."""
        query = select(SearchRow.id, SearchRow.state, SearchRow.progress, SearchRow.message)
        with self._database.reading() as session:
            found = session.execute(query.where(SearchRow.id.in_(search_ids)))
            return {row.id: (row.state, row.progress, row.message) for row in found}

    def page(self, limit: int, after: str | None = None, state: SearchState | None = None) -> tuple[Search, ...]:
        """At most `limit` searches that can be read, newest first, in one state or any, from the one after `after` on;
        raises InputError for `after`.
        """
        query = select(SearchRow).order_by(SearchRow.number.desc())
        if state is not None:
            query = query.where(SearchRow.state == state)
        with self._database.reading() as session:
            if after is not None:
                query = query.where(SearchRow.number < _number_after(session, after))
            found = list[Search]()
            while len(found) < limit:
                asked = limit - len(found)
                rows = session.scalars(query.limit(asked)).all()
                found += _readable(rows)
                if len(rows) < asked:
                    break
                query = query.where(SearchRow.number < rows[-1].number)
            return tuple(found)

    def glances(self, limit: int, after: str | None = None) -> tuple[Glance, ...]:
        """As `page`, but only what a list for people shows; requests, which may be large, are not read."""
        query = select(*_GLANCE).order_by(SearchRow.number.desc()).limit(limit)
        with self._database.reading() as session:
            if after is not None:
                query = query.where(SearchRow.number < _number_after(session, after))
            return tuple(Glance(*row) for row in session.execute(query))

    def cancel(self, search_id: str) -> Search:
        """End a search that waits or runs; raises NotFoundError, or ConflictError if it has ended otherwise."""
        with self._database.writing() as session:
            row = search_row(session, search_id, to_change=True)
            if row.state in (SearchState.SUCCEEDED, SearchState.FAILED):
                raise ConflictError(f"search {search_id} has {row.state.value} already")
            if not row.state.is_final:
                finish(row, SearchState.CANCELLED, "cancelled", self._now())
            return _search(row)

    def ended(self, search_ids: Collection[str]) -> frozenset[str]:
        """Those of the searches that have ended, whichever way."""
        states = [state for state in SearchState if state.is_final]
        with self._database.reading() as session:
            query = select(SearchRow.id).where(SearchRow.id.in_(search_ids), SearchRow.state.in_(states))
            return frozenset(session.scalars(query))

    def standing(self) -> tuple[dict[SearchState, int], datetime | None]:
        """(How many searches are in each state, when the first of those that wait was asked for)."""
        with self._database.reading() as session:
            counts = session.execute(select(SearchRow.state, func.count().label("number")).group_by(SearchRow.state))
            numbers = {row.state: row.number for row in counts}
            oldest = select(func.min(SearchRow.created_at)).where(SearchRow.state == SearchState.QUEUED)
            return numbers, session.scalar(oldest)

    def shortlist(self, search_id: str) -> Shortlist | ProblemDocument:
        """The shortlist, or what was wrong with the question.

        Raises NotFoundError; ConflictError where there is neither, for the search waits, runs, was cancelled, or failed
        through no fault of the question: that status would be of the search, and not of asking for its result.
        """
        with self._database.reading() as session:
            row = search_row(session, search_id)
            if row.error is not None and row.error.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
                raise ConflictError(f"search {search_id} has no shortlist, ask it anew: it failed, {row.error.detail}")
            result = row.shortlist or row.error
            if result is None:
                raise ConflictError(f"search {search_id} is {row.state.value} and has no shortlist")
            return result

    def found(self, plan_id: str, search_id: str | None = None) -> Found:
        """A plan with the conditions of its search: the given one, or the latest that found it; NotFoundError."""
        query = (
            select(SearchRow, PlanRow.rank)
            .join(PlanRow, PlanRow.search_number == SearchRow.number)
            .where(PlanRow.plan_id == plan_id)
            .order_by(SearchRow.number.desc())
            .limit(1)
        )
        if search_id is not None:
            query = query.where(SearchRow.id == search_id)
        with self._database.reading() as session:
            pair = session.execute(query).first()
            if pair is None:
                raise NotFoundError(f"no search{f' {search_id}' if search_id else ''} found a plan {plan_id!r}")
            row, rank = pair
            assert row.shortlist is not None
            found = row.shortlist
            return Found(row.id, found.plans[rank - 1], found, row.model, row.cluster, row.request.training)

    def conditions(self, search_id: str) -> SearchJob:
        """What a search was about, resolved; raises NotFoundError."""
        with self._database.reading() as session:
            row = search_row(session, search_id)
            return job_of(row)


def search_row(session: Session, search_id: str, *, to_change: bool = False) -> SearchRow:
    """The row, locked where it is to change; raises NotFoundError."""
    query = select(SearchRow).where(SearchRow.id == search_id)
    row = session.scalar(query.with_for_update() if to_change else query)
    if row is None:
        raise NotFoundError(f"no search {search_id!r}")
    return row


def _number_after(session: Session, after: str) -> int:
    """Raises InputError."""
    number = session.scalar(select(SearchRow.number).where(SearchRow.id == after))
    if number is None:
        raise InputError.at("query.after", f"is no search: {after!r}")
    return number


def job_of(row: SearchRow) -> SearchJob:
    """What a worker needs of it."""
    return SearchJob(
        id=row.id, model=row.model, cluster=row.cluster, training=row.request.training, options=row.request.options
    )


def _readable(rows: Sequence[SearchRow]) -> tuple[Search, ...]:
    """All but those that another version wrote: one of these must not keep the others from being seen."""
    found = list[Search]()
    for row in rows:
        try:
            found.append(_search(row))
        except UnavailableError:
            log.warning("search %s is left out: %s", row.id, UNREADABLE)
    return tuple(found)


def _search(row: SearchRow) -> Search:
    """Raises UnavailableError."""
    try:
        request = row.request
    except ValidationError:
        raise UnavailableError(UNREADABLE) from None
    return Search(
        id=row.id,
        state=row.state,
        progress=row.progress,
        message=row.message,
        error=row.error,
        created_at=row.created_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
        best_plan_id=row.best_plan_id,
        best_plan_summary=row.best_plan_summary,
        best_step_time_s=row.best_step_time_s,
        request=request,
    )


def succeed(session: Session, row: SearchRow, shortlist: Shortlist, now: datetime) -> None:
    """It has its result."""
    entry = shortlist.plans[0]
    best = entry.plan
    row.shortlist, row.progress = shortlist, 1.0
    row.best_plan_id, row.best_plan_summary, row.best_step_time_s = best.id, best.summary, entry.estimate.step_time_s
    finish(row, SearchState.SUCCEEDED, f"found {len(shortlist.plans)} plans, the best is {best.summary}", now)
    session.add_all(
        PlanRow(search_number=row.number, rank=rank, plan_id=entry.plan.id)
        for rank, entry in enumerate(shortlist.plans, start=1)
    )


def finish(row: SearchRow, state: SearchState, message: str, now: datetime) -> None:
    """Nothing happens to it after this."""
    row.state, row.message, row.finished_at = state, message, now
    row.holder = row.lease_until = None
