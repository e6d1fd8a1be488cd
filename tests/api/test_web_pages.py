"""The pages at /, as a browser without scripts gets them: what stands there, and that nothing in it is markup."""

import re
from html.parser import HTMLParser

import pytest
from invented_searches import TINY_MODEL, TINY_REQUEST, breaks, endless, misses, refuses, risky
from sqlalchemy import text

from api.database import utc_now
from api.run_store import RunStore
from planner.spec.decision import Action, Decision
from planner.spec.errors import NearestMiss, NoPlanFitsError
from planner.spec.window import Window

WAIT = {"Prefer": "wait=30"}
PEOPLE = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
IDLE = {"imbalance_before": 1.0, "imbalance_after": 1.0, "imbalance_bound": 1.0, "reason": "because"}
HOT = [[9000, 500, 300, 200], [500, 9000, 300, 200]]
LINKS = [{"a": a, "b": "switch", "bandwidth_bytes_per_s": 1e11, "latency_s": 1e-6} for a in range(4)] * 100
HOSTILE = "\"><script>alert(1)</script><img src=x onerror='alert(2)'>"


class Page(HTMLParser):
    """Elements by tag with their attributes, and the text."""

    def __init__(self, markup):
        super().__init__()
        self.elements, self.words = [], []
        self.feed(markup)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    def links(self):
        return [attributes["href"] for attributes in self.all("a")]


def look(client, path, status=200):
    answer = client.get(path, headers=PEOPLE)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    return Page(answer.text)


def script_of(attributes):
    """Without the version, which is there for caches."""
    return attributes.get("src", "").partition("?")[0]


def submit(client, request=TINY_REQUEST):
    return client.post("/v1/searches", json=request, headers=WAIT).json()


def begin_run(client, search, name="night shift"):
    return client.post("/v1/runs", json={"name": name, "search_id": search["id"]}).json()


def report(client, run, index, tokens=HOT):
    window = {"index": index, "first_step": index * 10, "num_steps": 10, "tokens": tokens}
    return client.post(f"/v1/runs/{run['id']}/windows", json=window).json()


@pytest.fixture
def search(client):
    return submit(client)


@pytest.fixture
def plans(client, search):
    return [entry["plan"] for entry in client.get(search["links"]["shortlist"]).json()["plans"]]


def test_a_service_without_searches_says_how_to_begin(client):
    page = look(client, "/")
    assert "No search yet." in page.text and "Mixtral-8x7B" in page.text
    assert {"/runs", "/docs"} <= set(page.links())


def test_the_list_shows_model_cluster_state_plan_and_step_of_a_search(client, search, plans):
    page = look(client, "/")
    estimate = client.get(f"/v1/plans/{plans[0]['id']}/estimate").json()
    assert search["best_plan_summary"] == plans[0]["summary"]
    assert search["best_step_time_s"] == estimate["step_time_s"]
    for words in ("tiny-moe", "1 × 4 a100-sxm-80g", "succeeded", plans[0]["summary"], "just now"):
        assert words in page.text
    assert f"/searches/{search['id']}" in page.links()


def test_the_list_reads_no_requests(client, search, database):
    with database.writing() as session:
        session.execute(text("UPDATE searches SET request = '{}'"))
    assert "tiny-moe" in look(client, "/").text
    with database.writing() as session:
        session.execute(text("UPDATE searches SET model_name = NULL, cluster_name = NULL"))
    page = look(client, "/")
    assert search["id"] in page.text and f"/searches/{search['id']}" in page.links()


def test_the_list_says_what_the_nearest_miss_lacks(client, search, database):
    degrees = "pp16 vpp4 · tp8 cp4 ulysses2 sp dp16 zero3 offload · ep64 etp4 edp8"
    longest = f"{degrees} · selective · mbs16 x1024 · 12 strategies"
    miss = NoPlanFitsError(NearestMiss(longest, 15, 13350 * 2**30, 80 * 2**30))
    with database.writing() as session:
        failed = "UPDATE searches SET state = 'failed', best_plan_id = NULL, message = :message"
        session.execute(text(failed), {"message": str(miss)})
    assert f"{longest}: stage 15 needs 13430.00 GiB, has 80.00 GiB and so lacks 13350.00 GiB" in look(client, "/").text


