"""How large the JSON of a request may be, told from its bytes before a parser makes objects of it.

16 MiB of `[],` are some thirty times as many bytes once parsed; what is nested a thousand deep brings later readers to
the end of their stack.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np

from planner.spec.errors import MalformedError, TooLargeError

_ESCAPED = re.compile(rb"\\.", re.DOTALL)
_TEXT = re.compile(rb'"[^"]*"')
_STRUCTURE = b'[]{}"'
_ELSE = bytes(byte for byte in range(256) if byte not in _STRUCTURE)


class JsonLimits(NamedTuple):
    """`max_depth` arrays or objects within each other; `max_values` in all, each key of an object counted as one."""

    max_depth: int
    max_values: int

    def check(self, body: bytes) -> None:
        """Raises MalformedError for what is nested too deeply, TooLargeError for too many values."""
        if body.count(b"[") + body.count(b"{") > self.max_depth and _depth(body) > self.max_depth:
            raise MalformedError.at(
                "body", f"is nested more than {self.max_depth} deep, which no request of this service needs"
            )
        # Separators and opening brackets, also those in text: never fewer than there are values after the first.
        if sum(map(body.count, (b",", b":", b"[", b"{"))) > self.max_values:
            raise TooLargeError(f"the body holds more than the {self.max_values} values that this service accepts")


def _depth(body: bytes) -> int:
    """How deeply brackets stand within each other, outside of text; right for all that is JSON."""
    if b"\\" in body:
        body = _ESCAPED.sub(b"", body)
    brackets = _TEXT.sub(b"", body.translate(None, _ELSE).replace(b'""', b""))
    codes = np.frombuffer(brackets, dtype=np.uint8)
    steps = np.isin(codes, (ord("["), ord("{"))).astype(np.int32) - np.isin(codes, (ord("]"), ord("}")))
    return int(np.cumsum(steps).max(initial=0))
