"""Explanations are true: what is said to bind binds, and every price is that of estimate()."""

import pytest
import view_samples as samples
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from planner.cost import estimate
from planner.cost.rules import EXPERT_RULES, SHAPE_RULES
from planner.spec.explanation import Constraint, Explanation
from planner.spec.plan import Plan, Schedule, ScheduleKind, Stage, StageRun
from planner.spec.strategy import Recompute, Sharding
from planner.spec.training import Training
from planner.view import Rival, binding_table, explain, neighbour_table, reason_table
from planner.view.diff import free_bytes
from planner.view.quantities import percent, seconds
from profiles import cluster_from_shorthand, resolve_cluster

CLUSTER = resolve_cluster(cluster_from_shorthand("2x4:a100-sxm-80g"))
OF_PLANS = {
    "valid-plan",
    "equal-stages",
    "stages-need-layers",
    "batch-divides",
    "samples-divide",
    "interleaving-in-rounds-of-stages",
}


def a_training(plan):
    return Training(global_batch_size=plan.global_batch_size, sequence_length=plan.sequence_length)


def limited(limit_bytes):
    return CLUSTER.model_copy(update={"memory_limit_bytes": limit_bytes})


def explained(model, plan, cluster=CLUSTER, **rest) -> Explanation:
    return explain(model, cluster, a_training(plan), plan, **rest)


def a_pipeline(layers, **strategy):
    """Dense blocks in stages of these numbers of layers, four devices each."""
    chosen = samples.strategy(
        **({"tp": 2, "dp": 2, "sharding": Sharding.OPTIMIZER, "sequence_parallel": True} | strategy)
    )
    return samples.model(dense=sum(layers) - 2), samples.even_plan(layers, chosen, num_micro_batches=16)


@st.composite
def questions(draw):
    """A model and a plan on eight devices that can be priced."""
    pp, tp, cp = draw(st.sampled_from([(1, 1, 1), (1, 2, 1), (2, 2, 1), (4, 1, 2), (2, 1, 1), (8, 1, 1), (1, 2, 2)]))
    dp = 8 // (pp * tp * cp)
    ep = draw(st.sampled_from([None, *[d for d in (1, 2, 4) if (dp * cp * tp) % d == 0]]))
    virtual = draw(st.sampled_from([1, 2])) if pp > 1 else 1
    kinds = [ScheduleKind.ONE_F_ONE_B, ScheduleKind.GPIPE, ScheduleKind.ZERO_BUBBLE]
    kind = ScheduleKind.INTERLEAVED if virtual > 1 else draw(st.sampled_from(kinds))
    sharding = draw(st.sampled_from(list(Sharding))) if dp * cp > 1 else Sharding.NONE
    chosen = samples.strategy(
        tp=tp,
        dp=dp,
        cp=cp,
        ep=ep,
        sharding=sharding,
        recompute=draw(st.sampled_from(list(Recompute))),
        sequence_parallel=tp > 1 and (ep is not None or draw(st.booleans())),
    )
    layers = [draw(st.integers(1, 2)) for _ in range(pp * virtual)] if virtual == 1 else [1] * (pp * virtual)
    layers = [layers[0] + 1, *layers[1:-1], layers[-1] + 1] if len(layers) > 1 else [layers[0] + 2]
    blocks = sum(layers) - 2
    plan = samples.even_plan(
        layers, chosen, Schedule(kind=kind, virtual_stages=virtual), draw(st.sampled_from([8, 16]))
    )
    return samples.model(dense=0 if ep else blocks, moe=blocks if ep else 0), plan


