"""Device numbers in mixed radix."""

import numpy as np
import pytest

from planner.cost.digits import digits_of, mask
from planner.cost.holding import Cut


@pytest.mark.parametrize(("sizes", "devices"), [((8, 64), 64), ((8, 24), 48), ((4, 12, 60), 600), ((), 7), ((8,), 8)])
def test_numbers_are_told_apart_and_windows_have_bits_of_their_own(sizes, devices):
    digits = digits_of(sizes, devices)
    code = digits.coded(np.arange(devices))
    assert len(set(code.tolist())) == devices
    for size in sizes:
        inside = digits.below(size)
        assert (np.arange(devices) // size == np.arange(devices)[0]).tolist() == (code & ~inside == 0).tolist()
        assert digits.count(inside) == size


def test_the_digits_of_a_cut_number_its_parts():
    digits = digits_of((4, 8, 24, 48), 48)
    for cut in (Cut(((1, 4),), 4), Cut(((8, 6), (4, 2)), 12), Cut(((1, 8),), 2), Cut((), 1)):
        found = digits.of(cut)
        part = np.zeros(48, dtype=np.int64)
        for radix, bit in found:
            part = part * radix + ((digits.coded(np.arange(48)) & mask((radix, bit))) >> bit)
        assert part.tolist() == cut.number(48).tolist()


def test_sizes_that_do_not_nest_have_no_digits_and_odd_copies_of_heads_neither():
    assert digits_of((8, 12), 48) is None
    assert digits_of((4, 8), 64).of(Cut(((1, 8),), 6)) is None
    assert digits_of((2, 2**31), 2**32) is None
