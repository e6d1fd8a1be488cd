"""Opening a database, migrating it, and its transactions. Knows SQLAlchemy and Alembic, and no table."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path

from sqlalchemy import Connection, Engine, create_engine, event, inspect, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError
from sqlalchemy.orm import Session

from planner.spec.errors import InputError

MIGRATIONS = Path(__file__).parent / "migrations"
VERSION_TABLE = "alembic_version"
BUSY_TIMEOUT_MS = 10_000
PAGE_BYTES = 32_768
"""Of new files. A window with its decision is up to a megabyte: large pages make it quicker to write, and the log is
brought into the file (which waits for the disk) after 1000 pages, whatever their size."""


def utc_now() -> datetime:
    """The time, in UTC."""
    return datetime.now(timezone.utc)


class Database:
    """Transactions on one engine. Writers are serialised by the database itself, also over processes."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._writing_engine = engine.execution_options(trimtab_writes=True)

    @property
    def url(self) -> str:
        """Where it is, with its password: for processes of the same service."""
        return self._engine.url.render_as_string(hide_password=False)

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """One consistent view."""
        with Session(self._engine) as session, session.begin():
            yield session

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """All or nothing; takes the write lock at once, so that what is read inside stays true until the end."""
        with Session(self._writing_engine) as session, session.begin():
            yield session

    def migrate(self) -> None:
        """Bring the tables to the newest version."""
        if self.revision() == newest_revision():
            return
        # Here, not above: it takes a tenth of the time in which a service starts, and is seldom needed.
        from alembic import command  # noqa: PLC0415
        from alembic.config import Config  # noqa: PLC0415

        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
        with self._writing_engine.begin() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")

    def revision(self) -> str | None:
        """Of the tables; None where there are none."""
        with self._engine.connect() as connection:
            if not inspect(connection).has_table(VERSION_TABLE):
                return None
            found: str | None = connection.scalar(text(f"SELECT version_num FROM {VERSION_TABLE}"))
            return found

    def check(self) -> None:
        """Raises SQLAlchemyError if the database does not answer."""
        with self._engine.connect() as connection:
            connection.execute(text("SELECT version_num FROM alembic_version"))

    def close(self) -> None:
        """Give all connections back."""
        self._engine.dispose()


def newest_revision() -> str:
    """Of the migrations: their files begin with their revisions, which have an order."""
    return max(file.name.partition("_")[0] for file in (MIGRATIONS / "versions").glob("[0-9]*.py"))


def open_database(url: str) -> Database:
    """Open and migrate; raises InputError that names `database_url` where that cannot work."""
    try:
        if make_url(url).get_backend_name() == "sqlite" and make_url(url).database in (None, "", ":memory:"):
            raise InputError.at("database_url", "must name a file: a database in memory is not shared by threads")
        engine = create_engine(url)
        if engine.dialect.name == "sqlite":
            _prepare_sqlite(engine)
        database = Database(engine)
        database.migrate()
    except (ArgumentError, NoSuchModuleError, ModuleNotFoundError) as error:
        raise InputError.at("database_url", f"is no usable SQLAlchemy URL: {error}") from None
    except DBAPIError as error:
        raise InputError.at("database_url", f"{shown_url(url)} cannot be opened: {error.orig}") from None
    return database


def join_database(url: str) -> Database:
    """A database that another process of the service has opened, and migrated."""
    engine = create_engine(url)
    if engine.dialect.name == "sqlite":
        _prepare_sqlite(engine)
    return Database(engine)


def shown_url(url: str) -> str:
    """The URL for people: without its password, and with the full path of a file."""
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite" and parsed.database not in (None, "", ":memory:"):
        return str(Path(str(parsed.database)).resolve())
    return hidden_password(url)


def hidden_password(url: str) -> str:
    """The URL with stars for its password; what is no URL is told as such."""
    try:
        return make_url(url).render_as_string(hide_password=True)
    except ArgumentError:
        return "(no URL)"


def _prepare_sqlite(engine: Engine) -> None:
    """Write-ahead log, foreign keys, patience, and transactions that begin when we say so.

    What was committed survives the end of the process, however hard. Synchronous NORMAL does not wait for the disk with
    each commit: if the machine loses power, the last ones since the log was brought into the file can be lost, whole.
    """

    @event.listens_for(engine, "connect")
    def _connected(connection: sqlite3.Connection, _record: object) -> None:
        connection.isolation_level = None
        for pragma in (
            f"page_size={PAGE_BYTES}",
            "journal_mode=WAL",
            f"busy_timeout={BUSY_TIMEOUT_MS}",
            "foreign_keys=ON",
            "synchronous=NORMAL",
        ):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get("trimtab_writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
