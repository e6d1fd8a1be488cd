"""Swagger UI in a real browser that reaches nothing but the service: try it out, and look at the plan's picture.

With TRIMTAB_SCREENSHOTS set to a folder, pictures of the pages are left there.
"""

import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright
from service_process import service

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]
SEARCH_S = 120


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with service(tmp_path_factory.mktemp("service")) as (_, client):
        yield str(client.base_url).rstrip("/")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)
        yield launched
        launched.close()


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    """A page that notes every host it asks and every error of its scripts; there may be neither."""
    opened = browser.new_page(viewport={"width": 1400, "height": 1800})
    hosts, errors = set(), []
    opened.on("request", lambda request: hosts.add(urlsplit(request.url).netloc))
    opened.on("pageerror", lambda error: errors.append(str(error)))
    yield opened
    opened.close()
    assert hosts - {""} == {urlsplit(address).netloc}
    assert errors == []


def snapshot(page: Page, name: str) -> None:
    if folder := os.environ.get("TRIMTAB_SCREENSHOTS"):
        page.screenshot(path=str(Path(folder) / f"{name}.png"))


def operation(page: Page, operation_id: str):
    return page.locator(f"div.opblock[id$='{operation_id}']")


def execute(page: Page, operation_id: str, **parameters: str) -> tuple[int, str]:
    """Open an operation, fill parameters in, execute, and read status and body of the answer."""
    block = operation(page, operation_id)
    if "is-open" not in (block.get_attribute("class") or ""):
        block.locator(".opblock-summary").click()
    for name, value in parameters.items():
        block.locator(f"tr[data-param-name='{name}'] input").fill(value)
    with page.expect_response(lambda response: "/v1/" in response.url, timeout=SEARCH_S * 1000) as answer:
        block.locator("button.execute").click()
    status = block.locator(".live-responses-table .response-col_status").last
    expect(status).to_contain_text(str(answer.value.status), timeout=10_000)
    return answer.value.status, answer.value.text()


def until_ended(page: Page, url: str) -> None:
    end = time.monotonic() + SEARCH_S
    while (search := page.request.get(url).json())["state"] in ("queued", "running"):
        assert time.monotonic() < end, search
        page.wait_for_timeout(200)


def test_the_page_lists_every_operation_without_internet(page, address):
    page.goto(f"{address}/docs")
    expect(page.locator("h1.title, h2.title").first).to_contain_text("Trimtab", timeout=20_000)
    document = page.request.get(f"{address}/openapi.json").json()
    expect(page.locator("div.opblock")).to_have_count(sum(len(path) for path in document["paths"].values()))


def test_trying_it_out_plans_mixtral_and_shows_its_picture(page, address):
    page.goto(f"{address}/docs")
    operation(page, "submit_search").locator(".opblock-summary").click()
    body = operation(page, "submit_search").locator("textarea.body-param__text")
    expect(body).to_be_visible(timeout=20_000)
    assert json.loads(body.input_value())["model"] == {"preset": "mixtral-8x7b"}
    status, text = execute(page, "submit_search")
    snapshot(page, "submitted")
    assert status == 202
    search = json.loads(text)
    until_ended(page, f"{address}{search['links']['self']}")
    status, text = execute(page, "get_search", search_id=search["id"])
    search = json.loads(text)
    assert (status, search["state"]) == (200, "succeeded"), search

    status, text = execute(page, "get_plan_picture", plan_id=search["best_plan_id"])
    assert status == 200 and text.lstrip().startswith("<")
    block = operation(page, "get_plan_picture")
    shown = block.locator(".live-responses-table img[alt='Picture']")
    expect(shown).to_be_visible()
    assert shown.evaluate("picture => picture.decode().then(() => picture.naturalWidth)") > 200
    block.scroll_into_view_if_needed()
    snapshot(page, "picture-in-swagger")

    status, text = execute(page, "get_shortlist_picture", search_id=search["id"])
    assert status == 200 and text.lstrip().startswith("<")
    block = operation(page, "get_shortlist_picture")
    shown = block.locator(".live-responses-table img[alt='Picture']")
    assert shown.evaluate("picture => picture.decode().then(() => picture.naturalWidth)") > 200
    block.scroll_into_view_if_needed()
    snapshot(page, "shortlist-in-swagger")

    status, text = execute(page, "get_plan_timeline", plan_id=search["best_plan_id"])
    assert status == 200 and json.loads(text)["otherData"]["plan_id"] == search["best_plan_id"]
    download = operation(page, "get_plan_timeline").locator(".live-responses-table a[download]")
    assert download.get_attribute("download").endswith(".timeline.json")

    page.goto(f"{address}{search['links']['best_plan_picture']}")
    assert page.evaluate("document.documentElement.tagName") == "svg"
    snapshot(page, "picture")


def test_redoc_shows_every_operation_with_its_examples_without_internet(page, address):
    page.goto(f"{address}/redoc")
    expect(page.locator("h1").first).to_contain_text("Trimtab", timeout=30_000)
    document = page.request.get(f"{address}/openapi.json").json()
    for path in document["paths"].values():
        for operation in path.values():
            assert page.locator(f"[id$='{operation['operationId']}']").count() >= 1, operation["operationId"]
    expect(page.get_by_text("mixtral-8x7b").first).to_be_attached()
    snapshot(page, "redoc")
