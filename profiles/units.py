"""Sizes as people write them: `24GB` is 24·10⁹ bytes, `24GiB` is 24·2³⁰ bytes."""

from __future__ import annotations

import re
from decimal import Decimal

from planner.spec.errors import InputError

_BYTES = {
    "B": 1,
    **{f"{prefix}B": 1000 ** (power + 1) for power, prefix in enumerate("KMGTP")},
    **{f"{prefix}iB": 1024 ** (power + 1) for power, prefix in enumerate("KMGTP")},
}
_SIZE = re.compile(r"(?P<number>\d{1,15}(\.\d{1,9})?)\s*(?P<unit>[A-Za-z]+)")


def parse_bytes(text: str, field: str = "memory_limit_bytes") -> int:
    """Read a size with its unit (B, KB … PB, KiB … PiB); fractions of a byte are cut off.

    Units are also read in small letters, but `Gb` is refused: it means gigabit. Raises InputError at `field` for
    anything else, for a number without unit, and for less than one byte.
    """
    match = _SIZE.fullmatch(text.strip())
    unit = _unit(match["unit"]) if match else None
    if match is None or unit is None:
        raise InputError.at(field, f"must be a number with a unit, such as 24GB (10⁹) or 24GiB (2³⁰), got {text!r}")
    size = int(Decimal(match["number"]) * unit)
    if size < 1:
        raise InputError.at(field, f"must be at least one byte, got {text!r}")
    return size


def _unit(text: str) -> int | None:
    """Bytes of a unit in its usual spelling or all in small letters, None for any other text."""
    spellings = {spelling: size for name, size in _BYTES.items() for spelling in (name, name.lower())}
    return spellings.get(text, _BYTES["KB"] if text == "kB" else None)
