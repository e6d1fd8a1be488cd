"""Processes that decide on windows, so that the service's own has time for everything else.

Each run belongs to one of them, by its id. The service hands a window over as it came; what a process was asked and has
not answered when it dies is asked again of the next, and an index has one decision, so nothing is lost or done twice.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import multiprocessing
import socket
import threading
from asyncio import Future, IncompleteReadError, StreamReader, StreamWriter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import count
from multiprocessing.context import ForkServerProcess
from zlib import crc32

from api.decider import Answered, Asked, Refused, work
from api.frames import frame, read_frame
from api.problems import problem_of
from planner.spec.errors import InternalError, UnavailableError

log = logging.getLogger(__name__)
DEATHS = 2
"""A window over which so many processes have died is refused."""
RETRY_S = 1.0
"""Before another process is started where one could not be."""
EXIT_S = 5.0
"""What a process gets to finish its window when the service ends."""

Answer = Answered | Refused
Work = Callable[[socket.socket, str], None]
"""`api.decider.work`, or a double of it: a module's function, for it crosses to the process by name."""
Started = tuple[ForkServerProcess, socket.socket]
"""A process, and our end of the line to it; where that is closed, or forgotten, the process ends."""


@dataclass
class _Waiting:
    """A window that is not answered yet."""

    asked: Asked
    answer: Future[Answer]
    deaths: int = 0


class _Lane:
    """One decider after the other, for the same runs."""

    def __init__(self, name: str, start: Callable[[str], Started]) -> None:
        self._name = name
        self._start = start
        self._numbers = count()
        self._waiting: dict[int, _Waiting] = {}
        self._writer: StreamWriter | None = None
        self.deaths = 0

    @property
    def num_waiting(self) -> int:
        """Windows that are not answered yet."""
        return len(self._waiting)

    async def ask(self, run_id: str, body: bytes) -> Answer:
        """The answer of the process, or of the next; raises UnavailableError where the service ends before."""
        waiting = _Waiting(Asked(next(self._numbers), run_id, body), asyncio.get_running_loop().create_future())
        self._waiting[waiting.asked.number] = waiting
        if self._writer is not None:
            self._writer.write(frame(tuple(waiting.asked)))
        return await waiting.answer

    async def run(self) -> None:
        """Have a process at work until cancelled; then let it finish the window that it is at."""
        try:
            while True:
                try:
                    answered = await self._one_life()
                except Exception:  # a fork can fail in many ways, and the windows of this lane wait
                    answered = 0
                    log.exception("%s could not be started", self._name)
                if not answered:
                    await asyncio.sleep(RETRY_S)
        finally:
            for waiting in self._waiting.values():
                if not waiting.answer.done():
                    waiting.answer.set_exception(UnavailableError("the service is ending; ask again"))

    async def _one_life(self) -> int:
        """Start a process, ask it until it has gone; the number of its answers. Raises what kept it from starting."""
        starting = _starting(partial(self._start, self._name))
        try:
            process, ours = await asyncio.wrap_future(starting)
        except asyncio.CancelledError:
            starting.add_done_callback(_forget)
            raise
        reader, self._writer = await asyncio.open_connection(sock=ours)
        try:
            answered = await self._answer_all(reader, self._writer)
        finally:
            self._writer.close()
            self._writer = None
            await asyncio.to_thread(_end, process)
        self._died(process)
        return answered

    async def _answer_all(self, reader: StreamReader, writer: StreamWriter) -> int:
        """Ask what waits, and hand answers on until the process is gone; their number."""
        for waiting in self._waiting.values():
            writer.write(frame(tuple(waiting.asked)))
        answered = 0
        while True:
            try:
                answer: Answer = await read_frame(reader)
            except (IncompleteReadError, ConnectionError):
                return answered
            answered += 1
            self._settle(self._waiting.pop(answer.number), answer)

    def _died(self, process: ForkServerProcess) -> None:
        """Windows are answered in order: the first that waits is the one that it was at."""
        self.deaths += 1
        log.error(
            "%s ended with exit code %s; %d windows wait for the next",
            self._name,
            process.exitcode,
            self.num_waiting,
        )
        first = next(iter(self._waiting.values()), None)
        if first is None:
            return
        first.deaths += 1
        if first.deaths == DEATHS:
            log.error("%d deciders died of a window of run %s, which is refused", DEATHS, first.asked.run_id)
            del self._waiting[first.asked.number]
            self._settle(first, Refused(first.asked.number, problem_of(InternalError("deciders die of this window"))))

    @staticmethod
    def _settle(waiting: _Waiting, answer: Answer) -> None:
        if not waiting.answer.done():  # its client may have gone
            waiting.answer.set_result(answer)


def _starting(start: Callable[[], Started]) -> concurrent.futures.Future[Started]:
    """The start of a process in a thread that nobody need wait for: while the fork server loads, it takes seconds."""
    future: concurrent.futures.Future[Started] = concurrent.futures.Future()

    def run() -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(start())
        except Exception as error:
            future.set_exception(error)

    threading.Thread(target=run, name="trimtab-decider", daemon=True).start()
    return future


def _forget(starting: concurrent.futures.Future[Started]) -> None:
    """Close the line to a process that nobody wants any more."""
    if not starting.cancelled() and starting.exception() is None:
        starting.result()[1].close()


def _start(work: Work, database_url: str, name: str) -> Started:
    """Raises OSError, and EOFError where it is the fork server that cannot fork."""
    ours, theirs = socket.socketpair()
    with theirs:
        process = multiprocessing.get_context("forkserver").Process(
            target=work, args=(theirs, database_url), name=name, daemon=True
        )
        try:
            process.start()
        except BaseException:
            ours.close()
            raise
    return process, ours


def _end(process: ForkServerProcess) -> None:
    """Wait for a process whose line is closed."""
    process.join(EXIT_S)
    if process.exitcode is None:
        process.kill()
        process.join()


class Deciders:
    """A fixed number of decider processes."""

    def __init__(self, database_url: str, number: int, work: Work = work) -> None:
        start = partial(_start, work, database_url)
        self._lanes = [_Lane(f"decider {index}", start) for index in range(number)]
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin; windows may be asked at once, and wait until the processes are there."""
        self._tasks = [asyncio.create_task(lane.run(), name="trimtab-decider") for lane in self._lanes]

    async def close(self) -> None:
        """End all processes, each after the window that it is at."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def alive(self) -> bool:
        """Whether windows are being answered."""
        return not any(task.done() for task in self._tasks)

    @property
    def num_waiting(self) -> int:
        """Windows that are not answered yet."""
        return sum(lane.num_waiting for lane in self._lanes)

    @property
    def deaths(self) -> int:
        """Processes that ended before the service did."""
        return sum(lane.deaths for lane in self._lanes)

    async def decide(self, run_id: str, body: bytes) -> Answer:
        """The decision for a window as it was received, or why there is none.

        Raises UnavailableError where the service ends before.
        """
        return await self._lanes[crc32(run_id.encode()) % len(self._lanes)].ask(run_id, body)
