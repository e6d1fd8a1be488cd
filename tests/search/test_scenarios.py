"""Shortlists over circumstances that differ from the question: load, capacity, gate, batch, sequence length."""

from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_questions import MIB, a_cluster, a_model, a_training

from planner.cost import estimate
from planner.search import search
from planner.search.elsewhere import Aim
from planner.search.prices import Prices
from planner.search.question import Question, carried, under
from planner.search.scenarios import beside_the_usual, standard_scenarios
from planner.spec.errors import InputError, NoPlanFitsError
from planner.spec.model import Embedding, LayerRun
from planner.spec.plan import Schedule, ScheduleKind
from planner.spec.request import Options, Target
from planner.spec.workload import BALANCED, Scenario, Workload

HOT = Workload(name="hot", expert_shares=((0.65, *(0.05,) * 7),))


def equally_likely(*changes):
    """The question as it is, and with each of the changes."""
    every = ({}, *changes)
    return Options(scenarios=tuple(Scenario(probability=1 / len(every), **each) for each in every))


def best_for(found, name):
    return next(entry for entry in found.plans if name in entry.best_for)


def step_under(question, plan, **changes):
    """The step of a plan under changed circumstances, with the plan changed by hand; inf where it does not fit."""
    asked = under(question, Scenario(probability=1, **changes))
    batch = asked.training.global_batch_size
    update = {"sequence_length": asked.training.sequence_length}
    if batch != "max":
        update |= {"global_batch_size": batch, "num_micro_batches": batch // plan.samples_per_micro_batch}
    price = estimate(*asked, plan.model_copy(update=update), changes.get("workload", BALANCED))
    return price.step_time_s if price.fits else inf


@pytest.mark.parametrize("memory", [30, 120])
def test_a_dense_model_is_cut_otherwise_at_a_length_that_the_user_names(memory):
    question = Question(a_model(4), a_cluster(4, memory * MIB), a_training(8))
    found = search(*question, equally_likely({"sequence_length": 4096}))
    short, long = best_for(found, "balanced"), best_for(found, "length 4096")
    assert short.rank == 1
    assert short.plan.main_strategy.cp == 1 < long.plan.main_strategy.cp
    assert found.proven_in == ("balanced", "length 4096")
    alone = search(*question._replace(training=question.training.model_copy(update={"sequence_length": 4096})))
    assert long.scenario_step_time_s["length 4096"] == pytest.approx(alone.plans[0].estimate.step_time_s, rel=1e-9)
    assert long.plan.sequence_length == 256, "members are plans of one job, with the length of the question"


def expert_parallel_size(plan):
    [size] = {run.strategy.experts.expert_parallel_size for run in plan.stages[0].runs if run.strategy.experts}
    return size


def test_an_moe_model_is_cut_otherwise_under_another_gate_and_capacity():
    question = Question(a_model(2, 256, 8), a_cluster(4, 60 * MIB, 1e9), a_training(16))
    found = search(*question, equally_likely({"top_k": 8}, {"capacity_factor": 0.25}))
    names = ("balanced", "top-k 8", "capacity 0.25")
    assert found.proven_in == names
    plans = [best_for(found, name).plan for name in names]
    assert len({plan.id for plan in plans}) == 3
    assert expert_parallel_size(plans[0]) > expert_parallel_size(plans[1]), (
        "more copies of tokens make sending them dear"
    )
    assert best_for(found, "capacity 0.25").out_of_memory_in == ("balanced", "top-k 8")


def test_regrets_are_what_estimate_says_of_the_plans_with_other_batches_and_lengths():
    question = Question(a_model(4), a_cluster(4, 60 * MIB), a_training(8))
    changes = {"length 4096": {"sequence_length": 4096}, "batch 16": {"global_batch_size": 16}, "balanced": {}}
    found = search(*question, equally_likely(changes["length 4096"], changes["batch 16"]))
    for name, change in changes.items():
        steps = {entry.rank: step_under(question, entry.plan, **change) for entry in found.plans}
        least = min(steps.values())
        for entry in found.plans:
            if steps[entry.rank] == inf:
                assert name in entry.out_of_memory_in
                continue
            assert entry.scenario_step_time_s[name] == pytest.approx(steps[entry.rank], rel=1e-12)
            assert entry.scenario_regret_ratio[name] == pytest.approx(steps[entry.rank] / least - 1, abs=1e-9)


@settings(max_examples=25, deadline=None)
@given(
    experts=st.sampled_from([0, 8]),
    memory=st.integers(12, 90),
    lengths=st.sets(st.sampled_from([64, 128, 1024, 2048]), max_size=2),
    batches=st.sets(st.integers(1, 24), max_size=2),
    gate=st.sampled_from([None, 1, 8]),
    capacity=st.sampled_from([None, 0.5, 1.5]),
    size=st.integers(1, 4),
)
def test_whatever_the_scenarios_the_shortlist_keeps_its_promises(
    experts, memory, lengths, batches, gate, capacity, size
):
    question = Question(a_model(2, experts=experts), a_cluster(4, memory * MIB), a_training(8))
    changes = [*({"sequence_length": n} for n in sorted(lengths)), *({"global_batch_size": n} for n in sorted(batches))]
    if experts:
        changes += [{"workload": HOT}]
        changes += [{key: value} for key, value in (("top_k", gate), ("capacity_factor", capacity)) if value]
    options = equally_likely(*changes).model_copy(update={"shortlist_size": size})
    try:
        plain = search(*question, equally_likely())
    except NoPlanFitsError:
        with pytest.raises(NoPlanFitsError):
            search(*question, options)
        return
    found = search(*question, options)
    assert found.plans[0].plan == plain.plans[0].plan
    assert found.plans[0].estimate == plain.plans[0].estimate
    assert sum(scenario.probability for scenario in found.scenarios) == pytest.approx(1)
    kept = [scenario.name for scenario in found.scenarios]
    assert sorted([*kept, *found.without_plan]) == sorted(scenario.name for scenario in options.scenarios)
    for name in kept:
        fitting = [entry for entry in found.plans if name in entry.scenario_step_time_s]
        assert bool(fitting) == any(name in entry.best_for for entry in found.plans)
    for entry in found.plans:
        assert entry.plan.global_batch_size == 8 and entry.plan.sequence_length == 256
        losses = entry.scenario_regret_ratio
        assert all(loss >= 0 for loss in losses.values())
        assert entry.worst_regret_ratio == max(losses.values(), default=0)
        assert entry.regret_ratio <= entry.worst_regret_ratio * (1 + 1e-12)
        assert sorted([*losses, *entry.out_of_memory_in, *entry.cannot_run_in]) == sorted(kept)
        assert set(losses) == set(entry.scenario_step_time_s) >= set(entry.best_for)


def test_a_batch_that_a_plan_cannot_cut_is_said_and_one_that_can_is_found():
    question = Question(a_model(4), a_cluster(4, 120 * MIB), a_training(8))
    found = search(*question, equally_likely({"global_batch_size": 3}))
    assert found.plans[0].cannot_run_in == ("batch 3",)
    other = best_for(found, "batch 3")
    assert carried(other.plan, under(question, Scenario(probability=1, global_batch_size=3)), Target.ANY)


def test_with_the_batch_of_largest_throughput_a_scenario_may_name_one():
    training = a_training("max").model_copy(update={"max_global_batch_size": 64})
    options = equally_likely({"global_batch_size": 4}).model_copy(update={"shortlist_size": 2})
    found = search(a_model(2), a_cluster(4, 60 * MIB), training, options)
    assert found.plans[0].plan.global_batch_size == 64
    small = best_for(found, "batch 4")
    exact = search(a_model(2), a_cluster(4, 60 * MIB), a_training(4)).plans[0].estimate.step_time_s
    assert small.scenario_step_time_s["batch 4"] == pytest.approx(exact, rel=1e-9)


@pytest.mark.parametrize("axes", [("dp",), ("dp", "tp")])
def test_a_scenario_whose_batch_nothing_cuts_is_named(axes):
    options = equally_likely({"global_batch_size": 81}).model_copy(update={"axes": axes, "max_micro_batch_size": 2})
    found = search(a_model(2), a_cluster(4, 60 * MIB), a_training(8), options)
    assert found.without_plan == (() if "tp" in axes else ("batch 81",))


def test_a_scenario_in_which_nothing_fits_is_named():
    found = search(a_model(2), a_cluster(2, 30 * MIB), a_training(4), equally_likely({"sequence_length": 2**16}))
    assert found.without_plan == ("length 65536",)
    assert [(scenario.name, scenario.probability) for scenario in found.scenarios] == [("balanced", 1.0)]


def test_what_a_target_cannot_do_with_another_batch_is_no_member_of_that_scenario():
    training = a_training(8)
    question = Question(a_model(4), a_cluster(4, 120 * MIB), training)
    piped = search(*question, Options(axes=("pp",), target="torchtitan")).plans[0].plan
    assert len(piped.stages) == 4
    few = under(question, Scenario(probability=1, global_batch_size=piped.samples_per_micro_batch))
    assert carried(piped, few, Target.ANY) is not None
    assert carried(piped, few, Target.TORCHTITAN) is None


def test_an_interleaved_plan_goes_in_rounds_under_another_batch_too():
    question = Question(a_model(8), a_cluster(2, 400 * MIB), a_training(8))
    plans = [entry.plan for entry in search(*question, Options(axes=("pp",), schedules=("interleaved",))).plans]
    plan = next(plan for plan in plans if plan.schedule.kind is ScheduleKind.INTERLEAVED)
    assert plan.schedule != Schedule()
    size = plan.samples_per_micro_batch
    assert carried(plan, under(question, Scenario(probability=1, global_batch_size=3 * size)), Target.ANY) is None
    even = carried(plan, under(question, Scenario(probability=1, global_batch_size=4 * size)), Target.ANY)
    assert even is not None and even.num_micro_batches == 4


def test_a_plan_is_priced_once_for_all_scenarios():
    question = Question(a_model(2), a_cluster(4, 60 * MIB), a_training(8))
    plan = search(*question).plans[0].plan
    prices = Prices(question, [Aim(question, BALANCED)], Target.ANY)
    assert prices.of(plan) is prices.of(plan)


@pytest.mark.parametrize(
    ("experts", "change", "field", "says"),
    [
        (8, {"top_k": 9}, "top_k", "at most the 8 experts"),
        (8, {"workload": {"expert_shares": [[0.5, 0.5]]}}, "workload.expert_shares", "8 experts"),
        (8, {"workload": {"expert_shares": [[0.125] * 8] * 3}}, "workload.expert_shares", "1 or 2 rows"),
        (0, {"top_k": 1}, "top_k", "no experts"),
        (0, {"capacity_factor": 1.25}, "capacity_factor", "no experts"),
        (0, {"capacity_factor": "dropless"}, "capacity_factor", "no experts"),
        (0, {"workload": {"expert_shares": [[1.0]]}}, "workload.expert_shares", "no experts"),
        (0, {"sequence_length": 1025}, "sequence_length", "1024 learned positions"),
    ],
)
def test_a_scenario_that_cannot_be_is_refused_with_its_field(experts, change, field, says):
    model = a_model(2, experts=experts)
    embedding = LayerRun(layer=Embedding(vocab_size=1000, num_positions=1024))
    model = model.model_copy(update={"runs": (embedding, *model.runs[1:])})
    options = equally_likely(change).model_copy(update={"axes": ("dp", "ep")})
    with pytest.raises(InputError) as caught:
        search(model, a_cluster(4, 60 * MIB), a_training(8), options)
    [problem] = caught.value.problems
    assert problem.field == f"options.scenarios[1].{field}"
    assert says in problem.message


def test_capacity_can_be_set_and_lifted():
    training = a_training(8).model_copy(update={"capacity_factor": 1.0})
    question = Question(a_model(2, experts=8), a_cluster(4, 60 * MIB), training)
    assert under(question, Scenario(probability=1)) == question
    assert under(question, Scenario(probability=1, capacity_factor=2)).training.capacity_factor == 2
    assert under(question, Scenario(probability=1, capacity_factor="dropless")).training.capacity_factor is None


def test_named_scenarios_stand_beside_the_usual_ones_as_likely_as_all_of_these_together():
    model = a_model(2, experts=8)
    others = [Scenario(probability=1, top_k=1), Scenario(probability=1, top_k=4)]
    every = beside_the_usual(model, others)
    assert [scenario.name for scenario in every] == ["balanced", "zipf-0.3", "zipf-0.8", "top-k 1", "top-k 4"]
    usual = [scenario.probability for scenario in standard_scenarios(model)]
    assert [scenario.probability for scenario in every] == pytest.approx([*(p / 3 for p in usual), 1 / 3, 1 / 3])
