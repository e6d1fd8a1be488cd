"""`trimtab import-galvatron`: the files that it writes are those that `plan` and `estimate` take."""

import json

import pytest
from command_line import trimtab

from planner.spec.estimate import Estimate
from planner.spec.plan import Plan
from planner.spec.shortlist import Shortlist

PLAN = {
    "pp_deg": 1,
    "tp_sizes_enc": "1,1,2,2",
    "tp_consecutive_flags": "1,1,1,1",
    "dp_types_enc": "1,1,0,0",
    "use_sp": "0,0,0,0",
    "checkpoint": "1,0,0,0",
    "global_bsz": 8,
    "chunks": 2,
    "pp_division": "4",
    "pipeline_type": "pipedream_flush",
    "default_dp_type": "zero2",
    "vtp": 1,
    "vsp": 0,
    "vocab_sdp": 1,
}
PLAN_NAME = "galvatron_config_tiny_1nodes_4gpus_per_node_8GB_bf16"
FILES = {
    "allreduce_bandwidth_1nodes_4gpus_per_node": {
        "allreduce_size_4_consec_1": 158.018,
        "allreduce_size_2_consec_1": 149.158,
        "allreduce_size_2_consec_0": 149.317,
    },
    "overlap_coefficient": {"overlap_coe": 1.146},
    "computation_profiling_bf16_hidden256_head4_seqlen512": {
        "layernum[2]_bsz8": 2.0,
        "layernum[4]_bsz8": 3.0,
    },
    "tiny": {"n_layer": 4, "n_embd": 256, "n_head": 4, "head_dim": 64, "vocab_size": 512, "n_positions": 512},
    PLAN_NAME: PLAN,
}
TRAINING = ("--global-batch-size", 8, "--sequence-length", 512, "--gradient-precision", "bf16")


@pytest.fixture
def folder(tmp_path):
    for name, content in FILES.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    return tmp_path


@pytest.fixture
def imported(folder, capsys):
    """The folder that the command wrote, and what it said."""
    output = folder / "out"
    return output, trimtab(capsys, "import-galvatron", folder, "--output", output)


def test_it_writes_a_model_a_cluster_and_plans(imported):
    output, result = imported
    assert result.code == 0, result
    assert {file.relative_to(output).as_posix() for file in output.rglob("*.json")} == {
        "model.json",
        "cluster.json",
        f"plans/{PLAN_NAME}.json",
    }
    assert "Plans" in result.out and "seconds of a block, forward" in result.out
    assert "model: tiny.json, as GPT-2" in result.err
    assert "device: a100-sxm-80g" in result.err


def test_estimate_prices_its_plans(imported, capsys):
    output, _ = imported
    plan = output / "plans" / f"{PLAN_NAME}.json"
    files = (output / "model.json", output / "cluster.json", plan)
    result = trimtab(capsys, "estimate", *files, *TRAINING, "--memory-limit", "24GB", "--json")
    assert (result.code, result.err) == (0, "")
    priced = Estimate.model_validate_json(result.out)
    assert (priced.plan_id, priced.provenance) == (Plan.model_validate_json(plan.read_text()).id, "measured")
    assert priced.stages[0].limit_bytes == 24 * 10**9
    in_fp32 = trimtab(capsys, "estimate", *files, "--gradient-precision", "fp32", "--json")
    assert (
        priced.stages[0].memory["gradients"]
        < _gradients(in_fp32)
        == _gradients(trimtab(capsys, "estimate", *files, "--json"))
    )


def _gradients(result):
    return Estimate.model_validate_json(result.out).stages[0].memory["gradients"]


def test_plan_searches_on_its_cluster(imported, capsys):
    output, _ = imported
    result = trimtab(capsys, "plan", output / "model.json", output / "cluster.json", *TRAINING, "--json")
    assert (result.code, result.err) == (0, "")
    best = Shortlist.model_validate_json(result.out).plans[0]
    assert (best.plan.num_devices, best.estimate.provenance) == (4, "measured")


def test_programs_read_what_was_compared_and_chosen(folder, capsys):
    output = folder / "out"
    result = trimtab(capsys, "import-galvatron", folder, "--output", output, "--reserve", "1GiB", "--json")
    content = json.loads(result.out)
    assert (content["model"], content["cluster"]) == ("tiny", "1x4")
    assert content["plans"][PLAN_NAME]["global_batch_size"] == 8
    assert all(abs(each["error_ratio"]) < 0.1 for each in content["comparisons"])
    assert content["choices"] == result.err.splitlines()
    assert json.loads((output / "cluster.json").read_text())["device"]["reserve_bytes"] == 2**30


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (("--cluster", "four"), ["--cluster", "2x8"]),
        (("--cluster", "2x4"), ["--cluster", "1x4"]),
        (("--device", "a101"), ["--device", "a100"]),
        (("--reserve", "1"), ["--reserve", "1", "24GiB"]),
        (("--profile", "llama"), ["--profile", "hidden256_head4_seqlen512"]),
        (("--model", "gpt-5"), ["model", "gpt"]),
        (("missing",), ["DIR", "missing"]),
    ],
)
def test_bad_input_is_one_clear_line(folder, capsys, arguments, names):
    result = trimtab(capsys, "import-galvatron", folder, "--output", folder / "out", *arguments)
    assert (result.code, result.out) == (2, "")
    [message] = result.err.splitlines()
    assert message.startswith("trimtab: ") and all(name in message for name in names), message
    assert not (folder / "out").exists()


def test_a_broken_plan_is_named_by_its_file_and_key(folder, capsys):
    (folder / f"{PLAN_NAME}.json").write_text(json.dumps(PLAN | {"chunks": 3}))
    result = trimtab(capsys, "import-galvatron", folder, "--output", folder / "out")
    assert (result.code, result.out) == (2, "")
    assert f"{PLAN_NAME}.chunks: must divide global_bsz 8, got 3" in result.err


def test_an_output_that_is_a_file_is_refused(folder, capsys):
    result = trimtab(capsys, "import-galvatron", folder, "--output", folder / "tiny.json")
    assert (result.code, result.out) == (2, "")
    assert "--output: cannot make the folder" in result.err