@settings(max_examples=60, deadline=None)
@given(questions())
def test_every_neighbour_is_another_valid_plan_with_its_own_price(question):
    model, plan = question
    explanation = explained(model, plan)
    for each in explanation.neighbours:
        assert Plan.model_validate(each.plan.model_dump()) == each.plan
        assert each.estimate == estimate(model, CLUSTER, a_training(plan), each.plan)
        assert (each.plan.global_batch_size, each.plan.num_devices) == (plan.global_batch_size, plan.num_devices)
        assert each.missing_bytes == max(stage.missing_bytes for stage in each.estimate.stages)
        assert explanation.estimate.step_time_s + each.step_time_change_s == pytest.approx(each.estimate.step_time_s)
    ids = [plan.id, *(each.plan.id for each in explanation.neighbours)]
    assert len(set(ids)) == len(ids)


@settings(max_examples=60, deadline=None)
@given(questions())
def test_every_refused_neighbour_names_the_rule_that_forbids_it(question):
    names = OF_PLANS | {rule.__name__.replace("_", "-") for rule in SHAPE_RULES + EXPERT_RULES}
    for each in explained(*question).refused:
        assert each.rule in names
        assert each.change and each.message


@settings(max_examples=60, deadline=None)
@given(questions())
def test_an_explanation_survives_json_and_its_tables_are_complete(question):
    explanation = explained(*question)
    assert Explanation.model_validate_json(explanation.model_dump_json()) == explanation
    assert len(neighbour_table(explanation).rows) == len(explanation.neighbours) + len(explanation.refused)
    for table in (reason_table(explanation), binding_table(explanation), neighbour_table(explanation)):
        assert {len(row) for row in table.rows} == {len(table.columns)}


@settings(max_examples=60, deadline=None)
@given(questions())
def test_the_change_that_is_named_for_a_slower_neighbour_is_the_part_that_grew_most(question):
    explanation = explained(*question)
    for each in explanation.neighbours:
        if each.step_time_change_s > 0:
            parts = {*explanation.estimate.time, *each.estimate.time}
            growth = [each.estimate.time.get(part, 0.0) - explanation.estimate.time.get(part, 0.0) for part in parts]
            assert each.largest_change is not None
            assert each.largest_change.change_s == max(growth)


def words(explanation) -> list[str]:
    return [each.change for each in explanation.neighbours] + [each.change for each in explanation.refused]


def test_every_degree_level_and_schedule_has_its_neighbours():
    model, plan, _ = samples.mixtral()
    cluster = resolve_cluster(cluster_from_shorthand("8x8:h100-sxm-80g"))
    told = words(explained(model, plan, cluster))
    expected = [
        *("dp 8 → 16, tp 2 → 1", "dp 8 → 4, tp 2 → 4", "tp 2 → 1, cp 1 → 2", "dp 8 → 4, cp 1 → 2"),
        *("tp 2 → 1, ulysses 1 → 2", "dp 8 → 4, ulysses 1 → 2", "pp 4 → 2, ulysses 1 → 2, edp 2 → 4"),
        *("pp 4 → 8, dp 8 → 4, edp 2 → 1", "pp 4 → 8, tp 2 → 1, edp 2 → 1", "pp 4 → 2, dp 8 → 16, edp 2 → 4"),
        *("pp 4 → 2, tp 2 → 4, edp 2 → 4", "pp 4 → 2, cp 1 → 2, edp 2 → 4"),
        *("ep 8 → 4, edp 2 → 4", "ep 8 → 4, etp 1 → 2", "etp 1 → 2, edp 2 → 1", "ep 8 → 16, edp 2 → 1"),
        *("mbs 1 → 2", "vpp 2 → 4", "schedule interleaved vpp2 → 1F1B", "schedule interleaved vpp2 → GPipe"),
        *("schedule interleaved vpp2 → zero-bubble", "sharding zero1 → none", "sharding zero1 → zero2"),
        *("recompute selective → none", "recompute selective → full", "sp on → off"),
    ]
    assert sorted(told) == sorted(expected)


def test_a_degree_that_is_no_power_of_two_shrinks_by_its_smallest_factor():
    model, plan = a_pipeline([3, 2, 3], tp=1, dp=3, sequence_parallel=False)
    told = words(explained(model, plan, resolve_cluster(cluster_from_shorthand("3x3:a100-sxm-80g"))))
    assert {"pp 3 → 1, dp 3 → 9", "dp 3 → 1, cp 1 → 3"} <= set(told)


