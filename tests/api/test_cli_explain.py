"""`trimtab explain` and `trimtab diff` with the real search: what people and programs read."""

import pytest
from command_line import trimtab

from planner.spec.explanation import Explanation, PlanDiff
from planner.spec.shortlist import Shortlist

CLUSTER = "1x4:a100-sxm-80g"
TRAINING = ("--global-batch-size", 8, "--sequence-length", 128)


def test_without_a_plan_the_best_of_a_search_is_explained_beside_its_runner_up(tiny, shortlist_file, capsys):
    result = trimtab(capsys, "explain", tiny, CLUSTER, *TRAINING, "--json")
    assert (result.code, result.err) == (0, "")
    explanation = Explanation.model_validate_json(result.out)
    shortlist = Shortlist.model_validate_json(shortlist_file.read_text())
    assert (explanation.plan, explanation.estimate) == (shortlist.plans[0].plan, shortlist.plans[0].estimate)
    assert explanation.rival is not None
    assert explanation.rival.second_plan_id == shortlist.plans[1].plan.id


def test_a_shortlist_that_is_given_is_explained_without_a_search(tiny, shortlist_file, capsys):
    searched = trimtab(capsys, "explain", tiny, CLUSTER, *TRAINING, "--json")
    given = trimtab(capsys, "explain", tiny, CLUSTER, shortlist_file, "--json")
    found, read = Explanation.model_validate_json(searched.out), Explanation.model_validate_json(given.out)
    assert (read.stages, read.neighbours, read.rival) == (found.stages, found.neighbours, found.rival)


def test_people_read_sentences_and_tables(tiny, capsys):
    result = trimtab(capsys, "explain", tiny, CLUSTER, *TRAINING)
    assert (result.code, result.err) == (0, "")
    for title in ("why it is as it is", "What binds each stage", "One step away", "Side by side", "Certificate"):
        assert title in result.out


def test_a_plan_in_shorthand_is_explained_beside_its_best_neighbour(tiny, capsys):
    result = trimtab(capsys, "explain", tiny, CLUSTER, "pp2-ep2-mbs1", *TRAINING)
    assert (result.code, result.err) == (0, "")
    assert "Its best neighbour (" in result.out
    assert "Certificate" not in result.out


def test_options_narrow_the_search_that_is_explained(tiny, capsys):
    result = trimtab(capsys, "explain", tiny, CLUSTER, *TRAINING, "--axes", "dp", "--recompute", "none", "--json")
    assert Explanation.model_validate_json(result.out).plan.main_strategy.data_parallel_size == 4


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        (("pp2-ep2", *TRAINING, "--axes", "dp"), "--axes"),
        (("pp2-ep2", *TRAINING, "--time-limit", 5), "--time-limit"),
        ((), "--global-batch-size"),
        (("pp2-ep2",), "--global-batch-size"),
        (("pp3", *TRAINING), "plan"),
    ],
)
def test_what_cannot_be_explained_is_one_line_with_the_field(tiny, capsys, arguments, field):
    result = trimtab(capsys, "explain", tiny, CLUSTER, *arguments)
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith(f"trimtab: {field}: ")
    assert result.err.count("\n") == 1


def test_two_plans_stand_side_by_side(tiny, capsys):
    result = trimtab(capsys, "diff", tiny, CLUSTER, "pp2-ep2-mbs1", "ep4-mbs1-zero1", *TRAINING)
    assert (result.code, result.err) == (0, "")
    assert "Side by side" in result.out
    assert "The second plan takes " in result.out.splitlines()[-1]


def test_programs_read_the_diff_as_json(tiny, shortlist_file, capsys):
    result = trimtab(capsys, "diff", tiny, CLUSTER, shortlist_file, "pp2-ep2-mbs1", *TRAINING, "--json")
    assert (result.code, result.err) == (0, "")
    diff = PlanDiff.model_validate_json(result.out)
    best = Shortlist.model_validate_json(shortlist_file.read_text()).plans[0]
    assert (diff.first_plan_id, diff.first_step_time_s) == (best.plan.id, best.estimate.step_time_s)


def test_plans_of_unlike_models_cannot_stand_side_by_side(tiny, shortlist_file, capsys):
    result = trimtab(capsys, "diff", "gpt2", CLUSTER, shortlist_file, shortlist_file)
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("trimtab: plan.stages: ")
