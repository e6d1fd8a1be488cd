"""The end of a window: counts on their way to all ranks, and the time that its steps took. No step waits for either.

A reduction is begun at the boundary and read one step later, when it is long done: the host does not wait for the
device, and a rank not for another. On CUDA the result goes to the host's memory on a stream of its own, and steps are
timed by events of the device, so that what was still queued at the boundary counts.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from runtime.exchange import Group, num_ranks
from runtime.hooks import RouterCounter

logger = logging.getLogger("trimtab.agent")

POLL_S = 0.002


class Stretch:
    """Some steps on end, timed from its making on."""

    def __init__(self, device: torch.device) -> None:
        self.steps = 0
        self._device = device
        self._begin = _Moment(device)
        self._end: _Moment | None = None

    def end(self) -> None:
        """No step comes any more."""
        self._end = _Moment(self._device)

    def step_time_s(self) -> float | None:
        """Mean over the steps; None if there is none. The device must have come to the end."""
        if self.steps == 0 or self._end is None:
            return None
        return self._end.seconds_since(self._begin) / self.steps


class _Moment:
    """A moment between two steps, as the device that trains will see it."""

    def __init__(self, device: torch.device) -> None:
        self._event: torch.cuda.Event | None = None
        if device.type == "cuda":
            self._event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            self._event.record(torch.cuda.current_stream(device))
        self._clock_s = time.perf_counter()

    def seconds_since(self, earlier: _Moment) -> float:
        """The device must have come to both."""
        if self._event is None or earlier._event is None:
            return self._clock_s - earlier._clock_s
        return float(earlier._event.elapsed_time(self._event)) / 1e3


class Reduction:
    """A vector of whole numbers that is being summed over the ranks of a group."""

    def __init__(self, vector: Tensor, group: Group | None) -> None:
        """Begin; a collective. `vector` is taken over."""
        self._vector = vector
        self._work = dist.all_reduce(vector, group=group, async_op=True) if num_ranks(group) > 1 else None
        self._copied: torch.cuda.Event | None = None
        if vector.device.type == "cuda":
            self._copy_to_host()

    def numbers(self) -> list[int]:
        """The sums; waits for them. Raises torch's error, after a line in the log, if a rank does not come."""
        if self._copied is not None:
            self._copied.synchronize()
        elif self._work is not None:
            try:
                self._work.wait()
            except RuntimeError:
                logger.error(
                    "step() waited for what the ranks of its group share, and another rank has died or did not come: "
                    "every rank calls step() as often as the others, once per step of the optimizer"
                )
                raise
        return self._vector.tolist()

    def done_within(self, timeout_s: float) -> bool:
        """Whether the sums are there, now or within the time."""
        until = time.monotonic() + timeout_s
        while not self._done():
            if time.monotonic() >= until:
                return False
            time.sleep(POLL_S)
        return True

    def _done(self) -> bool:
        if self._copied is not None:
            return bool(self._copied.query())  # type: ignore[no-untyped-call]
        return self._work is None or self._work.is_completed()

    def _copy_to_host(self) -> None:
        on_device = self._vector
        self._vector = torch.empty_like(on_device, device="cpu", pin_memory=True)
        stream = torch.cuda.Stream(on_device.device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(on_device.device))
        with torch.cuda.stream(stream):
            if self._work is not None:
                self._work.wait()  # lets this stream wait, not the host
            self._vector.copy_(on_device, non_blocking=True)
            on_device.record_stream(stream)
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record(stream)


class Boundary:
    """One window's end: its counts, a number of rank 0 for all, and the time of its steps."""

    def __init__(
        self,
        counters: Mapping[int, RouterCounter],
        experts: Sequence[int],
        number: int,
        group: Group | None,
        device: torch.device,
        stretch: Stretch | None,
    ) -> None:
        """Begin to share; a collective.

        `counters`: of this rank's MoE layers, by their number among all of the model, which have so many `experts`.
        `number` is 0 on all ranks but one; `stretch` are the steps that end here.
        """
        self._stretch = stretch
        if stretch is not None:
            stretch.end()
        self._sizes = list(experts)
        rows = [
            counters[layer].take(device) if layer in counters else torch.zeros(size, dtype=torch.int64, device=device)
            for layer, size in enumerate(experts)
        ]
        self._reduction = Reduction(torch.cat([*rows, torch.full((1,), number, device=device)]), group)

    def shared(self) -> tuple[list[list[int]], int]:
        """Tokens [MoE layer][expert] of all ranks, and the number; waits for them."""
        numbers = self._reduction.numbers()
        rows, first = [], 0
        for size in self._sizes:
            rows.append(numbers[first : first + size])
            first += size
        return rows, numbers[-1]

    def done_within(self, timeout_s: float) -> bool:
        """Whether it is shared, now or within the time."""
        return self._reduction.done_within(timeout_s)

    def step_time_s(self) -> float | None:
        """Mean time of the timed steps, once the counts are shared; None if none was timed."""
        return None if self._stretch is None else self._stretch.step_time_s()
