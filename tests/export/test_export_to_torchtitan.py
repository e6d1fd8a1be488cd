"""torchtitan: every key is one of its own, its arithmetic holds, its parsers read the files where it is installed."""

import importlib.metadata
import importlib.util
import json
import re
from itertools import product
from pathlib import Path

import pytest
from export_samples import SMALL, bash_words, exported, is_bash, job_of, named, quietly, text_of
from hypothesis import HealthCheck, given, settings
from target_plans import plans_of_parts

from planner.cost.torchtitan import TORCHTITAN
from planner.export.torchtitan import newest_arguments, released_arguments, tables
from planner.spec.export import ExportTarget
from planner.spec.strategy import Sharding

OPTIONS = json.loads((Path(__file__).parent / "torchtitan_options.json").read_text())
TOML, RELEASED, NEWEST = "torchtitan-v0.2.toml", "torchtitan-v0.3.sh", "torchtitan-main.sh"
PARTS = "module_fqns_per_model_part"
NAMED = {
    "llama-3.1-8b": ("tp2-pp2-dp2-mbs1-zero3-sp-recompute:selective", 8),
    "llama-3.1-70b": ("tp8-pp2-vpp2-dp4-mbs1-zero2-sp-recompute:full", 64),
    "qwen3-30b-a3b": ("dp8-ep8-mbs1-zero3", 8),
    "deepseek-v3": ("pp4-dp16-ep16-mbs1-zero3-recompute:full", 64),
    "llama-2-7b": ("dp8-mbs1", 8),
}
EVERYTHING = {"max_examples": 100, "deadline": None, "suppress_health_check": list(HealthCheck)}


def job_named(preset, **recipe):
    training = SMALL.model_copy(update={"global_batch_size": 128, **recipe})
    return named(preset, *NAMED[preset], training=training)


def read_options(arguments):
    """{section.name: words} as tyro reads them."""
    return {each.option.removeprefix("--"): each.values for each in arguments if each.option.startswith("--")}


def toml(job):
    tomllib = pytest.importorskip("tomllib", reason="the standard library reads TOML from Python 3.11 on")
    return tomllib.loads(text_of(exported(ExportTarget.TORCHTITAN, job), TOML))


def flat(content):
    """{table: keys} with the names of nested tables joined."""
    found = {}
    for name, value in content.items():
        nested = {key: inner for key, inner in value.items() if isinstance(inner, dict)}
        if set(value) - set(nested):
            found[name] = set(value) - set(nested)
        found |= {f"{name}.{key}": keys for key, keys in flat(nested).items()}
    return found


@pytest.mark.parametrize("preset", NAMED)
@pytest.mark.parametrize("precision", ["bf16", "fp8", "mxfp8"])
def test_every_key_of_the_toml_file_is_one_of_v0_2(preset, precision):
    job = job_named(preset, precision=precision)
    content = toml(job)
    for table, keys in flat(content).items():
        assert keys <= set(OPTIONS["v0.2.2"][table]), table
    assert {"training", "parallelism", "activation_checkpoint", "model"} <= set(content)
    assert all(name in content["model"]["converters"] for name in flat(content) if name.startswith("quantize"))


@pytest.mark.parametrize("preset", NAMED)
def test_every_option_of_the_scripts_is_one_of_its_version(preset):
    job = job_named(preset)
    for arguments, more in ((released_arguments(job), {}), (newest_arguments(job), OPTIONS["b5bcd76"])):
        for option in read_options(arguments):
            section, name = option.split(".")
            name = re.sub("^no-", "", name).replace("-", "_")
            assert name in OPTIONS["0.3.0"][section] + more.get(section, [])
        assert arguments[-1].option.removeprefix("activation_checkpoint:") in OPTIONS["activation_checkpoint"]


@given(plans_of_parts(TORCHTITAN))
@settings(**EVERYTHING)
def test_the_arithmetic_of_torchtitan_holds_for_every_plan_that_it_can_run(given_parts):
    job = job_of(*given_parts)
    plan, experts = job.plan, job.experts
    exported(ExportTarget.TORCHTITAN, job)
    content = tables(job)
    parallel, training = content["parallelism"], content["training"]
    replicate, shard = parallel["data_parallel_replicate_degree"], parallel["data_parallel_shard_degree"]
    cp, tp, pp = (parallel[f"{kind}_parallel_degree"] for kind in ("context", "tensor", "pipeline"))
    assert replicate * shard * cp * tp * pp == plan.num_devices
    assert (replicate * shard, cp, tp) == (job.first.data_parallel_size, job.first.cp, job.first.tp)
    ep = parallel["expert_parallel_degree"]
    if ep > 1:
        assert experts and (shard * cp * tp) % ep == 0
        assert parallel["expert_tensor_parallel_degree"] in (1, tp)
    rounds = training["local_batch_size"] * replicate * shard
    assert training["global_batch_size"] == plan.global_batch_size and plan.global_batch_size % rounds == 0
    micro = parallel.get("pipeline_parallel_microbatch_size", training["local_batch_size"])
    counted = training["global_batch_size"] // rounds * (training["local_batch_size"] // micro)
    assert (micro, counted) == (plan.micro_batch_size, plan.num_micro_batches)
    assert (
        parallel["fsdp_reshard_after_forward"]
        == {
            Sharding.NONE: "default",
            Sharding.GRADIENTS: "never",
            Sharding.FULL: "always",
        }[job.sharding]
    )
    check_stages(job, parallel)
    check_tokens(job)


