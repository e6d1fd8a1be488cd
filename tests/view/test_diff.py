"""Two plans side by side: every difference of the prices is there, and the sentence names what matters."""

import pytest
import view_samples as samples

from planner.cost import estimate
from planner.spec.errors import InputError
from planner.spec.explanation import PlanDiff
from planner.spec.plan import Schedule, ScheduleKind, Stage, StageRun
from planner.spec.strategy import Recompute, Sharding
from planner.spec.training import Training
from planner.view import diff_table, plan_diff
from planner.view.differences import differences
from profiles import cluster_from_shorthand, resolve_cluster

CLUSTER = resolve_cluster(cluster_from_shorthand("2x4:a100-sxm-80g"))
MODEL = samples.model(dense=14)


def priced(layers, schedule=None, num_micro_batches=16, **strategy):
    """A plan of dense blocks on eight devices, with its price."""
    usual = {"tp": 2, "dp": 4 // len(layers), "sequence_parallel": True}
    plan = samples.even_plan(layers, samples.strategy(**(usual | strategy)), schedule, num_micro_batches)
    training = Training(global_batch_size=plan.global_batch_size, sequence_length=plan.sequence_length)
    return plan, estimate(MODEL, CLUSTER, training, plan)


ONE = priced([16], sharding=Sharding.OPTIMIZER)
TWO = priced([8, 8], sharding=Sharding.OPTIMIZER, num_micro_batches=32)


def test_the_parts_sum_to_both_step_times_and_both_peaks():
    diff = plan_diff(MODEL, ONE, TWO)
    assert sum(change.first_s for change in diff.time) == pytest.approx(ONE[1].step_time_s)
    assert sum(change.second_s for change in diff.time) == pytest.approx(TWO[1].step_time_s)
    peaks = [max(stage.peak_memory_bytes for stage in price.stages) for _, price in (ONE, TWO)]
    assert [sum(c.first_bytes for c in diff.memory), sum(c.second_bytes for c in diff.memory)] == peaks


def test_a_plan_differs_from_itself_in_nothing():
    diff = plan_diff(MODEL, ONE, ONE)
    assert diff.differences == ()
    assert diff.reason == "The second plan takes as long as the first plan; its fullest stage needs as much memory"


def test_the_other_way_round_all_signs_turn():
    there, back = plan_diff(MODEL, ONE, TWO), plan_diff(MODEL, TWO, ONE)
    assert there.step_time_change_s == pytest.approx(-back.step_time_change_s)
    assert [c.change_bytes for c in there.memory] == [-c.change_bytes for c in back.memory]
    assert [(d.first, d.second) for d in there.differences] == [(d.second, d.first) for d in back.differences]


def test_the_sentence_names_the_part_that_changed_most_and_what_the_memory_is_for():
    plain, again = priced([16]), priced([16], recompute=Recompute.FULL)
    diff = plan_diff(MODEL, plain, again, ("it", "the careful plan"))
    assert diff.reason.startswith("The careful plan takes ")
    assert " more recompute" in diff.reason
    assert " less, mostly for activations" in diff.reason


def test_choices_that_differ_are_named_and_those_that_agree_are_not():
    schedule = Schedule(kind=ScheduleKind.INTERLEAVED, virtual_stages=2)
    diff = plan_diff(MODEL, TWO, priced([4, 4, 4, 4], schedule, 32, dp=2, sharding=Sharding.OPTIMIZER))
    assert [(d.choice, d.first, d.second) for d in diff.differences] == [("schedule", "1F1B", "interleaved vpp2")]


def test_layers_that_choose_differently_are_counted_where_words_alone_do_not_tell():
    def mixed(careful):
        strategies = samples.strategy(tp=8, recompute=Recompute.FULL), samples.strategy(tp=8)
        spans = (0, careful), (careful, 16 - careful)
        runs = [
            StageRun(first_layer=first, num_layers=count, strategy=strategy)
            for (first, count), strategy in zip(spans, strategies, strict=True)
        ]
        whole = samples.even_plan([16], strategies[1])
        return whole.model_copy(update={"stages": (Stage(first_device=0, num_devices=8, runs=tuple(runs)),)})

    [found] = differences(MODEL, mixed(5), mixed(6))
    assert (found.choice, found.first) == ("recompute", "none (10 layers)/full (4 layers)")
    assert found.second == "none (9 layers)/full (5 layers)"


def test_plans_of_unlike_batches_are_compared_for_as_many_tokens():
    half = priced([16], sharding=Sharding.OPTIMIZER, num_micro_batches=8)
    diff = plan_diff(MODEL, ONE, half)
    assert diff.second_steps == 2.0
    assert diff.second_step_time_s == pytest.approx(2.0 * half[1].step_time_s)
    assert "for as many tokens" in diff.reason
    assert sum(change.second_s for change in diff.time) == pytest.approx(diff.second_step_time_s)


def test_a_plan_that_lacks_memory_is_said_to():
    plan, price = TWO
    tight = CLUSTER.model_copy(update={"memory_limit_bytes": min(s.peak_memory_bytes for s in price.stages) - 1})
    training = Training(global_batch_size=plan.global_batch_size, sequence_length=plan.sequence_length)
    lacking = estimate(MODEL, tight, training, plan)
    diff = plan_diff(MODEL, ONE, (plan, lacking))
    assert diff.second_missing_bytes == max(stage.missing_bytes for stage in lacking.stages) > 0
    assert ", and lacks " in diff.reason


def test_the_table_has_every_difference_that_can_be_read():
    diff = plan_diff(MODEL, ONE, TWO)
    table = diff_table(diff)
    assert {len(row) for row in table.rows} == {len(table.columns)}
    first = {row[0].strip() for row in table.rows}
    assert {"pp", "dp", "time of a step", "pipeline bubble", "peak of memory", "weights"} <= first


def test_prices_that_do_not_belong_together_are_refused():
    with pytest.raises(InputError, match=r"estimate\.plan_id"):
        plan_diff(MODEL, (ONE[0], TWO[1]), TWO)
    other = TWO[1].model_copy(update={"workload": "skewed"})
    with pytest.raises(InputError, match=r"estimate\.workload"):
        plan_diff(MODEL, ONE, (TWO[0], other))
    with pytest.raises(InputError, match=r"plan\.stages"):
        plan_diff(samples.model(dense=3), ONE, TWO)


def test_a_diff_survives_json():
    diff = plan_diff(MODEL, ONE, TWO)
    assert PlanDiff.model_validate_json(diff.model_dump_json()) == diff
