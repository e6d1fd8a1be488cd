"""What each framework can run: a counter-example for every rule, and plans of allowed parts break none."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from target_plans import a_model, a_plan, axes, plans_of_parts, spread, uniform

from planner.cost.rules import broken_rules
from planner.cost.targets import FRAMEWORKS, broken_target_rules, rule_names
from planner.spec.plan import ScheduleKind
from planner.spec.request import Target
from planner.spec.strategy import Recompute, Sharding, Strategy
from planner.spec.training import Training

NONE, FULL = Recompute.NONE, Recompute.FULL
ZERO_1, ZERO_2, ZERO_3 = Sharding.OPTIMIZER, Sharding.GRADIENTS, Sharding.FULL
INTERLEAVED = ScheduleKind.INTERLEAVED
DENSE, MOE = a_model(), a_model(experts=8)
PLAIN = Strategy(axes=axes(dp=2, tp=2), sharding=ZERO_2, sequence_parallel=True)
TRAINING = Training(global_batch_size="max", sequence_length=256)


def broken(target, model, plan, training=TRAINING):
    """Names of the broken rules; the plan is one that nothing else speaks against."""
    for stage in plan.stages:
        for run in stage.runs:
            for layer in model.layers[run.first_layer : run.end_layer]:
                assert not [*broken_rules(layer, run.strategy, training)]
    found = list(broken_target_rules(target, model, training, plan))
    assert all(each.message for each in found)
    return {each.rule for each in found}


def one_stage(model, *, training=TRAINING, **strategy):
    return model, a_plan(model, uniform(model, Strategy(**strategy)), sequence_length=training.sequence_length)


def with_blocks(model, strategies, starts=(0,), **kind):
    """A plan whose layers have these strategies; None: as the plain one."""
    plain = uniform(model, PLAIN.model_copy(update={"experts": None}))
    return model, a_plan(
        model, [given or usual for given, usual in zip(strategies, plain, strict=True)], starts, **kind
    )


def recomputed(kinds, starts=(0,), sharding=ZERO_1, **kind):
    model = a_model(blocks=len(kinds))
    blocks = [PLAIN.model_copy(update={"recompute": each, "sharding": sharding}) for each in kinds]
    edge = PLAIN.model_copy(update={"sharding": sharding})
    return with_blocks(model, [edge, *blocks, edge], starts, **kind)


def changed(**fields):
    return [None, PLAIN.model_copy(update=fields), None, None, None, None]


SP = {"sequence_parallel": True}
SHARED = {
    "one-layout": lambda: with_blocks(
        DENSE, [None, Strategy(axes=axes(tp=4), sequence_parallel=True), None, None, None, None]
    ),
    "one-sharding": lambda: with_blocks(DENSE, changed(sharding=ZERO_3)),
    "one-expert-grid": lambda: with_blocks(
        a_model(experts=8, blocks=2),
        [
            Strategy(axes=axes(dp=4), sharding=ZERO_2),
            Strategy(axes=axes(dp=4), sharding=ZERO_2, experts=spread(4)),
            Strategy(axes=axes(dp=4), sharding=ZERO_2, experts=spread(2, 1, 2)),
            Strategy(axes=axes(dp=4), sharding=ZERO_2),
        ],
    ),
    "order-of-axes-of-target": lambda: one_stage(DENSE, axes=axes(tp=2, dp=2), sharding=ZERO_2),
    "offload-of-target": lambda: one_stage(DENSE, axes=axes(dp=4), sharding=ZERO_2, offload=True),
    "schedule-of-target": lambda: pipeline(ScheduleKind.ZERO_BUBBLE),
}


def pipeline(kind, virtual_stages=1, micro_batches=4, model=DENSE, starts=(0, 3), sharding=Sharding.NONE, **strategy):
    parts = {"axes": axes(tp=2), "sharding": sharding, **strategy}
    return model, a_plan(
        model, uniform(model, Strategy(**parts)), starts, kind, virtual_stages, micro_batches=micro_batches
    )


ONE_F_ONE_B = ScheduleKind.ONE_F_ONE_B
COUNTER_EXAMPLES = {
    Target.MEGATRON: {
        **SHARED,
        "sharding-of-target": lambda: pipeline(ONE_F_ONE_B, axes=axes(dp=2), sharding=ZERO_3),
        "one-sequence-parallel": lambda: with_blocks(DENSE, changed(sequence_parallel=False)),
        "one-recompute": lambda: recomputed([NONE, FULL, NONE, NONE]),
        "megatron-experts-inside-replicas": lambda: one_stage(
            MOE, axes=axes(dp=2, sdp=2), sharding=ZERO_3, experts=spread(4)
        ),
    },
    Target.TORCHTITAN: {
        **SHARED,
        "sharding-of-target": lambda: one_stage(DENSE, axes=axes(dp=4), sharding=ZERO_1),
        "one-sequence-parallel": lambda: with_blocks(DENSE, changed(sequence_parallel=False)),
        "one-recompute": lambda: recomputed([FULL, NONE, NONE, NONE], sharding=ZERO_2),
        "torchtitan-untied-pipeline": lambda: pipeline(ONE_F_ONE_B, model=a_model(tied=True)),
        "torchtitan-micro-batches-fill-stages": lambda: pipeline(ONE_F_ONE_B, micro_batches=1),
        "torchtitan-key-value-heads": lambda: one_stage(a_model(kv_heads=2), axes=axes(tp=4)),
        "torchtitan-plain-data-parallelism-alone": lambda: one_stage(DENSE, axes=axes(dp=2, tp=2)),
        "torchtitan-expert-tensor-parallelism": lambda: one_stage(
            MOE, axes=axes(dp=2, tp=2), sharding=ZERO_2, experts=spread(2, 2), **SP
        ),
        "torchtitan-experts-inside-shards": lambda: one_stage(
            MOE, axes=axes(dp=2, sdp=2), sharding=ZERO_3, experts=spread(4)
        ),
    },
    Target.DEEPSPEED: {
        "offload-of-target": SHARED["offload-of-target"],
        "one-layout": lambda: with_blocks_of(Strategy(axes=axes(dp=2, tp=2)), Strategy(axes=axes(tp=4))),
        "one-sharding": lambda: with_blocks_of(
            Strategy(axes=axes(dp=4), sharding=ZERO_1), Strategy(axes=axes(dp=4), sharding=ZERO_2)
        ),
        "one-recompute": lambda: with_blocks_of(Strategy(axes=axes(dp=4)), Strategy(axes=axes(dp=4), recompute=FULL)),
        "one-expert-grid": SHARED["one-expert-grid"],
        "order-of-axes-of-target": SHARED["order-of-axes-of-target"],
        "schedule-of-target": SHARED["schedule-of-target"],
        "axes-of-target": lambda: one_stage(DENSE, axes=axes(dp=2, cp=2)),
        "sharding-of-target": lambda: pipeline(ONE_F_ONE_B, axes=axes(dp=2), sharding=ZERO_2),
        "recompute-of-target": lambda: one_stage(DENSE, axes=axes(dp=4), recompute=Recompute.SELECTIVE),
        "stages-as-target-cuts": lambda: pipeline(ONE_F_ONE_B, starts=(0, 2)),
        "deepspeed-key-value-heads": lambda: one_stage(a_model(kv_heads=2), axes=axes(tp=4)),
        "deepspeed-without-mics": lambda: one_stage(DENSE, axes=axes(dp=2, sdp=2), sharding=ZERO_3),
        "deepspeed-whole-experts": lambda: one_stage(MOE, axes=axes(dp=4), experts=spread(2, 2)),
    },
}


RECIPES = {Target.DEEPSPEED: TRAINING.model_copy(update={"gradient_precision": "bf16"})}
"""Where plain data parallelism needs gradients in the numbers of the weights."""


def with_blocks_of(usual, first):
    """All layers under one strategy, but the first block under another."""
    return DENSE, a_plan(DENSE, [usual, first, *[usual] * 4])


EXAMPLES = [(target, rule, make) for target, rules in COUNTER_EXAMPLES.items() for rule, make in rules.items()]


@pytest.mark.parametrize(("target", "rule", "make"), EXAMPLES, ids=[f"{target}-{rule}" for target, rule, _ in EXAMPLES])
def test_a_plan_can_break_this_rule_alone(target, rule, make):
    model, plan = make()
    assert broken(target, model, plan, RECIPES.get(target, TRAINING)) == {rule}


@pytest.mark.parametrize(
    ("precision", "gradients", "runs"),
    [("bf16", "fp32", False), ("fp16", "fp32", False), ("bf16", "bf16", True), ("fp32", "fp32", True)],
)
def test_deepspeed_sums_gradients_in_other_numbers_than_weights_under_zero_alone(precision, gradients, runs):
    training = TRAINING.model_copy(update={"precision": precision, "gradient_precision": gradients})
    rule = {"deepspeed-gradients-under-zero"}
    assert broken(Target.DEEPSPEED, *one_stage(DENSE, axes=axes(dp=4)), training) == (set() if runs else rule)
    assert not broken(Target.DEEPSPEED, *one_stage(DENSE, axes=axes(dp=4), sharding=ZERO_1), training)
    assert not broken(Target.DEEPSPEED, *one_stage(DENSE, axes=axes(tp=4)), training)


@pytest.mark.parametrize("target", [Target.TORCHTITAN, Target.DEEPSPEED])
def test_a_number_format_that_the_framework_does_not_have_is_refused(target):
    training = TRAINING.model_copy(update={"precision": "nvfp4"})
    assert broken(target, *one_stage(DENSE, axes=axes(dp=4)), training) == {"precision-of-target"}


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_torchtitan_reduces_gradients_in_fp32(precision):
    training = TRAINING.model_copy(update={"gradient_precision": precision})
    model, plan = one_stage(DENSE, axes=axes(dp=4))
    assert broken(Target.TORCHTITAN, model, plan, training) == {"gradient-precision-of-target"}
    assert not broken(Target.MEGATRON, model, plan, training)
    assert bool(broken(Target.DEEPSPEED, model, plan, training)) is (precision != "bf16")


def test_megatron_has_no_expert_parallelism_in_fp16_and_shards_what_adam_updates():
    half = TRAINING.model_copy(update={"precision": "fp16"})
    for parallel, rules in ((4, {"megatron-experts-without-fp16"}), (1, set())):
        model, plan = one_stage(MOE, axes=axes(dp=4), experts=spread(parallel, 1, 4 // parallel))
        assert broken(Target.MEGATRON, model, plan, half) == rules
    sgd = TRAINING.model_copy(update={"optimizer": "sgd"})
    for sharding, rules in ((ZERO_1, {"megatron-adam-where-sharded"}), (Sharding.NONE, set())):
        assert broken(Target.MEGATRON, *one_stage(DENSE, axes=axes(dp=4), sharding=sharding), sgd) == rules


@pytest.mark.parametrize(("length", "rules"), [(256, set()), (252, {"torchtitan-sequence-divides"})])
def test_torchtitan_s_sequences_divide_by_twice_tp_and_cp(length, rules):
    training = TRAINING.model_copy(update={"sequence_length": length})
    model, plan = one_stage(DENSE, training=training, axes=axes(dp=2, tp=4), sharding=ZERO_2, sequence_parallel=True)
    assert broken(Target.TORCHTITAN, model, plan, training) == rules


NEVER = {
    # These have every axis, every kind of recomputation, or every number format that a plan or recipe can name.
    Target.MEGATRON: {
        "megatron-experts-without-fp16",
        "megatron-adam-where-sharded",
        "axes-of-target",
        "recompute-of-target",
        "sequence-parallel-of-target",
        "precision-of-target",
        "gradient-precision-of-target",
    },
    Target.TORCHTITAN: {
        "axes-of-target",
        "recompute-of-target",
        "sequence-parallel-of-target",
        "precision-of-target",
        "gradient-precision-of-target",
        "torchtitan-sequence-divides",
    },
    Target.DEEPSPEED: {
        "deepspeed-gradients-under-zero",
        "precision-of-target",
        "gradient-precision-of-target",
        "sequence-parallel-of-target",
        "one-sequence-parallel",
    },
}
"""Rules without a plan of their own above: they are tested by name here, or the framework cannot break them."""


@pytest.mark.parametrize("target", FRAMEWORKS)
def test_every_rule_has_its_counter_example(target):
    assert set(COUNTER_EXAMPLES[target]) | NEVER[target] == set(rule_names(target))
    assert not set(COUNTER_EXAMPLES[target]) & NEVER[target]


def test_deepspeed_has_no_sequence_parallelism():
    model, plan = one_stage(DENSE, axes=axes(dp=2, tp=2), sequence_parallel=True)
    assert broken(Target.DEEPSPEED, model, plan, RECIPES[Target.DEEPSPEED]) == {"sequence-parallel-of-target"}
    mixed = with_blocks_of(Strategy(axes=axes(tp=4)), Strategy(axes=axes(tp=4), sequence_parallel=True))
    assert broken(Target.DEEPSPEED, *mixed) == {"sequence-parallel-of-target", "one-sequence-parallel"}


@pytest.mark.parametrize(
    ("kinds", "starts", "runs"),
    [
        ([FULL, FULL, NONE, FULL, FULL, NONE], (0, 4), True),
        ([FULL, FULL, NONE, FULL, NONE, NONE], (0, 4), False),
        ([FULL, FULL, FULL, FULL, NONE, NONE], (0, 2), True),
        ([FULL, FULL, NONE, NONE, NONE, NONE], (0, 3), False),
        ([NONE, FULL, FULL, NONE, NONE, NONE], (0, 2), False),
        ([FULL, NONE, FULL, NONE, NONE, FULL], (0, 6), False),
        ([FULL, FULL, FULL, FULL, NONE, FULL], (0, 6), True),
        ([FULL] * 6, (0, 4), True),
        ([Recompute.SELECTIVE] * 6, (0, 4), True),
        ([FULL, *[Recompute.SELECTIVE] * 5], (0, 4), False),
    ],
)
def test_megatron_recomputes_the_first_blocks_of_each_stage_alike(kinds, starts, runs):
    assert broken(Target.MEGATRON, *recomputed(kinds, starts)) == (set() if runs else {"one-recompute"})


def test_megatron_counts_recomputed_blocks_by_virtual_stage():
    starts = (0, 3, 5, 7)
    good = recomputed([FULL, NONE] * 4, starts, schedule=INTERLEAVED, virtual_stages=2)
    assert not broken(Target.MEGATRON, *good)
    bad = recomputed([FULL, FULL, FULL, FULL, *[NONE] * 4], starts, schedule=INTERLEAVED, virtual_stages=2)
    assert broken(Target.MEGATRON, *bad) == {"one-recompute"}


def test_layers_with_nothing_to_shard_do_not_break_one_sharding():
    """Without data parallelism of the attention, ZeRO-1 splits what the experts' copies have."""
    strategy = Strategy(axes=axes(tp=4), sequence_parallel=True, sharding=ZERO_1, experts=spread(2, 1, 2))
    model, plan = MOE, a_plan(MOE, uniform(MOE, strategy))
    assert plan.stages[0].runs[0].strategy.sharding is Sharding.NONE
    assert not broken(Target.MEGATRON, model, plan)


