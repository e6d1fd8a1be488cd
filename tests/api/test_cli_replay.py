"""`trimtab replay`: from a trace's file to a table, sentences, and JSON."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import numpy as np
import pytest
from command_line import trimtab

from planner.online.recorded.replay import POLICIES
from planner.spec.window import Window
from runtime.record import Recorder


@pytest.fixture
def trace(tmp_path):
    """Two layers of eight experts, of which two get hot and stay so; what 32 samples of 1,024 tokens make."""
    tokens = np.ones((12, 2, 8), int)
    tokens[2:, :, [1, 2]] = 20
    tokens = tokens * 65536 // tokens.sum(axis=2, keepdims=True)
    path = tmp_path / "trace.npz"
    np.savez(path, tokens=tokens, steps=np.arange(12) * 100, top_k=2)
    return path


def answer(capsys, *arguments):
    result = trimtab(capsys, "replay", *arguments, "--json")
    assert result.code == 0, result
    return json.loads(result.out)


CLUSTER = ("--cluster", "1x4:a100-sxm-80g")


def test_json_has_what_the_contract_promises(capsys, trace):
    found = answer(capsys, trace, *CLUSTER, "--slots-extra", "1")
    assert list(found["policies"]) == list(POLICIES)
    promised = {"imbalance_mean", "imbalance_mean_step_split", "moved_experts", "decisions"}
    promised |= {"step_time_s_mean", "total_time_s"}
    for outcome in found["policies"].values():
        assert promised <= set(outcome)
    assert found["imbalance_bound_mean"] >= 1
    ours, static = found["policies"]["trimtab"], found["policies"]["static"]
    assert ours["decisions"] >= 1 and ours["imbalance_mean"] < static["imbalance_mean"]
    assert ours["static_ratio"] == ours["total_time_s"] / static["total_time_s"] < 1


@pytest.mark.parametrize(
    ("tokens", "options", "message"),
    [
        (2**38, (), "trace.tokens: must make a batch of at most 16777216 samples"),
        (64, ("--global-batch-size", "99999999999"), "--global-batch-size: must make a batch of at most 16777216"),
    ],
)
def test_batches_that_no_job_has_are_refused_in_one_line(capsys, tmp_path, tokens, options, message):
    path = tmp_path / "huge.npz"
    np.savez(path, tokens=np.full((3, 2, 8), tokens), steps=np.arange(3), top_k=2)
    result = trimtab(capsys, "replay", path, *CLUSTER, *options)
    assert (result.code, len(result.err.splitlines())) == (2, 1) and message in result.err


def test_policies_are_shown_in_the_order_in_which_they_are_named(capsys, trace):
    found = answer(capsys, trace, *CLUSTER, "--policy", "eplb,trimtab")
    assert list(found["policies"]) == ["eplb", "trimtab"]
    assert found["policies"]["eplb"]["static_ratio"] is None


def test_the_table_ends_with_what_it_says(capsys, trace):
    result = trimtab(capsys, "replay", trace, *CLUSTER, "--slots-extra", "1")
    assert result.code == 0
    lines = result.out.splitlines()
    assert lines[0] == "12 samples of 1,200 steps: 2 MoE layers x 8 experts"
    assert "ep4" in lines[1]
    slots, delay = lines[2].split("; ")
    assert slots == "1 extra slot per rank, tokens of replicas split by window"
    assert delay == "decisions are carried out after 0.1 of the next window"
    for policy in POLICIES:
        assert any(line.split()[:1] == [policy] for line in lines), policy
    assert any(line.startswith("trimtab: ") and "less time than static" in line for line in lines)
    assert any(line.startswith("eplb moves ") and line.endswith("time than trimtab.") for line in lines)
    assert lines[-1].startswith("No placement in these slots has a mean imbalance below 1.")


def test_windows_of_more_samples_make_fewer_decisions(capsys, trace):
    each = answer(capsys, trace, *CLUSTER, "--policy", "eplb", "--slots-extra", "1")["policies"]["eplb"]
    some = answer(capsys, trace, *CLUSTER, "--policy", "eplb", "--slots-extra", "1", "--window", "6")["policies"][
        "eplb"
    ]
    assert some["decisions"] < each["decisions"]
    assert some["imbalance_mean"] > each["imbalance_mean"]


def test_more_tokens_make_longer_steps(capsys, trace):
    few, many = (
        answer(capsys, trace, *CLUSTER, "--policy", "static", "--global-batch-size", size)["policies"]["static"]
        for size in (32, 64)
    )
    assert many["step_time_s_mean"] > 1.5 * few["step_time_s_mean"]
    assert few == answer(capsys, trace, *CLUSTER, "--policy", "static")["policies"]["static"]


def test_what_the_recorder_writes_can_be_replayed(capsys, tmp_path):
    recorder = Recorder(tmp_path / "own.npz", top_k=2, model="own")
    for index in range(4):
        rows = tuple(tuple(100 + (expert == 1) * 900 for expert in range(8)) for _ in range(2))
        recorder.append(Window(index=index, first_step=50 * index, num_steps=50, tokens=rows))
    recorder.close()
    found = answer(capsys, recorder.path, *CLUSTER, "--policy", "trimtab,static")
    assert found["policies"]["static"]["imbalance_mean"] == pytest.approx(4 * 1100 / 1700)


def test_the_help_has_an_example(capsys):
    result = trimtab(capsys, "replay", "--help")
    assert result.code == 0
    assert "trimtab replay trace.npz" in result.out
    for option in ("--slots-extra", "--shadow-slots", "--token-split", "--window", "--policy"):
        assert option in result.out


def test_a_replay_draws_what_the_policy_decided(capsys, trace, tmp_path):
    file = tmp_path / "replay.svg"
    found = answer(capsys, trace, *CLUSTER, "--slots-extra", "1", "--policy", "trimtab", "--picture", file)
    told = ElementTree.fromstring(file.read_text()).findtext("{*}desc") or ""
    assert "windows: 12; " in told
    moved = found["policies"]["trimtab"]["moved_experts"]
    assert f"moves of experts: {moved:,}; " in told


@pytest.mark.parametrize("policy", ["static", "eplb,static"])
def test_a_picture_of_a_replay_needs_the_policy_that_it_draws(capsys, trace, tmp_path, policy):
    result = trimtab(capsys, "replay", trace, *CLUSTER, "--policy", policy, "--picture", tmp_path / "replay.svg")
    assert result.code == 2 and result.err.startswith("trimtab: --picture: draws what trimtab decides")
