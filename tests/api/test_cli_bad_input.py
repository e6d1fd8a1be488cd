"""Bad input on the command line: exit code 2, one line that names the field, no traceback, nothing on stdout."""

import json
from pathlib import Path

import numpy as np
import pytest
from command_line import trimtab
from invented_searches import TINY_MODEL
from typer.main import get_command

from api.cli import build

CLUSTER = "1x4:a100-sxm-80g"
TRAINING = ("--global-batch-size", "8", "--sequence-length", "128")
CONFIG = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 3,
    "vocab_size": 512,
}


@pytest.fixture(autouse=True)
def files(tmp_path, monkeypatch):
    """A folder with good and bad files, in which the commands run."""
    monkeypatch.chdir(tmp_path)
    contents = {
        "tiny.json": json.dumps(TINY_MODEL),
        "broken.json": '{"preset": ',
        "nan.json": '{"model_type": "llama", "hidden_size": NaN}',
        "list.json": "[1, 2]",
        "unknown.json": json.dumps(CONFIG | {"model_type": "perceiver"}),
        "heads.json": json.dumps(CONFIG),
        "zero.json": json.dumps({"nodes": 0, "devices_per_node": 8, "device": "h100-sxm-80g"}),
        "extra.json": json.dumps({"nodes": 1, "devices_per_node": 8, "device": "h100-sxm-80g", "color": 1}),
        "plan.json": json.dumps({"global_batch_size": 8}),
        "text.npz": "no archive",
        "deep.json": json.dumps({"scenarios": [{}, {"top_k": 5}]}),
        "half.json": json.dumps({"scenarios": [{"probability": 0.5}]}),
        "odd.json": json.dumps({"scenarios": [{"colour": "red"}]}),
    }
    for name, content in contents.items():
        Path(name).write_text(content)
    np.savez("no_steps.npz", tokens=np.ones((2, 2, 8), int), top_k=2)
    np.savez("flat.npz", tokens=np.ones((2, 8), int), steps=np.arange(2), top_k=2)
    np.savez("negative.npz", tokens=-np.ones((2, 2, 8), int), steps=np.arange(2), top_k=2)
    good = {"tokens": np.ones((2, 2, 8), int), "steps": np.arange(2)}
    np.savez("good.npz", **good, top_k=2)
    np.savez("no_top_k.npz", **good)
    np.savez("newer.npz", **good, format_version=2)
    np.save("single.npy", good["tokens"])
    np.savez("empty.npz", tokens=np.ones((0, 2, 8), int), steps=np.arange(0), top_k=2)
    np.savez("silent.npz", **good | {"tokens": np.array([[[1] * 8] * 2, [[0] * 8, [1] * 8]])}, top_k=2)
    np.savez("overlap.npz", **good, top_k=2, num_steps=np.array([5, 5]))
    np.savez("fraction.npz", **good, top_k=1.5)
    np.savez("seven.npz", tokens=np.ones((2, 2, 7), int), steps=np.arange(2), top_k=2)
    np.savez("wide.npz", tokens=np.ones((2, 32, 8), int), steps=np.arange(2), top_k=1)
    np.savez("floats.npz", tokens=np.full((2, 2, 8), np.nan), steps=np.arange(2), top_k=2)


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("plan missing.json 8x8:h100-sxm-80g {training}", ["model", "missing.json"]),
        ("plan broken.json 8x8:h100-sxm-80g {training}", ["model: broken.json is not JSON"]),
        ("plan nan.json 8x8:h100-sxm-80g {training}", ["model", "NaN"]),
        ("plan list.json 8x8:h100-sxm-80g {training}", ["model", "object"]),
        ("plan unknown.json 8x8:h100-sxm-80g {training}", ["model_type", "perceiver"]),
        ("plan heads.json 8x8:h100-sxm-80g {training}", ["num_key_value_heads"]),
        ("plan mixtral-8x8b 8x8:h100-sxm-80g {training}", ["model", "mixtral-8x7b"]),
        ("plan tiny.json 0x8:h100-sxm-80g {training}", ["cluster.nodes"]),
        ("plan tiny.json zero.json {training}", ["cluster.nodes"]),
        ("plan tiny.json extra.json {training}", ["cluster.color", "not a known field"]),
        ("plan tiny.json 8x8:h1000 {training}", ["cluster.device", "h100"]),
        ("plan tiny.json eight {training}", ["cluster", "8x8:h100-sxm-80g"]),
        ("plan tiny.json {cluster} --global-batch-size 0 --sequence-length 128", ["--global-batch-size"]),
        ("plan tiny.json {cluster} --global-batch-size lots --sequence-length 128", ["--global-batch-size", "max"]),
        ("plan tiny.json {cluster} --global-batch-size 1 --sequence-length 128 --axes dp", ["global-batch-size", "4"]),
        ("plan tiny.json {cluster} --global-batch-size 8 --sequence-length 0", ["--sequence-length"]),
        ("plan tiny.json {cluster} --global-batch-size 8", ["--sequence-length"]),
        ("plan tiny.json {cluster} {training} --precision int2", ["--precision", "bf16"]),
        ("plan tiny.json {cluster} {training} --axes dp,xx", ["--axes", "xx"]),
        ("plan tiny.json {cluster} {training} --target pytorch", ["--target", "megatron", "torchtitan", "deepspeed"]),
        ("plan tiny.json {cluster} {training} --schedules 1f1b,2f2b", ["--schedules", "zero_bubble", "2f2b"]),
        ("plan tiny.json {cluster} {training} --sharding zero3", ["--sharding", "gradients", "zero3"]),
        ("plan tiny.json {cluster} {training} --time-limit nan", ["--time-limit"]),
        ("plan tiny.json {cluster} {training} --memory-limit 24", ["--memory-limit", "24GB"]),
        ("plan tiny.json {cluster} {training} --memory-limit 24TB", ["--memory-limit"]),
        ("plan tiny.json {cluster} {training} --output no/such/folder.json", ["--output", "folder.json"]),
        ("plan tiny.json {cluster} {training} --colour red", ["--colour"]),
        ("plan tiny.json {cluster} {training} --also-top-k 5", ["--also-top-k", "at most the 4 experts"]),
        ("plan tiny.json {cluster} {training} --also-batch 0", ["--also-batch"]),
        ("plan tiny.json {cluster} {training} --also-length -1", ["--also-length"]),
        ("plan tiny.json {cluster} {training} --also-capacity all", ["--also-capacity", "dropless"]),
        ("plan tiny.json {cluster} {training} --also-batch 16 --also-batch 16", ["--scenarios", "'batch 16'"]),
        ("plan tiny.json {cluster} {training} --scenarios missing.json", ["--scenarios", "missing.json"]),
        ("plan tiny.json {cluster} {training} --scenarios zero.json", ["--scenarios", '{"scenarios"']),
        ("plan tiny.json {cluster} {training} --scenarios deep.json", ["--scenarios[1].top_k", "4 experts"]),
        ("plan tiny.json {cluster} {training} --scenarios half.json", ["--scenarios", "they sum to 0.5"]),
        ("plan tiny.json {cluster} {training} --scenarios odd.json", ["--scenarios", "colour", "not a known field"]),
        ("plan tiny.json {cluster} {training} --scenarios deep.json --also-top-k 1", ["--also-top-k", "--scenarios"]),
        ("plan tiny.json", ["CLUSTER"]),
        ("fly", ["fly"]),
        ("estimate tiny.json {cluster} plan.json", ["plan.stages"]),
        ("estimate tiny.json {cluster} missing.json", ["plan", "missing.json"]),
        ("estimate tiny.json {cluster} tp4", ["--global-batch-size"]),
        ("estimate tiny.json {cluster} zz4 {training}", ["zz4"]),
        ("replay missing.npz", ["trace", "missing.npz"]),
        ("replay text.npz", ["trace", "npz"]),
        ("replay no_steps.npz", ["trace", "steps"]),
        ("replay flat.npz", ["trace.tokens", "[samples, layers, experts]"]),
        ("replay floats.npz", ["trace.tokens", "whole numbers"]),
        ("replay negative.npz", ["tokens"]),
        ("replay no_steps.npz --ranks 0", ["trace"]),
        ("replay good.npz --ranks 3", ["--ranks", "8 devices and the 8 experts"]),
        ("replay good.npz --slots-extra -1", ["--slots-extra"]),
        ("replay good.npz --slots-extra two", ["--slots-extra"]),
        ("replay good.npz --window 0", ["--window"]),
        ("replay good.npz --shadow-slots -1", ["--shadow-slots"]),
        ("replay good.npz --global-batch-size 0", ["--global-batch-size"]),
        ("replay good.npz --token-split always", ["--token-split", "even, window, step"]),
        ("replay good.npz --policy trimtab,magic", ["--policy", "eplb", "'magic'"]),
        ("replay good.npz --cluster 1x8:h1000", ["cluster.device", "h100"]),
        ("replay good.npz --model mixtral-8x7b", ["--model", "2 MoE layers of 8 experts"]),
        ("replay no_top_k.npz", ["trace.top_k", "--model"]),
        ("replay newer.npz", ["trace.format_version", "version 1"]),
        ("replay single.npy", ["trace", "npz"]),
        ("replay empty.npz", ["trace.tokens", "must not be empty"]),
        ("replay silent.npz", ["trace.tokens", "sample 1 has none in layer 0"]),
        ("replay overlap.npz", ["trace.num_steps", "sample 0 counts 5 steps from 0 on, the next begins at 1"]),
        ("replay fraction.npz", ["trace.top_k", "must be one whole number"]),
        ("replay seven.npz", ["--cluster", "divisor in common with the 7 experts", "--ranks 1"]),
        ("replay good.npz --slots-extra 8", ["--slots-extra", "must be at most 7"]),
        ("replay good.npz --slots-extra 3 --shadow-slots 5", ["--shadow-slots", "must be at most 4"]),
        ("replay good.npz --window 3", ["--window", "at most the trace's 2 samples"]),
        ("replay good.npz --cluster 1x8:a100-sxm-80g+1x8:v100-sxm2-32g", ["--cluster", "one kind of device"]),
        ("replay good.npz --cluster nowhere", ["--cluster", "8x8:h100-sxm-80g"]),
        ("replay wide.npz --model mixtral-8x7b", ["--model", "must pick 1 experts"]),
        ("serve --port 70000", ["--port"]),
        ("serve --workers -1 --port 0", ["--workers"]),
        ("serve --executor dask:8786 --port 0", ["--executor"]),
        ("serve --database-url nonsense --port 0", ["database_url"]),
        ("serve --host not.an.address. --port 0", ["--host"]),
    ],
)
def test_bad_input_is_one_clear_line(capsys, line, names):
    arguments = line.format(cluster=CLUSTER, training=" ".join(TRAINING)).split()
    result = trimtab(capsys, *arguments)
    assert result.code == 2, result
    [message] = result.err.splitlines()
    assert message.startswith("trimtab: ") and "Traceback" not in message
    for name in names:
        assert name in message, message
    assert result.out == ""


