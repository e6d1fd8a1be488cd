"""How often one client may ask. A guard against a loop that never rests; counts in the memory of one process."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from math import inf
from typing import NamedTuple

from api.remembered import remember
from planner.spec.errors import TooManyRequestsError

MINUTE_S = 60.0
CLIENTS_AT_HAND = 65_536
"""Counts that are kept; of more clients than that within a minute, those that came first are counted anew."""


class _Minute(NamedTuple):
    """Of one client."""

    begun_s: float
    requests: int


class RateLimit:
    """At most so many requests a minute, counted anew when the minute that began with the first one is over."""

    def __init__(self, per_minute: int, clock_s: Callable[[], float] = time.monotonic) -> None:
        """`per_minute`: 0: no limit."""
        self._limit = per_minute or inf
        self._clock_s = clock_s
        self._minutes: OrderedDict[tuple[str, ...], _Minute] = OrderedDict()

    def check(self, *who: str) -> None:
        """Count one request of whoever this is; raises TooManyRequestsError."""
        now_s = self._clock_s()
        minute = self._minutes.get(who)
        if minute is None or now_s - minute.begun_s >= MINUTE_S:
            minute = _Minute(now_s, 0)
        if minute.requests >= self._limit:
            wait_s = max(1.0, minute.begun_s + MINUTE_S - now_s)
            raise TooManyRequestsError(
                f"more than {self._limit} requests within a minute; go on in {wait_s:.0f} s", wait_s
            )
        remember(self._minutes, who, minute._replace(requests=minute.requests + 1), CLIENTS_AT_HAND)
