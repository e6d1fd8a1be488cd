"""What cannot be exported is refused with the rule's name: a counter-example for every rule, and none is dropped."""

import re

import pytest
from export_samples import SMALL, cluster_of, exported, job_of, named
from target_plans import a_model, a_plan, axes, spread, uniform

from planner.export import export_plan, export_rule_names
from planner.export.job import Job
from planner.spec.errors import InputError
from planner.spec.export import ExportTarget
from planner.spec.model import Block, DenseFeedForward, Embedding, GroupedQueryAttention, Head, LayerRun, Model
from planner.spec.plan import ScheduleKind
from planner.spec.strategy import Recompute, Sharding, Strategy
from planner.spec.training import Training
from profiles import cluster_request_from_file, resolve_cluster

MEGATRON, TORCHTITAN = ExportTarget.MEGATRON, ExportTarget.TORCHTITAN
DEEPSPEED, GALVATRON = ExportTarget.DEEPSPEED, ExportTarget.GALVATRON
DP = Strategy(axes=axes(dp=4))
TRAINING = Training(global_batch_size="max", sequence_length=256)
ATTENTION = GroupedQueryAttention(num_heads=8, num_kv_heads=8, head_dim=16)
DENSE = DenseFeedForward(width=256)
BLOCK = Block(attention=ATTENTION, feed_forward=DENSE)
MOE = a_model(experts=8).layers[-2]


def job(model=None, strategy=DP, training=TRAINING, **plan):
    model = model or a_model()
    return job_of(model, training, a_plan(model, uniform(model, strategy), sequence_length=256, **plan))


def by_layer(strategies, **plan):
    model = a_model(blocks=len(strategies) - 2)
    return job_of(model, TRAINING, a_plan(model, strategies, sequence_length=256, **plan))


def blocks(*layers, embedding=None, head=None):
    """A model of these blocks."""
    inside = [LayerRun(layer=layer) for layer in layers]
    first = embedding or Embedding(vocab_size=1000)
    runs = (LayerRun(layer=first), *inside, LayerRun(layer=head or Head(vocab_size=1000)))
    return Model(name="small", hidden_size=128, runs=runs)


def changed(value, **fields):
    return value.model_copy(update=fields)


def with_attention(**fields):
    return changed(BLOCK, attention=changed(ATTENTION, **fields))


def unlike_nodes():
    cluster = resolve_cluster(cluster_request_from_file("1x4:h100-sxm-80g+1x2:h100-sxm-80g"))
    model = a_model()
    parts = [{"first_layer": 0, "num_layers": 3, "strategy": {"axes": [["dp", 2]]}}]
    stages = [{"first_device": 2 * n, "num_devices": 2, "runs": parts} for n in range(3)]
    for number, (first, count) in enumerate(((0, 2), (2, 2), (4, 2))):
        stages[number]["runs"] = [{**parts[0], "first_layer": first, "num_layers": count}]
    content = {"global_batch_size": 8, "sequence_length": 256, "micro_batch_size": 1, "num_micro_batches": 4}
    plan = type(job().plan).model_validate({**content, "stages": stages})
    return Job(model, cluster, changed(TRAINING, gradient_precision="bf16"), plan)


def recipe(**fields):
    return lambda: job(training=changed(TRAINING, **fields))


