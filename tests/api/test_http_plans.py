"""Plans and prices over HTTP."""

import copy
import io
import zipfile
from xml.etree import ElementTree

import pytest
from invented_searches import TINY_REQUEST, misses, plan_with

from api.examples import ESTIMATE_EXAMPLES, WHAT_IF_EXAMPLES
from planner.search import search as searched
from planner.spec.estimate import Estimate
from planner.spec.explanation import Explanation, PlanDiff
from planner.spec.export import Export
from planner.spec.plan import Plan
from planner.spec.shortlist import Shortlist
from planner.spec.timeline import PlanTimeline

WAIT = {"Prefer": "wait=30"}
HOT = {"name": "hot", "expert_shares": [[0.7, 0.1, 0.1, 0.1]]}


@pytest.fixture
def search(client):
    return client.post("/v1/searches", json=TINY_REQUEST, headers=WAIT).json()


def test_the_shortlist_is_the_planner_s_own_value(client, search):
    shortlist = Shortlist.model_validate(client.get(search["links"]["shortlist"]).json())
    assert [entry.plan for entry in shortlist.plans] == [plan_with(micro_batch_size=2), plan_with(micro_batch_size=1)]


def test_a_plan_has_its_id_and_summary(client, search):
    data = client.get(search["links"]["best_plan"]).json()
    plan = Plan.model_validate(data)
    assert (plan.id, plan.summary) == (data["id"], data["summary"]) and plan.id == search["best_plan_id"]


def test_the_estimate_of_a_plan_is_the_one_of_its_shortlist(client, search):
    estimate = Estimate.model_validate(client.get(f"{search['links']['best_plan']}/estimate").json())
    shortlist = client.get(search["links"]["shortlist"]).json()
    assert estimate == Estimate.model_validate(shortlist["plans"][0]["estimate"])


def test_an_estimate_says_how_sure_it_is_for_the_cluster_that_is_asked_about(client, search):
    path = f"{search['links']['best_plan']}/estimate"
    slow = TINY_REQUEST["cluster"] | {"stack": "pytorch-fsdp"}
    for priced in (client.get(path).json(), client.post(path, json={"cluster": slow}).json()):
        band = priced["error_band"]
        assert set(band) == {"step_time_low_s", "step_time_high_s", "rows", "basis"}
        assert band["step_time_low_s"] < band["step_time_high_s"]
        assert f"{band['rows']:,} runs of" in band["basis"]


def test_the_picture_is_an_svg_with_the_plan(client, search):
    answer = client.get(search["links"]["best_plan_picture"])
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("image/svg+xml")
    assert ElementTree.fromstring(answer.text).tag == "{http://www.w3.org/2000/svg}svg"


def test_the_timeline_is_a_file_in_the_times_of_the_estimate(client, search):
    answer = client.get(search["links"]["best_plan_timeline"])
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    assert answer.headers["content-disposition"].startswith("attachment")
    drawn = PlanTimeline.model_validate(answer.json())
    step_s = client.get(f"{search['links']['best_plan']}/estimate").json()["step_time_s"]
    assert drawn.otherData["step_time_s"] == step_s
    assert drawn.otherData["simulated_step_time_s"] == pytest.approx(step_s)
    assert None not in answer.json()["traceEvents"][0].values()


def test_the_picture_of_a_shortlist_has_every_plan(client, search):
    answer = client.get(search["links"]["shortlist_picture"])
    assert answer.headers["content-type"].startswith("image/svg+xml")
    told = ElementTree.fromstring(answer.text).findtext("{http://www.w3.org/2000/svg}desc")
    for entry in client.get(search["links"]["shortlist"]).json()["plans"]:
        assert f"Plan {entry['rank']}, {entry['plan']['summary']}: " in told


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("plans/none/timeline", 404),
        ("plans/none/picture", 404),
        ("searches/none/shortlist/picture", 404),
        ("runs/none/picture", 404),
    ],
)
def test_what_is_not_there_has_no_picture_but_a_problem(client, path, status):
    answer = client.get(f"/v1/{path}")
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")