@pytest.mark.parametrize("empty", ["", " "])
def test_an_empty_plan_is_called_empty(capsys, empty):
    result = trimtab(capsys, "estimate", "tiny.json", "8x8:h100-sxm-80g", empty)
    assert result.code == 2
    assert result.err.startswith("trimtab: plan: is empty; it must be a JSON file")


BAD_VALUES = {
    "--global-batch-size": "0",
    "--sequence-length": "0",
    "--encoder-sequence-length": "0",
    "--precision": "int2",
    "--optimizer": "lion",
    "--max-global-batch-size": "0",
    "--capacity-factor": "-1",
    "--memory-limit": "24TB",
    "--stack": "nobody",
    "--gradient-precision": "fp8",
    "--shortlist-size": "0",
    "--target": "pytorch",
    "--max-micro-batch-size": "0",
    "--axes": "dp,xp",
    "--sharding": "zero3",
    "--recompute": "all",
    "--schedules": "2f2b",
    "--without-rule": "nobody",
    "--time-limit": "-1",
    "--scenarios": "missing.json",
    "--also-batch": "0",
    "--also-length": "0",
    "--also-capacity": "-1",
    "--also-top-k": "0",
    "--output": "no/such/folder.json",
    "--picture": "no/such/folder.svg",
}


def test_a_bad_value_is_refused_at_the_option_as_it_is_typed(capsys):
    plan = get_command(build("plan")).commands["plan"]
    options = {each.opts[0] for each in plan.params if each.param_type_name == "option" and not each.is_flag}
    assert options == set(BAD_VALUES)
    for option, value in BAD_VALUES.items():
        result = trimtab(capsys, "plan", "tiny.json", CLUSTER, *TRAINING, option, value)
        assert result.code == 2
        assert result.err.startswith(f"trimtab: {option}: "), result.err
        assert "<" not in result.err and "000000" not in result.err, result.err


@pytest.mark.parametrize("printed", ["pp1 · dp32 zero1 · ep8 edp4 · mbs2 x8 · 2 strategies", "430e70d1f62503b3"])
def test_a_plan_as_tables_print_it_is_told_what_is_taken(capsys, printed):
    result = trimtab(capsys, "estimate", "tiny.json", CLUSTER, printed, *TRAINING)
    assert result.code == 2 and result.err.startswith(f"trimtab: plan: '{printed}' is a plan's summary or id")
    assert "JSON file" in result.err and "short: tp2-pp4" in result.err
