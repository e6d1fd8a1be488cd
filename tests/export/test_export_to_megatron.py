"""Megatron-LM: every option is one of its own, and megatron-core takes what they say."""

import json
import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import megatron_parser
import pytest
from export_samples import bash_words, exported, is_bash, job_of, named, quietly, text_of
from hypothesis import HealthCheck, given, settings
from target_plans import a_model, a_plan, axes, plans_of_parts, uniform

from planner.cost.megatron import MEGATRON
from planner.cost.parameters import total_parameters
from planner.export.megatron import megatron_arguments
from planner.spec.cluster import Precision
from planner.spec.export import ExportTarget
from planner.spec.plan import ScheduleKind
from planner.spec.strategy import AxisKind, Recompute, Sharding, Strategy
from planner.spec.training import Training

GROUPS = ("PARALLEL_ARGS", "RECOMPUTE_ARGS", "MODEL_ARGS", "MOE_ARGS", "RECIPE_ARGS")
NAMED = {
    "mixtral-8x7b": ("tp2-pp4-dp8-ep8-mbs1-zero1-sp", 64),
    "gpt-oss-20b": ("pp2-dp4-ep4-mbs1-zero1", 8),
    "deepseek-v2-lite": ("dp8-ep8-mbs1-zero3-recompute:full", 8),
    "deepseek-v3": ("tp2-pp4-ep8-dp8-mbs1-zero1-sp", 64),
    "qwen3-8b": ("tp8-mbs1-sp", 8),
    "qwen1.5-moe-a2.7b": ("dp8-ep4-mbs1-zero1", 8),
    "gpt2-xl": ("dp8-mbs1", 8),
    "llama-3.1-8b": ("tp2-cp2-dp2-mbs1-zero1-sp-recompute:selective", 8),
}
TRAINING = Training(global_batch_size=64, sequence_length=1024)


@pytest.fixture(scope="module")
def megatron():
    with quietly():
        from megatron.core import transformer  # noqa: PLC0415
    return transformer


def words(job):
    return [word for arguments in megatron_arguments(job).values() for each in arguments for word in each.words()]


def degrees(job):
    """What Megatron-LM reads, with the degrees that it derives."""
    read = megatron_parser.parse(words(job))
    read.context_parallel_size = read.context_parallel_size or 1
    read.world_size = job.plan.num_devices
    model = read.tensor_model_parallel_size * read.pipeline_model_parallel_size * read.context_parallel_size
    assert read.world_size % model == 0
    read.data_parallel_size = read.world_size // model
    return read


@pytest.mark.parametrize("preset", NAMED)
def test_megatron_core_takes_the_arguments_of_published_models(megatron, preset):
    job = named(preset, *NAMED[preset], training=TRAINING)
    assert exported(ExportTarget.MEGATRON, job).plan_id == job.plan.id
    config = megatron_parser.transformer_config(degrees(job), megatron)
    assert config.num_layers == len(job.blocks)
    moe = [block.moe is not None for block in job.blocks]
    if any(moe):
        assert config.moe_layer_freq in (1, [int(each) for each in moe])
    if config.window_size:
        windows = [block.attention.window for block in job.blocks]
        assert [bool(flag) for flag in config.window_attn_skip_freq] == [window is not None for window in windows]
        assert config.window_size == (max(filter(None, windows)) - 1, 0)


@given(plans_of_parts(MEGATRON))
@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
def test_the_arithmetic_of_megatron_holds_for_every_plan_that_it_can_run(megatron, given_parts):
    job = job_of(*given_parts)
    plan, experts = job.plan, job.experts
    exported(ExportTarget.MEGATRON, job)
    read = degrees(job)
    assert read.data_parallel_size == job.first.data_parallel_size
    rounds = read.micro_batch_size * read.data_parallel_size
    assert read.global_batch_size == rounds * plan.num_micro_batches
    if read.context_parallel_size > 1:
        assert read.seq_length % (2 * read.context_parallel_size) == 0
    if experts:
        inside = read.expert_tensor_parallel_size * read.expert_model_parallel_size
        assert read.world_size % (inside * read.pipeline_model_parallel_size) == 0
        assert read.num_experts % read.expert_model_parallel_size == 0
        assert read.tensor_model_parallel_size == 1 or read.sequence_parallel
    assert not (read.use_megatron_fsdp and read.pipeline_model_parallel_size > 1)
    if read.num_distributed_optimizer_instances:
        assert read.data_parallel_size % read.num_distributed_optimizer_instances == 0
    megatron_parser.transformer_config(read, megatron)
    assert held_blocks(job, read) == [list(piece.blocks) for piece in job.pieces]


