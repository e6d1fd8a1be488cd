"""The recorder: a trace file that is whole at every moment, and never in the job's way."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from planner_samples import SEARCH, SamplePlanner
from training_samples import EXPERTS, LAYERS, TOKENS, make_job, my_batches, train_step

from planner.online.recorded.trace import trace_of
from planner.spec.errors import InputError
from planner.spec.window import Window
from runtime.agent import Agent
from runtime.launch import launch
from runtime.record import Recorder, check_recordable

ROOT = Path(__file__).parents[2]
NOWHERE = "http://127.0.0.1:9"  # the discard port: nobody listens


def window(index, tokens=((3, 1), (2, 2))):
    return Window(index=index, first_step=10 * index, num_steps=10, tokens=tokens)


def read(path):
    with np.load(path, allow_pickle=False) as data:
        return trace_of(dict(data))


def test_what_was_appended_is_in_the_file(tmp_path):
    recorder = Recorder(tmp_path / "trace.npz", top_k=2, model="tiny")
    for index in range(5):
        recorder.append(window(index, ((index, 1), (2, index))))
    recorder.close()
    trace = read(tmp_path / "trace.npz")
    assert trace.tokens[:, 0, 0].tolist() == trace.tokens[:, 1, 1].tolist() == list(range(5))
    assert trace.steps.tolist() == [0, 10, 20, 30, 40]
    assert trace.counted.tolist() == [10] * 5
    assert (trace.top_k, trace.model) == (2, "tiny")
    assert [path.name for path in tmp_path.iterdir()] == ["trace.npz"]


def test_the_first_window_is_in_the_file_before_the_recorder_is_closed(tmp_path):
    recorder = Recorder(tmp_path / "trace.npz")
    recorder.append(window(0))
    deadline = time.monotonic() + 30
    while not (tmp_path / "trace.npz").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert read(tmp_path / "trace.npz").num_samples == 1
    recorder.close()


def test_without_a_window_there_is_no_file(tmp_path):
    Recorder(tmp_path / "trace.npz").close()
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_exists_is_never_touched(tmp_path, caplog):
    (tmp_path / "trace.npz").write_text("mine")
    (tmp_path / "trace-2.npz").write_text("mine too")
    recorder = Recorder(tmp_path / "trace.npz")
    recorder.append(window(0))
    recorder.close()
    assert recorder.path == tmp_path / "trace-3.npz"
    assert read(recorder.path).num_samples == 1
    assert (tmp_path / "trace.npz").read_text() == "mine"
    [message] = [record.message for record in caplog.records]
    assert "trace.npz exists" in message and "trace-3.npz" in message


def test_a_disk_that_takes_nothing_is_one_warning_and_what_it_did_not_take_is_written_later(tmp_path, caplog):
    folder = tmp_path / "full"
    recorder = Recorder(folder / "trace.npz")  # there is no such folder: nothing can be written
    for index in range(2):
        recorder.append(window(index))
        deadline = time.monotonic() + 30
        while recorder.waiting and time.monotonic() < deadline:
            time.sleep(0.01)
    [warning] = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "cannot be written" in warning.message
    folder.mkdir()
    recorder.close()
    assert read(folder / "trace.npz").steps.tolist() == [0, 10]


@pytest.mark.parametrize(
    ("path", "experts", "message"),
    [
        ("no/such/trace.npz", [8, 8], "record: cannot write no/such/trace.npz: there is no folder no/such"),
        ("trace.npz", [8, 16], "record: a trace needs MoE layers of one number of experts, not of 8 and 16"),
    ],
)
def test_what_cannot_be_recorded_is_refused(path, experts, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        check_recordable(path, experts)


def train(report, path, steps):
    """A job of any number of ranks that records and has no service."""
    model, optimizer = make_job()
    data = my_batches(union=2)
    with Agent(
        service=NOWHERE, run="r", model=model, optimizer=optimizer, window_steps=2, timeout_s=0.5, record=path
    ) as agent:
        for _ in range(steps):
            train_step(model, optimizer, next(data))
            agent.step()


def test_a_job_records_the_tokens_of_all_its_ranks(tmp_path):
    path = tmp_path / "trace.npz"
    launch(train, 2, (str(path), 8))
    trace = read(path)
    assert trace.tokens.shape == (4, LAYERS, EXPERTS)
    assert trace.steps.tolist() == [0, 2, 4, 6]
    # 2 steps x 2 batches of 2 samples x tokens x top-2
    assert (trace.tokens.sum(axis=2) == 2 * 2 * 2 * TOKENS * 2).all()


def test_an_agent_says_what_the_run_knows_of_its_model(tmp_path):
    with SamplePlanner(ranks=1) as planner:
        model, optimizer = make_job()
        path = tmp_path / "trace.npz"
        options = {"service": planner.url, "run": "my-run", "search": SEARCH, "window_steps": 2, "record": path}
        with Agent(model=model, optimizer=optimizer, **options) as agent:
            data = my_batches(union=1)
            for _ in range(4):
                train_step(model, optimizer, next(data))
                agent.step()
    trace = read(path)
    assert (trace.num_samples, trace.top_k) == (2, 2)
    assert trace.model is not None


def test_an_agent_refuses_a_record_that_cannot_be(tmp_path):
    model, optimizer = make_job()
    with pytest.raises(InputError, match=r"record: must be a path that ends in \.npz, got"):
        Agent(service=NOWHERE, run="r", model=model, optimizer=optimizer, timeout_s=0.5, record=tmp_path / "trace")


KILLED = """
import sys, time
from planner.spec.window import Window
from runtime.record import Recorder
recorder = Recorder(sys.argv[1], 2, "killed")
index = 0
while True:
    tokens = tuple((index + 1,) * 64 for _ in range(16))
    recorder.append(Window(index=index, first_step=index, num_steps=1, tokens=tokens))
    index += 1
    if index % 50 == 0:
        print(index, flush=True)
    time.sleep(0.0005)
"""


@pytest.mark.parametrize("windows", [50, 500, 2500])
def test_a_job_that_is_killed_leaves_a_file_that_can_be_read(tmp_path, windows):
    path = tmp_path / "trace.npz"
    command = [sys.executable, "-c", KILLED, str(path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        while int(process.stdout.readline()) < windows or not path.exists():
            pass
        process.send_signal(signal.SIGKILL)
    trace = read(path)
    assert trace.num_samples >= 1
    assert trace.tokens[:, 3, 7].tolist() == list(range(1, trace.num_samples + 1))
