import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.spec.errors import InputError
from profiles import parse_bytes


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("24GB", 24 * 10**9),
        ("24GiB", 24 * 2**30),
        (" 24 gib ", 24 * 2**30),
        ("1.5GB", 1_500_000_000),
        ("0.1GiB", 107_374_182),
        ("7kB", 7000),
        ("512MiB", 512 * 2**20),
        ("80000MB", 80 * 10**9),
        ("2TB", 2 * 10**12),
        ("1B", 1),
    ],
)
def test_sizes_have_decimal_and_binary_units(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize(
    "text",
    [
        "",
        "24",
        "GB",
        "24G",
        "24Gb",
        "24 bytes",
        "-1GB",
        "0GB",
        "0.1B",
        "nanGB",
        "infGB",
        "1e3GB",
        "1,5GB",
        "9" * 99 + "B",
    ],
)
def test_other_texts_are_refused_with_an_error_at_the_field(text):
    with pytest.raises(InputError, match=r"^memory_limit: must be"):
        parse_bytes(text, "memory_limit")


@given(st.integers(1, 10**12), st.sampled_from(["B", "KiB", "MB"]))
def test_whole_numbers_are_exact(number, unit):
    assert parse_bytes(f"{number}{unit}") == number * {"B": 1, "KiB": 1024, "MB": 10**6}[unit]
