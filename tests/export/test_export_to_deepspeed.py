"""DeepSpeed: its own configuration class reads the JSON, and its partition puts the stages where the plan has them."""

import ast
import json

import pytest
from export_samples import SMALL, exported, is_bash, job_of, named, quietly, text_of
from hypothesis import HealthCheck, assume, given, settings
from target_plans import a_model, a_plan, axes, plans_of_parts, spread, uniform

from planner.cost.deepspeed import DEEPSPEED
from planner.export.deepspeed import deepspeed_config, pipeline_arguments
from planner.spec.export import ExportTarget
from planner.spec.model import Block
from planner.spec.strategy import Recompute, Sharding, Strategy
from planner.spec.training import Training

CONFIG, LAUNCH, PIPELINE = "deepspeed-config.json", "deepspeed-launch.sh", "deepspeed_pipeline.py"
EVERYTHING = {"max_examples": 100, "deadline": None, "suppress_health_check": list(HealthCheck)}
STAGES = {Sharding.NONE: 0, Sharding.OPTIMIZER: 1, Sharding.GRADIENTS: 2, Sharding.FULL: 3}


@pytest.fixture
def read(monkeypatch):
    """JSON as DeepSpeed reads it on so many devices and ranks of data parallelism."""
    with quietly():
        from deepspeed.runtime import config as module  # noqa: PLC0415

    def configured(content, world_size, data_parallel_size):
        monkeypatch.setattr(module.dist, "get_rank", lambda: 0)
        monkeypatch.setattr(module.dist, "get_world_size", lambda: world_size)
        ranks = type("Ranks", (), {"get_data_parallel_world_size": staticmethod(lambda: data_parallel_size)})
        with quietly():
            return module.DeepSpeedConfig(content, mpu=ranks)

    return configured


@given(plans_of_parts(DEEPSPEED))
@settings(**EVERYTHING)
def test_its_configuration_class_takes_every_plan_that_it_can_run(read, given_parts):
    model, training, plan = given_parts
    job = job_of(model, training, plan)
    export = exported(ExportTarget.DEEPSPEED, job)
    content = json.loads(text_of(export, CONFIG))
    assert content == json.loads(json.dumps(deepspeed_config(job)))
    config = read(content, plan.num_devices, job.first.data_parallel_size)
    assert config.train_batch_size == plan.global_batch_size
    if "tensor_parallel" in content:
        # AutoTP has no ranks of its own when the configuration is read: all count for data parallelism.
        assert read(content, plan.num_devices, plan.num_devices).gradient_accumulation_steps == plan.num_micro_batches
    assert config.train_micro_batch_size_per_gpu == plan.micro_batch_size
    assert config.gradient_accumulation_steps == plan.num_micro_batches
    assert config.zero_config.stage == (STAGES[job.sharding] or 1)
    assert not (job.num_stages > 1 and config.zero_config.stage > 1)
    assert config.bfloat16_config.enabled and not config.float16_config.enabled
    assert config.grad_accum_dtype == "fp32"
    assert config.tensor_parallel_config.autotp_size == (
        job.first.tp if job.num_stages == 1 and job.first.tp > 1 else 0
    )
    check_experts(job, config)


def check_experts(job, config):
    """AutoEP holds its section against ranks and ZeRO."""
    with quietly():
        from deepspeed.module_inject.auto_ep_config import validate_autoep_config  # noqa: PLC0415

        parallel = config.expert_parallel_config
        if parallel is not None:
            stage = config.zero_config.stage
            validate_autoep_config(parallel, job.plan.num_devices, job.num_stages, job.first.tp, 1, zero_stage=stage)
    enabled = parallel is not None and parallel.enabled
    assert enabled == (job.experts is not None and job.num_stages == 1)
    if enabled:
        assert parallel.autoep_size == job.experts.expert_parallel_size


@given(plans_of_parts(DEEPSPEED))
@settings(**EVERYTHING)
def test_its_partition_puts_the_stages_where_the_plan_has_them(given_parts):
    with quietly():
        from deepspeed.runtime.utils import partition_balanced, partition_uniform  # noqa: PLC0415
    job = job_of(*given_parts)
    assume(job.num_stages > 1)
    values = pipeline_arguments(job)
    layers, stages = len(job.model.layers), job.num_stages
    weights = [int(isinstance(layer, Block)) for layer in job.model.layers]
    by_type = values["partition_method"] == "type"
    found = partition_balanced(weights, stages) if by_type else partition_uniform(layers, stages)
    assert list(found)[:-1] == [piece.numbers[0] for piece in job.pieces]
    assert values["num_pp"] * values["num_mp"] * values["num_dp"] == job.plan.num_devices