@pytest.mark.parametrize("target", [Target.MEGATRON, Target.TORCHTITAN])
def test_stages_of_any_length_are_written_as_layouts(target):
    model, plan = pipeline(ONE_F_ONE_B, starts=(0, 1))
    assert not broken(target, model, plan)


def test_deepspeed_cuts_equal_numbers_of_blocks_or_of_layers():
    model = a_model(blocks=8)
    for starts, runs in {
        (0, 5): True,
        (0, 4): False,
        (0, 4, 7): True,
        (0, 3, 6): False,
        (0, 3, 5, 7): True,
        (0, 3, 6, 8): True,
    }.items():
        assert (not broken(Target.DEEPSPEED, *pipeline(ONE_F_ONE_B, model=model, starts=starts))) is runs
    shown = [*broken_target_rules(Target.DEEPSPEED, *_reordered(pipeline(ONE_F_ONE_B, model=model, starts=(0, 3, 6))))]
    assert [each.message for each in shown] == ["stages must begin at layers 0 4 7 for DeepSpeed, not 0 3 6"]


def _reordered(found):
    model, plan = found
    return model, TRAINING, plan


def test_no_framework_means_no_rules():
    model, plan = one_stage(DENSE, axes=axes(tp=2, dp=2))
    assert not broken(Target.ANY, model, plan)
    assert rule_names(Target.ANY) == ()


@pytest.mark.parametrize("target", FRAMEWORKS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_uniform_plans_of_allowed_parts_break_no_rule(target, data):
    model, training, plan = data.draw(plans_of_parts(FRAMEWORKS[target]))
    assert not [*broken_target_rules(target, model, training, plan)]
