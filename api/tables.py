"""The tables. Values of the planner are kept as their own JSON; times are UTC."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, TypeAdapter
from sqlalchemy import (
    BigInteger,
    DateTime,
    Enum,
    ForeignKey,
    Index,
    Integer,
    String,
    Text,
    TypeDecorator,
    UniqueConstraint,
)
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from api.problems import ProblemDocument
from api.values import SearchState
from planner.online import RunState
from planner.spec.decision import Decision
from planner.spec.mixed_cluster import AnyCluster
from planner.spec.model import Model
from planner.spec.request import SearchRequest
from planner.spec.run import Run
from planner.spec.shortlist import Shortlist
from planner.spec.window import Window
from profiles.devices import MeasuredProfile

V = TypeVar("V", bound=BaseModel)
ID_LENGTH = 64
Number = BigInteger().with_variant(Integer, "sqlite")
"""Of what has no end in sight: 64 bits on both databases, and SQLite counts up only what it calls an integer."""


class UtcTime(TypeDecorator[datetime]):
    """A time with its zone outside, UTC without zone inside; a time without zone is refused."""

    impl = DateTime
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """To the database."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a time needs a zone")
        return value.astimezone(timezone.utc).replace(tzinfo=None)

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        """From the database."""
        return None if value is None else value.replace(tzinfo=timezone.utc)


class Json(TypeDecorator[V], Generic[V]):
    """A pydantic value as its JSON."""

    impl = Text
    cache_ok = True

    def __init__(self, kind: Any) -> None:
        """`kind`: a class of values, or a union of some."""
        super().__init__()
        self.kind: TypeAdapter[V] = TypeAdapter(kind)

    def process_bind_param(self, value: V | None, dialect: Dialect) -> str | None:
        """To the database."""
        return None if value is None else value.model_dump_json(exclude_none=isinstance(value, ProblemDocument))

    def process_result_value(self, value: Any, dialect: Dialect) -> V | None:
        """From the database, checked again."""
        return None if value is None else self.kind.validate_json(value)


class Table(DeclarativeBase):
    """What all tables are registered with."""


class SearchRow(Table):
    """One search; `number` gives the order of arrival."""

    __tablename__ = "searches"

    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(String(ID_LENGTH), unique=True)
    state: Mapped[SearchState] = mapped_column(
        Enum(SearchState, native_enum=False, length=16, values_callable=lambda kind: [state.value for state in kind])
    )
    progress: Mapped[float] = mapped_column(default=0.0)
    message: Mapped[str] = mapped_column(Text, default="")
    deaths: Mapped[int] = mapped_column(default=0)
    """Workers that died over this search."""
    lost_services: Mapped[int] = mapped_column(default=0, server_default="0")
    """Services that were killed while they ran it, and it had begun."""
    holder: Mapped[str | None] = mapped_column(String(ID_LENGTH))
    """The service process that runs it; None unless it runs."""
    lease_until: Mapped[datetime | None] = mapped_column(UtcTime)
    """Until when the holder has it for itself, unless it renews the lease; then the search is anybody's."""
    created_at: Mapped[datetime] = mapped_column(UtcTime)
    started_at: Mapped[datetime | None] = mapped_column(UtcTime)
    finished_at: Mapped[datetime | None] = mapped_column(UtcTime)
    idempotency_key: Mapped[str | None] = mapped_column(String(255), unique=True)
    request_hash: Mapped[str] = mapped_column(String(ID_LENGTH))
    question: Mapped[str | None] = mapped_column(String(ID_LENGTH), index=True)
    """What is searched, resolved, and by which version: equal questions share one result. None: from before that."""
    request: Mapped[SearchRequest] = mapped_column(Json(SearchRequest), deferred=True)
    """Loaded where it is looked at: it may be large, or of another version, and the queue goes on without it."""
    error: Mapped[ProblemDocument | None] = mapped_column(Json(ProblemDocument))
    model_name: Mapped[str | None] = mapped_column(Text)
    """As people call it (`api.short_names`), for lists; None: from before that, and its request cannot be read."""
    cluster_name: Mapped[str | None] = mapped_column(Text)
    best_plan_id: Mapped[str | None] = mapped_column(String(ID_LENGTH))
    best_plan_summary: Mapped[str | None] = mapped_column(Text)
    """Of the same plan, as in the shortlist: lists of searches are shown without reading shortlists."""
    best_step_time_s: Mapped[float | None]
    model: Mapped[Model] = mapped_column(Json(Model), deferred=True)
    """As it was resolved when the search was asked for; presets may change later."""
    cluster: Mapped[AnyCluster] = mapped_column(Json(AnyCluster), deferred=True)
    """One from before clusters had a software stack is read with the ideal one, as which it was priced then."""
    shortlist: Mapped[Shortlist | None] = mapped_column(Json(Shortlist), deferred=True)