def test_a_long_request_is_shown_in_part(client):
    request = TINY_REQUEST | {"cluster": TINY_REQUEST["cluster"] | {"links": LINKS}}
    page = look(client, f"/searches/{submit(client, request)['id']}")
    assert "The first 20,000 of " in page.text and len(page.text) < 30_000


def test_the_list_comes_in_pages(client, monkeypatch):
    monkeypatch.setattr("api.web.search_pages.ON_A_PAGE", 2)
    ids = [submit(client)["id"] for _ in range(3)]
    first = look(client, "/")
    assert [f"/searches/{id_}" in first.links() for id_ in ids] == [False, True, True]
    (older,) = [link for link in first.links() if "after=" in link]
    second = look(client, older)
    assert [f"/searches/{id_}" in second.links() for id_ in ids] == [True, False, False]
    assert not [link for link in second.links() if "after=" in link]


def test_a_found_shortlist_is_shown_with_certificate_picture_and_scenarios(client, search, plans):
    page = look(client, f"/searches/{search['id']}")
    assert "Certificate: optimal; nothing is faster" in page.text
    for plan in plans:
        assert plan["summary"] in page.text
        assert f"/plans/{plan['id']}?search_id={search['id']}" in page.links()
    for column in ("tokens/s/device", "MFU", "peak GiB", "regret", "best for", "scenario"):
        assert column in page.text
    pictures = {attributes["src"]: attributes["alt"] for attributes in page.all("img")}
    assert len(pictures[f"/v1/searches/{search['id']}/shortlist/picture"]) > 50


def test_a_search_that_runs_shows_its_progress_and_can_be_cancelled(serve):
    client = serve(endless)
    search = client.post("/v1/searches", json=TINY_REQUEST).json()
    page = look(client, f"/searches/{search['id']}")
    assert page.all("progress") and page.all("meta")[-1] == {"http-equiv": "refresh", "content": "2"}
    cancel = f"/searches/{search['id']}/cancel"
    assert cancel in [form["action"] for form in page.all("form")]
    for _ in range(2):
        answer = client.post(cancel, headers={"Origin": "http://testserver"}, follow_redirects=False)
        assert (answer.status_code, answer.headers["location"]) == (303, f"/searches/{search['id']}")
    assert "This search was cancelled" in look(client, f"/searches/{search['id']}").text


@pytest.mark.parametrize(
    ("end", "title", "words"),
    [
        (misses, "No plan fits in memory", "stage 0 needs 85.00 GiB, has 80.00 GiB and so lacks 5.00 GiB"),
        (refuses, "The input cannot be right", "training.global_batch_size must be at least 4"),
        (breaks, "Internal error", "its log says more"),
    ],
)
def test_a_search_that_failed_says_why(serve, end, title, words):
    client = serve(end)
    page = look(client, f"/searches/{submit(client)['id']}")
    assert title in page.text and page.text.count(words) == 1 and "secret" not in page.text


def test_a_plan_is_shown_from_all_sides(client, search, plans):
    one = plans[0]["id"]
    page = look(client, f"/plans/{one}?search_id={search['id']}")
    explanation = client.get(f"/v1/plans/{one}/explanation").json()
    for sentence in (*explanation["reasons"], explanation["rival"]["reason"]):
        assert sentence in page.text
    for words in ("Time of a step", "Memory per device, GiB", "Stages and strategies", "ui.perfetto.dev", "error band"):
        assert words in page.text
    query = f"?search_id={search['id']}"
    wanted = {
        f"/v1/plans/{one}/timeline{query}",
        f"/v1/plans/{one}{query}",
        f"/plans/{one}/diff/{plans[1]['id']}{query}",
        f"/plans/{one}/exports/megatron{query}",
    }
    assert wanted <= set(page.links())
    assert f"/v1/plans/{one}/picture{query}" in [attributes["src"] for attributes in page.all("img")]
    assert look(client, f"/plans/{one}").links()


def test_a_framework_that_cannot_run_a_plan_is_named_with_the_rule(client, plans):
    page = look(client, f"/plans/{plans[0]['id']}")
    refused = client.get(f"/v1/plans/{plans[0]['id']}/export/galvatron").json()
    assert all(error["message"] in page.text for error in refused["errors"])
    assert f"/plans/{plans[0]['id']}/exports/galvatron" not in page.links()