def test_a_search_that_failed_has_its_problem_for_a_picture(serve):
    client = serve(misses)
    search = client.post("/v1/searches", json=TINY_REQUEST, headers=WAIT).json()
    answer = client.get(f"/v1/searches/{search['id']}/shortlist/picture")
    assert answer.status_code == search["error"]["status"] == 422
    assert answer.json()["detail"] == search["error"]["detail"]


def test_nothing_in_a_picture_runs(client):
    request = copy.deepcopy(TINY_REQUEST)
    request["model"]["spec"]["name"] = "<script>alert(1)</script>"
    search = client.post("/v1/searches", json=request, headers=WAIT).json()
    answer = client.get(search["links"]["best_plan_picture"])
    assert not ElementTree.fromstring(answer.text).findall(".//{*}script")
    assert "default-src 'none'" in answer.headers["content-security-policy"]


def test_what_if_nothing_changes_the_price_stays(client, search):
    path = f"{search['links']['best_plan']}/estimate"
    assert client.post(path, json={}).json() == client.get(path).json()


def test_what_if_the_load_is_skewed_the_step_takes_longer(client, search):
    path = f"{search['links']['best_plan']}/estimate"
    # Without host time, behind which a model as small as this hides its load.
    ideal = TINY_REQUEST["cluster"] | {"stack": {}}
    even = client.post(path, json={"cluster": ideal}).json()
    skewed = client.post(path, json={"cluster": ideal, "workload": HOT}).json()
    assert skewed["workload"] == "hot"
    assert skewed["step_time_s"] > even["step_time_s"]


def test_what_if_the_network_is_slower_the_step_takes_longer(client, search):
    path = f"{search['links']['best_plan']}/estimate"
    slow = TINY_REQUEST["cluster"] | {"intra_node": {"bandwidth_bytes_per_s": 1e8, "latency_s": 1e-4}}
    assert client.post(path, json={"cluster": slow}).json()["step_time_s"] > client.get(path).json()["step_time_s"]


def test_a_plan_that_two_searches_found_is_seen_under_the_conditions_of_either(client, search):
    other = TINY_REQUEST | {"cluster": TINY_REQUEST["cluster"] | {"device": "v100-sxm2-32g"}}
    other["training"] = TINY_REQUEST["training"] | {"precision": "fp16"}
    later = client.post("/v1/searches", json=other, headers=WAIT).json()
    assert later["best_plan_id"] == search["best_plan_id"]
    path = f"/v1/plans/{search['best_plan_id']}/estimate"
    first = client.get(path, params={"search_id": search["id"]}).json()
    second = client.get(path, params={"search_id": later["id"]}).json()
    assert first["step_time_s"] < second["step_time_s"]
    assert client.get(path).json() == second
    assert client.get(path, params={"search_id": "none"}).status_code == 404


@pytest.mark.parametrize("name", ESTIMATE_EXAMPLES)
def test_the_filled_in_estimates_work(client, name):
    answer = client.post("/v1/estimates", json=ESTIMATE_EXAMPLES[name]["value"])
    assert answer.status_code == 200, answer.text
    estimate = Estimate.model_validate(answer.json())
    assert sum(estimate.time.values()) == pytest.approx(estimate.step_time_s, rel=1e-9)


@pytest.mark.parametrize("name", WHAT_IF_EXAMPLES)
def test_the_filled_in_what_ifs_suit_the_filled_in_plan(client, name):
    balanced = ESTIMATE_EXAMPLES["mixtral"]["value"]
    changed = client.post("/v1/estimates", json=balanced | WHAT_IF_EXAMPLES[name]["value"])
    assert changed.status_code == 200, changed.text
    assert changed.json()["step_time_s"] > client.post("/v1/estimates", json=balanced).json()["step_time_s"]


def test_presets_are_listed_and_shown(client):
    models, devices = client.get("/v1/models").json()["items"], client.get("/v1/devices").json()["items"]
    assert "mixtral-8x7b" in models and "h100-sxm-80g" in devices
    assert client.get("/v1/models/mixtral-8x7b").json()["hidden_size"] == 4096
    assert client.get("/v1/devices/h100-sxm-80g").json()["device"]["memory_bytes"] > 79 * 10**9