ENCODER = lambda: job(blocks(with_attention(causal=False)))  # noqa: E731
WEIGHTS = recipe(gradient_precision="fp16")
SHARED = {"nodes-of-one-size": unlike_nodes, "decoder-only": ENCODER, "gradients-as-weights": WEIGHTS}
ULYSSES_AND_TP = Strategy(axes=axes(ulysses=2, tp=2))
ZERO_1, ZERO_2 = (changed(DP, sharding=Sharding(kind)) for kind in ("optimizer", "gradients"))
EXPERTS_FULL = Strategy(axes=axes(dp=4), sharding=Sharding.FULL, experts=spread(4))
CASES = {
    MEGATRON: {
        **SHARED,
        "megatron-plain-edges": lambda: job(blocks(BLOCK, head=Head(vocab_size=1000, bias=True))),
        "megatron-plain-blocks": lambda: job(blocks(changed(BLOCK, parallel=True))),
        "megatron-one-attention": lambda: job(blocks(BLOCK, with_attention(num_kv_heads=2))),
        "megatron-one-feed-forward": lambda: job(blocks(BLOCK, changed(BLOCK, feed_forward=changed(DENSE, width=512)))),
        "megatron-biases-together": lambda: job(blocks(with_attention(output_bias=True))),
    },
    TORCHTITAN: {
        "nodes-of-one-size": lambda: Job(*_sharded(unlike_nodes())),
        "decoder-only": ENCODER,
        "torchtitan-adam": recipe(optimizer="sgd"),
        "torchtitan-dropless": lambda: job(
            a_model(experts=8), EXPERTS_FULL, training=changed(TRAINING, capacity_factor=1.5)
        ),
        "torchtitan-without-dropout": recipe(dropout=True),
        "torchtitan-fused-attention": recipe(attention_kernel="unfused"),
    },
    DEEPSPEED: {
        "nodes-of-one-size": unlike_nodes,
        "gradients-as-weights": lambda: job(strategy=ZERO_1, training=changed(TRAINING, gradient_precision="fp16")),
        "deepspeed-dropless-under-zero-3": lambda: job(
            a_model(experts=8), EXPERTS_FULL, training=changed(TRAINING, capacity_factor=1.5)
        ),
    },
    GALVATRON: {
        **SHARED,
        "galvatron-dense-blocks": lambda: job(a_model(experts=8), Strategy(axes=axes(dp=4), experts=spread(4))),
        "galvatron-axes": lambda: job(strategy=ULYSSES_AND_TP),
        "galvatron-stages": lambda: job(schedule=ScheduleKind.ZERO_BUBBLE, starts=(0, 2)),
        "galvatron-one-default-sharding": lambda: by_layer([DP, ZERO_1, ZERO_2, DP]),
        "galvatron-one-edge": lambda: by_layer([DP, DP, Strategy(axes=axes(dp=2, tp=2))]),
        "galvatron-one-sequence-parallel": lambda: by_layer(
            [DP, *(Strategy(axes=axes(dp=2, tp=2), sequence_parallel=sp) for sp in (False, True)), DP]
        ),
        "galvatron-recompute": lambda: job(strategy=changed(DP, recompute=Recompute.SELECTIVE)),
        "galvatron-recipe": recipe(precision="fp8"),
    },
}


def _sharded(given):
    """The same job with what torchtitan needs in a pipeline."""
    content = given.plan.model_dump(mode="json", exclude={"id", "summary"})
    for stage in content["stages"]:
        for run in stage["runs"]:
            run["strategy"]["sharding"] = "full"
    training = changed(given.training, gradient_precision="fp32")
    return given.model, given.cluster, training, type(given.plan).model_validate(content)


@pytest.mark.parametrize("target", ExportTarget)
def test_every_rule_has_a_counter_example(target):
    assert set(CASES[target]) == set(export_rule_names(target))


@pytest.mark.parametrize(("target", "rule"), [(target, rule) for target, rules in CASES.items() for rule in rules])
def test_a_plan_that_breaks_a_rule_is_refused_with_its_name(target, rule):
    with pytest.raises(InputError) as refused:
        exported(target, CASES[target][rule]())
    assert {problem.field for problem in refused.value.problems} == {"plan"}
    assert f"({rule})" in str(refused.value)


@pytest.mark.parametrize(
    ("target", "preset", "shorthand", "rule"),
    [
        (MEGATRON, "llama-2-7b", "pp2-dp4-mbs1-zero3", "sharding-of-target"),
        (TORCHTITAN, "mixtral-8x7b", "tp2-dp4-ep4-etp2-mbs1-sp-zero3", "torchtitan-expert-tensor-parallelism"),
        (DEEPSPEED, "llama-2-7b", "tp2-dp4-mbs1-sp-zero1", "sequence-parallel-of-target"),
        (DEEPSPEED, "llama-2-7b", "dp8-mbs1", "deepspeed-gradients-under-zero"),
    ],
)
def test_the_framework_s_own_rules_come_first(target, preset, shorthand, rule):
    with pytest.raises(InputError) as refused:
        exported(target, named(preset, shorthand))
    assert f"({rule})" in str(refused.value)


@pytest.mark.parametrize("preset", ["t5-large", "swin-huge-32", "bert-large", "vit-huge", "bloom-176b", "gpt-neox-20b"])
def test_models_that_megatron_s_gpt_is_not_are_refused(preset):
    length = {"vit-huge": 197, "swin-huge-32": 3136, "bert-large": 512, "t5-large": 512}.get(preset, 2048)
    training = Training(global_batch_size=64, sequence_length=length)
    with pytest.raises(InputError) as refused:
        exported(MEGATRON, named(preset, "dp8-mbs1", 8, training))
    assert any(f"({rule})" in str(refused.value) for rule in export_rule_names(MEGATRON))


