"""The pages at / as somebody uses them who has a keyboard only, or no scripts: from the form to a plan and a run."""

import re

from invented_searches import LONG_REQUEST
from playwright.sync_api import Page, expect

SEARCH_MS = 120_000
MOST_TABS = 200


def tab_to(page: Page, selector: str) -> None:
    """Press Tab until the first element of the selector has the focus, and see that the focus shows."""
    wanted = page.locator(selector).first
    for _ in range(MOST_TABS):
        page.keyboard.press("Tab")
        if wanted.evaluate("element => element === document.activeElement"):
            assert wanted.evaluate("element => getComputedStyle(element).outlineStyle") != "none", selector
            return
    raise AssertionError(f"Tab does not reach {selector}")


def type_over(page: Page, text: str) -> None:
    page.keyboard.press("Control+a")
    page.keyboard.type(text)


def test_a_plan_is_found_and_read_with_the_keyboard_alone(page, address, snapshot):
    page.goto(f"{address}/")
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#main")).to_be_focused()

    tab_to(page, "#nodes")
    type_over(page, "eight")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("Nodes must be a whole number")
    expect(page.locator("#nodes")).to_be_focused()
    expect(page.locator("#nodes")).to_have_value("eight")
    expect(page.locator("#nodes")).to_have_accessible_description(re.compile("must be a whole number"))
    snapshot(page, "web-form-refused")
    type_over(page, "8")
    page.keyboard.press("Enter")

    expect(page.get_by_role("heading", level=1)).to_have_text(re.compile("mixtral-8x7b on 8 × 8 h100-sxm-80g"))
    expect(page.get_by_role("heading", name="The shortlist")).to_be_visible(timeout=SEARCH_MS)
    expect(page.get_by_text("Certificate: optimal; nothing is faster")).to_be_visible()
    rows = page.get_by_role("table", name="Plans, the best for balanced load first").get_by_role("row")
    assert rows.count() > 2
    best = rows.nth(1).get_by_role("link").inner_text()
    assert re.match(r"pp\d+ · ", best)
    page.locator("img.picture").evaluate("picture => picture.decode()")

    tab_to(page, ".ranked a")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text(best)
    expect(page.locator(".sentences li").first).to_have_text(re.compile(r"^A step takes .* s: compute \d+"))
    picture = page.locator("img.picture")
    picture.evaluate("picture => picture.decode()")
    drawn = page.request.get(f"{address}{picture.get_attribute('src')}").text()
    assert best in drawn and "Memory per device, GiB" in drawn

    tab_to(page, "a[href*='/diff/']")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("Two plans side by side")
    expect(page.locator("p.card")).to_have_text(re.compile("^The second plan takes .* than the first plan"))
    expect(page.get_by_role("rowheader", name="time of a step")).to_be_visible()

    tab_to(page, "nav[aria-label='Main'] a[href='/runs']")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("Runs")


def test_a_search_is_followed_while_it_runs_and_cancelled_with_the_keyboard(page, address, snapshot):
    search = page.request.post(f"{address}/v1/searches", data=LONG_REQUEST).json()
    page.goto(f"{address}/searches/{search['id']}")
    said = page.get_by_role("status")
    expect(said).to_have_text(re.compile(r"^\d+ %: \w+"), timeout=20_000)
    expect(page.get_by_role("progressbar")).to_be_visible()
    expect(page.locator("[data-message]")).to_have_text(re.compile(r"\w+"))
    state = page.locator(".facts .state")
    state.evaluate("element => Object.assign(element, {textContent: 'queued', className: 'state queued'})")
    expect(state).to_have_text("running", timeout=20_000)
    expect(state).to_have_class("state running")
    snapshot(page, "web-search-running")
    tab_to(page, "button.quiet")
    page.keyboard.press("Enter")
    expect(page.get_by_text("This search was cancelled")).to_be_visible()
    assert page.request.get(f"{address}/v1/searches/{search['id']}").json()["state"] == "cancelled"


def test_the_list_shows_by_itself_what_becomes_of_a_search(page, address):
    search = page.request.post(f"{address}/v1/searches", data=LONG_REQUEST).json()
    page.goto(f"{address}/")
    row = page.locator(f"#searches tr:has(a[href='/searches/{search['id']}'])")
    expect(row.get_by_role("progressbar")).to_be_visible()
    page.request.delete(f"{address}/v1/searches/{search['id']}")
    expect(row).to_contain_text("cancelled", timeout=20_000)


def test_everything_works_without_scripts(open_page, address):
    page = open_page(java_script_enabled=False)
    page.goto(f"{address}/")
    page.get_by_label("Model", exact=True).select_option("gpt2")
    page.get_by_label("Nodes").fill("1")
    page.get_by_label("Samples per step").fill("64")
    page.get_by_label("Tokens per sample").fill("1024")
    page.get_by_role("button", name="Search").click()
    expect(page.get_by_role("heading", name="The shortlist")).to_be_visible(timeout=SEARCH_MS)
    page.locator(".plan a").first.click()
    expect(page.get_by_role("heading", name="Why it is as it is")).to_be_visible()
