"""How a process with an agent ends: without `close`, by Ctrl-C, killed, with children; nothing hangs, nothing stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from faulty_service import NONSENSE, Wire
from planner_samples import SEARCH, SamplePlanner, keep, sample_run
from training_samples import EXPERTS, LAYERS

from planner.spec.errors import InputError, UnavailableError
from planner.spec.window import Window
from runtime.policy import LocalPolicy

HERE = Path(__file__).parent
JOBS = """
import os, sys, time
from training_samples import make_job, my_batches, train_step
from runtime.agent import Agent

for line in sys.stdin:
    job = os.fork()
    if job == 0:
        break
    print("ended", os.waitstatus_to_exitcode(os.waitpid(job, 0)[1]), flush=True)
else:
    sys.exit()
url, ending = line.split()
model, optimizer = make_job()
data = my_batches(union=1)
agent = Agent(service=url, run="my-run", search="SEARCH", model=model, optimizer=optimizer, window_steps=2)
for step in range(6):
    train_step(model, optimizer, next(data))
    agent.step()
deadline = time.monotonic() + 60
while agent._courier._thinker._newest is None and time.monotonic() < deadline:
    time.sleep(0.02)
child = agent._courier._thinker._policy._process.pid
if ending == "fork":
    if os.fork() == 0:
        sys.exit(0)
    os.wait()
print("ready", os.getpid(), child, flush=True)
if ending in ("interrupt", "kill"):
    with agent:
        while True:
            train_step(model, optimizer, next(data))
            agent.step()
if ending == "error":
    with agent:
        raise ValueError("as asked")
if ending == "close":
    agent.close(1.0)
""".replace("SEARCH", SEARCH)
"""Each line of the input begins a job in a process of its own, which has imported torch already."""


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
    log = tmp_path_factory.mktemp("jobs") / "stderr"
    with log.open("wb") as errors:
        parent = subprocess.Popen(
            [sys.executable, "-c", JOBS],
            cwd=HERE,
            env=os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), str(HERE)])},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    with parent:
        yield parent, log


def alive(pid):
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize(
    ("ending", "code", "said"),
    [
        ("none", 0, ""),
        ("close", 0, "not delivered"),
        ("fork", 0, ""),
        ("error", 1, "ValueError: as asked"),
        ("interrupt", -signal.SIGINT, "KeyboardInterrupt"),
        ("kill", -signal.SIGKILL, ""),
    ],
)
def test_a_job_ends_at_once_and_its_policys_process_with_it(jobs, ending, code, said):
    parent, log = jobs
    with SamplePlanner(ranks=1, decide=keep) as planner, Wire(planner.server.server_port) as wire:
        before = len(log.read_text())
        parent.stdin.write(f"{wire.url} {ending}\n")
        parent.stdin.flush()
        deadline = time.monotonic() + 60
        while not planner.runs and time.monotonic() < deadline:
            time.sleep(0.01)
        wire.mode = NONSENSE["silence"]
        word, job, policy = parent.stdout.readline().split()
        assert word == "ready", log.read_text()
        if ending in ("interrupt", "kill"):
            time.sleep(0.2)
            os.kill(int(job), signal.SIGINT if ending == "interrupt" else signal.SIGKILL)
        assert parent.stdout.readline().split() == ["ended", str(code)], log.read_text()
        assert said in log.read_text()[before:]
        deadline = time.monotonic() + 20
        while alive(int(policy)) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not alive(int(policy))


def window(index, experts=EXPERTS):
    row = tuple(index + expert + 1 for expert in range(experts))
    return Window(index=index, first_step=4 * index, num_steps=4, tokens=(row,) * LAYERS)


def test_a_policys_process_whose_job_ended_before_it_had_a_run_says_nothing():
    command = [sys.executable, "-c", f"from runtime.thinking import main; main({os.getpid()})"]
    done = subprocess.run(command, input="", capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_policys_process_refuses_a_window_and_answers_the_next():
    policy = LocalPolicy(sample_run(ranks=4))
    with pytest.raises(InputError, match="tokens: must be 2 MoE layers x 8 experts"):
        policy(window(0, experts=3))
    assert policy(window(1)).window == 1
    policy.close()


def test_a_policys_process_that_is_killed_is_missed_and_no_more():
    policy = LocalPolicy(sample_run(ranks=4))
    policy(window(0))
    policy._process.kill()
    for index in (1, 2):
        with pytest.raises(UnavailableError, match="its process has ended"):
            policy(window(index))
    policy.close()
    policy.close()
    with pytest.raises(UnavailableError, match="it was closed"):
        policy(window(3))


def test_a_policys_process_that_cannot_begin_is_missed_and_no_more(monkeypatch):
    monkeypatch.setattr("runtime.policy.sys.executable", "/nowhere/python")
    policy = LocalPolicy(sample_run(ranks=4))
    with pytest.raises(UnavailableError, match="cannot begin"):
        policy(window(0))
    policy.close()
