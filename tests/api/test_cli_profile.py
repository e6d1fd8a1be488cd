"""`trimtab profile`: bad input, a short real run, and plan and estimate with what it wrote."""

import json
import os
import subprocess
import sys

import pytest
from command_line import trimtab
from invented_searches import TINY_MODEL

SHORT = ("--device", "cpu", "--time-budget", "5", "--memory-limit", "64MiB")
TRAINING = ("--global-batch-size", "8", "--sequence-length", "128", "--precision", "fp32")
WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
from api.cli import run
sys.exit(run(["profile", "mine.json"]))
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.json").write_text(json.dumps(TINY_MODEL))
    (tmp_path / "folder.json").mkdir()


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("mine.json --device tpu", ["--device", "cuda", "cpu", "tpu"]),
        ("mine.json --devices 0", ["--devices"]),
        ("mine.json --device cpu --devices 100000", ["--devices", "at most"]),
        ("mine.json --time-budget 1", ["--time-budget", "5 seconds"]),
        ("mine.json --time-budget nan", ["--time-budget"]),
        ("mine.json --memory-limit 1MiB", ["--memory-limit", "64 MiB"]),
        ("mine.json --memory-limit 1", ["--memory-limit", "GiB"]),
        ("no/such/folder.json", ["OUTPUT", "folder"]),
        ("folder.json", ["OUTPUT", "folder.json"]),
        ("mine.txt", ["OUTPUT", ".json"]),
        ("", ["OUTPUT"]),
    ],
)
def test_bad_input_is_one_clear_line_before_anything_is_measured(capsys, line, names):
    result = trimtab(capsys, "profile", *line.split())
    assert result.code == 2, result
    [message] = result.err.splitlines()
    assert message.startswith("trimtab: ")
    for name in names:
        assert name in message, message
    assert result.out == ""


def test_without_torch_it_says_what_to_install(tmp_path):
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stdout) == (2, "")
    [message] = result.stderr.splitlines()
    assert "torch" in message
    assert "trimtab[runtime]" in message


def test_a_machine_without_gpus_says_so_at_the_option_that_asks_for_one(tmp_path):
    result = subprocess.run(
        [sys.executable, "-m", "api.cli", "profile", "mine.json", "--device", "cuda"],
        cwd=tmp_path,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "trimtab: --device: must be auto or cpu: there is no CUDA device here\n"


def test_what_it_writes_is_taken_by_plan_and_estimate(capfd, tmp_path):
    # One process, so that it runs on every machine; the launch of more is tested with the measuring itself.
    result = trimtab(capfd, "profile", "mine.json", "--devices", "1", "--name", "mine", *SHORT, "--json")
    assert result.code == 0, result
    written = (tmp_path / "mine.json").read_text()
    assert json.loads(result.out) == json.loads(written)
    content = json.loads(written)
    assert content["device"]["provenance"] == "measured"
    assert content["measurement"]["machine"]["num_devices"] == 1

    planned = trimtab(capfd, "plan", "tiny.json", "1x1:mine.json", *TRAINING, "--json")
    assert planned.code == 0, planned
    best = json.loads(planned.out)["plans"][0]
    assert best["estimate"]["provenance"] == "measured"
    assert best["estimate"]["error_band"] is None

    (tmp_path / "cluster.json").write_text('{"nodes": 1, "devices_per_node": 1, "device": "mine.json"}')
    priced = trimtab(capfd, "estimate", "tiny.json", "cluster.json", "mbs8", *TRAINING, "--json")
    assert priced.code == 0, priced
    assert json.loads(priced.out)["provenance"] == "measured"
