"""Ranks of a training job as processes of this machine (gloo, CPU): for the demo, tests, measuring, first experiments.

Larger jobs are started by torchrun, Slurm and the like; nothing else in `runtime` needs this module.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from planner.spec.errors import RankFailedError, UnavailableError

Report = Callable[[Any], None]
"""Sends something (anything that can be pickled) to `on_report` in the process that launched the ranks."""


def launch(
    function: Callable[..., Any],
    num_ranks: int,
    arguments: Sequence[Any] = (),
    *,
    on_report: Callable[[int, Any], None] | None = None,
    timeout_s: float = 300.0,
    backend: str = "gloo",
) -> list[Any]:
    """Run `function(report, *arguments)` in `num_ranks` processes that form one process group; results by rank.

    `function` must be importable by name; with another `backend` than gloo it must choose its device before all else.
    `on_report(rank, message)` is called here for every `report(message)` there.
    Raises RankFailedError if one raises or dies, UnavailableError after `timeout_s`. No process is left behind.
    """
    context = multiprocessing.get_context("forkserver")
    # torch._dynamo: the first optimizer of a process imports it, which takes longer than all else here.
    context.set_forkserver_preload(["runtime", "torch._dynamo", function.__module__])
    processes: list[ForkServerProcess] = []
    connections: list[Connection] = []
    finished = False
    with tempfile.TemporaryDirectory(prefix="trimtab-") as folder:
        try:
            for number in range(num_ranks):
                here, there = context.Pipe(duplex=False)
                seat = _Seat(number, num_ranks, str(Path(folder) / "rendezvous"), timeout_s, backend)
                process = context.Process(target=_rank_main, args=(function, seat, there, arguments), daemon=True)
                process.start()
                there.close()
                processes.append(process)
                connections.append(here)
            results = _collect(connections, on_report or (lambda rank, message: None), time.monotonic() + timeout_s)
            finished = True
            return results
        finally:
            _end(processes, patience_s=5.0 if finished else 0.0)
            for connection in connections:
                connection.close()


def _collect(connections: list[Connection], on_report: Callable[[int, Any], None], deadline: float) -> list[Any]:
    results: dict[int, Any] = {}
    while len(results) < len(connections):
        open_ones = [connection for number, connection in enumerate(connections) if number not in results]
        ready = wait(open_ones, timeout=max(0.0, deadline - time.monotonic()))
        if not ready:
            raise UnavailableError("the ranks did not finish in time")
        for connection in ready:
            assert isinstance(connection, Connection)
            number = connections.index(connection)
            try:
                kind, content = connection.recv()
            except EOFError:
                raise RankFailedError(f"rank {number} died without a word") from None
            if kind == "failed":
                raised, trace = content
                raise RankFailedError(f"rank {number} failed: {raised}", trace)
            if kind == "report":
                on_report(number, content)
            else:
                results[number] = content
    return [results[number] for number in range(len(connections))]


def _end(processes: list[ForkServerProcess], patience_s: float) -> None:
    """Give the ranks a moment to leave; kill those that do not."""
    deadline = time.monotonic() + patience_s
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
        if process.is_alive():
            process.kill()
        process.join()
        process.close()


class _Seat(NamedTuple):
    """A rank's place in the process group."""

    rank: int
    num_ranks: int
    rendezvous: str
    timeout_s: float
    backend: str


def _rank_main(function: Callable[..., Any], seat: _Seat, parent: Connection, arguments: Sequence[Any]) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo" if sys.platform == "linux" else "lo0")
    torch.set_num_threads(1)

    def send(kind: str, content: object) -> None:
        # By value: tensors through `Connection.send` would live in shared memory that ends with this process.
        parent.send_bytes(pickle.dumps((kind, content)))

    try:
        dist.init_process_group(
            seat.backend,
            init_method=f"file://{seat.rendezvous}",
            rank=seat.rank,
            world_size=seat.num_ranks,
            timeout=timedelta(seconds=seat.timeout_s),
        )
        result = function(lambda message: send("report", message), *arguments)
        dist.barrier()
        send("result", result)
        dist.destroy_process_group()
    except BaseException as error:
        raised = " ".join("".join(traceback.format_exception_only(error)).split())
        send("failed", (raised, traceback.format_exc()))
    finally:
        # Not a normal exit: gloo's threads sometimes abort the interpreter while it shuts down.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
