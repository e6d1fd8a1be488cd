"""The form that begins a search: what it accepts, what it says is wrong, and from where it may be sent."""

import json

import pytest
from invented_searches import endless, instant
from test_web_pages import PEOPLE, Page, script_of

from api.web.search_form import FIRST_FORM, SearchForm

FIRST = FIRST_FORM.model_dump()
HERE = {**PEOPLE, "Origin": "http://testserver"}
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 512,
}


def send(client, headers=HERE, **typed):
    return client.post("/searches", data={**FIRST, **typed}, headers=headers, follow_redirects=False)


def wrong(page):
    """Messages by the input that they describe."""
    ids = {attributes["id"] for _, attributes in page.elements if "id" in attributes}
    inputs = [attributes for tag, attributes in page.elements if tag in ("input", "select", "textarea")]
    marked = [attributes for attributes in inputs if attributes.get("aria-invalid")]
    for attributes in marked:
        assert set(attributes["aria-describedby"].split()) <= ids
    return {attributes["name"] for attributes in marked}


def test_the_form_can_be_sent_as_it_stands_there_and_leads_to_the_search(serve):
    client = serve(endless)
    page = Page(client.get("/").text)
    typed = {attributes["name"]: attributes.get("value", "") for attributes in page.all("input")}
    assert (typed["nodes"], typed["batch"], typed["length"]) == ("8", "1024", "4096")
    answer = send(client)
    assert answer.status_code == 303
    search = client.get(f"/v1{answer.headers['location']}").json()
    request = search["request"]
    assert request["model"]["preset"] == "mixtral-8x7b"
    assert (request["cluster"]["nodes"], request["cluster"]["devices_per_node"]) == (8, 8)
    assert request["training"]["global_batch_size"] == 1024
    client.delete(search["links"]["self"])


def test_every_input_has_a_label(serve):
    page = Page(serve(instant).get("/").text)
    labels = {attributes["for"] for attributes in page.all("label")}
    assert labels == set(FIRST)


@pytest.mark.parametrize(
    ("typed", "model", "cluster"),
    [
        ({"config": json.dumps(LLAMA)}, "llama", "8 × 8 h100-sxm-80g"),
        ({"cluster": " 2x4:a100-sxm-80g "}, "mixtral-8x7b", "2 × 4 a100-sxm-80g"),
        (
            {"cluster": "1x8:a100-sxm-80g+1x8:v100-sxm2-32g", "batch": "max"},
            "mixtral-8x7b",
            "1 × 8 a100-sxm-80g + 1 × 8 v100-sxm2-32g",
        ),
    ],
)
def test_a_model_and_a_cluster_of_one_s_own_are_searched(serve, typed, model, cluster):
    client = serve(endless)
    answer = send(client, **typed)
    assert answer.status_code == 303, answer.text
    text = Page(client.get(answer.headers["location"]).text).text
    assert model in text and cluster in text
    client.post(f"{answer.headers['location']}/cancel", headers=HERE)


@pytest.mark.parametrize(
    ("typed", "place", "message"),
    [
        ({"model": "none"}, "model", "none"),
        ({"nodes": "0"}, "nodes", "greater than or equal to 1"),
        ({"nodes": ""}, "nodes", "is required"),
        ({"nodes": "9" * 5000}, "nodes", "whole number"),
        ({"nodes": "999999", "devices_per_node": "99"}, "nodes", "at most 1048576 devices"),
        ({"devices_per_node": "eight"}, "devices_per_node", "whole number"),
        ({"device": "abacus"}, "device", "abacus"),
        ({"cluster": "8 by 8"}, "cluster", "must look like 8x8:h100-sxm-80g"),
        ({"cluster": "1x4:/etc/passwd.json"}, "cluster", "/etc/passwd.json"),
        ({"batch": "many"}, "batch", "must be"),
        ({"batch": ""}, "batch", "is required"),
        ({"length": "-1"}, "length", "must be"),
        ({"precision": "fp1"}, "precision", "must be"),
        ({"target": "abacus"}, "target", "must be"),
        ({"config": "{"}, "config", "is not JSON"),
        ({"config": '{"a": NaN}'}, "config", "NaN"),
        ({"config": '{"a": "\\ud800"}'}, "config", "is not JSON"),
        ({"config": "[]"}, "config", "must be an object"),
        ({"config": '{"a": ' + "[" * 40 + "]" * 40 + "}"}, "config", "nested more than 32 deep"),
        ({"config": '{"a": ' + "[" * 5000 + "]" * 5000 + "}"}, "config", "nested"),
        ({"config": '{"a": "' + "a" * 2**18 + '"}'}, "config", "longer than 262,144 characters"),
        ({"config": '{"model_type": "abacus"}'}, "config", "abacus"),
        ({"config": json.dumps({**LLAMA, "hidden_size": -5})}, "config", "at hidden_size: must be a whole number"),
        ({"config": json.dumps({**LLAMA, "vocab_size": None})}, "config", "at vocab_size: "),
        ({"cluster": "1x4:abacus"}, "cluster", "at device: "),
        ({"cluster": "1x4:a100-sxm-80g+1x4:abacus"}, "cluster", "at groups[1].device: "),
    ],
)
def test_what_is_wrong_stands_beside_the_field_and_what_was_typed_stays(serve, typed, place, message):
    client = serve(instant)
    answer = send(client, **typed)
    assert answer.status_code in (400, 422), answer.text
    page = Page(answer.text)
    assert wrong(page) == {place} and message in page.text and f"#{place}" in page.links()
    kept = {attributes["name"]: attributes.get("value", "") for attributes in page.all("input")}
    assert all(kept.get(name, text) == text for name, text in typed.items())
    assert client.get("/v1/searches").json()["items"] == []