def test_the_explanation_of_the_best_plan_sets_the_runner_up_beside_it(client, search):
    explanation = Explanation.model_validate(client.get(search["links"]["best_plan_explanation"]).json())
    shortlist = Shortlist.model_validate(client.get(search["links"]["shortlist"]).json())
    assert explanation.plan.id == search["best_plan_id"]
    assert explanation.estimate == shortlist.plans[0].estimate
    assert explanation.rival is not None
    assert explanation.rival.second_plan_id == shortlist.plans[1].plan.id
    assert explanation.rival.reason.startswith("The runner-up takes ")


def test_any_other_plan_is_explained_beside_the_best(client, search):
    other = plan_with(micro_batch_size=1).id
    explanation = Explanation.model_validate(client.get(f"/v1/plans/{other}/explanation").json())
    assert explanation.rival is not None
    assert explanation.rival.second_plan_id == search["best_plan_id"]
    assert explanation.rival.reason.startswith("The best plan takes ")


def test_two_plans_differ_in_what_their_searches_chose(client, search):
    first, second = search["best_plan_id"], plan_with(micro_batch_size=1).id
    diff = PlanDiff.model_validate(client.get(f"/v1/plans/{first}/diff/{second}").json())
    assert [(d.choice, d.first, d.second) for d in diff.differences] == [("mbs", "2", "1"), ("micro-batches", "1", "2")]
    price = client.get(f"/v1/plans/{second}/estimate").json()
    assert diff.second_step_time_s == price["step_time_s"]


@pytest.mark.parametrize("path", ["none/explanation", "none/diff/{best}", "{best}/diff/none"])
def test_plans_that_nobody_found_are_not_explained(client, search, path):
    answer = client.get(f"/v1/plans/{path.format(best=search['best_plan_id'])}")
    assert answer.status_code == 404


def test_a_plan_is_exported_with_its_id_in_the_files(client, search):
    answer = client.get(f"{search['links']['best_plan']}/export/megatron")
    assert answer.status_code == 200, answer.text
    export = Export.model_validate(answer.json())
    assert export.plan_id == search["best_plan_id"]
    assert all(f"# Plan {export.plan_id}: " in file.text for file in export.files)


def diff_of(client, first, second, **query):
    answer = client.get(f"/v1/plans/{first}/diff/{second}", params=query)
    assert answer.status_code == 200, answer.text
    return PlanDiff.model_validate(answer.json())


def test_a_plan_beside_itself_differs_in_nothing(client, search):
    diff = diff_of(client, search["best_plan_id"], search["best_plan_id"])
    assert (diff.differences, diff.step_time_change_ratio) == ((), 0.0)
    assert all(part.change_s == 0 for part in diff.time) and all(part.change_bytes == 0 for part in diff.memory)
    assert diff.reason == "The second plan takes as long as the first plan; its fullest stage needs as much memory"


def test_a_plan_of_another_search_is_priced_as_the_first_unless_its_own_search_is_named(client, search):
    other = TINY_REQUEST | {"cluster": TINY_REQUEST["cluster"] | {"device": "v100-sxm2-32g"}}
    other["training"] = TINY_REQUEST["training"] | {"precision": "fp16"}
    slower = client.post("/v1/searches", json=other, headers=WAIT).json()
    pair = (search["best_plan_id"], slower["best_plan_id"])
    same = diff_of(client, *pair, search_id=search["id"])
    assert same.differences == () and same.step_time_change_ratio == 0
    as_asked = {"search_id": search["id"], "other_search_id": slower["id"]}
    assert diff_of(client, *pair, **as_asked).step_time_change_ratio > 0


def test_plans_for_other_batches_and_other_numbers_of_devices_are_compared(serve):
    client = serve(searched)
    first = client.post("/v1/searches", json=TINY_REQUEST, headers=WAIT).json()
    for part, change in (("training", {"global_batch_size": 16}), ("cluster", {"nodes": 2})):
        request = TINY_REQUEST | {part: TINY_REQUEST[part] | change}
        other = client.post("/v1/searches", json=request, headers=WAIT).json()
        diff = diff_of(client, first["best_plan_id"], other["best_plan_id"], search_id=first["id"])
        price = client.get(f"{other['links']['best_plan']}/estimate").json()
        assert diff.second_step_time_s == price["step_time_s"] * diff.second_steps
        assert diff.second_steps == (0.5 if part == "training" else 1)


