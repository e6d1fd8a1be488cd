"""What a replay hears from the policy while it decides, for a picture of it."""

from __future__ import annotations

from planner.spec.decision import Decision
from planner.spec.run import RunContext
from planner.spec.window import Window
from planner.view import Life, Mark, life_of, mark_of
from planner.view.run_life import spread

OURS = "trimtab"
"""The policy whose decisions are drawn."""
MOST_WINDOWS = 96
"""Whose loads are drawn."""


class Heard:
    """Marks of all decisions, and some of the windows, evenly spread over so many."""

    def __init__(self, num_windows: int) -> None:
        self._kept = set(spread(range(num_windows), MOST_WINDOWS))
        self._marks: list[Mark] = []
        self._windows: list[Window] = []

    def __call__(self, window: Window, decision: Decision) -> None:
        """One more window."""
        self._marks.append(mark_of(decision))
        if window.index in self._kept:
            self._windows.append(window)

    def life(self, name: str, context: RunContext) -> Life:
        """Of the job that the trace is replayed as."""
        return life_of(name, context, context.plans[0].id, len(self._marks), self._marks, self._windows)
