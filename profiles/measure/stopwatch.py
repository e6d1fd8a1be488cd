"""Seconds of a piece of work: repeated as long as the budget allows, by all ranks at the same time.

On a GPU work is timed by events of the stream, after writing a buffer larger than the caches. On a processor kernels
are timed by the processor time of the thread, which other programs on the machine do not lengthen; collectives, which
wait for others, by the clock on the wall. The seconds are the lower quartile of the repetitions, which neither a lucky
one nor a disturbance moves (of what other programs disturb most, the lowest twentieth), and then the longest of the
ranks.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
import torch.distributed as dist

from planner.spec.value import StrEnum

LEAST_REPETITIONS = 5
MOST_REPETITIONS = 200
MOST_TRIES = 4
MOST_FIRST_S = 1.0
"""Of a first call."""
ALWAYS_S = 0.25
"""Work this short is measured whatever the allowance."""
_FLUSHED_BYTES = 512 * 2**20

Work = Callable[[], object]


class Backend(StrEnum):
    """What computes."""

    CPU = "cpu"
    CUDA = "cuda"


class Timer(Protocol):
    """Times work that may go on after the call returned."""

    def __call__(self, work: Work, repetitions: int, prepare: Work | None = None) -> list[float]:
        """Seconds of each repetition; `prepare` runs before each and is not counted."""
        ...


class HostTimer:
    """Work that is done when the call returns, by a clock of the host in seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock

    def __call__(self, work: Work, repetitions: int, prepare: Work | None = None) -> list[float]:
        """Seconds of each repetition."""
        found = []
        for _ in range(repetitions):
            if prepare:
                prepare()
            begun = self._clock()
            work()
            found.append(self._clock() - begun)
        return found


class StreamTimer:
    """Work on the current CUDA stream.

    Before each repetition a buffer larger than the caches is written: nothing of the repetition before is left in
    them, and the host is ahead, so that its own time does not count.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._flushed = torch.empty(min(_FLUSHED_BYTES, limit_bytes // 4), dtype=torch.uint8, device="cuda")

    def __call__(self, work: Work, repetitions: int, prepare: Work | None = None) -> list[float]:
        """Seconds of each repetition."""
        marks = []
        for _ in range(repetitions):
            if prepare:
                prepare()
            self._flushed.zero_()
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            begin.record()
            work()
            end.record()
            marks.append((begin, end))
        torch.cuda.synchronize()
        return [begin.elapsed_time(end) / 1e3 for begin, end in marks]


class Team(NamedTuple):
    """The ranks that measure together."""

    rank: int
    num_ranks: int
    ranks_per_node: int
    device: torch.device

    @property
    def backend(self) -> Backend:
        """What computes."""
        return Backend(self.device.type)

    def longest(self, seconds: float) -> float:
        """The longest of all ranks, known to all."""
        if self.num_ranks == 1:
            return seconds
        found = torch.tensor(seconds, dtype=torch.float64, device=self.device)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return float(found)


class Stopwatch:
    """Times work within an allowance; equal on all ranks, so that none waits for a collective that others skip."""

    def __init__(self, team: Team, timer: Timer, quicker_share: float = 0.25) -> None:
        """`quicker_share`: of the repetitions, how many are quicker than the one that counts."""
        self.team = team
        self._timer = timer
        self._quicker_share = quicker_share

    def seconds(self, work: Work, allowance_s: float, prepare: Work | None = None) -> float | None:
        """Seconds of one call; None if too few repetitions fit into the allowance, unless they are short anyway."""
        allowed_s = max(ALWAYS_S, allowance_s / LEAST_REPETITIONS)
        # The first call also loads and warms up: it may take longer.
        if self.team.longest(self._wall_s(work, prepare)) > max(MOST_FIRST_S, 4 * allowed_s):
            return None
        # Other programs may disturb a try.
        tries = (self.team.longest(self._wall_s(work, prepare)) for _ in range(MOST_TRIES))
        once = next((seconds for seconds in tries if seconds <= allowed_s), None)
        if once is None:
            return None
        repetitions = max(LEAST_REPETITIONS, min(MOST_REPETITIONS, int(allowance_s / once)))
        found = sorted(self._timer(work, repetitions, prepare))
        return self.team.longest(found[int(len(found) * self._quicker_share)])

    def _wall_s(self, work: Work, prepare: Work | None) -> float:
        """One call and all that belongs to it, by the clock of the host: what it takes from the budget."""
        begun = time.perf_counter()
        self._timer(work, 1, prepare)
        return time.perf_counter() - begun
