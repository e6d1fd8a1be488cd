"""What each named rule removed from the space: how many candidates, and which."""

from __future__ import annotations

from collections import Counter

DOMINATED = "dominated"
"""The name under which dominated strategies are counted: no rule of the tree's."""

_LISTED = 100
"""Candidates of a rule that are listed by name; the rest is counted."""


class Removed:
    """Counts and names, by rule."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._listed: dict[str, dict[str, None]] = {}

    def note(self, rule: str, count: int, what: str) -> None:
        """`rule` removed `count` candidates, described by `what`; empty where they are too many to name."""
        if count:
            self.counts[rule] += count
            listed = self._listed.setdefault(rule, {})
            if what and len(listed) < _LISTED:
                listed[what] = None

    def listed(self, rule: str) -> tuple[str, ...]:
        """What the rule removed, each once, in the order of removal; at most a hundred."""
        return tuple(self._listed.get(rule, ()))
