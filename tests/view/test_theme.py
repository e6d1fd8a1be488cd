"""Everyone can read the pictures: contrast on light and dark pages, and looks that differ by more than colour."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
import view_samples as samples

from planner.view.theme import DARK, FILLS, INK, LIGHT, PART_LOOKS, PATTERNS, nth_look, part_look, stylesheet


def _luminance(colour: str) -> float:
    """Relative luminance. Source: WCAG 2.2, definition of relative luminance."""
    channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def _contrast(one: str, other: str) -> float:
    """Source: WCAG 2.2, definition of contrast ratio."""
    dark, light = sorted((_luminance(one), _luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_contrast_of_black_on_white_is_the_known_21():
    assert _contrast("#000000", "#ffffff") == pytest.approx(21)


@pytest.mark.parametrize("page", [LIGHT, DARK])
@pytest.mark.parametrize("ground", ["surface", "panel"])
def test_text_contrasts_with_its_page(page, ground):
    for name in ("text", "muted", "alarm"):
        assert _contrast(getattr(page, name), getattr(page, ground)) >= 4.5, name


@pytest.mark.parametrize("page", [LIGHT, DARK])
@pytest.mark.parametrize("name", FILLS)
def test_fills_stand_out_from_either_page_and_carry_dark_text(page, name):
    assert _contrast(FILLS[name], page.surface) >= 3
    assert _contrast(FILLS[name], page.panel) >= 3
    assert _contrast(FILLS[name], INK) >= 4.5


def test_parts_of_one_bar_have_different_looks():
    for keys in (samples.TIME_SHARES, samples.MEMORY_SHARES):
        looks = [part_look(key, number) for number, key in enumerate(keys)]
        assert len(set(looks)) == len(looks)
        assert set(keys) <= set(PART_LOOKS)


def test_a_part_that_is_not_listed_looks_like_no_other():
    listed = set(PART_LOOKS.values())
    unlisted = {part_look("checkpoint_writing", number) for number in range(6)}
    assert len(unlisted) == 6
    assert not unlisted & listed


def test_neighbouring_strategies_differ_in_colour_and_in_pattern():
    looks = [nth_look(number) for number in range(30)]
    assert len(set(looks)) == 30
    for one, other in pairwise(looks):
        assert one.fill != other.fill
        assert one.pattern != other.pattern


def test_dark_pages_restyle_everything_that_depends_on_the_page():
    light, dark = stylesheet().split("@media(prefers-color-scheme:dark)")
    selectors = set(re.findall(r"([\w.]+)\{", dark))
    assert len(selectors) >= 8
    assert selectors <= set(re.findall(r"([\w.]+)\{", light))


def test_every_look_is_in_the_style_sheet():
    sheet = stylesheet()
    for look in [*PART_LOOKS.values(), *(nth_look(number) for number in range(60))]:
        assert f".{look.fill}{{" in sheet
        assert look.pattern is None or (look.pattern in PATTERNS and f".on-{look.pattern}{{" in sheet)
