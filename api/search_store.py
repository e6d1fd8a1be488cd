"""Searches and the plans that they found. Each method is one transaction; all SQL about searches is here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from api.database import Database
from api.problems import ProblemDocument
from api.tables import PlanRow, SearchRow
from api.values import Search, SearchJob, SearchState
from planner.spec.errors import ConflictError, InputError, NotFoundError, UnavailableError
from planner.spec.mixed_cluster import AnyCluster
from planner.spec.model import Model
from planner.spec.request import SearchRequest
from planner.spec.shortlist import Shortlist, ShortlistEntry
from planner.spec.training import Training
from planner.spec.value import content_id


@dataclass(frozen=True)
class Found:
    """A plan with all that its search knew."""

    entry: ShortlistEntry
    shortlist: Shortlist
    """Of which the entry is one."""
    model: Model
    cluster: AnyCluster
    training: Training


class SearchStore:
    """Searches in order of arrival. Times and ids come from outside."""

    def __init__(self, database: Database, now: Callable[[], datetime], new_id: Callable[[], str]) -> None:
        self._database = database
        self._now = now
        self._new_id = new_id

    def add(
        self, request: SearchRequest, model: Model, cluster: AnyCluster, key: str | None = None, max_waiting: int = 1000
    ) -> Search:
        """Queue a search, or find the one that the same key and request made before.

        Raises ConflictError if the key came with another request, UnavailableError if too many wait already.
        """
        request_hash = content_id(request.model_dump(mode="json"))
        with self._database.writing() as session:
            earlier = session.scalar(select(SearchRow).where(SearchRow.idempotency_key == key)) if key else None
            if earlier:
                if earlier.request_hash != request_hash:
                    raise ConflictError(f"the idempotency key {key!r} was used for another request: {earlier.id}")
                return _search(earlier)
            waiting = session.scalar(select(func.count()).where(SearchRow.state == SearchState.QUEUED)) or 0
            if waiting >= max_waiting:
                raise UnavailableError(f"{waiting} searches wait already; try again later")
            row = SearchRow(
                id=self._new_id(),
                state=SearchState.QUEUED,
                message="waiting for a worker",
                created_at=self._now(),
                idempotency_key=key,
                request_hash=request_hash,
                request=request,
                model=model,
                cluster=cluster,
            )
            session.add(row)
            session.flush()
            return _search(row)

    def search(self, search_id: str) -> Search:
        """One search; raises NotFoundError."""
        with self._database.reading() as session:
            return _search(_row(session, search_id))

    def page(self, limit: int, after: str | None = None) -> tuple[Search, ...]:
        """At most `limit` searches, newest first, from the one after `after` on; raises InputError for `after`."""
        query = select(SearchRow).order_by(SearchRow.number.desc()).limit(limit)
        with self._database.reading() as session:
            if after is not None:
                last = session.scalar(select(SearchRow.number).where(SearchRow.id == after))
                if last is None:
                    raise InputError.at("query.after", f"is no search: {after!r}")
                query = query.where(SearchRow.number < last)
            return tuple(_search(row) for row in session.scalars(query))

    def take_next(self) -> SearchJob | None:
        """The search that waits longest, which now runs; None if none waits."""
        waiting = select(SearchRow).where(SearchRow.state == SearchState.QUEUED).order_by(SearchRow.number).limit(1)
        with self._database.writing() as session:
            row = session.scalar(waiting)
            if row is None:
                return None
            row.state, row.started_at, row.message = SearchState.RUNNING, self._now(), "starting"
            return _job(row)

    def report(self, search_id: str, progress: float, message: str) -> None:
        """Note how far a running search is; without effect on one that no longer runs."""
        with self._database.writing() as session:
            session.execute(
                update(SearchRow)
                .where(SearchRow.id == search_id, SearchRow.state == SearchState.RUNNING)
                .values(progress=progress, message=message)
            )

    def succeed(self, search_id: str, shortlist: Shortlist) -> None:
        """Keep the result of a running search; without effect on one that no longer runs."""
        with self._database.writing() as session:
            row = _row(session, search_id)
            if row.state is not SearchState.RUNNING:
                return
            best = shortlist.plans[0].plan
            row.shortlist, row.best_plan_id, row.progress = shortlist, best.id, 1.0
            self._finish(row, SearchState.SUCCEEDED, f"found {len(shortlist.plans)} plans, the best is {best.summary}")
            session.add_all(
                PlanRow(search_number=row.number, rank=rank, plan_id=entry.plan.id)
                for rank, entry in enumerate(shortlist.plans, start=1)
            )

    def fail(self, search_id: str, problem: ProblemDocument) -> None:
        """Keep why a running search failed; without effect on one that no longer runs."""
        with self._database.writing() as session:
            row = _row(session, search_id)
            if row.state is SearchState.RUNNING:
                row.error = problem
                self._finish(row, SearchState.FAILED, problem.detail)

    def cancel(self, search_id: str) -> Search:
        """End a search that waits or runs; raises NotFoundError, or ConflictError if it has ended otherwise."""
        with self._database.writing() as session:
            row = _row(session, search_id)
            if row.state in (SearchState.SUCCEEDED, SearchState.FAILED):
                raise ConflictError(f"search {search_id} has {row.state.value} already")
            if not row.state.is_final:
                self._finish(row, SearchState.CANCELLED, "cancelled")
            return _search(row)

    def worker_died(self, search_id: str, reason: str, problem: ProblemDocument) -> Search:
        """After the first death the search waits again, after the second it has failed."""
        with self._database.writing() as session:
            row = _row(session, search_id)
            if row.state is SearchState.RUNNING:
                row.deaths += 1
                if row.deaths == 1:
                    _wait_again(row, f"waiting to start again: {reason}")
                else:
                    row.error = problem
                    self._finish(row, SearchState.FAILED, problem.detail)
            return _search(row)

    def requeue_interrupted(self) -> int:
        """Let searches wait again that ran when the service last ended; how many."""
        with self._database.writing() as session:
            rows = session.scalars(select(SearchRow).where(SearchRow.state == SearchState.RUNNING)).all()
            for row in rows:
                _wait_again(row, "waiting to start again after the service restarted")
            return len(rows)

    def shortlist(self, search_id: str) -> Shortlist | ProblemDocument:
        """The shortlist, or why the search failed; raises NotFoundError, and ConflictError where there is neither."""
        with self._database.reading() as session:
            row = _row(session, search_id)
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
            return Found(found.plans[rank - 1], found, row.model, row.cluster, row.request.training)

    def conditions(self, search_id: str) -> SearchJob:
        """What a search was about, resolved; raises NotFoundError."""
        with self._database.reading() as session:
            row = _row(session, search_id)
            return _job(row)

    def _finish(self, row: SearchRow, state: SearchState, message: str) -> None:
        row.state, row.message, row.finished_at = state, message, self._now()


def _row(session: Session, search_id: str) -> SearchRow:
    row = session.scalar(select(SearchRow).where(SearchRow.id == search_id))
    if row is None:
        raise NotFoundError(f"no search {search_id!r}")
    return row


def _job(row: SearchRow) -> SearchJob:
    return SearchJob(
        id=row.id, model=row.model, cluster=row.cluster, training=row.request.training, options=row.request.options
    )


def _wait_again(row: SearchRow, message: str) -> None:
    row.state, row.message, row.progress, row.started_at = SearchState.QUEUED, message, 0.0, None


def _search(row: SearchRow) -> Search:
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
        request=row.request,
    )