class PlanRow(Table):
    """Where a plan was found: its rank in the shortlist of a search."""

    __tablename__ = "plans"

    search_number: Mapped[int] = mapped_column(ForeignKey("searches.number"), primary_key=True)
    rank: Mapped[int] = mapped_column(primary_key=True)
    plan_id: Mapped[str] = mapped_column(String(ID_LENGTH), index=True)


class RunRow(Table):
    """One training job; `version` counts the changes of its state."""

    __tablename__ = "runs"

    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(String(ID_LENGTH), unique=True)
    name: Mapped[str] = mapped_column(String(200), index=True)
    search_number: Mapped[int] = mapped_column(ForeignKey("searches.number"))
    created_at: Mapped[datetime] = mapped_column(UtcTime)
    version: Mapped[int] = mapped_column(default=0)
    run: Mapped[Run] = mapped_column(Json(Run))
    """As it began."""
    state: Mapped[RunState] = mapped_column(Json(RunState), deferred=True)
    """What the online stage remembers."""


class WindowRow(Table):
    """One window of a run."""

    __tablename__ = "windows"
    __table_args__ = (UniqueConstraint("run_number", "index"),)

    number: Mapped[int] = mapped_column(Number, primary_key=True, autoincrement=True)
    run_number: Mapped[int] = mapped_column(ForeignKey("runs.number"))
    index: Mapped[int] = mapped_column(BigInteger)
    received_at: Mapped[datetime] = mapped_column(UtcTime, index=True)
    window: Mapped[Window] = mapped_column(Json(Window))


class DecisionRow(Table):
    """The answer to one window."""

    __tablename__ = "decisions"
    __table_args__ = (UniqueConstraint("run_number", "index"),)

    number: Mapped[int] = mapped_column(Number, primary_key=True, autoincrement=True)
    run_number: Mapped[int] = mapped_column(ForeignKey("runs.number"))
    index: Mapped[int] = mapped_column(BigInteger)
    decided_at: Mapped[datetime] = mapped_column(UtcTime)
    decision: Mapped[Decision] = mapped_column(Json(Decision))


class ProfileRow(Table):
    """A measured profile under the name that a client gave it."""

    __tablename__ = "profiles"

    name: Mapped[str] = mapped_column(String(ID_LENGTH), primary_key=True)
    tag: Mapped[str] = mapped_column(String(ID_LENGTH))
    """Hash of its content."""
    changed_at: Mapped[datetime] = mapped_column(UtcTime)
    profile: Mapped[MeasuredProfile] = mapped_column(Json(MeasuredProfile))


class TokenRow(Table):
    """Who may come in; of the secret only its digest is kept."""

    __tablename__ = "tokens"

    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(String(ID_LENGTH), unique=True)
    name: Mapped[str] = mapped_column(String(200))
    digest: Mapped[str] = mapped_column(String(64))
    """SHA-256 of the secret, in hex."""
    roles: Mapped[str] = mapped_column(String(100))
    """Names, with spaces between."""
    run: Mapped[str | None] = mapped_column(String(200))
    """Name or id of the only run that it may report for; None: any, as far as its roles go."""
    created_at: Mapped[datetime] = mapped_column(UtcTime)
    expires_at: Mapped[datetime | None] = mapped_column(UtcTime)
    revoked_at: Mapped[datetime | None] = mapped_column(UtcTime)
    last_used_at: Mapped[datetime | None] = mapped_column(UtcTime)


class ChoreRow(Table):
    """Work on the database itself that one service does at a time."""

    __tablename__ = "chores"

    name: Mapped[str] = mapped_column(String(ID_LENGTH), primary_key=True)
    holder: Mapped[str | None] = mapped_column(String(ID_LENGTH))
    lease_until: Mapped[datetime | None] = mapped_column(UtcTime)


Index("searches_waiting", SearchRow.state, SearchRow.number)
