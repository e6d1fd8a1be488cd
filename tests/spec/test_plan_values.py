import copy
import json
import subprocess
import sys

import pytest
from hypothesis import given
from spec_samples import TWO_STAGES, plans

from planner.spec.errors import InputError
from planner.spec.parse import parse, read_json
from planner.spec.plan import Plan

GOLDEN_ID = "f1ff91be151bb905"


def changed(path, value):
    """The sample plan's data with one value replaced (or removed, for ...)."""
    data = copy.deepcopy(TWO_STAGES)
    at = data
    for step in path[:-1]:
        at = at[step]
    if value is ...:
        del at[path[-1]]
    else:
        at[path[-1]] = value
    return data


def problem(data):
    with pytest.raises(InputError) as caught:
        parse(Plan, data, "plan")
    (found,) = caught.value.problems
    return found


STRATEGY = ("stages", 0, "runs", 0, "strategy")


@pytest.mark.parametrize(
    ("path", "value", "field", "message"),
    [
        (("stages",), [], "plan.stages", "at least 1"),
        (("stages", 0, "runs"), [], "plan.stages.0.runs", "at least 1"),
        (("stages", 1, "first_device"), 5, "plan.stages[1].first_device", "must be 4"),
        (("stages", 0, "first_device"), 1, "plan.stages[0].first_device", "must be 0"),
        (("stages", 0, "num_devices"), 2, "plan.stages.0.runs[0]", "multiply to 4 devices, the stage has 2"),
        (("stages", 1, "runs", 0, "first_layer"), 4, "plan.stages[1]", "layer 3 must follow here"),
        (("stages", 0, "runs", 0, "num_layers"), 3, "plan.stages[0]", "must hold 1 unbroken stretches"),
        (("global_batch_size",), 17, "plan.global_batch_size", "2 x 2 x 4 = 16"),
        (("num_micro_batches",), 0, "plan.num_micro_batches", "greater than or equal to 1"),
        (("schedule",), {"kind": "interleaved"}, "plan.schedule.virtual_stages", "must be at least 2"),
        (("schedule",), {"virtual_stages": 2}, "plan.schedule.virtual_stages", "must be at least 2"),
        (("schedule",), {"kind": "interleaved", "virtual_stages": 2}, "plan.stages[0]", "2 unbroken stretches"),
        (("schema_version",), 2, "plan.schema_version", "1"),
        (("colour",), "red", "plan.colour", "not a known field"),
        (("sequence_length",), ..., "plan.sequence_length", "is required"),
        ((*STRATEGY, "axes"), [["dp", 2], ["dp", 2]], "plan.stages.0.runs.0.strategy.axes", "each kind may stand once"),
    ],
)
def test_an_impossible_plan_is_refused_at_its_field(path, value, field, message):
    found = problem(changed(path, value))
    assert found.field == field
    assert message in found.message


def test_data_parallel_sizes_of_all_stages_must_divide_the_micro_batch():
    data = changed(("stages", 1, "runs", 0, "strategy"), {"axes": [["dp", 4]]})
    data |= {"micro_batch_size": 1, "num_micro_batches": 8}
    assert "data-parallel size 4 must divide the 2 samples" in problem(data).message


def test_one_stage_cannot_be_interleaved():
    data = changed(("stages",), TWO_STAGES["stages"][:1])
    data["schedule"] = {"kind": "interleaved", "virtual_stages": 2}
    assert "interleaving needs at least 2 stages" in problem(data).message


def test_interleaving_goes_in_rounds_of_stages():
    """Megatron's order of passes would wait forever with some remainders, and take far longer with others."""
    data = TWO_STAGES | {"num_micro_batches": 3, "schedule": {"kind": "interleaved", "virtual_stages": 2}}
    assert "rounds of 2 stages" in problem(data).message


