"""Swagger UI in a real browser: try it out, and read what it answers, as text and as pictures."""

import json
import time
from urllib.parse import unquote
from xml.etree import ElementTree

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

SEARCH_S = 120
READABLE_RATIO = 3.5
"""Of contrast; below the 4.5 of our own pages, as a few colours are fixed in the code of Swagger UI and ReDoc."""
SVG = "{http://www.w3.org/2000/svg}"


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


def shown_text(page: Page, operation_id: str) -> str:
    """What a person reads of the answer: the code block below the operation."""
    block = operation(page, operation_id).locator(".live-responses-table .highlight-code").first
    expect(block).to_be_visible()
    return block.inner_text()


def shown_picture(page: Page, operation_id: str) -> dict[str, str]:
    """Title, description and all words of the picture that stands below the operation, read from what is drawn."""
    shown = operation(page, operation_id).locator(".live-responses-table img[alt='Picture']")
    expect(shown).to_be_visible()
    assert shown.evaluate("picture => picture.decode().then(() => picture.naturalWidth)") > 200
    kind, _, source = (shown.get_attribute("src") or "").partition(",")
    assert kind == "data:image/svg+xml;charset=utf-8"
    root = ElementTree.fromstring(unquote(source))
    words = " | ".join("".join(element.itertext()) for element in root.iter(f"{SVG}text"))
    return {"title": root.findtext(f"{SVG}title"), "desc": root.findtext(f"{SVG}desc"), "words": words}


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


def test_trying_it_out_plans_mixtral_and_its_shortlist_plan_and_pictures_can_be_read(page, address, snapshot):
    page.goto(f"{address}/docs")
    operation(page, "submit_search").locator(".opblock-summary").click()
    body = operation(page, "submit_search").locator("textarea.body-param__text")
    expect(body).to_be_visible(timeout=20_000)
    asked = json.loads(body.input_value())
    assert asked["model"] == {"preset": "mixtral-8x7b"}
    assert (asked["cluster"]["nodes"], asked["cluster"]["devices_per_node"]) == (8, 8)
    status, text = execute(page, "submit_search")
    snapshot(page, "swagger-submitted")
    assert status == 202
    search = json.loads(text)
    assert search["id"] in shown_text(page, "submit_search")
    until_ended(page, f"{address}{search['links']['self']}")
    status, text = execute(page, "get_search", search_id=search["id"])
    search = json.loads(text)
    assert (status, search["state"]) == (200, "succeeded"), search
    assert '"succeeded"' in shown_text(page, "get_search")

    status, text = execute(page, "get_shortlist", search_id=search["id"])
    shortlist = json.loads(text)
    best, runner_up = shortlist["plans"][:2]
    assert status == 200 and best["plan"]["id"] == search["best_plan_id"]
    assert best["estimate"]["step_time_s"] <= runner_up["estimate"]["step_time_s"]
    assert best["plan"]["summary"] in shown_text(page, "get_shortlist")

    status, text = execute(page, "get_plan", plan_id=search["best_plan_id"])
    plan = json.loads(text)
    assert status == 200 and plan == best["plan"]
    assert sum(stage["num_devices"] for stage in plan["stages"]) == 64
    shown = shown_text(page, "get_plan")
    assert plan["summary"] in shown and '"global_batch_size": 1024' in shown

    status, _ = execute(page, "get_plan_picture", plan_id=search["best_plan_id"])
    picture = shown_picture(page, "get_plan_picture")
    assert status == 200 and f"Plan {plan['summary']} for mixtral-8x7b" == picture["title"]
    assert "34 layers" in picture["desc"] and "64 devices" in picture["desc"] and "MFU" in picture["desc"]
    assert all(words in picture["words"] for words in ("mixtral-8x7b", "Memory per device, GiB", "Time of a step"))
    operation(page, "get_plan_picture").scroll_into_view_if_needed()
    snapshot(page, "swagger-plan-picture")

    status, _ = execute(page, "get_shortlist_picture", search_id=search["id"])
    picture = shown_picture(page, "get_shortlist_picture")
    assert status == 200
    assert all(entry["plan"]["summary"] in picture["words"] for entry in shortlist["plans"])
    operation(page, "get_shortlist_picture").scroll_into_view_if_needed()
    snapshot(page, "swagger-shortlist-picture")

    status, text = execute(page, "get_plan_timeline", plan_id=search["best_plan_id"])
    assert status == 200 and json.loads(text)["otherData"]["plan_id"] == search["best_plan_id"]
    download = operation(page, "get_plan_timeline").locator(".live-responses-table a[download]")
    assert download.get_attribute("download").endswith(".timeline.json")

    page.goto(f"{address}{search['links']['best_plan_picture']}")
    assert page.evaluate("document.documentElement.tagName") == "svg"
    assert plan["summary"] in page.evaluate("document.documentElement.textContent")


def test_redoc_shows_every_operation_with_its_examples_without_internet(page, address, snapshot):
    page.goto(f"{address}/redoc")
    expect(page.locator("h1").first).to_contain_text("Trimtab", timeout=30_000)
    document = page.request.get(f"{address}/openapi.json").json()
    for path in document["paths"].values():
        for operation in path.values():
            assert page.locator(f"[id$='{operation['operationId']}']").count() >= 1, operation["operationId"]
    expect(page.get_by_text("mixtral-8x7b").first).to_be_attached()
    snapshot(page, "redoc")


@pytest.mark.parametrize(("path", "shown"), [("docs", "div.opblock"), ("redoc", "h5")])
def test_where_people_like_it_dark_the_documentation_is_dark_and_can_be_read(open_page, address, path, shown, snapshot):
    page = open_page(viewport={"width": 1280, "height": 900}, color_scheme="dark")
    page.goto(f"{address}/{path}")
    page.locator(shown).first.wait_for(timeout=30_000)
    if path == "docs":
        operation(page, "submit_search").locator(".opblock-summary").click()
        expect(operation(page, "submit_search").locator(".header-col").first).to_be_visible()
    assert page.evaluate("getComputedStyle(document.documentElement).backgroundColor") == "rgb(21, 24, 29)"
    found = Axe().run(page, options={"runOnly": ["color-contrast"], "resultTypes": ["violations"]}).response
    texts = {node["html"]: node["any"][0]["data"] for each in found["violations"] for node in each["nodes"]}
    assert {text for text, data in texts.items() if data["contrastRatio"] < READABLE_RATIO} == set()
    snapshot(page, f"{path}-dark")


@pytest.mark.parametrize("path", ["docs", "redoc"])
def test_on_a_telephone_the_documentation_is_as_wide_as_the_screen(open_page, address, path):
    page = open_page(viewport={"width": 375, "height": 800})
    page.goto(f"{address}/{path}")
    expect(page.locator("h1, h2").first).to_contain_text("Trimtab", timeout=30_000)
    if path == "docs":
        operation(page, "submit_search").locator(".opblock-summary").click()
        expect(operation(page, "submit_search").locator(".header-col").first).to_be_attached()
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
