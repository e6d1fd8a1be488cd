"""A PostgreSQL server of the tests' own, in a temporary folder, on a socket that nobody else knows."""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

from psycopg import OperationalError, connect

START_S = 60.0
OWNER = "trimtab"
UNSAFE_AND_QUICK = ("fsync=off", "synchronous_commit=off", "full_page_writes=off", "shared_buffers=32MB")
"""What a test writes need not survive the loss of the machine."""


def binaries() -> Path | None:
    """The folder of initdb and postgres; None where PostgreSQL's server is not installed."""
    folders = [Path(found).resolve().parent for found in (shutil.which("postgres"), shutil.which("initdb")) if found]
    if shutil.which("pg_config"):
        told = subprocess.run(["pg_config", "--bindir"], capture_output=True, text=True, check=True).stdout
        folders.append(Path(told.strip()))
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: -int(folder.parent.name))
    return next(
        (folder for folder in folders if {"initdb", "postgres"} <= {file.name for file in folder.iterdir()}), None
    )


class PostgresServer:
    """A server that runs; it can be stopped and started again."""

    def __init__(self, folder: Path, programs: Path) -> None:
        self.folder = folder
        self.programs = programs
        self.process: subprocess.Popen[bytes] | None = None
        self._numbers = count(1)
        if os.geteuid() == 0:  # the server refuses to run as root
            user = pwd.getpwnam("nobody")
            self._as: dict[str, object] = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
            os.chown(folder, user.pw_uid, user.pw_gid)
        else:
            self._as = {}

    def make(self) -> None:
        """Lay out its files."""
        command = [self.programs / "initdb", "--no-sync", "-A", "trust", "-U", OWNER, "-E", "UTF8", "--no-locale"]
        command += ["-D", self.folder / "data"]
        subprocess.run(command, cwd=self.folder, check=True, capture_output=True, **self._as)

    def start(self) -> None:
        """Start it, and wait until it answers."""
        options = [f"unix_socket_directories={self.folder}", "listen_addresses=", *UNSAFE_AND_QUICK]
        command = [self.programs / "postgres", "-D", self.folder / "data", *(f"--{option}" for option in options)]
        if shutil.which("setpriv"):  # tests that are killed take it along
            command = ["setpriv", "--pdeathsig", "INT", *command]
        log = self.folder / "log"
        with log.open("ab") as file:
            self.process = subprocess.Popen(command, cwd=self.folder, stdout=file, stderr=file, **self._as)
        end = time.monotonic() + START_S
        while time.monotonic() < end and self.process.poll() is None:
            with suppress(OperationalError):
                self.execute("SELECT 1")
                return
            time.sleep(0.02)
        raise AssertionError(f"PostgreSQL did not start:\n{log.read_text()}")

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """End it; SIGINT ends its connections, SIGQUIT lets it crash."""
        if self.process is not None:
            self.process.send_signal(how)
            self.process.wait(30)
            self.process = None

    def execute(self, statement: str, database: str = "postgres") -> list[tuple[object, ...]]:
        """One statement outside any transaction; its rows."""
        with connect(host=str(self.folder), user=OWNER, dbname=database, autocommit=True) as connection:
            cursor = connection.execute(statement)  # type: ignore[arg-type]
            return cursor.fetchall() if cursor.description else []

    def new_database(self, template: str = "template1") -> str:
        """The URL of a fresh database, a copy of the template."""
        name = f"t{next(self._numbers)}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        return self.url(name)

    def url(self, name: str) -> str:
        """As an operator writes it."""
        return f"postgresql://{OWNER}@/{name}?host={self.folder}"

    def drop(self, url: str) -> None:
        """Remove a database, whoever is connected."""
        self.execute(f"DROP DATABASE {name_of(url)} WITH (FORCE)")


def name_of(url: str) -> str:
    """The name of the database in a URL that a server of ours has made."""
    return url.partition("@/")[2].partition("?")[0]


@contextmanager
def postgres_server(programs: Path) -> Iterator[PostgresServer]:
    """A server that is ended, and whose files are removed, at the end."""
    # Not pytest's folder: only root may enter it, and its name is longer than that of a socket may be.
    folder = Path(tempfile.mkdtemp(prefix="trimtab-postgres-"))
    server = PostgresServer(folder, programs)
    try:
        server.make()
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder)