def test_a_change_that_only_some_layers_can_make_says_how_many():
    model = samples.model(dense=6)
    wide, narrow = samples.strategy(tp=8), samples.strategy(tp=4, dp=2)
    runs = (
        StageRun(first_layer=0, num_layers=3, strategy=narrow),
        StageRun(first_layer=3, num_layers=5, strategy=wide),
    )
    plan = Plan(
        global_batch_size=32,
        sequence_length=4096,
        micro_batch_size=1,
        num_micro_batches=16,
        stages=(Stage(first_device=0, num_devices=8, runs=runs),),
    )
    assert "dp 2 → 1, tp 4 → 8, mbs 1 → 2 (3 of 8 layers)" in words(explained(model, plan))


def test_memory_binds_a_stage_whose_limit_is_one_percent_above_its_peak():
    model, plan = a_pipeline([9, 9])
    peak = max(stage.peak_memory_bytes for stage in estimate(model, CLUSTER, a_training(plan), plan).stages)
    first, last = explained(model, plan, limited(int(1.01 * peak))).stages
    assert Constraint.MEMORY in first.binding
    assert 0 < first.free_bytes <= 0.01 * peak
    assert first.reason.startswith("has no room for another layer; ")
    assert first.free_bytes < first.layer_bytes
    assert last.free_bytes > first.free_bytes


def test_memory_binds_the_stage_that_a_faster_neighbour_overfills():
    model, plan = a_pipeline([9, 9], recompute=Recompute.FULL)
    free = explained(model, plan)
    assert [stage.binding for stage in free.stages] == [(), (Constraint.TIME,)]
    roomy = next(each for each in free.neighbours if each.change == "recompute full → selective")
    needed = [stage.peak_memory_bytes for stage in roomy.estimate.stages]
    fullest = needed.index(max(needed))
    stage = explained(model, plan, limited(max(needed) - 1)).stages[fullest]
    assert Constraint.MEMORY in stage.binding
    assert stage.blocked is not None
    assert "would be faster, but lacks" in stage.reason


def test_time_binds_the_slow_stage_of_an_unbalanced_pipeline_and_the_others_wait_for_it():
    model, plan = a_pipeline([3, 6, 3, 3], tp=1, dp=2, sequence_parallel=False)
    explanation = explained(model, plan)
    assert [Constraint.TIME in stage.binding for stage in explanation.stages] == [False, True, False, False]
    assert "stage 1 sets the pace" in explanation.reasons[0]
    paces = [stage.time.micro_batch_s for stage in explanation.estimate.stages]
    for stage, pace in zip(explanation.stages, paces, strict=True):
        assert stage.wait_s == pytest.approx((max(paces) - pace) * plan.num_micro_batches)
    assert explanation.stages[0].reason == "waits for stage 1; holds the embedding"
    assert "no stage works longer: compute" in explanation.stages[1].reason
    assert "holds the head, whose logits take" in explanation.stages[3].reason


def test_a_plan_that_does_not_fit_says_what_it_lacks_and_what_would_fit():
    model, plan = a_pipeline([9, 9])
    price = estimate(model, CLUSTER, a_training(plan), plan)
    cluster = limited(min(stage.peak_memory_bytes for stage in price.stages) - 1)
    explanation = explained(model, plan, cluster)
    assert explanation.stages[0].free_bytes < 0
    assert explanation.stages[0].reason.startswith("does not fit; ")
    assert explanation.reasons[1].startswith("It does not fit: stage 0 needs ")
    assert explanation.reasons[2].endswith("and fits.")


