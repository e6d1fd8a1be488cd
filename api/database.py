"""Opening a database, migrating it, and its transactions. Knows SQLAlchemy and Alembic, and no table."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path

from sqlalchemy import Engine, inspect, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, OperationalError, TimeoutError
from sqlalchemy.orm import Session

from api.engines import PATIENCE_S, PURPOSE, Writes, make_engine, make_engines
from api.logs import hidden_secrets
from planner.spec.errors import InputError

MIGRATIONS = Path(__file__).parent / "migrations"
VERSION_TABLE = "alembic_version"
_AWAY = (InterfaceError, OperationalError, TimeoutError)
_AWAY_STATES = {"25006", "0A000", "25P03"}
"""SQLSTATEs of PostgreSQL that are not operational for SQLAlchemy: of a server that has become a standby, where nothing
can be written (the second where a transaction asks to write), and of a transaction that was silent for too long."""

NO_DATABASE = "the database does not answer; try again later"


def utc_now() -> datetime:
    """The time, in UTC."""
    return datetime.now(timezone.utc)


def is_away(error: Exception) -> bool:
    """Whether it is gone, locked or full, or the pool has no free connection; not that what it was told is wrong."""
    if isinstance(error, _AWAY):
        return True
    lost = isinstance(error, DBAPIError) and error.connection_invalidated
    return lost or getattr(getattr(error, "orig", None), "sqlstate", None) in _AWAY_STATES


class Database:
    """Transactions on one database. Writers are serialised by the database itself, also over processes."""

    def __init__(self, engine: Engine, reading: Engine | None = None, looking: Engine | None = None) -> None:
        """`reading` and `looking` (for `check`) have connections of their own; None: those of `engine`."""
        self._engine = engine
        self._looking = looking or engine
        self._engines = {engine, reading or engine, self._looking}
        view = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
        self._reading = (reading or engine).execution_options(**view if engine.dialect.name == "postgresql" else {})
        self._writing = {kind: engine.execution_options(**{PURPOSE: kind}) for kind in Writes}

    @property
    def url(self) -> str:
        """Where it is, with its password: for processes of the same service."""
        return self._engine.url.render_as_string(hide_password=False)

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """One consistent view."""
        with Session(self._reading) as session, session.begin():
            yield session

    @contextmanager
    def writing(self, *, alone: bool = True, patience_s: float | None = None) -> Iterator[Session]:
        """All or nothing; takes the write lock at once, so that what is read inside stays true until the end.

        Not `alone`: others may write at the same time, where the database can that (PostgreSQL). For transactions that
        begin with the one statement which decides whether they happen, and that see no rows but their own.
        `patience_s`: how long it waits for others who write, where it has less time than most (`BUSY_TIMEOUT_MS`).
        """
        engine = self._writing[Writes.ALONE if alone else Writes.BESIDE_OTHERS]
        if patience_s is not None:
            engine = engine.execution_options(**{PATIENCE_S: patience_s})
        with Session(engine) as session, session.begin():
            yield session

    def migrate(self) -> None:
        """Bring the tables to the newest version; of several processes one does, and the others wait for it.

        Raises InputError for a database that a newer program has made.
        """
        found, newest = self.revision(), newest_revision()
        if found == newest:
            return
        if found is not None and found > newest:
            raise InputError.at(
                "database_url",
                f"holds tables of revision {found}, of a newer Trimtab; this one knows {newest} and those before it: "
                "upgrade Trimtab, or restore a backup",
            )
        # Here, not above: it takes a tenth of the time in which a service starts, and is seldom needed.
        from alembic import command  # noqa: PLC0415
        from alembic.config import Config  # noqa: PLC0415

        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
        with self._writing[Writes.MIGRATION].begin() as connection:
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
        with self._looking.connect() as connection:
            connection.execute(text(f"SELECT version_num FROM {VERSION_TABLE}"))

    def close(self) -> None:
        """Give all connections back."""
        for engine in self._engines:
            engine.dispose()


def newest_revision() -> str:
    """Of the migrations: their files begin with their revisions, which have an order."""
    return max(file.name.partition("_")[0] for file in (MIGRATIONS / "versions").glob("[0-9]*.py"))


def open_database(url: str) -> Database:
    """Open and migrate; raises InputError that names `database_url` where that cannot work."""
    database = Database(*make_engines(url))
    try:
        database.migrate()
    except DBAPIError as error:
        database.close()
        raise _unopened(url, error) from None
    except InputError:
        database.close()
        raise
    return database


def existing_database(url: str) -> Database:
    """Open what is there and has the tables of this version; nothing is made and nothing migrated.

    Raises InputError that names `database_url`.
    """
    database = Database(make_engine(url))
    try:
        found = database.revision() if is_there(url) else None
    except DBAPIError as error:
        database.close()
        raise _unopened(url, error) from None
    if found == newest_revision():
        return database
    database.close()
    has = "has no tables of Trimtab" if found is None else f"has tables of revision {found}, not {newest_revision()}"
    raise InputError.at(
        "database_url", f"{shown_url(url)} {has}; trimtab serve or trimtab database upgrade makes those of this version"
    )


def is_there(url: str) -> bool:
    """Whether the file of a SQLite database exists, which a look at it would make; True for others."""
    parsed = make_url(url)
    return parsed.get_backend_name() != "sqlite" or Path(str(parsed.database)).exists()


def _unopened(url: str, error: DBAPIError) -> InputError:
    reason = " ".join(str(error.orig).split())
    return InputError.at("database_url", f"{shown_url(url)} cannot be opened: {reason}")


def join_database(url: str) -> Database:
    """A database that another process of the service has opened, and migrated."""
    return Database(make_engine(url))


def shown_url(url: str) -> str:
    """The URL for people: without its password, and with the full path of a file."""
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite" and parsed.database not in (None, "", ":memory:"):
        return str(Path(str(parsed.database)).resolve())
    return hidden_password(url)


def hidden_password(url: str) -> str:
    """The URL with stars for its passwords, also those in its query; what is no URL is told as such."""
    try:
        return hidden_secrets(make_url(url).render_as_string(hide_password=True))
    except ArgumentError:
        return "(no URL)"