def test_a_plan_that_does_not_fit_everywhere_says_so_and_names_the_fastest_that_does(serve):
    client = serve(risky)
    search = submit(client)
    first, second = (entry["plan"] for entry in client.get(search["links"]["shortlist"]).json()["plans"])
    warned = "runs out of memory in skewed (probability 50.0 %). The fastest plan that runs everywhere: #2"
    for path in (f"/searches/{search['id']}", f"/plans/{first['id']}"):
        page = look(client, path)
        assert f"{warned} {second['summary']}" in " ".join(page.text.split())
        assert f"/plans/{second['id']}?search_id={search['id']}" in page.links()
    assert "out of memory in" in look(client, f"/searches/{search['id']}").text
    assert "runs out of memory" not in look(client, f"/plans/{second['id']}").text


def test_a_framework_that_cannot_run_a_plan_can_be_searched_for_with_the_same_request(client):
    search = submit(client, {**TINY_REQUEST, "options": {"max_virtual_stages": 1}})
    page = look(client, f"/plans/{search['best_plan_id']}")
    refused = [form for form in page.all("form") if form.get("action") == f"/searches/{search['id']}/again"]
    hidden = [attributes["value"] for attributes in page.all("input") if attributes.get("name") == "target"]
    assert len(refused) == len(hidden)
    assert hidden
    answer = client.post(
        f"/searches/{search['id']}/again",
        data={"target": hidden[0]},
        headers={"Origin": "http://testserver"},
        follow_redirects=False,
    )
    assert answer.status_code == 303
    again = client.get(f"/v1{answer.headers['location']}").json()["request"]
    first = search["request"]
    assert again == {**first, "options": {**first["options"], "target": hidden[0]}}


def test_launch_files_are_shown_and_saved_as_the_api_gives_them(client, plans):
    export = client.get(f"/v1/plans/{plans[0]['id']}/export/megatron").json()
    page = look(client, f"/plans/{plans[0]['id']}/exports/megatron")
    assert all(line in page.text for line in export["left_to_user"])
    for file in export["files"]:
        (link,) = [link for link in page.links() if link.endswith(f"/{file['name']}")]
        answer = client.get(link)
        assert answer.text == file["text"]
        assert answer.headers["content-disposition"] == f'attachment; filename="{file["name"]}"'
        assert answer.headers["content-type"].startswith("text/plain")
    (link,) = [link for link in page.links() if link.endswith(".zip")]
    api = client.get(f"/v1/plans/{plans[0]['id']}/export/megatron", headers={"Accept": "application/zip"})
    assert client.get(link).content == api.content
    look(client, f"/plans/{plans[0]['id']}/exports/megatron/none.sh", 404)
    look(client, f"/plans/{plans[0]['id']}/exports/galvatron", 422)


def test_two_plans_stand_side_by_side(client, search, plans):
    one, two = (plan["id"] for plan in plans)
    page = look(client, f"/plans/{one}/diff/{two}?search_id={search['id']}")
    diff = client.get(f"/v1/plans/{one}/diff/{two}").json()
    assert diff["reason"] in page.text
    assert all(each["choice"] in page.text for each in diff["differences"])
    assert f"/plans/{two}/diff/{one}?search_id={search['id']}" in page.links()


def test_a_run_shows_its_decisions_the_latest_first_in_pages(client, search, monkeypatch):
    monkeypatch.setattr("api.web.run_pages.ON_A_PAGE", 2)
    assert "No run yet." in look(client, "/runs").text
    run = begin_run(client, search)
    assert "No window has come in yet" in look(client, f"/runs/{run['id']}").text
    decisions = [report(client, run, index) for index in (0, 1, 2, 5)]
    page = look(client, f"/runs/{run['id']}")
    assert all(decision["reason"] in page.text for decision in decisions[2:])
    assert f"/v1/runs/{run['id']}/picture" in [attributes["src"] for attributes in page.all("img")]
    windows = [
        re.findall(r'scope=row class="number" data-label="window">(\d+)<', client.get(path).text)
        for path in (f"/runs/{run['id']}", f"/runs/{run['id']}?before=2")
    ]
    assert windows == [["5", "2"], ["1", "0"]]
    assert f"/runs/{run['id']}?before=2" in page.links()
    listed = look(client, "/runs")
    assert f"/runs/{run['id']}" in listed.links() and "night shift" in listed.text and "4" in listed.words


