"""The two databases that the service knows, each set up so that `api.database` can keep its promises.

| | SQLite | PostgreSQL |
|---|---|---|
| reading | a transaction sees the file as it was at its first look | REPEATABLE READ, read only |
| writing alone | BEGIN IMMEDIATE | READ COMMITTED behind an advisory lock, one for each database |
| writing beside others | BEGIN IMMEDIATE | READ COMMITTED: rows lock themselves |

Behind the lock a transaction sees all that others committed before it, and nobody else who writes alone goes on until
it ends; that is why it needs no SERIALIZABLE, whose transactions fail and have to be tried again.
"""

from __future__ import annotations

import sqlite3
import time
from enum import Enum
from typing import NamedTuple

from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

from planner.spec.errors import InputError

BUSY_TIMEOUT_MS = 10_000
"""How long a writer waits for the others, unless `PATIENCE_S` says otherwise."""
PAGE_BYTES = 32_768
"""Of new files. A window with its decision is up to a megabyte: large pages make it quicker to write, and the log is
brought into the file (which waits for the disk) after 1000 pages, whatever their size."""
WAIT_S = 0.02
LOG_LIMIT_BYTES = 64 * 2**20
"""To which the write-ahead log is cut when all of it is in the file. It grows without limit while somebody reads: an
hour-long look at the database leaves an hour's writing in it."""

WRITE_LOCK = 7_276_913
"""Of the advisory lock; any number that no other program takes in the same database."""
STATEMENT_TIMEOUT_MS = 30_000
IDLE_TIMEOUT_MS = 30_000
"""After which PostgreSQL ends a transaction that says nothing: a process that was stopped must not keep the lock."""
CONNECT_TIMEOUT_S = 5


class Size(NamedTuple):
    """Of a pool of connections."""

    kept: int
    """That stay open."""
    more: int
    """While there is much to do."""


WRITING, READING, LOOKING = Size(4, 4), Size(3, 4), Size(1, 0)
"""Of the pools of a service process, on both databases: writers that wait for each other keep no reader from its
connection, nor does either keep those who watch the service from theirs."""
ANY_USE = Size(8, 8)
"""Of the one pool of any other program, which uses as many connections as it has transactions at once."""
POOL_TIMEOUT_S = 15.0
"""How long a request waits for a connection before it is told that the service is busy."""
_KEEP_ALIVE = {"keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3}
"""A server that has gone without a word is noticed within a minute."""


class Writes(Enum):
    """What a transaction is for, where it is not for reading."""

    ALONE = "alone"
    BESIDE_OTHERS = "beside others"
    MIGRATION = "migration"
    """Alone, and in no hurry."""


PURPOSE = "trimtab_writes"
"""The execution option that holds a `Writes`."""
PATIENCE_S = "trimtab_patience_s"
"""The execution option that says how long this writer waits for the others."""


class Engines(NamedTuple):
    """Of one service process, on one database."""

    writing: Engine
    reading: Engine
    looking: Engine
    """For who asks whether the database answers."""


def make_engines(url: str) -> Engines:
    """Engines that have not connected yet; raises InputError that names `database_url`."""
    return Engines(*(make_engine(url, size) for size in (WRITING, READING, LOOKING)))


def make_engine(url: str, size: Size = ANY_USE) -> Engine:
    """An engine that has not connected yet; raises InputError that names `database_url`."""
    try:
        parsed = make_url(url)
        if parsed.drivername == "postgres":
            parsed = parsed.set(drivername="postgresql")
        backend = parsed.get_backend_name()
        if backend == "sqlite":
            return _sqlite(parsed, size)
        if backend == "postgresql":
            return _postgresql(parsed, size)
    except (ArgumentError, NoSuchModuleError) as error:
        raise InputError.at("database_url", f"is no usable SQLAlchemy URL: {error}") from None
    raise InputError.at("database_url", f"must begin with sqlite: or postgresql:, not with {backend}:")


def _sqlite(url: URL, size: Size) -> Engine:
    if url.database in (None, "", ":memory:"):
        raise InputError.at("database_url", "must name a file: a database in memory is not shared by threads")
    engine = create_engine(url, pool_size=size.kept, max_overflow=size.more, pool_timeout=POOL_TIMEOUT_S)
    _prepare_sqlite(engine)
    return engine


def _prepare_sqlite(engine: Engine) -> None:
    """Write-ahead log, foreign keys, patience, and transactions that begin when we say so.

    What was committed survives the end of the process, however hard. Synchronous NORMAL does not wait for the disk with
    each commit: if the machine loses power, the last ones since the log was brought into the file can be lost, whole.
    """

    @event.listens_for(engine, "connect")
    def _connected(connection: sqlite3.Connection, _record: object) -> None:
        connection.isolation_level = None
        for pragma in (
            f"busy_timeout={BUSY_TIMEOUT_MS}",
            f"page_size={PAGE_BYTES}",  # before there is a log
            f"journal_size_limit={LOG_LIMIT_BYTES}",
            "foreign_keys=ON",
            "synchronous=NORMAL",
        ):
            connection.execute(f"PRAGMA {pragma}")
        _write_ahead(connection)

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        purpose = _purpose(connection)
        if purpose:
            _have_patience(connection)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if purpose else "BEGIN")


