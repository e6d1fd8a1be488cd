"""What estimate() refuses: every rule by its name, every mismatch by its field."""

from typing import NamedTuple

import pytest
from cost_samples import DEVICE, cluster, even_plan, gpt, moe_model

from planner.cost import estimate
from planner.cost.rules import EXPERT_RULES, SHAPE_RULES, broken_rules
from planner.spec.cluster import Cluster, PeakFlops, Precision
from planner.spec.errors import InputError
from planner.spec.model import (
    AnyLayer,
    Block,
    DenseFeedForward,
    Embedding,
    GroupedQueryAttention,
    Head,
    Model,
    MoeFeedForward,
    PatchEmbedding,
)
from planner.spec.placement import Placement
from planner.spec.plan import Plan, Stage, StageRun
from planner.spec.strategy import Axis, AxisKind, ExpertStrategy, Sharding, Strategy
from planner.spec.training import AttentionKernel, Training
from planner.spec.workload import BALANCED, Workload

TRAINING = Training(global_batch_size=16, sequence_length=512)
UNFUSED = Training(global_batch_size=16, sequence_length=512, attention_kernel=AttentionKernel.UNFUSED)
ODD_SEQUENCE = Training(global_batch_size=16, sequence_length=510)


def block(heads: int = 8, kv_heads: int = 8, width: int = 1024) -> Block:
    attention = GroupedQueryAttention(num_heads=heads, num_kv_heads=kv_heads, head_dim=32)
    return Block(attention=attention, feed_forward=DenseFeedForward(width=width))


def moe_block(shared_width: int = 0) -> Block:
    moe = MoeFeedForward(num_experts=8, top_k=2, expert_width=512, shared_width=shared_width)
    return Block(attention=block().attention, feed_forward=moe)


def strategy(
    tp: int = 1,
    cp: int = 1,
    dp: int = 1,
    sp: bool = False,
    experts: tuple[int, int, int] | None = None,
    ulysses: int = 1,
):
    """`experts`: (expert, expert-tensor, expert-data) parallel sizes."""
    degrees = ((AxisKind.DP, dp), (AxisKind.CP, cp), (AxisKind.ULYSSES, ulysses), (AxisKind.TP, tp))
    names = ("expert_parallel_size", "expert_tensor_parallel_size", "expert_data_parallel_size")
    return Strategy(
        axes=tuple(Axis(kind, degree) for kind, degree in degrees if degree > 1),
        sequence_parallel=sp,
        experts=ExpertStrategy(**dict(zip(names, experts, strict=True))) if experts else None,
    )


class Case(NamedTuple):
    """A strategy that breaks one rule, and no other, on a layer."""

    rule: str
    layer: AnyLayer
    strategy: Strategy
    message: str
    training: Training = TRAINING