def test_a_run_links_the_plan_that_it_runs_now_and_the_one_it_began_with(client, search, plans, database):
    run, store = begin_run(client, search), RunStore(database, utc_now)
    assert "it began with" not in look(client, f"/runs/{run['id']}").text
    stands, other = store.standing(run["id"]), plans[1]["id"]
    window = Window.model_validate({"index": 0, "first_step": 0, "num_steps": 10, "tokens": HOT})
    decision = Decision(window=0, action=Action.SWITCH_PLAN, plan_id=other, **IDLE)
    state = stands.state.model_copy(update={"plan_id": other})
    assert store.record(run["id"], stands.version, window, decision, state)
    page = look(client, f"/runs/{run['id']}")
    assert f"It runs {plans[1]['summary']}" in page.text and f"it began with {plans[0]['summary']}" in page.text


def test_runs_of_one_name_are_told_apart_by_their_ids(client, search):
    ids = [begin_run(client, search)["id"] for _ in range(2)]
    listed = look(client, "/runs")
    assert all(id_ in listed.words for id_ in ids)


def test_runs_come_in_pages(client, search, monkeypatch):
    monkeypatch.setattr("api.web.run_pages.ON_A_PAGE", 1)
    ids = [begin_run(client, search)["id"] for _ in range(2)]
    first = look(client, "/runs")
    (older,) = [link for link in first.links() if "after=" in link]
    assert f"/runs/{ids[1]}" in first.links() and f"/runs/{ids[0]}" in look(client, older).links()
    look(client, "/runs?after=none", 422)


@pytest.mark.parametrize(
    ("path", "status"),
    [("/nothing", 404), ("/searches/none", 404), ("/plans/none", 404), ("/runs/none", 404), ("/?after=none", 422)],
)
def test_what_goes_wrong_is_a_page_for_people_and_a_document_for_programs(client, path, status):
    page = look(client, path, status)
    assert f"status {status}" in page.text and "/" in page.links()
    assert client.get(path).headers["content-type"] == "application/problem+json"


def test_the_api_answers_programs_whoever_looks(client):
    assert client.get("/v1/searches/none", headers=PEOPLE).headers["content-type"] == "application/problem+json"


def test_names_of_clients_are_text_and_never_markup(client):
    request = {**TINY_REQUEST, "model": {"spec": {**TINY_MODEL["spec"], "name": HOSTILE}}}
    search = submit(client, request)
    run = begin_run(client, search, HOSTILE)
    report(client, run, 0)
    plan = search["best_plan_id"]
    other = client.get(search["links"]["shortlist"]).json()["plans"][1]["plan"]["id"]
    of_run, of_search = f"/runs/{run['id']}", f"/searches/{search['id']}"
    paths = ("/", of_search, f"/plans/{plan}", f"/plans/{plan}?search_id={search['id']}", "/runs", of_run)
    for path in (*paths, f"/plans/{plan}/diff/{other}", f"/plans/{plan}/exports/megatron"):
        page = look(client, path)
        assert [script_of(attributes) for attributes in page.all("script")] == ["/assets/trimtab.js"], path
        assert not [attributes for _, attributes in page.elements if "onerror" in attributes], path
        if "diff" not in path:  # which names plans only
            assert HOSTILE in " ".join(page.words), path


def test_every_page_forbids_what_it_does_not_need_and_asks_nobody_else(client, search, plans):
    for path in ("/", f"/searches/{search['id']}", f"/plans/{plans[0]['id']}", "/runs", "/nothing"):
        answer = client.get(path, headers=PEOPLE)
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        page = Page(answer.text)
        own = [
            attributes.get("src") or attributes.get("href") for _, attributes in page.elements if "rel" in attributes
        ]
        own += [attributes["src"] for _, attributes in page.elements if "src" in attributes]
        assert all(address.startswith("/") for address in own if "perfetto" not in address), path
        assert not page.all("style") and not [attributes for _, attributes in page.elements if "style" in attributes]