def test_neighbours_that_fit_come_first_and_the_fastest_of_them_first():
    model, plan = a_pipeline([9, 9])
    explanation = explained(model, plan, limited(30 * 10**9))
    keys = [(each.missing_bytes > 0, each.estimate.step_time_s) for each in explanation.neighbours]
    assert keys == sorted(keys)
    assert {True, False} == {key[0] for key in keys}


def test_what_frees_memory_does_so_in_that_stage():
    model, plan = a_pipeline([9, 9])
    price = estimate(model, CLUSTER, a_training(plan), plan)
    explanation = explained(model, plan, limited(int(1.01 * max(s.peak_memory_bytes for s in price.stages))))
    stage = explanation.stages[0]
    relief = next(each for each in explanation.neighbours if each.change == stage.relief)
    assert free_bytes(relief.estimate.stages[0]) > stage.free_bytes
    assert relief.missing_bytes == 0


def test_the_sentences_hold_the_numbers_of_the_estimate():
    model, plan = a_pipeline([9, 9])
    explanation = explained(model, plan)
    price = explanation.estimate
    assert seconds(price.step_time_s) in explanation.reasons[0]
    assert percent(price.time["compute"] / price.step_time_s) in explanation.reasons[0]


def test_what_is_faster_than_a_proved_best_is_said_to_lie_outside_of_the_space():
    model, plan = a_pipeline([9, 9], recompute=Recompute.FULL)
    assert "outside the space that was searched" in explained(model, plan, best_of_space=True).reasons[2]
    assert "outside" not in explained(model, plan).reasons[2]


def test_a_plan_stands_beside_its_rival_or_else_beside_its_best_neighbour():
    model, plan = a_pipeline([9, 9])
    alone = explained(model, plan)
    assert alone.rival is not None
    assert alone.rival.second_plan_id == alone.neighbours[0].plan.id
    rival = alone.neighbours[-1].plan
    beside = explained(model, plan, rival=Rival(rival)).rival
    assert beside is not None
    assert beside.second_plan_id == rival.id
    assert beside.reason.startswith("The runner-up takes ")


def test_equal_stages_stand_once_in_the_table():
    model, plan = a_pipeline([6, 5, 5, 6], tp=1, dp=2, sequence_parallel=False, sharding=Sharding.NONE)
    rows = binding_table(explained(model, plan)).rows
    assert [row[0] for row in rows] == ["0", "1–2", "3"]


@settings(max_examples=40, deadline=None)
@given(questions(), st.integers(5, 80))
def test_a_stage_that_nothing_binds_has_room_and_waits(question, memory_gb):
    model, plan = question
    explanation = explained(model, plan, limited(memory_gb * 10**9))
    assume(explanation.estimate.fits)
    for stage in explanation.stages:
        if not stage.binding:
            assert stage.free_bytes > 0
            assert stage.wait_s > 0
    assert any(Constraint.TIME in stage.binding for stage in explanation.stages)


def test_with_room_to_spare_memory_is_said_to_forbid_nothing():
    model, plan = a_pipeline([9, 9])
    explanation = explained(model, plan)
    assert not any(each.missing_bytes for each in explanation.neighbours)
    assert explanation.reasons[1].startswith("Memory forbids no faster plan one step away; ")
    assert binding_table(explanation).rows[0][1] in ("nothing", "time")


def test_stages_of_unlike_sizes_are_not_cut_anew():
    wide, narrow = samples.strategy(dp=4), samples.strategy(dp=2)
    stages = tuple(
        Stage(
            first_device=first,
            num_devices=chosen.num_devices,
            runs=(StageRun(first_layer=layer, num_layers=4, strategy=chosen),),
        )
        for first, layer, chosen in ((0, 0, wide), (4, 4, narrow), (6, 8, narrow))
    )
    plan = Plan(global_batch_size=32, sequence_length=4096, micro_batch_size=1, num_micro_batches=8, stages=stages)
    refused = {each.change: each.rule for each in explained(samples.model(dense=10), plan).refused}
    assert refused["pp 3 → 1, dp 2 → 6"] == "equal-stages"