CASES = [
    Case("heads-divide", block(heads=6, kv_heads=6), strategy(tp=4), "tp 4 must divide the 6 attention heads"),
    Case(
        "heads-divide",
        block(heads=12, kv_heads=3),
        strategy(tp=2),
        "tp 2 must divide, or be a multiple of, the 3 key-value heads",
    ),
    Case("ulysses-cuts-heads", block(), strategy(ulysses=16), "ulysses 16 must divide the 8 attention heads"),
    Case(
        "ulysses-cuts-heads",
        block(heads=12, kv_heads=6),
        strategy(tp=2, ulysses=2),
        "tp 2 x ulysses 2 must divide, or be a multiple of, the 6 key-value heads",
    ),
    Case("widths-divide", block(width=1022), strategy(tp=4), "tp 4 must divide the feed-forward width 1022"),
    Case(
        "widths-divide",
        moe_block(shared_width=1022),
        strategy(tp=4, sp=True, experts=(4, 1, 1)),
        "tp 4 must divide the feed-forward width 1022",
    ),
    Case("sequence-divides", block(), strategy(cp=2), "twice cp 2 must divide the sequence length 510", ODD_SEQUENCE),
    Case(
        "sequence-divides",
        block(),
        strategy(ulysses=4),
        "ulysses 4 must divide the sequence length 510",
        ODD_SEQUENCE,
    ),
    Case(
        "sequence-divides",
        Head(vocab_size=100),
        strategy(cp=3, ulysses=2),
        "twice cp 3 x ulysses 2 must divide the sequence length 510",
        ODD_SEQUENCE,
    ),
    Case(
        "sequence-divides",
        Embedding(vocab_size=100),
        strategy(tp=4, sp=True),
        "tp 4 must divide the 510 tokens of a sequence part",
        ODD_SEQUENCE,
    ),
    Case("experts-on-moe-layers", moe_block(), strategy(dp=2), "experts must be given for an MoE layer"),
    Case(
        "experts-on-moe-layers",
        block(),
        strategy(dp=2, experts=(2, 1, 1)),
        "experts must not be given for a block without experts",
    ),
    Case(
        "experts-on-moe-layers",
        Head(vocab_size=100),
        strategy(dp=2, experts=(2, 1, 1)),
        "experts must not be given for head",
    ),
    Case(
        "experts-divide",
        moe_block(),
        strategy(dp=3, experts=(3, 1, 1)),
        "expert_parallel_size 3 must divide the 8 experts",
    ),
    Case(
        "experts-divide",
        moe_block(),
        strategy(dp=3, experts=(1, 3, 1)),
        "expert_tensor_parallel_size 3 must divide the expert width 512",
    ),
    Case(
        "experts-need-sequence-parallel",
        moe_block(),
        strategy(tp=2, experts=(2, 1, 1)),
        "sequence_parallel must be true for an MoE layer under tensor parallelism",
    ),
    Case(
        "context-parallel-needs-one-sequence",
        PatchEmbedding(patch_values=48, tokens_per_sample=64),
        strategy(cp=2),
        "cp and ulysses must be 1 for a patch embedding, a merging, and attention in windows side by side",
    ),
    Case(
        "sequence-divides",
        Head(vocab_size=100, pooled=True),
        strategy(tp=4, sp=True),
        "tp 4 must divide the 1 tokens of a sequence part",
    ),
    Case("context-parallel-needs-flash", block(), strategy(cp=2), "cp must be 1 without flash attention", UNFUSED),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.rule)
def test_a_broken_rule_says_its_name_and_what_would_be_right(case):
    assert list(broken_rules(case.layer, case.strategy, case.training)) == [(case.rule, case.message)]


def test_every_rule_has_a_case_that_breaks_it():
    assert {rule.__name__.replace("_", "-") for rule in SHAPE_RULES + EXPERT_RULES} == {case.rule for case in CASES}


@pytest.mark.parametrize(
    ("layer", "kept"),
    [
        (block(heads=12, kv_heads=3, width=1536), strategy(tp=3)),
        (block(heads=12, kv_heads=3, width=1536), strategy(tp=6)),
        (block(), strategy(tp=4, cp=4, sp=True)),
        (block(kv_heads=2), strategy(ulysses=8)),
        (block(kv_heads=2), strategy(tp=2, cp=4, ulysses=4, sp=True)),
        (block(), strategy(dp=3)),
        (Head(vocab_size=101), strategy(tp=8)),
        (moe_block(shared_width=1024), strategy(dp=2, tp=4, sp=True, experts=(4, 2, 1))),
        (moe_block(), strategy(dp=6, experts=(2, 1, 3))),
    ],
)
def test_what_can_be_computed_breaks_no_rule(layer, kept):
    assert list(broken_rules(layer, kept, TRAINING)) == []


# Mismatches between plan, model, cluster and training.

MODEL = gpt(layers=4, hidden=256, heads=8, vocab=4096, positions=512)
CLUSTER = cluster(devices_per_node=4)
PLAN = even_plan("tp2-dp2-mbs1", MODEL, CLUSTER, TRAINING)