def _have_patience(connection: Connection) -> None:
    """For this transaction; a connection keeps what it was told for the next, which may be another writer's."""
    wanted_ms = _patience_ms(connection) or BUSY_TIMEOUT_MS
    if connection.info.get(PATIENCE_S, BUSY_TIMEOUT_MS) != wanted_ms:
        connection.exec_driver_sql(f"PRAGMA busy_timeout={wanted_ms}")
        connection.info[PATIENCE_S] = wanted_ms


def _write_ahead(connection: sqlite3.Connection) -> None:
    """Turn the write-ahead log on.

    Of services that make a file at once, SQLite lets one, and refuses the others without the patience it has elsewhere.
    """
    end = time.monotonic() + BUSY_TIMEOUT_MS / 1000
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > end:
                raise
        time.sleep(WAIT_S)


def _postgresql(url: URL, size: Size) -> Engine:
    if url.drivername == "postgresql":
        url = url.set(drivername="postgresql+psycopg")
    if url.get_driver_name() != "psycopg":
        raise InputError.at("database_url", f"must begin with postgresql:, for psycopg 3, not {url.drivername}:")
    timeouts = {
        "statement_timeout": STATEMENT_TIMEOUT_MS,
        "lock_timeout": BUSY_TIMEOUT_MS,
        "idle_in_transaction_session_timeout": IDLE_TIMEOUT_MS,
    }
    ours = {
        "connect_timeout": CONNECT_TIMEOUT_S,
        "application_name": "trimtab",
        "options": " ".join(f"-c {name}={value}" for name, value in timeouts.items()),
        **_KEEP_ALIVE,
    }
    try:
        engine = create_engine(
            url,
            connect_args={name: value for name, value in ours.items() if name not in url.query},
            isolation_level="READ COMMITTED",
            pool_size=size.kept,
            max_overflow=size.more,
            pool_timeout=POOL_TIMEOUT_S,
            pool_pre_ping=True,  # the server may have been started anew since a connection was used last
        )
    except ImportError as error:
        raise InputError.at("database_url", f"needs pip install 'trimtab[postgres]' for PostgreSQL: {error}") from None

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        purpose = _purpose(connection)
        if purpose is Writes.MIGRATION:
            connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
            connection.exec_driver_sql("SET LOCAL lock_timeout = 0")
        if (patience_ms := _patience_ms(connection)) is not None:
            connection.exec_driver_sql(f"SET LOCAL lock_timeout = {patience_ms}")
        if purpose in (Writes.ALONE, Writes.MIGRATION):
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({WRITE_LOCK})")

    return engine


def _purpose(connection: Connection) -> Writes | None:
    purpose: Writes | None = connection.get_execution_options().get(PURPOSE)
    return purpose


def _patience_ms(connection: Connection) -> int | None:
    """None: as every writer's."""
    patience_s: float | None = connection.get_execution_options().get(PATIENCE_S)
    return None if patience_s is None else max(1, round(1000 * patience_s))
