import math
import re

import pytest

from planner.spec.decision import Decision
from planner.spec.errors import InputError
from planner.spec.model import Model
from planner.spec.parse import parse, read_json
from planner.spec.request import ClusterRequest, ModelRequest, Options, SearchRequest
from planner.spec.training import Training
from planner.spec.workload import Scenario

TRAINING = {"global_batch_size": 64, "sequence_length": 2048}
CLUSTER = {"nodes": 1, "devices_per_node": 8, "device": "h100"}
LINK = {"bandwidth_bytes_per_s": 1e9, "latency_s": 1e-5}
KEEP = {
    "window": 1,
    "action": "keep",
    "plan_id": "abc",
    "imbalance_before": 1.5,
    "imbalance_after": 1.5,
    "imbalance_bound": 1.0,
    "reason": "nothing to gain",
}
PLACEMENT = {"layers": [[0, 1]], "num_ranks": 2}


def scenario(name, probability):
    return {"workload": {"name": name}, "probability": probability}


def problems(kind, data, field=""):
    with pytest.raises(InputError) as caught:
        parse(kind, data, field)
    return caught.value.problems


@pytest.mark.parametrize("number", [0, -1, 2.0, "8", True, math.nan, math.inf, None, 2**53])
def test_a_count_is_a_whole_number_of_at_least_one(number):
    (problem,) = problems(ClusterRequest, CLUSTER | {"nodes": number}, "cluster")
    assert problem.field == "cluster.nodes"


@pytest.mark.parametrize("size", [0, -8, "min", 8.0, True, math.nan])
def test_a_batch_size_is_a_count_or_max(size):
    assert {problem.field for problem in problems(Training, TRAINING | {"global_batch_size": size})} == {
        "global_batch_size"
    }
    assert parse(Training, TRAINING | {"global_batch_size": "max"}).global_batch_size == "max"


@pytest.mark.parametrize("data", [{}, {"preset": "a", "hf_config": {}}, {"preset": "a", "spec": None, "hf_config": {}}])
def test_a_model_is_asked_for_in_exactly_one_way(data):
    (problem,) = problems(ModelRequest, data)
    assert "give exactly one of preset, hf_config and spec" in problem.message


def test_levels_and_links_exclude_each_other():
    levels = [{"name": "node", "num_devices": 8, "link": LINK}]
    (problem,) = problems(ClusterRequest, CLUSTER | {"levels": levels, "intra_node": LINK})
    assert problem.field == "levels"


def test_scenarios_have_probabilities_that_sum_to_one_and_names_of_their_own():
    (problem,) = problems(Options, {"scenarios": [scenario("a", 0.5), scenario("b", 0.4)]})
    assert (problem.field, "they sum to 0.9" in problem.message) == ("scenarios", True)
    (problem,) = problems(Options, {"scenarios": [scenario("a", 0.5), scenario("a", 0.5)]})
    assert (problem.field, "a name of its own" in problem.message) == ("scenarios[1].name", True)


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({}, "balanced"),
        ({"global_batch_size": 512, "sequence_length": 8192}, "batch 512, length 8192"),
        ({"capacity_factor": 1.25, "top_k": 1}, "capacity 1.25, top-k 1"),
        ({"capacity_factor": "dropless"}, "dropless"),
        ({"workload": {"expert_shares": [[0.5, 0.5]]}, "capacity_factor": 2}, "custom, capacity 2"),
        ({"name": "night", "top_k": 1}, "night"),
    ],
)
def test_a_scenario_is_called_by_what_differs_from_the_question(given, name):
    made = parse(Scenario, given | {"probability": 1})
    assert made.name == name
    assert Scenario.model_validate_json(made.model_dump_json()) == made


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"top_k": 0}, "top_k"),
        ({"capacity_factor": 0}, "capacity_factor"),
        ({"capacity_factor": "all"}, "capacity_factor"),
        ({"global_batch_size": 2**30}, "global_batch_size"),
        ({"sequence_length": 1.5}, "sequence_length"),
        ({"probability": 0}, "probability"),
        ({"batch": 4}, "batch"),
        ({"name": ""}, "name"),
    ],
)
def test_a_scenario_that_cannot_be_names_one_field(given, field):
    (problem,) = problems(Scenario, {"probability": 1} | given)
    assert problem.field == field


