"""The agent at a real service that requires tokens: with that of its run, with others, and when it is revoked."""

from __future__ import annotations

import logging
import time

import pytest
import torch
from service_process import service
from tokens_in_store import bearer, id_of, token

from api.database import open_database, utc_now
from api.token_store import TokenStore
from planner.spec.errors import InputError
from planner.spec.model import MoeFeedForward
from planner.spec.request import ClusterRequest, ModelRequest, Options, SearchRequest
from planner.spec.training import Training
from runtime.agent import Agent
from runtime.example import LanguageModel, batches, language_model, library_text

EXPERTS = MoeFeedForward(num_experts=4, top_k=2, expert_width=16)
MODEL = language_model(hidden_size=16, num_blocks=1, num_heads=2, experts=EXPERTS, sequence_length=16)
SEARCH = SearchRequest(
    model=ModelRequest(spec=MODEL),
    cluster=ClusterRequest(nodes=1, devices_per_node=1, device="cpu-core"),
    training=Training(global_batch_size=2, sequence_length=16, precision="fp32"),
    options=Options(shortlist_size=1),
)
WINDOW = 2


def until(condition):
    deadline = time.monotonic() + 30
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert condition()


class Place:
    """A service that requires tokens, and the store that they are in."""

    def __init__(self, folder):
        self.database = open_database(f"sqlite:///{folder}/trimtab.db")
        self.submits = bearer(token(self.database, "submit"))
        self.url = self.search = ""

    def windows(self, name):
        """Windows of the newest run of this name, as the service has them."""
        run = self.get(f"/v1/runs?name={name}")[0]["id"]
        return [window["index"] for window in self.get(f"/v1/runs/{run}/windows")]

    def get(self, path):
        return self.client.get(path, headers=self.submits).json()["items"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("service")
    found = Place(folder)
    with service(folder, "--workers", "1", "--access", "tokens") as (_, client):
        found.client, found.url = client, str(client.base_url)
        body = SEARCH.model_dump(mode="json", exclude_none=True)
        search = client.post("/v1/searches", json=body, headers=found.submits | {"Prefer": "wait=60"}).json()
        assert search["state"] == "succeeded", search
        found.search = search["id"]
        yield found
    found.database.close()


def train(agent, model, steps):
    data = batches(library_text(10_000), 2, 16, 0)
    for _ in range(steps):
        model(next(data)).backward()
        agent.step()


def agent_of(place, model, **given):
    arguments = {"service": place.url, "search": place.search, "window_steps": WINDOW, "timeout_s": 20.0}
    return Agent(model=model, apply="advise", **arguments | given)


def job():
    torch.manual_seed(0)
    return LanguageModel(MODEL)


@pytest.mark.parametrize("through_environment", [False, True])
def test_the_token_of_a_run_is_all_that_its_job_needs(place, monkeypatch, through_environment):
    name, model = f"job-{through_environment}", job()
    text = token(place.database, "report", run=name)
    if through_environment:
        monkeypatch.setenv("TRIMTAB_TOKEN", text)
    given = {} if through_environment else {"token": text}
    for attached in (1, 2):  # the second attaches to the run that the first has begun
        with agent_of(place, model, run=name, **given) as agent:
            train(agent, model, 2 * WINDOW)
        assert place.windows(name) == list(range(2 * attached))


@pytest.mark.parametrize(
    ("roles", "run", "said"),
    [(["read"], None, "role report"), (["report"], "other", "only for the run 'other'"), ([], None, "needs a token")],
)
def test_a_job_without_the_right_token_hears_at_its_begin_what_is_wrong(place, monkeypatch, roles, run, said):
    monkeypatch.delenv("TRIMTAB_TOKEN", raising=False)
    text = token(place.database, *roles, run=run) if roles else None
    with pytest.raises(InputError, match=rf"token: the service does not let us in: .*{said}"):
        agent_of(place, job(), run="mine", token=text)


def test_a_token_that_is_revoked_ends_reporting_and_not_training_and_the_log_says_so(place, caplog):
    text, model = token(place.database, "report", run="revoked"), job()
    caplog.set_level(logging.WARNING, "trimtab.agent")
    agent = agent_of(place, model, run="revoked", token=text)
    train(agent, model, WINDOW + 1)
    until(lambda: place.windows("revoked") == [0])
    TokenStore(place.database, utc_now).revoke(id_of(text))
    until(lambda: place.client.get("/v1/runs?name=revoked", headers=bearer(text)).status_code == 401)
    train(agent, model, 2 * WINDOW)
    until(lambda: "does not let us in" in caplog.text)
    agent.close(0.5)
    told = [record.getMessage() for record in caplog.records if "planner service" in record.getMessage()]
    assert len(told) == 1 and "401" in told[0] and "revoked" in told[0] and "training goes on" in told[0]
    assert text.split("_")[2] not in caplog.text
    assert place.windows("revoked") == [0]
