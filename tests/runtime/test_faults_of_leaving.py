"""A rank that leaves while others go on, and Ctrl-C: who waits is told for what, and no process stays behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from doubles_routers import MoE
from planner_samples import SamplePlanner, Warnings, keep, make_agent
from training_samples import EXPERTS, LAYERS, make_job, my_batches, train_step

from runtime.launch import launch

HERE = Path(__file__).parent
WINDOW = 2


def leave_early(report, url):
    """Rank 1 ends after the first window; what rank 0 hears, and at which step."""
    group = dist.new_group(timeout=timedelta(seconds=1))
    model = torch.nn.Sequential(*(MoE(16, EXPERTS, 2) for _ in range(LAYERS)))
    warnings = Warnings()
    agent = make_agent(url, model, window_steps=WINDOW, group=group)
    for step in range(1, 3 * WINDOW):
        if dist.get_rank() == 1 and step == WINDOW + 2:
            break
        model(torch.randn(1, 24, 16)).sum().backward()
        try:
            agent.step()
        except RuntimeError as error:
            return step, str(error), warnings.told
    agent.close(0.0)
    return None


def test_who_waits_in_step_for_a_rank_that_has_left_is_told_so_after_torchs_timeout():
    with SamplePlanner(ranks=1, decide=keep) as planner:
        (step, error, [*_, (told, _)]), left = launch(leave_early, 2, (planner.url,), timeout_s=60)
    assert left is None and step == 2 * WINDOW + 1
    assert "Timed out" in error or "closed" in error
    assert told.startswith("step() waited for what the ranks of its group share, and another rank has died or did not")


def train_for_ever(report, url):
    model, optimizer = make_job()
    data = my_batches()
    with make_agent(url, model, optimizer, window_steps=WINDOW) as agent:
        while True:
            train_step(model, optimizer, next(data))
            agent.step()
            if agent._courier is not None and agent._courier._thinker is not None and agent._windows == 3:
                report("thinks")


def main(url):
    launch(train_for_ever, 2, (url,), on_report=lambda rank, word: print(word, flush=True))


def processes_of(session):
    """Numbers and command lines of the processes of a session that run; zombies do not."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, _, _, its_session = (folder / "stat").read_text().rsplit(")", 1)[1].split()[:4]
            if int(its_session) == session and state != "Z":
                found[int(folder.name)] = (folder / "cmdline").read_text().replace("\0", " ")[:200]
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def shared_memory():
    """Names of what is there; semaphores and a database's come and go with tests that run beside this one."""
    return {name for name in os.listdir("/dev/shm") if not name.startswith(("sem.", "PostgreSQL."))}


def test_ctrl_c_ends_ranks_couriers_and_the_policys_process_and_leaves_no_shared_memory(tmp_path):
    shared = shared_memory()
    with SamplePlanner(ranks=2, decide=keep) as planner, (tmp_path / "stderr").open("wb") as errors:
        job = subprocess.Popen(
            [sys.executable, "-c", f"from test_faults_of_leaving import main; main({planner.url!r})"],
            cwd=HERE,
            env=os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), str(HERE)])},
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
        )
        with job:
            assert job.stdout.readline() == "thinks\n", (tmp_path / "stderr").read_text()
            running = processes_of(job.pid)
            assert any("thinking.py" in command for command in running.values())
            os.killpg(job.pid, signal.SIGINT)
            job.wait(30)
        deadline = time.monotonic() + 20
        while (left := processes_of(job.pid)) and time.monotonic() < deadline:
            time.sleep(0.05)
    assert not left
    assert len(running) >= 4, "launcher, two ranks, the local policy"
    assert job.returncode != 0 and "KeyboardInterrupt" in (tmp_path / "stderr").read_text()
    assert shared_memory() <= shared
