"""One job against the real service, whose answers are lost, which is killed and begun again on the same database."""

from __future__ import annotations

import time

import httpx
import torch.distributed as dist
from faulty_service import NONSENSE, ServiceProcess, Wire
from planner_samples import InThread, Warnings, keep
from test_agent_with_service import search_over_http
from training_samples import RANKS, largest_difference, make_job, my_batches, train_step

from api.demo import answer
from planner.spec.parse import parse
from planner.spec.window import Window
from runtime.agent import Agent
from runtime.launch import launch

WINDOW = 3
PHASES = ("well", "answers lost", "killed", "garbage", "down", "begun again", "well again")


def train(report, url, search, plan, folder):
    """A phase for each window; rank 0 waits at its end until the next is prepared, which a file in `folder` says."""
    model, optimizer = make_job()
    warnings = Warnings()
    data, losses, agent = my_batches(), [], None
    if url:
        agent = Agent(
            service=url,
            run="faults",
            search=search,
            plan=plan,
            model=model,
            optimizer=optimizer,
            apply="advise",
            window_steps=WINDOW,
            timeout_s=5.0,
            policy=lambda run: InThread(keep),
        )
    for step in range(1, WINDOW * len(PHASES) + 1):
        losses.append(train_step(model, optimizer, next(data)))
        if agent is not None:
            agent.step()
        if step % WINDOW == 0:
            phase = step // WINDOW
            report(phase)
            wait_until(lambda phase=phase: url is None or dist.get_rank() != 0 or (folder / str(phase)).exists())
    if agent is not None:
        agent.close(60.0)
    return losses, [message for message, _ in warnings.told]


def wait_until(condition):
    deadline = time.monotonic() + 60
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert condition()


def test_a_job_does_not_feel_what_the_service_suffers_and_its_windows_are_kept_once(tmp_path):
    with ServiceProcess(tmp_path) as service, Wire(service.port) as wire:
        search, plan = search_over_http(service.url)

        def kept():
            run = answer(httpx.get(f"{service.url}/v1/runs", params={"name": "faults"}))["items"][0]
            return answer(httpx.get(f"{service.url}/v1/runs/{run['id']}/windows"))["items"]

        def next_phase(rank, number):
            if rank != 0:
                return
            if PHASES[number - 1] == "answers lost":
                wait_until(lambda: len(kept()) == 1)
            if PHASES[number - 1] in ("answers lost", "killed", "garbage", "down"):
                attempts = wire.attempts
                wait_until(lambda: wire.attempts > attempts)
            following = PHASES[number] if number < len(PHASES) else None
            wire.mode = {"answers lost": "lost", "garbage": NONSENSE["wrong types"]}.get(following)
            if following == "killed":
                service.kill()
            if following == "begun again":
                service.begin()
            (tmp_path / str(number)).touch()

        arguments = (wire.url, search, plan, tmp_path)
        results = launch(train, RANKS, arguments, on_report=next_phase, timeout_s=120)
        items = kept()
    windows = [parse(Window, item) for item in items]
    assert [window.index for window in windows] == list(range(len(PHASES)))
    assert [window.first_step for window in windows] == [WINDOW * number for number in range(len(PHASES))]
    _, told = results[0]
    assert ["is away" in message for message in told] == [True, False], told
    assert "is back" in told[1]
    plain = launch(train, RANKS, (None, None, None, None), timeout_s=120)[0][0]
    assert all(largest_difference(other, plain) <= 1e-6 for other, _ in results)