def test_a_name_that_is_made_of_too_long_a_one_is_refused_at_once():
    workload = {"name": "w" * 200, "expert_shares": [[1.0]]}
    (problem,) = problems(Scenario, {"probability": 1, "workload": workload, "top_k": 1})
    assert "200 characters" in problem.message


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"shortlist_size": 0}, "options.shortlist_size"),
        ({"shortlist_size": 65}, "options.shortlist_size"),
        ({"target": "pytorch"}, "options.target"),
        ({"axes": ["dp", "xp"]}, "options.axes.1"),
        ({"time_limit_s": 0}, "options.time_limit_s"),
        ({"time_limit_s": math.inf}, "options.time_limit_s"),
        ({"shortlist": 4}, "options.shortlist"),
    ],
)
def test_a_wrong_option_is_an_error_that_names_its_path(options, field):
    request = {"model": {"preset": "mixtral"}, "cluster": CLUSTER, "training": TRAINING, "options": options}
    (problem,) = problems(SearchRequest, request)
    assert problem.field == field


def test_every_wrong_field_is_named_at_once():
    request = {"model": {"preset": "mixtral"}, "cluster": CLUSTER | {"nodes": 0}, "training": {}}
    fields = [problem.field for problem in problems(SearchRequest, request)]
    assert fields == ["cluster.nodes", "training.global_batch_size", "training.sequence_length"]


@pytest.mark.parametrize("text", ['{"nodes": NaN}', '{"nodes": Infinity}', '{"nodes": -Infinity}'])
def test_json_with_numbers_that_json_does_not_have_is_refused(text):
    with pytest.raises(InputError, match="is no JSON number"):
        read_json(text, "cluster")


def test_a_number_too_large_for_a_float_is_refused():
    data = read_json('{"nodes": 1, "devices_per_node": 1, "device": "h100", "intra_node": '
                     '{"bandwidth_bytes_per_s": 1e999, "latency_s": 0}}', "cluster")  # fmt: skip
    (problem,) = problems(ClusterRequest, data)
    assert problem.field == "intra_node.bandwidth_bytes_per_s"


def test_a_decision_to_keep_has_no_placement_and_one_to_rebalance_has_one():
    assert parse(Decision, KEEP).placement is None
    assert "must be set for rebalance" in problems(Decision, KEEP | {"action": "rebalance"})[0].message
    assert "absent for keep" in problems(Decision, KEEP | {"placement": PLACEMENT})[0].message
    assert parse(Decision, KEEP | {"action": "rebalance", "placement": PLACEMENT}).placement.num_ranks == 2


@pytest.mark.parametrize(
    ("change", "field"),
    [({"imbalance_before": 0.9}, "imbalance_before"), ({"reason": ""}, "reason"), ({"cost_s": -1}, "cost_s")],
)
def test_a_decision_without_reason_or_with_impossible_figures_is_refused(change, field):
    assert problems(Decision, KEEP | change)[0].field == field


@pytest.mark.parametrize("field", ["axes", "sharding", "recompute", "schedules"])
def test_a_search_may_use_at_least_one_of_each(field):
    (problem,) = problems(Options, {field: []})
    assert (problem.field, problem.message) == (field, "must have at least 1 entry")


@pytest.mark.parametrize(
    ("layer", "field", "message"),
    [
        ({"kind": "blok"}, "runs.0.layer.kind", "must be 'embedding' or .* got 'blok'"),
        ({}, "runs.0.layer.kind", "is required"),
    ],
)
def test_a_form_that_there_is_not_is_told_by_the_field_that_says_it(layer, field, message):
    (problem,) = problems(Model, {"name": "a", "hidden_size": 64, "runs": [{"layer": layer}]})
    assert problem.field == field and re.fullmatch(message, problem.message)


def test_text_with_nul_is_told_without_a_pattern():
    (problem,) = problems(Model, {"name": "a\0b", "hidden_size": 64, "runs": []})[:1]
    assert (problem.field, problem.message) == ("name", "must not hold the character NUL, got 'a\\x00b'")