def test_runs_that_could_be_one_are_refused():
    data = changed(("stages", 0, "runs", 1, "strategy"), TWO_STAGES["stages"][0]["runs"][0]["strategy"])
    assert "goes on with the strategy of the run before" in problem(data).message


def test_the_sample_plan_reads_as_it_is_meant():
    plan = parse(Plan, TWO_STAGES)
    assert (plan.num_layers, plan.num_devices, plan.samples_per_micro_batch) == (6, 8, 4)
    assert [layer for stage in plan.stages for layer, _ in stage.strategies()] == list(range(6))
    assert plan.summary == "pp2 · tp4 sp · ep2 edp2 · mbs4 x4 · 3 strategies"


def test_the_id_of_a_plan_never_changes():
    """An id that was stored, or printed in a log, must find the same plan years later."""
    assert parse(Plan, TWO_STAGES).id == GOLDEN_ID


def test_the_id_does_not_depend_on_the_process():
    script = "import sys, json; from planner.spec.plan import Plan; print(Plan(**json.load(sys.stdin)).id)"
    command = [sys.executable, "-R", "-c", script]
    ids = {
        subprocess.run(command, input=json.dumps(TWO_STAGES), capture_output=True, text=True, check=True).stdout.strip()
        for _ in range(2)
    }
    assert ids == {GOLDEN_ID}


def test_the_id_does_not_depend_on_the_order_of_keys_nor_on_written_defaults():
    backwards = dict(reversed(TWO_STAGES.items()))
    assert parse(Plan, backwards).id == GOLDEN_ID
    assert parse(Plan, TWO_STAGES | {"schedule": {"kind": "1f1b", "virtual_stages": 1}}).id == GOLDEN_ID


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("sequence_length",), 256),
        (("schedule",), {"kind": "gpipe"}),
        (("schedule",), {"kind": "zero_bubble"}),
        ((*STRATEGY, "axes"), [["tp", 2], ["dp", 2]]),
        ((*STRATEGY, "recompute"), "selective"),
        ((*STRATEGY, "offload"), True),
        (("stages", 0, "runs", 1, "strategy", "experts"), {"expert_parallel_size": 4}),
    ],
)
def test_the_id_changes_with_the_content(path, value):
    assert parse(Plan, changed(path, value)).id != GOLDEN_ID


def test_an_id_that_does_not_match_the_content_is_refused():
    edited = parse(Plan, TWO_STAGES).model_dump(mode="json") | {"sequence_length": 256}
    found = problem(edited)
    assert (found.field, "does not match the content" in found.message) == ("plan.id", True)
    del edited["id"]
    assert parse(Plan, edited).sequence_length == 256


@given(plans())
def test_a_plan_survives_json_with_its_id(plan):
    back = parse(Plan, read_json(plan.model_dump_json(), "plan"))
    assert back == plan
    assert (back.id, back.summary, hash(back.id)) == (plan.id, plan.summary, hash(plan.id))


@given(plans(), plans())
def test_equal_ids_mean_equal_plans(one, other):
    assert (one.id == other.id) == (one == other)


@given(plans())
def test_every_layer_stands_once_and_on_the_devices_of_its_stage(plan):
    layers = sorted(layer for stage in plan.stages for layer, _ in stage.strategies())
    assert layers == list(range(plan.num_layers))
    for stage in plan.stages:
        assert len(stage.pieces) == plan.schedule.virtual_stages
        assert all(strategy.num_devices == stage.num_devices for _, strategy in stage.strategies())


def test_a_copy_with_other_fields_is_checked_and_has_an_id_of_its_own():
    plan = parse(Plan, TWO_STAGES)
    assert plan.id
    longer = plan.model_copy(update={"sequence_length": plan.sequence_length * 2})
    assert longer.id == Plan.model_validate_json(longer.model_dump_json()).id != plan.id
    with pytest.raises(ValueError, match="sequence_length"):
        plan.model_copy(update={"sequence_length": 0})
