"""A copy of a SQLite database while others write to it."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

from api.engines import make_engine
from planner.spec.errors import InputError


def copy_sqlite(url: str, target: Path) -> int:
    """Copy the database of `url` to a new file, as it is at one moment; bytes of the copy.

    It stands under its name when it is whole, checked and on the disk. Raises InputError.
    """
    engine = make_engine(url)
    engine.dispose()
    if engine.dialect.name != "sqlite":
        raise InputError.at("database_url", "is of PostgreSQL: back it up by pg_dump --format=custom")
    source = Path(str(engine.url.database))
    if not source.is_file():
        raise InputError.at("database_url", f"{source} is no file")
    _check_readable(source)
    if target.exists():
        raise InputError.at("FILE", f"{target} is there already: choose another name")
    unfinished = target.with_name(f"{target.name}.unfinished")
    try:
        _copy(source, unfinished)
        os.replace(unfinished, target)
    except (sqlite3.OperationalError, OSError) as error:
        raise InputError.at("FILE", f"{target} cannot be written: {error}") from None
    except sqlite3.DatabaseError as error:  # of what is in the pages, which are the source's
        raise InputError.at("database_url", f"{source} is damaged: {error}") from None
    finally:
        unfinished.unlink(missing_ok=True)
    return target.stat().st_size


def _check_readable(source: Path) -> None:
    try:
        with closing(sqlite3.connect(source)) as read:
            read.execute("PRAGMA schema_version")
    except sqlite3.Error as error:
        raise InputError.at("database_url", f"{source} cannot be read: {error}") from None


def _copy(source: Path, target: Path) -> None:
    """All pages in one step: a copy in several begins anew whenever somebody writes, and that may be for ever."""
    with closing(sqlite3.connect(source)) as read, closing(sqlite3.connect(target)) as written:
        read.backup(written, pages=-1)
        written.execute("PRAGMA journal_mode=DELETE")  # one file, without a log beside it
        [(verdict,)] = written.execute("PRAGMA integrity_check(1)")
        if verdict != "ok":
            raise sqlite3.DatabaseError(verdict)
    descriptor = os.open(target, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