def check_stages(job, parallel):
    """Every module stands in one part, in order; interleaved ranks have several parts each, others one."""
    blocks = [f"layers.{number}" for number in range(len(job.blocks))]
    if job.num_stages == 1:
        assert "module_fqns_per_model_part" not in parallel
        return
    parts = parallel["module_fqns_per_model_part"]
    assert [name for part in parts for name in part] == ["tok_embeddings", *blocks, "norm", "output"]
    assert len(parts) == job.num_stages * job.plan.schedule.virtual_stages


def check_tokens(job):
    """The newest form says the same in tokens."""
    options = {name: values[0] for name, values in read_options(newest_arguments(job)).items() if values}
    tokens, dp = job.plan.sequence_length, job.first.data_parallel_size
    held = int(options["training.num_tokens_per_microbatch_per_dp_rank"])
    held *= int(options.get("parallelism.num_pp_microbatches", 1))
    assert int(options["training.num_tokens_per_train_step"]) % (held * dp) == 0
    assert int(options["training.num_tokens_per_train_step"]) == tokens * job.plan.global_batch_size
    assert held == tokens * (job.plan.micro_batch_size * (job.plan.num_micro_batches if job.num_stages > 1 else 1))


def test_known_models_are_named_and_others_are_left_to_the_user():
    known, unknown = job_named("deepseek-v3"), job_named("llama-2-7b")
    assert (toml(known)["model"]["name"], toml(known)["model"]["flavor"]) == ("deepseek_v3", "671B")
    assert toml(unknown)["model"]["name"] == "SET_ME"
    assert any(line.startswith("The model:") for line in exported(ExportTarget.TORCHTITAN, unknown).left_to_user)
    model = known.model.model_copy(update={"name": "qwen3-8b"})
    assert toml(job_of(model, known.training, known.plan))["model"]["name"] == "SET_ME"


def test_without_sequence_parallelism_there_is_no_file_for_v0_2_and_a_switch_for_later_ones():
    job = named("llama-3.1-8b", "tp2-dp4-mbs1-zero3", 8, SMALL)
    export = exported(ExportTarget.TORCHTITAN, job)
    assert [file.name for file in export.files] == [RELEASED, NEWEST]
    assert any(note.startswith("v0.2 has no file") for note in export.notes)
    assert "parallelism.no-enable-sequence-parallel" in read_options(released_arguments(job))


@pytest.mark.parametrize("preset", NAMED)
def test_bash_reads_the_scripts_as_they_are_meant(preset):
    job = job_named(preset)
    export = exported(ExportTarget.TORCHTITAN, job)
    for name, arguments in ((RELEASED, released_arguments(job)), (NEWEST, newest_arguments(job))):
        text = text_of(export, name)
        assert is_bash(text)
        array = re.search(r"^PLAN_ARGS=\(\n.*?^\)\n", text, re.MULTILINE | re.DOTALL)
        assert bash_words(array[0], "PLAN_ARGS") == [word for each in arguments for word in each.words()]


def installed(version):
    """Skip unless this version of torchtitan can be imported; docs/exports.md says how to run this."""
    if importlib.util.find_spec("torchtitan") is None:
        pytest.skip(f"torchtitan {version} is not installed: it imports triton (1 GB), pyarrow, pandas and others")
    if importlib.metadata.version("torchtitan") != version:
        pytest.skip(f"another version of torchtitan than {version} is installed")


def test_the_parser_of_v0_2_reads_the_toml_file(tmp_path):
    installed("0.2.2")
    with quietly():
        from torchtitan.config import ConfigManager  # noqa: PLC0415
    file = tmp_path / TOML
    for preset, precision in product(NAMED, ("bf16", "fp8", "mxfp8")):
        job = job_named(preset, precision=precision)
        file.write_text(text_of(exported(ExportTarget.TORCHTITAN, job), TOML))
        config = ConfigManager().parse_args(["--job.config_file", str(file)])
        for name in ("training", "parallelism", "activation_checkpoint"):
            for key, value in tables(job)[name].items():
                assert getattr(getattr(config, name), key) == value


def test_the_parser_of_0_3_reads_the_options():
    installed("0.3.0")
    with quietly():
        from torchtitan.config.manager import ConfigManager  # noqa: PLC0415
    for preset in NAMED:
        job = job_named(preset)
        words = [word for each in released_arguments(job) for word in each.words()]
        with quietly():
            config = ConfigManager().parse_args(["--module", "llama3", "--config", "llama3_8b", *words])
        wanted = tables(job)
        parts = [[name.replace("output", "lm_head") for name in part] for part in wanted["parallelism"].get(PARTS, [])]
        assert (config.parallelism.module_fqns_per_model_part or []) == parts
        assert config.training.local_batch_size == wanted["training"]["local_batch_size"]
        assert config.parallelism.pipeline_parallel_degree == job.num_stages
        kind = {"full": "Full", "none": "None", "selective": "Selective"}[wanted["activation_checkpoint"]["mode"]]
        assert type(config.activation_checkpoint).__qualname__.startswith(kind)


def test_number_formats_of_32_bits():
    job = job_named("llama-2-7b", precision="fp32")
    assert toml(job)["training"]["mixed_precision_param"] == "float32"