def test_plans_for_other_models_are_not_compared(serve):
    client = serve(searched)
    one = client.post("/v1/searches", json=TINY_REQUEST, headers=WAIT).json()
    other = client.post("/v1/searches", json=TINY_REQUEST | {"model": {"preset": "gpt2"}}, headers=WAIT).json()
    answer = client.get(f"/v1/plans/{one['best_plan_id']}/diff/{other['best_plan_id']}")
    [error] = answer.json()["errors"]
    assert (answer.status_code, error["field"]) == (422, "other_plan_id")
    assert error["message"].startswith("is a plan for gpt2; it must be one for tiny-moe")


def test_a_plan_that_a_framework_cannot_run_is_answered_with_the_rule(client, search):
    answer = client.get(f"{search['links']['best_plan']}/export/torchtitan")
    assert answer.status_code == 422
    [error] = answer.json()["errors"]
    assert error["field"] == "plan" and "(sharding-of-target)" in error["message"]


def test_a_refused_export_says_how_to_get_a_plan_that_can_be_exported(serve):
    client = serve(searched)
    search = client.post("/v1/searches", json=TINY_REQUEST, headers=WAIT).json()
    answer = client.get(f"{search['links']['best_plan']}/export/megatron")
    assert answer.status_code == 422
    detail = answer.json()["detail"]
    assert "search with options.target = megatron" in detail
    named = detail.rpartition("; or export plan ")[2].removesuffix(" of its search")
    assert client.get(f"/v1/plans/{named}/export/megatron").status_code == 200


@pytest.mark.parametrize(("path", "status"), [("none/export/megatron", 404), ("{best}/export/jax", 422)])
def test_neither_unknown_plans_nor_unknown_frameworks_are_exported(client, search, path, status):
    assert client.get(f"/v1/plans/{path.format(best=search['best_plan_id'])}").status_code == status


def test_an_export_is_an_archive_where_one_is_asked_for(client, search):
    path = f"{search['links']['best_plan']}/export/megatron"
    export = Export.model_validate(client.get(path).json())
    answer = client.get(path, headers={"Accept": "application/zip"})
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/zip")
    folder = f"megatron-{export.plan_id}"
    assert answer.headers["content-disposition"] == f'attachment; filename="{folder}.zip"'
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.testzip() is None
        for file in export.files:
            assert archive.read(f"{folder}/{file.name}").decode() == file.text
        told = archive.read(f"{folder}/LEFT_TO_YOU.txt").decode()
        assert all(f"- {line}" in told for line in (*export.left_to_user, *export.notes))
        assert archive.getinfo(f"{folder}/megatron-launch.sh").external_attr >> 16 == 0o755
    assert client.get(path, headers={"Accept": "application/zip"}).content == answer.content


@pytest.mark.parametrize("accept", ["*/*", "application/json, application/zip", "text/html"])
def test_an_export_is_json_unless_an_archive_is_asked_for_first(client, search, accept):
    path = f"{search['links']['best_plan']}/export/megatron"
    assert client.get(path, headers={"Accept": accept}).json() == client.get(path).json()


def test_one_file_of_an_export_comes_as_it_is(client, search):
    path = f"{search['links']['best_plan']}/export/megatron"
    file = client.get(path).json()["files"][0]
    answer = client.get(path, params={"file": file["name"]})
    assert (answer.text, answer.headers["content-type"]) == (file["text"], "text/plain; charset=utf-8")
    refused = client.get(path, params={"file": "../etc/passwd"})
    assert refused.status_code == 422 and file["name"] in refused.json()["errors"][0]["message"]


def test_a_plan_that_cannot_be_written_is_refused_in_every_form(client, search):
    path = f"{search['links']['best_plan']}/export/torchtitan"
    for more in ({"headers": {"Accept": "application/zip"}}, {"params": {"file": "torchtitan-v0.2.toml"}}):
        answer = client.get(path, **more)
        assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json")
