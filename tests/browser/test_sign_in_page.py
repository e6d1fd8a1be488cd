"""The sign-in page in a real browser: led there, let in, seen by no other page, and out again."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect
from service_process import service
from tokens_in_store import token

from api.access_guard import COOKIE
from api.database import open_database


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    folder = tmp_path_factory.mktemp("service")
    with service(folder, "--workers", "1", "--access", "tokens") as (_, client):
        yield str(client.base_url).rstrip("/"), folder


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page whose console has no error but of answers that are refusals: none of a policy, and none of a script."""
    opened, errors = browser.new_page(), []
    opened.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    opened.on("pageerror", lambda error: errors.append(str(error)))
    yield opened
    opened.close()
    assert [error for error in errors if "Failed to load resource" not in error] == []


def test_a_person_is_led_to_the_page_signs_in_with_the_keyboard_and_is_back_where_it_began(page, place):
    address, folder = place
    database = open_database(f"sqlite:///{folder}/trimtab.db")
    text = token(database, "submit")
    database.close()
    page.goto(f"{address}/v1/models")
    expect(page).to_have_title("Sign in · Trimtab")
    expect(page.get_by_label("Token")).to_be_focused()
    page.keyboard.type("ttk_wrong")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("no token of Trimtab")
    page.get_by_label("Token").fill(text)
    page.keyboard.press("Enter")
    page.wait_for_url(f"{address}/v1/models")
    assert "mixtral-8x7b" in page.content()
    assert COOKIE not in page.evaluate("document.cookie")
    # What Swagger UI on the same page asks is let in by the cookie, writing too.
    page.goto(f"{address}/docs")
    expect(page.locator("div.opblock[id$='submit_search']")).to_be_visible(timeout=60_000)
    status = "(body) => fetch('/v1/searches', {method: 'POST', headers: {'content-type': 'application/json'}, body})"
    assert page.evaluate(f"({status})('{{}}').then((answer) => answer.status)") == 422
    page.goto(f"{address}/sign-in")
    expect(page.get_by_text("Signed in as")).to_be_visible()
    page.get_by_role("button", name="Sign out").click()
    page.goto(f"{address}/v1/models")
    expect(page).to_have_title("Sign in · Trimtab")