def test_a_plan_of_another_model_is_refused_before_any_rule():
    given = named("llama-2-7b", "dp8-mbs1")
    with pytest.raises(InputError) as refused:
        export_plan(MEGATRON, a_model(), given.cluster, given.training, given.plan)
    assert refused.value.problems[0].field == "plan.stages"


def test_heterogeneous_strategies_are_for_galvatron_alone():
    given = by_layer([DP, Strategy(axes=axes(dp=2, tp=2)), DP, DP])
    assert exported(GALVATRON, given).plan_id == given.plan.id
    for target in (MEGATRON, TORCHTITAN, DEEPSPEED):
        with pytest.raises(InputError, match="one-layout"):
            exported(target, given)


@pytest.mark.parametrize("target", ExportTarget)
def test_names_of_a_user_cannot_leave_the_header(target):
    model = a_model().model_copy(update={"name": 'x\n$(touch y)\r"""\u2028rm -rf'})
    given = job_of(model, TRAINING, a_plan(model, uniform(model, ZERO_2 if target is TORCHTITAN else ZERO_1)))
    for file in exported(target, given).files:
        for line in file.text.splitlines():
            assert "touch" not in line or line.startswith("#")


@pytest.mark.parametrize("target", ExportTarget)
def test_headers_name_the_plan_and_what_is_left(target):
    given = named("llama-2-7b", "dp8-mbs1-zero2", 8, SMALL)
    export = exported(target, given)
    assert export.left_to_user and export.plan_summary == given.plan.summary
    for file in export.files:
        if not file.name.endswith(".json"):
            assert f"# Plan {given.plan.id}: {given.plan.summary}" in file.text
            assert "# Left to you:" in file.text


def test_experts_are_placed_in_order_and_the_agent_is_to_be_attached():
    export = exported(MEGATRON, named("mixtral-8x7b", "tp2-pp2-dp2-ep4-etp1-mbs1-zero1-sp"))
    [note] = [note for note in export.notes if "runtime.Agent" in note]
    assert note.endswith("stage 0: 0–15; stage 1: 16–31.")
    assert not any("Agent" in note for note in exported(MEGATRON, named("llama-2-7b", "dp8-mbs1")).notes)


def test_devices_of_a_graph_of_links_are_named_in_the_order_of_the_ranks():
    given = named("llama-2-7b", "dp8-mbs1-zero1")
    order = (0, 2, 4, 6, 1, 3, 5, 7)
    cluster = cluster_of(8).model_copy(update={"device_order": order})
    export = exported(MEGATRON, Job(given.model, cluster, given.training, given.plan))
    assert any("0 2 4 6 1 3 5 7" in note for note in export.notes)


@pytest.mark.parametrize(
    ("target", "preset", "shorthand", "note"),
    [
        (MEGATRON, "mixtral-8x7b", "tp2-dp4-ep4-mbs1-zero1-sp", "tensor-parallel .* add --tp-comm-overlap"),
        (MEGATRON, "llama-3.1-8b", "tp2-dp4-mbs1-zero1", "tensor-parallel .* needs --sequence-parallel"),
        (
            MEGATRON,
            "mixtral-8x7b",
            "dp8-ep8-mbs1-zero1",
            "all-to-all .* add --overlap-moe-expert-parallel-comm",
        ),
        (MEGATRON, "mixtral-8x7b", "pp2-dp4-ep4-mbs1-zero1", "all-to-all .* needs virtual stages"),
        (
            MEGATRON,
            "mixtral-8x7b",
            "dp8-ep8-mbs1-zero1-recompute:full",
            "all-to-all .* forbids the plan's full recomputation",
        ),
        (DEEPSPEED, "llama-3.1-8b", "pp2-dp4-mbs1-zero1", "data-parallel .* no overlap_comm with stages"),
        (TORCHTITAN, "llama-3.1-8b", "tp2-dp4-mbs1-zero3-sp", "tensor-parallel .*enable_async_tensor"),
    ],
)
def test_the_header_says_what_the_price_hides_and_the_files_do_not(target, preset, shorthand, note):
    export = exported(target, named(preset, shorthand))
    assert any(re.match(rf"The price hides \d+ % of the {note}", line) for line in export.notes), export.notes


@pytest.mark.parametrize("target", [MEGATRON, DEEPSPEED])
def test_traffic_that_the_files_hide_is_not_noted(target):
    assert not any("hides" in line for line in exported(target, named("llama-3.1-8b", "dp8-mbs1-zero1")).notes)
