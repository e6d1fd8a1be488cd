"""How large the JSON of a request may be, told from its bytes before a parser makes objects of it.

16 MiB of `[],` are some thirty times as many bytes once parsed; what is nested a thousand deep brings later readers to
the end of their stack.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np

from planner.spec.errors import MalformedError, TooLargeError

_TEXT = re.compile(rb'"[^"]*"')
_ELSE = bytes(byte for byte in range(256) if byte not in b'[]{}"')
_STEPS = bytes.maketrans(b'[{]}"', b"\x01\x01\xff\xff\x00")
"""One deeper, one less deep (-1 as a byte)."""
_BEGINNING_BYTES = 65_536
"""Of a body with too many values, enough to see what kind of nonsense it is."""


class JsonLimits(NamedTuple):
    """`max_depth` arrays or objects within each other; `max_values` in all, each key of an object counted as one."""

    max_depth: int
    max_values: int

    def check(self, body: bytes) -> None:
        """Raises MalformedError for what is nested too deeply, TooLargeError for too many values."""
        # Separators and opening brackets, also those in text: never fewer than there are values after the first.
        is_too_much = sum(map(body.count, (b",", b":", b"[", b"{"))) > self.max_values
        if _depth(body[:_BEGINNING_BYTES] if is_too_much else body) > self.max_depth:
            raise MalformedError.at(
                "body", f"is nested more than {self.max_depth} deep, which no request of this service needs"
            )
        if is_too_much:
            raise TooLargeError(f"the body holds more than the {self.max_values} values that this service accepts")


def _depth(body: bytes) -> int:
    """How deeply brackets stand within each other, outside of text; right for all that is JSON."""
    body = body.replace(b"\\\\", b"").replace(b'\\"', b"")  # escaped, and so no end of a text
    brackets = _TEXT.sub(b"", body.translate(None, _ELSE).replace(b'""', b""))
    steps = np.frombuffer(brackets.translate(_STEPS), dtype=np.int8)
    return int(np.cumsum(steps, dtype=np.int32).max(initial=0))
