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
from time import monotonic
from zlib import crc32

from api.decider import Answered, Asked, Refused, work
from api.fork_server import start_fork_server
from api.frames import frame, read_frame
from api.logs import LogFormat
from api.problems import problem_of
from planner.spec.errors import InternalError, UnavailableError

log = logging.getLogger(__name__)
DEATHS = 2
"""A window over which so many processes have died is refused."""
AT_HAND = 4
"""Windows that a process was sent and has not answered: enough that it never waits for the service."""
RETRY_S = 1.0
"""Before another process is started where one could not be."""
HANG_S = 120.0
"""That a process may be at one window; then it is taken for dead, and killed. A window takes milliseconds; what a
database may keep it waiting, two statements and a lock at most (`api.engines`), is well below."""
LOOK_S = 5.0
"""How often that is looked at."""
EXIT_S = 5.0
"""What a process gets to finish its window when the service ends."""

Answer = Answered | Refused
Work = Callable[[socket.socket, str, LogFormat], None]
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
        self.name = name
        self._start = start
        self._numbers = count()
        self._waiting: dict[int, _Waiting] = {}
        self._sent: dict[int, _Waiting] = {}
        self._began_s = 0.0
        """When the process began with the first of those that it was sent, on the monotonic clock."""
        self._writer: StreamWriter | None = None
        """To a process that has said hello."""
        self.deaths = 0

    @property
    def is_ready(self) -> bool:
        """Whether there is a process that can answer."""
        return self._writer is not None

    @property
    def all_waiting(self) -> tuple[_Waiting, ...]:
        """Windows that are not answered yet, in order."""
        return (*self._sent.values(), *self._waiting.values())

    async def ask(self, run_id: str, body: bytes) -> Answer:
        """The answer of the process, or of the next; raises UnavailableError where the service ends before."""
        waiting = _Waiting(Asked(next(self._numbers), run_id, body), asyncio.get_running_loop().create_future())
        self._waiting[waiting.asked.number] = waiting
        self._send()
        try:
            return await waiting.answer
        finally:
            self._waiting.pop(waiting.asked.number, None)  # where nobody awaits it any more

    def _send(self) -> None:
        """Let the process have the next window at hand when it has answered one."""
        while self._writer is not None and self._waiting and len(self._sent) < AT_HAND:
            number = next(iter(self._waiting))
            self._began_s = self._began_s if self._sent else monotonic()
            waiting = self._sent[number] = self._waiting.pop(number)
            self._writer.write(frame(tuple(waiting.asked)))

    async def run(self) -> None:
        """Have a process at work until cancelled; then let it finish the window that it is at."""
        try:
            while True:
                try:
                    answered = await self._one_life()
                except Exception:  # a fork can fail in many ways, and the windows of this lane wait
                    answered = 0
                    log.exception("%s could not be started", self.name)
                if not answered:
                    await asyncio.sleep(RETRY_S)
        finally:
            for waiting in self.all_waiting:
                if not waiting.answer.done():
                    waiting.answer.set_exception(UnavailableError("the service is ending; ask again"))

    async def _one_life(self) -> int:
        """Start a process, ask it until it has gone; the number of its answers. Raises what kept it from starting."""
        starting = _starting(partial(self._start, self.name))
        try:
            process, ours = await asyncio.wrap_future(starting)
        except asyncio.CancelledError:
            starting.add_done_callback(_forget)
            raise
        reader, writer = await asyncio.open_connection(sock=ours)
        watching = asyncio.create_task(self._watch(process))
        try:
            answered = await self._answer_all(reader, writer)
        finally:
            watching.cancel()
            self._writer = None
            writer.close()
            await asyncio.to_thread(_end, process)
        self._died(process)
        return answered

    async def _answer_all(self, reader: StreamReader, writer: StreamWriter) -> int:
        """Ask what waits, and hand answers on until the process is gone; their number."""
        answered = 0
        try:
            await read_frame(reader)  # its hello
            self._writer = writer
            while True:
                self._send()
                answer: Answer = await read_frame(reader)
                answered += 1
                self._began_s = monotonic()
                self._settle(self._sent.pop(answer.number), answer)
        except (IncompleteReadError, ConnectionError):
            return answered

    async def _watch(self, process: ForkServerProcess) -> None:
        """Kill a process that is at one window for too long: those behind it would wait for ever."""
        while not self._sent or monotonic() - self._began_s <= HANG_S:
            await asyncio.sleep(LOOK_S)
        log.error("%s gave no answer for %g s and is killed", self.name, HANG_S)
        process.kill()

    def _died(self, process: ForkServerProcess) -> None:
        """Windows are answered in order: the first that it was sent is the one that it was at."""
        self.deaths += 1
        first = next(iter(self._sent.values()), None)
        wanted = {number: waiting for number, waiting in self._sent.items() if not waiting.answer.done()}
        self._waiting, self._sent = wanted | self._waiting, {}
        log.error(
            "%s ended with exit code %s; %d windows wait for the next",
            self.name,
            process.exitcode,
            len(self._waiting),
        )
        if first is None or first.answer.done():
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


def _start(work: Work, database_url: str, log_format: LogFormat, name: str) -> Started:
    """Raises OSError, and EOFError where it is the fork server that cannot fork."""
    ours, theirs = socket.socketpair()
    with theirs:
        process = multiprocessing.get_context("forkserver").Process(
            target=work, args=(theirs, database_url, log_format), name=name, daemon=True
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

    def __init__(
        self,
        database_url: str,
        number: int,
        max_waiting: int,
        max_waiting_bytes: int,
        log_format: LogFormat = "text",
        work: Work = work,
    ) -> None:
        """At most `max_waiting` windows wait, and no more come while they have `max_waiting_bytes` together."""
        start = partial(_start, work, database_url, log_format)
        self._lanes = [_Lane(f"decider {index}", start) for index in range(number)]
        self._max_waiting = max_waiting
        self._max_waiting_bytes = max_waiting_bytes
        self._num_waiting = self._num_bytes = 0
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin; windows may be asked at once, and wait until the processes are there."""
        start_fork_server()
        self._tasks = [asyncio.create_task(lane.run(), name="trimtab-decider") for lane in self._lanes]

    async def close(self) -> None:
        """End all processes, each after the window that it is at."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def check(self) -> None:
        """Raises UnavailableError where windows of some runs are not being answered."""
        if not self._tasks or any(task.done() for task in self._tasks):
            raise UnavailableError("no windows are decided: nothing looks after the deciders")
        if missing := [lane.name for lane in self._lanes if not lane.is_ready]:
            raise UnavailableError(f"windows wait: {', '.join(missing)} of {len(self._lanes)} cannot answer yet")

    @property
    def num_waiting(self) -> int:
        """Windows that somebody waits for."""
        return self._num_waiting

    @property
    def deaths(self) -> int:
        """Processes that ended before the service did."""
        return sum(lane.deaths for lane in self._lanes)

    async def decide(self, run_id: str, body: bytes) -> Answer:
        """The decision for a window as it was received, or why there is none.

        Raises UnavailableError where too many windows wait, or the service ends before.
        """
        if self._num_waiting >= self._max_waiting or self._num_bytes >= self._max_waiting_bytes:
            raise UnavailableError(
                f"{self._num_waiting} windows of {self._num_bytes} bytes wait already; try again later"
            )
        self._num_waiting += 1
        self._num_bytes += len(body)
        try:
            return await self._lanes[crc32(run_id.encode()) % len(self._lanes)].ask(run_id, body)
        finally:
            self._num_waiting -= 1
            self._num_bytes -= len(body)
