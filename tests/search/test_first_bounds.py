"""What a family takes at least, told before any table is made, against plans of the family."""

import pytest
from every_plan import Plans, cuts
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from random_questions import Question, questions, workloads

from planner.cost import estimate
from planner.cost.part import conditions
from planner.search import search
from planner.search.families import Family, families
from planner.search.instances import Instances
from planner.search.pricing import Pricing
from planner.search.removed import Removed
from planner.search.space import Space
from planner.spec.errors import InputError
from planner.spec.plan import ScheduleKind
from planner.spec.request import ALL_AXES, Options
from planner.spec.training import Training
from planner.spec.workload import BALANCED
from profiles import cluster_from_shorthand, model_preset, resolve_cluster

WIDE = Options(axes=ALL_AXES, schedules=tuple(ScheduleKind), max_virtual_stages=3, max_micro_batch_size=8)
SIZES = st.sampled_from([(1,), (2,), (3,), (4,), (2, 4), (2, 6), (2, 4, 8)])


def instances_of(question: Question, options: Options, found: list[Family], workload=BALANCED) -> Instances:
    model, cluster, training = question
    pricing = Pricing(model, conditions(model.hidden_size, cluster, training), workload)
    return Instances(Space(cluster, training, options, Removed()), pricing, found)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_no_plan_of_a_family_is_faster_than_what_its_layers_compute(data):
    question = data.draw(questions(st.integers(1, 5), SIZES, st.just(1000), st.sampled_from([2, 6, 8])))
    workload = data.draw(workloads(question.model))
    try:
        plans = Plans(question, WIDE)
    except InputError:
        reject()
    instances = instances_of(question, WIDE, plans.families, workload)
    host_s = question.cluster.stack.step_host_s
    for family in data.draw(st.lists(st.sampled_from(plans.families), min_size=1, max_size=4, unique=True)):
        least_s = instances.at_least_s(family)
        allowed = [plans.strategies(layer, family) for layer in range(len(question.model.layers))]
        if not all(allowed):
            assert least_s == float("inf")
            continue
        # One matrix for embedding and head wants one cut; the rest is free.
        chosen = [data.draw(st.sampled_from(each)) for each in allowed]
        chosen = [chosen[0] if chosen[0] in each else one for one, each in zip(chosen, allowed, strict=True)]
        stages = data.draw(st.sampled_from(list(cuts(question.model, family))))
        try:
            price = estimate(*question, plans.plan(family, stages, chosen), workload)
        except InputError:
            continue
        assert least_s + host_s <= price.step_time_s * (1 + 1e-12)


@pytest.mark.parametrize(
    ("name", "shorthand", "batch"),
    [
        ("llama-2-7b", "1x8:a100-sxm-80g", 64),
        ("gpt-3-175b", "8x8:a100-sxm-80g", 256),
        ("mixtral-8x7b", "4x8:h100-sxm-80g", 256),
        ("bert-huge", "1x8:a100-sxm-40g", 64),
        ("t5-large", "2x8:a100-sxm-80g", 64),
    ],
)
def test_all_plans_found_for_presets_take_as_long_as_their_layers_compute(name, shorthand, batch):
    model, cluster = model_preset(name), resolve_cluster(cluster_from_shorthand(shorthand))
    training = Training(global_batch_size=batch, sequence_length=512)
    question, options = Question(model, cluster, training), Options(schedules=tuple(ScheduleKind))
    every = families(*question, options, Removed())
    instances = instances_of(question, options, every)
    found = search(*question, options)
    assert found.certificate.lower_bound_s <= found.plans[0].estimate.step_time_s * (1 + 1e-12)
    for entry in found.plans:
        plan = entry.plan
        family = Family(plan.global_batch_size, len(plan.stages), plan.num_micro_batches, plan.schedule)
        assert family in every
        least_s = instances.at_least_s(family) + cluster.stack.step_host_s
        assert 0 < least_s <= entry.estimate.step_time_s * (1 + 1e-12)
        assert instances.least_per_sample_s() * batch <= entry.estimate.step_time_s * (1 + 1e-12)
