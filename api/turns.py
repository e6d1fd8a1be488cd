"""Requests that write take turns: while some wait for the database in threads, all others wait without one.

Threads are few. Were they all to wait for those who write, none would be left for whoever reads. Knows no database.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial, wraps
from typing import ParamSpec, TypeVar

from anyio import CapacityLimiter, fail_after
from anyio.lowlevel import RunVar
from starlette.concurrency import run_in_threadpool

from planner.spec.errors import UnavailableError

AT_ONCE = 4
"""Requests of a process that write at once: fewer than it has connections for, some of which are for what it does
unasked. Writers wait for each other in any case."""
TURN_S = 30.0
"""How long a request waits for its turn before it is told that the service is busy."""
_TURNS = RunVar[CapacityLimiter]("trimtab_turns")

P = ParamSpec("P")
R = TypeVar("R")


def in_turn(write: Callable[P, R]) -> Callable[P, Awaitable[R]]:
    """The same in a thread, when its turn comes; raises UnavailableError where it does not."""

    @wraps(write)
    async def taking_turns(*args: P.args, **more: P.kwargs) -> R:
        turns, request = _turns(), object()
        try:
            with fail_after(TURN_S):
                await turns.acquire_on_behalf_of(request)
        except TimeoutError:
            waiting = turns.statistics().tasks_waiting
            raise UnavailableError(f"{waiting} requests wait for the database already; try again later") from None
        try:
            return await run_in_threadpool(partial(write, *args, **more))
        finally:
            turns.release_on_behalf_of(request)

    return taking_turns


def _turns() -> CapacityLimiter:
    """Those of this event loop, which is the service's."""
    try:
        return _TURNS.get()
    except LookupError:
        made = CapacityLimiter(AT_ONCE)
        _TURNS.set(made)
        return made
