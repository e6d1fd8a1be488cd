"""A Dask cluster of single processes, each of which a test can end by its pid."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@contextmanager
def started(*arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """`dask` with these arguments, with the tests' own modules at hand."""
    path = os.pathsep.join(map(str, (ROOT, HERE)))
    command = [sys.executable, "-W", "ignore", "-m", "dask", *arguments]
    environment = {**os.environ, "PYTHONPATH": path, "DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "false"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@contextmanager
def scheduler(port: int) -> Iterator[subprocess.Popen[bytes]]:
    """A scheduler; returns when it listens."""
    with started("scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard") as process:
        listening(port)
        yield process


@contextmanager
def worker(port: int) -> Iterator[subprocess.Popen[bytes]]:
    """A worker without nanny, with one thread, of the scheduler at this port."""
    address = f"tcp://127.0.0.1:{port}"
    with started("worker", address, "--no-nanny", "--nthreads", "1", "--no-dashboard") as process:
        yield process


def listening(port: int, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            assert time.monotonic() < end
            time.sleep(0.05)
