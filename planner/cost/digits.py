"""Device numbers in mixed radix, each digit in bits of its own, so that digits of many devices compare at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import prod

import numpy as np
from numpy.typing import NDArray

from planner.cost.holding import Cut

Coded = NDArray[np.int32]
Digit = tuple[int, int]
"""(radix, lowest bit); digits of one radix have equally many bits."""


class Digits:
    """A number system in which every one of some sizes is a place value; see `digits_of`."""

    def __init__(self, radices: list[int]) -> None:
        """`radices`: of the digits, least significant first."""
        self._places: list[tuple[int, int, int]] = []
        """(place value, radix, lowest bit)."""
        self._index: dict[int, int] = {}
        self._ones: dict[int, int] = {}
        """By radix, the lowest bits of its digits."""
        self._cuts: dict[Cut, list[Digit] | None] = {}
        value, bit = 1, 0
        for place, radix in enumerate(radices):
            self._places.append((value, radix, bit))
            self._index[value] = place
            self._ones[radix] = self._ones.get(radix, 0) | 1 << bit
            value, bit = value * radix, bit + (radix - 1).bit_length()
        self._index[value] = len(radices)
        self._is_binary = self._ones.keys() <= {2}
        self._places.append((value, 1, bit))

    def coded(self, devices: NDArray[np.int64]) -> Coded:
        """The numbers of devices, digit by digit."""
        if self._is_binary:
            return devices.astype(np.int32)
        code = sum(devices // value % radix << bit for value, radix, bit in self._places)
        return np.asarray(code, dtype=np.int32)

    def below(self, size: int) -> int:
        """The bits of the digits that number the devices of a window of this size."""
        return (1 << self._places[self._index[size]][2]) - 1

    def count(self, bits: int) -> int:
        """How many values the digits among these bits take."""
        if self._is_binary:
            return 1 << (self._ones.get(2, 0) & bits).bit_count()
        return prod(radix ** (ones & bits).bit_count() for radix, ones in self._ones.items())

    def of(self, cut: Cut) -> list[Digit] | None:
        """The digits that number the parts of a cut, most significant first; None if no digits do."""
        if cut not in self._cuts:
            self._cuts[cut] = self._found(cut)
        return self._cuts[cut]

    def _found(self, cut: Cut) -> list[Digit] | None:
        found = [digit for stride, degree in cut.digits for digit in self._between(stride, stride * degree)]
        parts = 1
        for number, (radix, _) in enumerate(found):
            if parts == cut.parts:
                return found[:number]
            parts *= radix
        return found if parts == cut.parts else None

    def _between(self, stride: int, end: int) -> list[Digit]:
        places = self._places[self._index[stride] : self._index[end]]
        return [(radix, bit) for _, radix, bit in reversed(places)]


def mask(digit: Digit) -> int:
    """All bits of a digit."""
    radix, bit = digit
    return (1 << (radix - 1).bit_length()) - 1 << bit


def digits_of(sizes: Iterable[int], num_devices: int) -> Digits | None:
    """Digits of prime radix for windows of these sizes among so many devices; None if the sizes do not nest.

    Between two sizes odd digits are the outer ones: six nodes are three pairs.
    """
    radices: list[int] = []
    size = 1
    for larger in sorted({*sizes, 1}):
        if larger % size:
            return None
        radices += _primes(larger // size)
        size = larger
    if size < num_devices:
        radices.append(-(-num_devices // size))
    bits = sum((radix - 1).bit_length() for radix in radices)
    return Digits(radices) if bits < np.iinfo(np.int32).bits - 1 else None


def _primes(number: int) -> Iterator[int]:
    divisor = 2
    while number > 1:
        while number % divisor == 0:
            yield divisor
            number //= divisor
        divisor += 1