def test_an_error_calls_a_field_as_its_label_does(serve):
    page = Page(send(serve(instant), batch="many", length="-1", config="{").text)
    assert "config.json of a Hugging Face model is not JSON" in page.text
    page = Page(send(serve(instant), batch="many", length="-1").text)
    assert "Samples per step must be" in page.text and "Tokens per sample must be" in page.text


def test_all_that_is_wrong_is_said_at_once(serve):
    client = serve(instant)
    page = Page(send(client, cluster="4x8", config="{", batch="zero", length="-4", precision="fp1").text)
    assert wrong(page) == {"cluster", "config", "batch", "length", "precision"}
    assert "is required" not in page.text
    assert wrong(Page(send(client, cluster="4x8").text)) == {"cluster"}


def test_what_was_typed_comes_back_as_text(serve):
    hostile = '"></textarea><script>alert(1)</script>'
    page = Page(send(serve(instant), config=hostile, nodes=hostile, model=hostile).text)
    assert [script_of(attributes) for attributes in page.all("script")] == ["/assets/trimtab.js"]
    assert hostile in " ".join(page.words)
    assert hostile in [attributes.get("value") for attributes in page.all("input")]


def test_a_queue_that_is_full_is_said_beside_the_form(serve):
    client = serve(endless, workers=1, max_waiting_searches=1)
    path = send(client).headers["location"]
    answers = [send(client, batch=str(batch)) for batch in (512, 256, 128)]
    assert [answer.status_code for answer in answers][-1] == 503
    page = Page(answers[-1].text)
    assert "try again later" in page.text
    assert "128" in [attributes.get("value") for attributes in page.all("input")]
    client.post(f"{path}/cancel", headers=HERE)


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://elsewhere.example"},
        {"Origin": "http://testserver.example"},
        {"Origin": "http://testserver:81"},
        {"Origin": "null"},
        {"Origin": "http://[broken"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "none"},
        {"Sec-Fetch-Site": "cross-site", "Origin": "http://testserver"},
    ],
)
def test_a_form_from_anywhere_else_changes_nothing(serve, headers):
    client = serve(endless)
    search = client.post("/v1/searches", json={"model": {"preset": "gpt2"}, **_small()}).json()
    for answer in (
        send(client, {**PEOPLE, **headers}),
        client.post(f"/searches/{search['id']}/cancel", headers={**PEOPLE, **headers}, follow_redirects=False),
    ):
        assert answer.status_code == 403
        assert "must be sent from a page of this service" in answer.text
    assert [item["id"] for item in client.get("/v1/searches").json()["items"]] == [search["id"]]
    assert client.get(search["links"]["self"]).json()["state"] in ("queued", "running")
    client.delete(search["links"]["self"])


@pytest.mark.parametrize("headers", [{"Origin": "https://testserver"}, {"Sec-Fetch-Site": "same-origin"}])
def test_a_form_of_this_service_is_taken_behind_a_proxy_too(serve, headers):
    client = serve(endless)
    answer = send(client, headers)
    assert answer.status_code == 303
    client.post(f"{answer.headers['location']}/cancel", headers=headers)


def test_fields_of_a_request_have_their_place_in_the_form():
    form, own = SearchForm(), SearchForm(config="{}", cluster="1x1:x")
    assert form.place("cluster.groups[1].device") == ("nodes", "groups[1].device")
    assert own.place("cluster.groups[1].device") == ("cluster", "groups[1].device")
    assert own.place("cluster.nodes") == ("cluster", "nodes") and form.place("cluster.nodes") == ("nodes", "")
    assert form.place("model.preset") == ("model", "") and own.place("model.preset") == ("config", "")
    assert own.place("model.hf_config.vocab_size") == ("config", "vocab_size")
    assert form.place("clusters") == ("", "") and form.place("options.axes") == ("", "")


def _small():
    return {
        "cluster": {"nodes": 1, "devices_per_node": 4, "device": "a100-sxm-80g"},
        "training": {"global_batch_size": 8, "sequence_length": 128},
    }
