"""What a process keeps at hand of what the store has: the newest, and no more than so many."""

from __future__ import annotations

from collections import OrderedDict
from typing import TypeVar

T = TypeVar("T")


def remember(kept: OrderedDict[str, T], key: str, value: T, most: int) -> None:
    """Keep the value as the newest, and no more than `most`."""
    kept[key] = value
    kept.move_to_end(key)
    while len(kept) > most:
        kept.popitem(last=False)