def problems(
    model: Model = MODEL, where: Cluster = CLUSTER, training: Training = TRAINING, plan: Plan = PLAN
) -> dict[str, str]:
    with pytest.raises(InputError) as caught:
        estimate(model, where, training, plan)
    return {problem.field: problem.message for problem in caught.value.problems}


def test_a_plan_for_another_number_of_devices_is_refused():
    assert problems(where=cluster(devices_per_node=8)) == {"plan.stages": "devices of all stages must be 8, got 4"}


def test_a_plan_for_another_number_of_layers_is_refused():
    longer = gpt(layers=5, hidden=256, heads=8, vocab=4096, positions=512)
    assert problems(model=longer) == {"plan.stages": "layers of all stages must be 7, got 6"}


def test_a_plan_for_another_batch_and_sequence_is_refused_for_both_reasons():
    other = Training(global_batch_size=32, sequence_length=256)
    assert problems(training=other) == {
        "plan.sequence_length": "the training's sequence length must be 256, got 512",
        "plan.global_batch_size": "the training's batch must be 32, got 16",
    }


def test_a_plan_may_choose_its_batch_where_the_training_leaves_it_open():
    open_batch = Training(global_batch_size="max", sequence_length=512)
    assert (
        estimate(MODEL, CLUSTER, open_batch, PLAN).step_time_s == estimate(MODEL, CLUSTER, TRAINING, PLAN).step_time_s
    )


def test_a_sequence_beyond_the_learned_positions_is_refused():
    long = Training(global_batch_size=16, sequence_length=1024)
    plan = even_plan("tp2-dp2-mbs1", MODEL, CLUSTER, long)
    assert problems(training=long, plan=plan) == {
        "training.sequence_length": "must be at most the model's 512 learned positions, is 1024"
    }


def test_a_broken_rule_names_stage_and_run_of_the_plan():
    model = moe_model(layers=2, dense_layers=1)
    no_experts = Strategy(axes=(Axis(AxisKind.DP, 4),))
    plan = Plan(
        global_batch_size=16,
        sequence_length=512,
        micro_batch_size=1,
        num_micro_batches=4,
        stages=(
            Stage(first_device=0, num_devices=4, runs=(StageRun(first_layer=0, num_layers=5, strategy=no_experts),)),
        ),
    )
    assert problems(model=model, plan=plan) == {
        "plan.stages[0].runs[0].strategy": "experts must be given for an MoE layer (experts-on-moe-layers)"
    }


def test_embedding_and_tied_head_on_one_stage_need_one_cut():
    first = Strategy(axes=(Axis(AxisKind.DP, 4),), sharding=Sharding.FULL)
    last = Strategy(axes=(Axis(AxisKind.DP, 4),))
    runs = (
        StageRun(first_layer=0, num_layers=5, strategy=first),
        StageRun(first_layer=5, num_layers=1, strategy=last),
    )
    plan = Plan(
        global_batch_size=16,
        sequence_length=512,
        micro_batch_size=1,
        num_micro_batches=4,
        stages=(Stage(first_device=0, num_devices=4, runs=runs),),
    )
    assert problems(plan=plan) == {
        "plan.stages[0]": "embedding and tied head share one matrix and so axes and sharding"
    }
    untied = gpt(layers=4, hidden=256, heads=8, vocab=4096, positions=512, tied=False)
    assert estimate(untied, CLUSTER, TRAINING, plan).step_time_s > 0


@pytest.mark.parametrize("precision", [Precision.FP8, Precision.BF16])
def test_a_number_format_that_the_device_lacks_is_refused_with_those_it_has(precision):
    old = DEVICE.model_copy(update={"peak_flops_per_s": PeakFlops(fp32=2e13, fp16=1e14)})
    training = Training(global_batch_size=16, sequence_length=512, precision=precision)
    assert problems(where=cluster(devices_per_node=4, device=old), training=training) == {
        "training.precision": f"sample has no {precision.value}; it has fp32, fp16"
    }


