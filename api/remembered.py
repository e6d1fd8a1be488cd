"""What a process keeps at hand of what it has met: the newest, and no more than so many."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import TypeVar

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


def remember(kept: OrderedDict[K, T], key: K, value: T, most: int) -> None:
    """Keep the value as the newest, and no more than `most`."""
    kept[key] = value
    kept.move_to_end(key)
    while len(kept) > most:
        kept.popitem(last=False)