def test_a_pipeline_has_a_python_file_that_python_reads_and_others_have_none():
    staged = named("llama-2-7b", "pp2-tp2-dp2-mbs1-zero1-recompute:full")
    export = exported(ExportTarget.DEEPSPEED, staged)
    [function] = [node for node in ast.parse(text_of(export, PIPELINE)).body if isinstance(node, ast.FunctionDef)]
    assert function.name == "pipeline_module"
    call = next(node for node in ast.walk(function) if isinstance(node, ast.Call) and node.keywords[2:])
    given_values = {each.arg: each.value for each in call.keywords}
    assert ast.unparse(given_values["activation_checkpoint_interval"]) == "1"
    assert ast.unparse(given_values["checkpointable_layers"]) == "[block_class]"
    assert any("AutoTP does not cut a pipeline" in line for line in export.left_to_user)
    whole = exported(ExportTarget.DEEPSPEED, named("llama-2-7b", "dp8-mbs1-zero3"))
    assert [file.name for file in whole.files] == [CONFIG, LAUNCH]


def test_pipeline_module_has_the_arguments_that_the_file_gives_it():
    with quietly():
        from inspect import signature  # noqa: PLC0415

        from deepspeed.runtime.pipe.module import PipelineModule  # noqa: PLC0415
        from deepspeed.runtime.pipe.topology import PipeModelDataParallelTopology  # noqa: PLC0415
    text = text_of(exported(ExportTarget.DEEPSPEED, named("llama-2-7b", "pp2-dp4-mbs1-zero1")), PIPELINE)
    calls = {node.func.id: node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call) and node.keywords}
    for target in (PipelineModule, PipeModelDataParallelTopology):
        names = {each.arg for each in calls[target.__name__].keywords} - {None}
        assert names <= set(signature(target).parameters)
    topology = PipeModelDataParallelTopology(num_pp=2, num_mp=1, num_dp=4)
    assert topology.get_axis_list("pipe", 1) == [4, 5, 6, 7]


def test_what_the_json_cannot_say_is_left_to_the_user():
    recomputed = exported(ExportTarget.DEEPSPEED, named("llama-2-7b", "dp8-mbs1-zero3-recompute:full"))
    assert any(line.startswith("Recomputation of every block") for line in recomputed.left_to_user)
    dropping = SMALL.model_copy(update={"capacity_factor": 1.25})
    experts = exported(ExportTarget.DEEPSPEED, named("mixtral-8x7b", "dp8-ep8-mbs1-zero2", 8, dropping))
    assert any("MoE(ep_size=8, capacity_factor=1.25, …)" in line for line in experts.left_to_user)
    assert "expert_parallel" not in json.loads(text_of(experts, CONFIG))
    launch = text_of(experts, LAUNCH)
    assert is_bash(launch) and "# Left to you:" in launch and experts.plan_id in launch


def test_gradients_in_other_numbers_than_weights_need_zero_even_where_nothing_can_be_sharded():
    model = a_model()
    training = Training(global_batch_size=4, sequence_length=256)
    one = job_of(model, training, a_plan(model, uniform(model, Strategy(axes=axes(tp=2)))))
    assert deepspeed_config(one)["zero_optimization"] == {"stage": 1}
    assert any("shards nothing" in note for note in exported(ExportTarget.DEEPSPEED, one).notes)
    alike = training.model_copy(update={"gradient_precision": "bf16"})
    assert deepspeed_config(job_of(model, alike, one.plan))["zero_optimization"] == {"stage": 0}


def test_sgd_under_zero_is_allowed_though_untested(read):
    model = a_model(experts=8)
    training = Training(global_batch_size=16, sequence_length=256, optimizer="sgd")
    strategy = Strategy(axes=axes(dp=4), sharding=Sharding.OPTIMIZER, experts=spread(4), recompute=Recompute.NONE)
    job = job_of(model, training, a_plan(model, uniform(model, strategy)))
    config = read(deepspeed_config(job), 4, 4)
    assert config.zero_allow_untested_optimizer and config.optimizer_name == "SGD"
