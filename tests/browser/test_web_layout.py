"""Every page in light, in dark and on a telephone: nothing beside the page, no text over text, nothing that axe finds.

axe computes the contrast of all text from the styles in force, and knows names, labels, landmarks, headings and tables
(WCAG 2.2 A and AA, and its best practices).
"""

from pathlib import Path

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from invented_searches import LONG_REQUEST, TINY_MODEL, TINY_REQUEST
from playwright.sync_api import expect

LAYOUT = (Path(__file__).parent / "layout.js").read_text()
WAIT = {"Prefer": "wait=60"}
MIXTRAL = {
    "model": {"preset": "mixtral-8x7b"},
    "cluster": {"nodes": 8, "devices_per_node": 8, "device": "h100-sxm-80g"},
    "training": {"global_batch_size": 1024, "sequence_length": 4096},
}
TOO_SMALL = {
    "model": {"preset": "llama-2-70b"},
    "cluster": {"nodes": 1, "devices_per_node": 2, "device": "a100-sxm-80g"},
    "training": {"global_batch_size": 64, "sequence_length": 4096},
}
LONG_NAME = "W" * 120
LOOKS = {
    "light": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "light"},
    "dark": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "dark"},
    "telephone": {"viewport": {"width": 375, "height": 800}, "color_scheme": "light"},
}
PAGES = (
    "searches",
    "refused",
    "running",
    "shortlist",
    "failed",
    "long-name",
    "plan",
    "diff",
    "export",
    "runs",
    "run",
    "problem",
)


@pytest.fixture(scope="module")
def paths(address):
    """Where each page is, on a service that has something to show on all of them."""
    with httpx.Client(base_url=address, timeout=90) as client:

        def ask(request):
            return client.post("/v1/searches", json=request, headers=WAIT).json()

        long_name = ask({**TINY_REQUEST, "model": {"spec": {**TINY_MODEL["spec"], "name": LONG_NAME}}})
        failed, found = ask(TOO_SMALL), ask(MIXTRAL)
        shortlist = client.get(f"/v1/searches/{found['id']}/shortlist").json()["plans"]
        best, other = (entry["plan"]["id"] for entry in shortlist[:2])
        run = client.post("/v1/runs", json={"name": "night-shift", "search_id": found["id"]}).json()
        for index in range(6):
            client.post(f"/v1/runs/{run['id']}/windows", json=_window(index)).raise_for_status()
        running = client.post("/v1/searches", json=LONG_REQUEST).json()
        query = f"?search_id={found['id']}"
        yield {
            "searches": "/",
            "refused": "/",
            "running": f"/searches/{running['id']}",
            "shortlist": f"/searches/{found['id']}",
            "failed": f"/searches/{failed['id']}",
            "long-name": f"/searches/{long_name['id']}",
            "plan": f"/plans/{best}{query}",
            "diff": f"/plans/{best}/diff/{other}{query}",
            "export": f"/plans/{other}/exports/megatron{query}",
            "runs": "/runs",
            "run": f"/runs/{run['id']}",
            "problem": "/nothing-of-this-name",
        }
        client.delete(f"/v1/searches/{running['id']}")


def _window(index):
    """A load that is hot on another expert in each layer, and colder in each window."""
    tokens = [[1000 + 9000 // (index + 1) * (expert == layer % 8) for expert in range(8)] for layer in range(32)]
    return {"index": index, "first_step": 50 * index, "num_steps": 50, "tokens": tokens}


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_legible_and_reachable(open_page, address, paths, snapshot, name, look):
    page = open_page(**LOOKS[look], reduced_motion="reduce")
    page.goto(f"{address}{paths[name]}")
    if name == "refused":
        page.locator("summary").click()
        page.get_by_label("Nodes").fill("0")
        page.get_by_label("Cluster in short").fill("8 by 8")
        page.get_by_role("button", name="Search").click()
        page.get_by_role("alert").wait_for()
    for summary in page.locator("details:not([open]) > summary").all():
        summary.click()
    for picture in page.locator("img").all():
        assert picture.evaluate("picture => picture.decode().then(() => picture.naturalWidth)") > 0
    layout = page.evaluate(LAYOUT)
    assert layout.pop("texts") > 8
    assert layout == {"overflow": 0, "overlaps": [], "beside": []}
    snapshot(page, f"web-{name}-{look}", full_page=True)
    found = Axe().run(page).response["violations"]
    assert not [(one["id"], [node["html"][:200] for node in one["nodes"]]) for one in found]


def test_dark_and_light_pages_differ_and_so_do_their_pictures(open_page, address, paths):
    grounds = {}
    for look in ("light", "dark"):
        page = open_page(**LOOKS[look])
        page.goto(f"{address}{paths['plan']}")
        page.locator("img.picture").evaluate("picture => picture.decode()")
        of_page = page.evaluate("getComputedStyle(document.body).backgroundColor")
        of_picture = page.locator("img.picture").evaluate(
            """picture => {
                const drawn = Object.assign(document.createElement("canvas"), { width: 40, height: 40 });
                const pen = drawn.getContext("2d");
                pen.drawImage(picture, 0, 0, 40, 40);
                return [...pen.getImageData(0, 0, 1, 1).data].join();
            }"""
        )
        grounds[look] = of_page, of_picture
    assert grounds["light"][0] != grounds["dark"][0]
    assert grounds["light"][1] != grounds["dark"][1]


@pytest.mark.parametrize(("look", "is_said"), [("telephone", True), ("light", False)])
def test_a_table_that_is_wider_than_the_screen_says_so(open_page, address, paths, look, is_said):
    page = open_page(**LOOKS[look])
    page.goto(f"{address}{paths['shortlist']}")
    box = page.get_by_role("region", name="Plans, the best for balanced load first")
    expect(box).to_have_class("scroll more" if is_said else "scroll")
    said = box.evaluate("element => getComputedStyle(element, '::before').content")
    assert ("scroll sideways" in said) == is_said
