"""Runs with their windows and decisions. Each method is one transaction; all SQL about runs is here."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import and_, bindparam, func, insert, select, update
from sqlalchemy.orm import Session

from api.database import Database
from api.tables import DecisionRow, RunRow, SearchRow, Table, WindowRow
from planner.online import RunState
from planner.spec.decision import Decision
from planner.spec.errors import InputError, NotFoundError
from planner.spec.run import Run, RunContext
from planner.spec.window import Window

_RUNS, _WINDOWS, _DECISIONS = (Table.metadata.tables[kind.__tablename__] for kind in (RunRow, WindowRow, DecisionRow))
"""For what every window does: statements on tables, made once, take half the time of those on mapped classes."""

_MOVE_ON = (
    update(_RUNS)
    .where(_RUNS.c.id == bindparam("run_id"), _RUNS.c.version == bindparam("known"))
    .values(version=_RUNS.c.version + 1, state=bindparam("state_now"))
    .returning(_RUNS.c.number)
)
_ADD_WINDOW, _ADD_DECISION = insert(_WINDOWS), insert(_DECISIONS)
_ANSWERED = (
    select(_RUNS.c.version, _DECISIONS.c.decision)
    .select_from(
        _RUNS.outerjoin(
            _DECISIONS,
            and_(_DECISIONS.c.run_number == _RUNS.c.number, _DECISIONS.c["index"] == bindparam("index")),
        )
    )
    .where(_RUNS.c.id == bindparam("run_id"))
)


@dataclass(frozen=True)
class Standing:
    """Where a run stands: what its next decision depends on. `version` is for `record`."""

    context: RunContext
    state: RunState
    version: int


class Glance(NamedTuple):
    """What a list of runs shows of one."""

    id: str
    name: str
    search_id: str
    created_at: datetime
    num_windows: int


class RunStore:
    """Runs in order of their beginning; windows and decisions in order of their index. Times come from outside."""

    def __init__(self, database: Database, now: Callable[[], datetime]) -> None:
        self._database = database
        self._now = now

    def begin(self, run: Run, state: RunState) -> None:
        """Keep a new run; raises NotFoundError if its search is gone."""
        with self._database.writing() as session:
            search = session.scalar(select(SearchRow.number).where(SearchRow.id == run.search_id))
            if search is None:
                raise NotFoundError(f"no search {run.search_id!r}")
            session.add(
                RunRow(
                    id=run.id,
                    name=run.name,
                    search_number=search,
                    created_at=run.created_at,
                    version=0,
                    run=run,
                    state=state,
                )
            )

    def run(self, run_id: str) -> Run:
        """One run as it began; raises NotFoundError."""
        with self._database.reading() as session:
            return _row(session, run_id).run

    def name(self, run_id: str) -> str:
        """What the run is called; raises NotFoundError."""
        with self._database.reading() as session:
            found = session.scalar(select(RunRow.name).where(RunRow.id == run_id))
        if found is None:
            raise _no_run(run_id)
        return found

    def page(self, limit: int, after: str | None = None, name: str | None = None) -> tuple[Run, ...]:
        """At most `limit` runs, newest first, from the one after `after` on; raises InputError for `after`."""
        query = select(RunRow.run).order_by(RunRow.number.desc()).limit(limit)
        if name is not None:
            query = query.where(RunRow.name == name)
        with self._database.reading() as session:
            if after is not None:
                query = query.where(RunRow.number < _number_after(session, after))
            return tuple(session.scalars(query))

    def glances(self, limit: int, after: str | None = None) -> tuple[Glance, ...]:
        """As `page`, but only what a list shows; contexts, which are large, are not read."""
        query = (
            select(RunRow.id, RunRow.name, SearchRow.id, RunRow.created_at, RunRow.version)
            .join(SearchRow, SearchRow.number == RunRow.search_number)
            .order_by(RunRow.number.desc())
            .limit(limit)
        )
        with self._database.reading() as session:
            if after is not None:
                query = query.where(RunRow.number < _number_after(session, after))
            return tuple(Glance(*row) for row in session.execute(query))

    def standing(self, run_id: str) -> Standing:
        """Where the run stands; raises NotFoundError."""
        with self._database.reading() as session:
            row = _row(session, run_id)
            return Standing(row.run.context, row.state, row.version)

    def answered(self, run_id: str, index: int) -> tuple[int, Decision | None]:
        """(How often the state of the run has changed, the answer to the window of this index, if it came before.)

        Both of one moment; raises NotFoundError.
        """
        with self._database.reading() as session:
            found = session.execute(_ANSWERED, {"run_id": run_id, "index": index}).one_or_none()
        if found is None:
            raise _no_run(run_id)
        version, decision = found
        return version, decision

    def record(self, run_id: str, version: int, window: Window, decision: Decision, state: RunState) -> bool:
        """Keep window, decision and new state together; False, and nothing kept, if the run has moved on meanwhile."""
        with self._database.writing(alone=False) as session:
            connection = session.connection()
            number = connection.scalar(_MOVE_ON, {"run_id": run_id, "known": version, "state_now": state})
            if number is None:
                return False
            now, key = self._now(), {"run_number": number, "index": window.index}
            connection.execute(_ADD_WINDOW, {**key, "received_at": now, "window": window})
            connection.execute(_ADD_DECISION, {**key, "decided_at": now, "decision": decision})
            return True

    def windows(self, run_id: str, limit: int, after: int | None = None) -> tuple[Window, ...]:
        """At most `limit` windows in order, those with an index above `after`; raises NotFoundError."""
        query = select(WindowRow.window).order_by(WindowRow.index).limit(limit)
        with self._database.reading() as session:
            query = query.where(WindowRow.run_number == _number(session, run_id))
            return tuple(session.scalars(query if after is None else query.where(WindowRow.index > after)))

    def num_decisions(self, run_id: str) -> int:
        """How many windows came in, kept or not; raises NotFoundError."""
        with self._database.reading() as session:
            query = select(func.count()).where(DecisionRow.run_number == _number(session, run_id))
            return session.scalar(query) or 0

    def window_indices(self, run_id: str) -> tuple[int, ...]:
        """Which windows are kept, in order; raises NotFoundError."""
        with self._database.reading() as session:
            query = select(WindowRow.index).where(WindowRow.run_number == _number(session, run_id))
            return tuple(session.scalars(query.order_by(WindowRow.index)))

    def windows_at(self, run_id: str, indices: Collection[int]) -> tuple[Window, ...]:
        """The windows with these indices that there are, in order; raises NotFoundError."""
        with self._database.reading() as session:
            query = select(WindowRow.window).where(WindowRow.run_number == _number(session, run_id))
            return tuple(session.scalars(query.where(WindowRow.index.in_(indices)).order_by(WindowRow.index)))

    def decisions(self, run_id: str, limit: int, after: int | None = None) -> tuple[Decision, ...]:
        """At most `limit` decisions in order, those for an index above `after`; raises NotFoundError."""
        query = select(DecisionRow.decision).order_by(DecisionRow.index).limit(limit)
        with self._database.reading() as session:
            query = query.where(DecisionRow.run_number == _number(session, run_id))
            return tuple(session.scalars(query if after is None else query.where(DecisionRow.index > after)))

    def latest_decisions(self, run_id: str, limit: int, before: int | None = None) -> tuple[Decision, ...]:
        """At most `limit` decisions, the latest window first, those for an index below `before`; NotFoundError."""
        query = select(DecisionRow.decision).order_by(DecisionRow.index.desc()).limit(limit)
        with self._database.reading() as session:
            query = query.where(DecisionRow.run_number == _number(session, run_id))
            return tuple(session.scalars(query if before is None else query.where(DecisionRow.index < before)))


def _number_after(session: Session, run_id: str) -> int:
    number = session.scalar(select(RunRow.number).where(RunRow.id == run_id))
    if number is None:
        raise InputError.at("query.after", f"is no run: {run_id!r}")
    return number


def _row(session: Session, run_id: str) -> RunRow:
    row = session.scalar(select(RunRow).where(RunRow.id == run_id))
    if row is None:
        raise _no_run(run_id)
    return row


def _number(session: Session, run_id: str) -> int:
    number = session.scalar(select(RunRow.number).where(RunRow.id == run_id))
    if number is None:
        raise _no_run(run_id)
    return number


def _no_run(run_id: str) -> NotFoundError:
    return NotFoundError(f"no run {run_id!r}")
