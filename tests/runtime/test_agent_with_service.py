"""Four ranks against the real service, which is stopped in the middle of the training and started again."""

from __future__ import annotations

import socket
import time
from contextlib import ExitStack

import httpx
import torch.distributed as dist
from training_samples import MODEL, RANKS, TOKENS, largest_difference, make_job, my_batches, train_step

from api.demo import answer, running_service
from planner.spec.cluster import Link
from planner.spec.parse import parse
from planner.spec.request import ClusterRequest, ModelRequest, Options, SearchRequest
from planner.spec.shortlist import Shortlist
from planner.spec.strategy import Recompute, Sharding
from planner.spec.training import Training
from planner.spec.window import Window
from runtime.agent import Agent
from runtime.example import can_run
from runtime.launch import launch

STEPS, WINDOW = 60, 5


FAST = Link(bandwidth_bytes_per_s=1e10, latency_s=1e-6)


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def search_over_http(url):
    """A search for the tests' model; its id and the plan that the tests' training follows."""
    request = SearchRequest(
        model=ModelRequest(spec=MODEL),
        # Links so fast that spreading the experts over all ranks, as the training does, is among the best.
        cluster=ClusterRequest(nodes=1, devices_per_node=RANKS, device="cpu-core", intra_node=FAST),
        training=Training(global_batch_size=2 * RANKS, sequence_length=TOKENS, precision="fp32"),
        options=Options(axes=("dp", "ep"), sharding=(Sharding.NONE,), recompute=(Recompute.NONE,)),
    )
    body = request.model_dump(mode="json", exclude_none=True)
    found = answer(httpx.post(f"{url}/v1/searches", json=body, headers={"Prefer": "wait=60"}, timeout=90))
    shortlist = parse(Shortlist, answer(httpx.get(f"{url}/v1/searches/{found['id']}/shortlist")))
    return found["id"], next(entry.plan.id for entry in shortlist.plans if can_run(entry.plan))


def train_with_service(report, url, search, plan, begun_again):
    model, optimizer = make_job()
    heard, losses, data = [], [], my_batches()
    agent = url and Agent(
        service=url,
        run="restart",
        search=search,
        plan=plan,
        model=model,
        optimizer=optimizer,
        window_steps=WINDOW,
        timeout_s=2.0,
        on_decision=lambda decision: heard.append((len(losses), decision)),
    )
    for step in range(1, STEPS + 1):
        losses.append(train_step(model, optimizer, next(data)))
        if agent:
            agent.step()
            report(step)
            time.sleep(0.1)
            deadline = time.monotonic() + 60
            while step == 24 and dist.get_rank() == 0 and not begun_again.exists() and time.monotonic() < deadline:
                time.sleep(0.05)
    if agent:
        agent.close(timeout_s=20.0)
    return losses, heard


def test_a_restart_of_the_service_is_not_felt_and_its_history_is_complete(tmp_path):
    port = free_port()
    with ExitStack() as first_life, ExitStack() as second_life:
        url = first_life.enter_context(running_service(tmp_path, port))
        search, plan = search_over_http(url)

        def restart(rank, step):
            if (rank, step) == (0, 12):
                first_life.close()
            if (rank, step) == (0, 23):
                second_life.enter_context(running_service(tmp_path, port))
                begun_again.touch()

        begun_again = tmp_path / "begun again"
        results = launch(train_with_service, RANKS, (url, search, plan, begun_again), on_report=restart, timeout_s=120)
        run = answer(httpx.get(f"{url}/v1/runs", params={"name": "restart"}))["items"][0]
        windows = [parse(Window, item) for item in answer(httpx.get(f"{url}/v1/runs/{run['id']}/windows"))["items"]]
    losses, heard = results[0]
    assert all(result == results[0] for result in results)
    assert heard
    for step, decision in heard:
        assert (decision.window + 1) * WINDOW + 2 < step <= (decision.window + 2) * WINDOW + 1
    assert [window.index for window in windows] == list(range(STEPS // WINDOW))
    assert {sum(row) for window in windows for row in window.tokens} == {WINDOW * RANKS * 2 * TOKENS * 2}
    plain, _ = launch(train_with_service, RANKS, (None, None, None, None), timeout_s=120)[0]
    assert largest_difference(losses, plain) <= 1e-5