def held_blocks(job, read):
    """The blocks of each virtual stage in order, as Megatron deals them out."""
    with quietly():
        from megatron.core.transformer.enums import LayerType  # noqa: PLC0415
        from megatron.core.transformer.pipeline_parallel_layer_layout import PipelineParallelLayerLayout  # noqa: PLC0415
    stages, virtual = read.pipeline_model_parallel_size, read.num_virtual_stages_per_pipeline_rank or 1
    if read.pipeline_model_parallel_layout is None:
        assert read.num_layers % (stages * virtual) == 0
        count = read.num_layers // (stages * virtual)
        assert virtual == job.plan.schedule.virtual_stages
        return [list(range(first, first + count)) for first in range(0, read.num_layers, count)]
    layout = PipelineParallelLayerLayout(read.pipeline_model_parallel_layout, stages)
    layout.validate_layer_layout(read.num_layers, None)
    assert layout.virtual_pipeline_model_parallel_size == job.plan.schedule.virtual_stages
    held, first = [], 0
    for piece, (chunk, stage) in enumerate(product(range(job.plan.schedule.virtual_stages), range(stages))):
        kinds = layout.layout[stage][chunk]
        assert (LayerType.embedding in kinds) == job.pieces[piece].has_embedding
        assert (LayerType.loss in kinds) == job.pieces[piece].has_head
        held.append(list(range(first, first + kinds.count(LayerType.decoder))))
        first += kinds.count(LayerType.decoder)
    return held


@given(plans_of_parts(MEGATRON))
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_the_ranks_of_megatron_are_the_devices_of_the_plan(given_parts):
    with quietly():
        from megatron.core.parallel_state import RankGenerator  # noqa: PLC0415
    job = job_of(*given_parts)
    read, strategy, experts = degrees(job), job.first, job.experts
    order, stages = "tp-cp-ep-dp-pp", read.pipeline_model_parallel_size
    ranks = RankGenerator(
        read.tensor_model_parallel_size, 1, read.data_parallel_size, stages, read.context_parallel_size, order
    )
    devices = [range(stage.first_device, stage.first_device + stage.num_devices) for stage in job.plan.stages]
    assert {tuple(group) for group in ranks.get_ranks("tp-cp-dp")} == {tuple(each) for each in devices}
    for kind, name in ((AxisKind.TP, "tp"), (AxisKind.CP, "cp")):
        stride, degree = strategy.stride(kind), strategy.degree(kind)
        assert all(
            group == list(range(group[0], group[0] + stride * degree, stride)) for group in ranks.get_ranks(name)
        )
    if experts:
        spread = RankGenerator(
            read.expert_tensor_parallel_size,
            read.expert_model_parallel_size,
            experts.expert_data_parallel_size,
            stages,
            1,
            order,
        )
        assert spread.get_ranks("pp") == ranks.get_ranks("pp")
        tensor = experts.expert_tensor_parallel_size
        assert all(group[1:2] in ([], [group[0] + tensor]) for group in spread.get_ranks("ep"))


def test_megatron_core_builds_models_of_as_many_parameters_as_the_planner_counts():
    """Attention, gates, experts, biases, norms, ties: whatever the arguments left out would show."""
    presets = (
        "llama-2-7b",
        "qwen3-8b",
        "gpt2-xl",
        "mixtral-8x7b",
        "gpt-oss-20b",
        "qwen1.5-moe-a2.7b",
        "deepseek-v2-lite",
    )
    one = Training(global_batch_size=1, sequence_length=1024)
    jobs = [named(preset, "mbs1", 1, one) for preset in presets]
    lines = [json.dumps({"words": words(job), "vocabulary": job.model.layers[0].vocab_size}) for job in jobs]
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("megatron_models.py")],
        input="\n".join(lines),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    built = [int(line) for line in done.stdout.splitlines() if line.isdecimal()]
    assert dict(zip(presets, built, strict=True)) == {job.model.name: total_parameters(job.model) for job in jobs}


def test_bash_reads_the_arguments_as_they_are_meant():
    job = named("deepseek-v3", *NAMED["deepseek-v3"], training=TRAINING)
    export = exported(ExportTarget.MEGATRON, job)
    assert bash_words(text_of(export, "megatron-arguments.sh"), *GROUPS) == words(job)
    assert "Et*15|t*16|t*15|t*15,L" in words(job)
    assert "[0]*3+[1]*58" in words(job)


@pytest.mark.parametrize("preset", NAMED)
def test_the_launch_script_asks_for_what_is_missing(preset):
    job = named(preset, *NAMED[preset], training=TRAINING)
    launch = text_of(exported(ExportTarget.MEGATRON, job), "megatron-launch.sh")
    assert is_bash(launch)
    for name in ("DATA_PATH", "TOKENIZER_MODEL", "TRAIN_ITERS", "LR"):
        assert f': "${{{name}:?must be set}}"' in launch
    assert ("MOE_ARGS" in launch) == bool(job.model.moe_layers)


