"""In a real browser, no text of a picture leaves the page or runs into another."""

from __future__ import annotations

import sys
from itertools import combinations
from pathlib import Path

import pytest
import run_samples as runs
import view_samples as samples
from playwright.sync_api import sync_playwright

sys.path.insert(0, str(Path(__file__).parents[1] / "api"))
from missing import chromium

from planner.view import plan_picture, run_picture, shortlist_picture

FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
TEXT_BOXES = """() => [...document.querySelectorAll('text')].filter(text => text.textContent).map(text => {
    const box = text.getBoundingClientRect();
    return [text.textContent, box.left, box.top, box.right, box.bottom];
})"""


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(playwright), args=list(FLAGS))
        yield browser
        browser.close()


def _text_boxes(browser, picture):
    page = browser.new_page(viewport={"width": 1200, "height": 800})
    try:
        page.set_content(f'<body style="margin:0">{picture}</body>')
        return page.evaluate(TEXT_BOXES)
    finally:
        page.close()


@pytest.mark.parametrize("sample", samples.ALL)
def test_no_text_of_a_plan_leaves_the_page_or_runs_into_another(browser, sample):
    _check(_text_boxes(browser, plan_picture(*sample())))


@pytest.mark.parametrize("scenarios", [1, 3, 12])
def test_no_text_of_a_shortlist_leaves_the_page_or_runs_into_another(browser, scenarios):
    _check(_text_boxes(browser, shortlist_picture(samples.model(moe=32), samples.shortlist(scenarios=scenarios))))


@pytest.mark.parametrize(
    ("count", "layers", "experts"), [(1, 6, 8), (20, 6, 32), (400, 58, 256), (1000, 1, 4), (0, 6, 8)]
)
def test_no_text_of_a_run_leaves_the_page_or_runs_into_another(browser, count, layers, experts):
    drawn = run_picture(runs.life(count=count, layers=layers, experts=experts))
    _check(_text_boxes(browser, drawn), least=12)


def _check(boxes, least=20):
    assert len(boxes) > least
    outside = [text for text, left, _, right, _ in boxes if left < 23 or right > 1177]
    assert not outside
    collisions = [(one[0], other[0]) for one, other in combinations(boxes, 2) if _collide(one, other)]
    assert not collisions


def _collide(one, other, tolerance=4):
    """Whether two boxes share more than the blank that fonts leave around letters."""
    _, left, top, right, bottom = one
    _, other_left, other_top, other_right, other_bottom = other
    wide = min(right, other_right) - max(left, other_left) > 1
    return wide and min(bottom, other_bottom) - max(top, other_top) > tolerance
