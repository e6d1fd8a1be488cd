"""How far a search is: told to whoever listens, and never back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise

Report = Callable[[float, str], None]
"""Told the progress from 0 to 1 and what goes on; may raise to stop the search."""
Checkpoint = Callable[[float, str], None]
"""Told the share of one part of a search that is done and what goes on; may raise to stop it."""
Tick = Callable[[], None]
"""Called between pieces of work, several times a second; may raise to stop it."""


_BEFORE_THE_END = 0.97
"""The most that passing time alone is worth: the shortlist is chosen after it."""


def ignore(progress: float, message: str) -> None:
    """Nobody listens."""


def nothing() -> None:
    """Nobody waits."""


class Progress:
    """What the listener knows already, so that it hears nothing less."""

    def __init__(self, report: Report, time_share: Callable[[], float]) -> None:
        """`time_share()`: how much of the time has passed after which the search ends anyway; 0 if there is no end."""
        self._report = report
        self._time_share = time_share
        self._share = 0.0
        self._message = "beginning"

    def tell(self, share: float, message: str) -> None:
        """So much is done, or as much as was told before if that is more."""
        self._share, self._message = max(self._share, min(1.0, share)), message
        self.tick()

    def tick(self) -> None:
        """No news: say the last again, which lets the listener stop the search."""
        self._share = max(self._share, min(_BEFORE_THE_END, self._time_share()))
        self._report(self._share, self._message)

    def parts(self, weights: Sequence[float]) -> list[Checkpoint]:
        """One checkpoint for each part of the search, of which the weights say how long they usually take."""
        ends = [end / sum(weights) for end in accumulate(weights, initial=0.0)]
        return [self._part(begin, end) for begin, end in pairwise(ends)]

    def _part(self, begin: float, end: float) -> Checkpoint:
        return lambda share, message: self.tell(begin + (end - begin) * share, message)