def test_fp8_needs_bf16_beside_it():
    odd = DEVICE.model_copy(update={"peak_flops_per_s": PeakFlops(fp32=2e13, fp8=1e14)})
    training = Training(global_batch_size=16, sequence_length=512, precision=Precision.FP8)
    assert problems(where=cluster(devices_per_node=4, device=odd), training=training) == {
        "training.precision": "sample needs bf16 beside fp8"
    }


# Workload and placement.

MOE = moe_model(layers=3, experts=8)
MOE_PLAN = even_plan("dp4-ep4-etp1-mbs1", MOE, CLUSTER, TRAINING)
EVEN = (1 / 8,) * 8
ROW = tuple(range(8))


def refusal(workload: Workload = BALANCED, placement: Placement | None = None) -> str:
    with pytest.raises(InputError) as caught:
        estimate(MOE, CLUSTER, TRAINING, MOE_PLAN, workload, placement)
    return str(caught.value)


@pytest.mark.parametrize("rows", [2, 4])
def test_a_workload_has_one_row_or_one_for_each_moe_layer(rows):
    workload = Workload(expert_shares=(EVEN,) * rows)
    assert refusal(workload) == f"workload.expert_shares: must have 1 or 3 rows (MoE layers), has {rows}"
    for right in (1, 3):
        assert estimate(MOE, CLUSTER, TRAINING, MOE_PLAN, Workload(expert_shares=(EVEN,) * right)).step_time_s > 0


def test_a_workload_has_a_share_for_each_expert():
    assert refusal(Workload(expert_shares=((0.25,) * 4,))) == "workload.expert_shares: must have 8 experts, has 4"


@pytest.mark.parametrize(
    ("placement", "message"),
    [
        (Placement(layers=(ROW,) * 3, num_ranks=2), "placement.num_ranks: must be the plan's 4, is 2"),
        (
            Placement(layers=(ROW,) * 2, num_ranks=4),
            "placement.layers: must have a row for each of 3 MoE layers, has 2",
        ),
        (
            Placement(layers=(ROW,) * 4, num_ranks=4),
            "placement.layers: must have a row for each of 3 MoE layers, has 4",
        ),
        (
            Placement(layers=(ROW, (0, 1, 2, 3), ROW), num_ranks=4),
            "placement.layers[1]: must place 8 experts, places 4",
        ),
    ],
)
def test_a_placement_must_match_plan_and_model(placement, message):
    assert refusal(placement=placement) == message


def test_a_model_without_experts_takes_no_placement():
    with pytest.raises(InputError, match="each of 0 MoE layers, has 1"):
        estimate(MODEL, CLUSTER, TRAINING, PLAN, placement=Placement(layers=(ROW,), num_ranks=4))


def test_a_placement_is_priced_by_its_busiest_rank():
    hot = Workload(name="hot", expert_shares=((0.3, 0.3, *(0.4 / 6,) * 6),))
    together = estimate(MOE, CLUSTER, TRAINING, MOE_PLAN, hot)
    apart = Placement(layers=((0, 2, 1, 3, 4, 5, 6, 7),) * 3, num_ranks=4)
    replicated = Placement(layers=((0, 1, 0, 1, 2, 3, 4, 5, 0, 1, 6, 7),) * 3, num_ranks=4)
    spread = estimate(MOE, CLUSTER, TRAINING, MOE_PLAN, hot, apart)
    copied = estimate(MOE, CLUSTER, TRAINING, MOE_PLAN, hot, replicated)
    assert together.step_time_s > spread.step_time_s > copied.step_time_s


def test_a_capacity_factor_caps_what_a_hot_expert_costs():
    hot = Workload(name="hot", expert_shares=((0.65, *(0.05,) * 7),))
    capped = TRAINING.model_copy(update={"capacity_factor": 1.5})
    dropless, dropping = (estimate(MOE, CLUSTER, training, MOE_PLAN, hot) for training in (TRAINING, capped))
    assert dropping.step_time_s < dropless.step_time_s
