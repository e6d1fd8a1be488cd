"""The service as its own process, started the way a user starts it, and ended the hard way."""

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx

ROOT = Path(__file__).parents[2]
START_S = 90.0


@contextmanager
def service(
    folder: Path, *options: str, database_url: str | None = None
) -> Iterator[tuple[subprocess.Popen[str], httpx.Client]]:
    """`trimtab serve` on a free port with its database, or one in `folder`: the process and a client of it."""
    log = folder / f"service-{time.monotonic_ns()}.log"
    url = database_url or f"sqlite:///{folder}/trimtab.db"
    command = [sys.executable, "-m", "api.cli", "serve", "--port", "0", "--database-url", url, *options]
    with log.open("w") as file:
        process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, text=True)
    try:
        with httpx.Client(base_url=_address(process, log), timeout=60) as client:
            _until_healthy(client)
            yield process, client
    finally:
        process.terminate()
        try:
            process.wait(30)
        finally:
            process.kill()


def _address(process: subprocess.Popen[str], log: Path) -> str:
    end = time.monotonic() + START_S
    while time.monotonic() < end and process.poll() is None:
        found = re.search(r"serves at (http://\S+),", log.read_text())
        if found:
            return found[1]
        time.sleep(0.02)
    raise AssertionError(f"the service did not start:\n{log.read_text()}")


def _until_healthy(client: httpx.Client) -> None:
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        with suppress(httpx.TransportError):
            if client.get("/readyz").is_success:
                return
        time.sleep(0.02)
    raise AssertionError("the service is not ready")


def descendants(pid: int) -> set[int]:
    """All processes that this one started, and those that they started, …"""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rsplit(")", 1)[1].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
    found, new = set(), {pid}
    while new:
        new = {child for child, parent in parents.items() if parent in new}
        found |= new
    return found


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
