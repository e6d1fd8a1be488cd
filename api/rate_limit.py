"""How often one client may ask. A guard against a loop that never rests; counts in the memory of one process."""

from __future__ import annotations

import time

from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import FixedWindowRateLimiter

from planner.spec.errors import TooManyRequestsError


class RateLimit:
    """At most so many requests a minute, counted anew when the minute that began with the first one is over."""

    def __init__(self, per_minute: int) -> None:
        """0: no limit."""
        self._limit = RateLimitItemPerMinute(per_minute) if per_minute else None
        self._counts = FixedWindowRateLimiter(MemoryStorage())

    def check(self, *who: str) -> None:
        """Count one request of whoever this is; raises TooManyRequestsError."""
        if self._limit is None or self._counts.hit(self._limit, *who):
            return
        wait_s = max(1.0, self._counts.get_window_stats(self._limit, *who).reset_time - time.time())
        raise TooManyRequestsError(
            f"more than {self._limit.amount} requests within a minute; go on in {wait_s:.0f} s", wait_s
        )
