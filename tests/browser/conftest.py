"""Chromium that reaches nothing but the service, and a service that is started as users start it.

With SCREENSHOTS set to a folder, pictures of the pages are left there.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Response, sync_playwright

sys.path.insert(0, str(Path(__file__).parents[1] / "api"))
from missing import chromium
from service_process import service

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


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A service of this module's own, with the real search."""
    with service(tmp_path_factory.mktemp("service")) as (_, client):
        yield str(client.base_url).rstrip("/")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=chromium(playwright), headless=True, args=FLAGS)
        yield launched
        launched.close()


OpenPage = Callable[..., Page]


@pytest.fixture
def open_page(browser: Browser, address: str) -> Iterator[OpenPage]:
    """A function that opens a page in a context of its own.

    Each notes every host it asks, every error of its scripts and of its console; there may be none but the service's.
    """
    hosts, errors = set[str](), list[str]()
    with ExitStack() as stack:

        def opened(**options: object) -> Page:
            context = browser.new_context(**options)
            stack.callback(context.close)
            page = context.new_page()
            page.on("request", lambda request: hosts.add(urlsplit(request.url).netloc))
            page.on("pageerror", lambda error: errors.append(str(error)))
            page.on("console", lambda message: errors.extend(_errors_of(message)))
            page.on("response", lambda response: errors.extend(_missing(response)))
            return page

        yield opened
    assert hosts - {""} <= {urlsplit(address).netloc}
    assert errors == []


def _errors_of(message: ConsoleMessage) -> list[str]:
    """Chromium tells of answers by their status here too; those that matter are heard of as responses."""
    told = message.type in ("error", "warning") and not message.text.startswith("Failed to load resource")
    return [message.text] if told else []


def _missing(response: Response) -> list[str]:
    """What a page asks for must be there; the page itself may be one about an error."""
    is_missing = response.status >= 400 and response.request.resource_type != "document"
    return [f"{response.status} {response.url}"] if is_missing else []


@pytest.fixture
def page(open_page: OpenPage) -> Page:
    """A page of a usual screen."""
    return open_page(viewport={"width": 1400, "height": 1800})


Snapshot = Callable[[Page, str], None]


@pytest.fixture
def snapshot() -> Snapshot:
    """A function that leaves a picture of a page in the folder for people, if one is named."""

    def taken(page: Page, name: str, **options: object) -> None:
        if folder := os.environ.get("SCREENSHOTS"):
            page.screenshot(path=str(Path(folder) / f"{name}.png"), **options)

    return taken