@pytest.mark.parametrize(
    ("strategy", "environment"),
    [
        (Strategy(axes=axes(dp=2, tp=2)), "export CUDA_DEVICE_MAX_CONNECTIONS=1"),
        (Strategy(axes=axes(dp=2, cp=2)), "export CUDA_DEVICE_MAX_CONNECTIONS=1"),
        (Strategy(axes=axes(dp=2, tp=2), sharding=Sharding.FULL), "unset CUDA_DEVICE_MAX_CONNECTIONS"),
        (Strategy(axes=axes(dp=4)), ""),
    ],
)
def test_connections_are_one_where_tensors_are_cut_and_never_under_fsdp(strategy, environment):
    model = a_model()
    job = job_of(model, TRAINING, a_plan(model, uniform(model, strategy), sequence_length=1024))
    job = job_of(model, TRAINING.model_copy(update={"global_batch_size": "max"}), job.plan)
    text = text_of(exported(ExportTarget.MEGATRON, job), "megatron-arguments.sh")
    found = [line for line in text.splitlines() if "CUDA_DEVICE_MAX_CONNECTIONS" in line]
    assert found == ([environment] if environment else [])


@pytest.mark.parametrize(
    ("kinds", "wanted"),
    [
        (["none"] * 4, []),
        (["selective"] * 4, ["--recompute-granularity selective", "--recompute-modules core_attn"]),
        (
            ["full"] * 4,
            ["--recompute-granularity full", "--recompute-method uniform", "--recompute-num-layers 1"],
        ),
        (
            ["full", "none", "full", "none"],
            ["--recompute-granularity full", "--recompute-method block", "--recompute-num-layers 1"],
        ),
    ],
)
def test_recomputation_is_of_all_blocks_or_of_the_first_of_each_stage(kinds, wanted):
    model = a_model(blocks=4)
    plain = Strategy(axes=axes(dp=2), sharding=Sharding.OPTIMIZER)
    blocks = [plain.model_copy(update={"recompute": Recompute(kind)}) for kind in kinds]
    plan = a_plan(model, [plain, *blocks, plain], starts=(0, 3))
    arguments = megatron_arguments(job_of(model, TRAINING, plan))["RECOMPUTE_ARGS"]
    assert [" ".join(each.words()) for each in arguments] == wanted


def test_even_virtual_stages_need_no_layout():
    model = a_model(blocks=8)
    strategy = Strategy(axes=axes(dp=2), sharding=Sharding.OPTIMIZER)
    plan = a_plan(model, uniform(model, strategy), (0, 3, 5, 7), ScheduleKind.INTERLEAVED, 2)
    job = job_of(model, TRAINING, plan)
    assert degrees(job).num_virtual_stages_per_pipeline_rank == 2
    uneven = a_plan(model, uniform(model, strategy), (0, 2, 5, 7), ScheduleKind.INTERLEAVED, 2)
    assert degrees(job_of(model, TRAINING, uneven)).pipeline_model_parallel_layout == "Et|t*3|t*2|t*2,L"


@pytest.mark.parametrize(
    ("precision", "gradients", "wanted"),
    [
        ("bf16", "fp32", ["--bf16", "--accumulate-allreduce-grads-in-fp32"]),
        ("bf16", "bf16", ["--bf16", "--grad-reduce-in-bf16"]),
        ("fp16", "fp32", ["--fp16", "--accumulate-allreduce-grads-in-fp32"]),
        ("fp16", "fp16", ["--fp16"]),
        ("fp32", "fp32", []),
        ("mxfp8", "bf16", ["--bf16", "--fp8-format", "e4m3", "--fp8-recipe", "mxfp8", "--grad-reduce-in-bf16"]),
        ("nvfp4", "bf16", ["--bf16", "--fp4-format", "e2m1", "--fp4-recipe", "nvfp4", "--grad-reduce-in-bf16"]),
    ],
)
def test_number_formats(precision, gradients, wanted):
    model = a_model()
    training = Training(global_batch_size=16, sequence_length=256, precision=precision, gradient_precision=gradients)
    plan = a_plan(model, uniform(model, Strategy(axes=axes(dp=4))))
    job = job_of(model, training, plan)
    assert Precision(precision) is training.precision
    assert [word for each in megatron_arguments(job)["RECIPE_ARGS"][6:] for word in each.words()] == wanted


def test_capacity_groups_and_shared_experts_are_written():
    training = TRAINING.model_copy(update={"capacity_factor": 1.25})
    job = named("deepseek-v3", *NAMED["deepseek-v3"], training=training)
    read = degrees(job)
    assert (read.moe_expert_capacity_factor, read.moe_router_num_groups, read.moe_router_group_topk) == (1.25, 8, 4)
    assert read.moe_shared_expert_intermediate_size == 2048
    assert degrees(named("qwen1.5-moe-a2.7b", *NAMED["qwen1.5-moe-a2.7b"], training=TRAINING)).moe_shared_expert_gate
