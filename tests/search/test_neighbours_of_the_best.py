"""A check of the search from outside: no plan one step from a proved best, and in its space, is faster and fits."""

from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_questions import MIB, a_cluster, a_model, a_training

from planner.cost import estimate
from planner.search import search
from planner.search.families import Family, families
from planner.search.removed import Removed
from planner.search.space import Space
from planner.spec.errors import NoPlanFitsError
from planner.spec.plan import Plan
from planner.spec.request import Options
from planner.spec.shortlist import CertificateStatus
from planner.spec.training import Training
from planner.view.neighbours import neighbours
from profiles import cluster_from_shorthand, model_preset, resolve_cluster

EVERYTHING = Options()


def in_space(plan, model, cluster, training, options) -> bool:
    """Whether the search was asked to look at this plan."""
    family = Family(plan.global_batch_size, len(plan.stages), plan.num_micro_batches, plan.schedule)
    if family not in families(model, cluster, training, options, Removed()):
        return False
    space = Space(cluster, training, options, Removed())
    allowed = {layer: set(space.grid(layer, plan.stages[0].num_devices)) for layer in set(model.layers)}
    pairs = [pair for stage in plan.stages for pair in stage.strategies()]
    return all(
        strategy in allowed[model.layers[layer]]
        and plan.samples_per_micro_batch // strategy.data_parallel_size <= options.max_micro_batch_size
        for layer, strategy in pairs
    )


def neighbours_in_space(model, cluster, training, plan, options):
    steps = neighbours(model, training, plan)
    plans = [step.result for step in steps if isinstance(step.result, Plan)]
    return [plan for plan in plans if in_space(plan, model, cluster, training, options)]


def nothing_is_faster(model, cluster, training, options) -> int:
    """Check all neighbours of the best plan; how many there were."""
    shortlist = search(model, cluster, training, options)
    assert shortlist.certificate.status is CertificateStatus.OPTIMAL
    best = shortlist.plans[0]
    found = neighbours_in_space(model, cluster, training, best.plan, options)
    for plan in found:
        price = estimate(model, cluster, training, plan)
        assert not price.fits or price.step_time_s >= best.estimate.step_time_s * (1 - 1e-9), plan.summary
    return len(found)


@settings(max_examples=25, deadline=None)
@given(
    memory=st.integers(4, 40),
    bandwidth=st.sampled_from([1e9, 1e10, 1e11]),
    experts=st.sampled_from([0, 4]),
    tied=st.booleans(),
    devices=st.sampled_from([2, 4, 6]),
    schedules=st.sampled_from([("1f1b", "interleaved"), ("1f1b", "zero_bubble"), ("gpipe",)]),
)
def test_no_neighbour_of_a_proved_best_is_faster(memory, bandwidth, experts, tied, devices, schedules):
    model, training = a_model(blocks=4, experts=experts, tied=tied), a_training(12)
    options = Options(schedules=schedules, shortlist_size=1)
    with suppress(NoPlanFitsError):
        assert nothing_is_faster(model, a_cluster(devices, memory * MIB, bandwidth), training, options) > 0


@pytest.mark.parametrize("memory_gb", [20, 24, 40, 80])
def test_no_neighbour_of_the_best_plan_for_llama_is_faster(memory_gb):
    request = cluster_from_shorthand("1x8:a100-sxm-80g").model_copy(update={"memory_limit_bytes": memory_gb * 10**9})
    training = Training(global_batch_size=64, sequence_length=4096)
    options = EVERYTHING.model_copy(update={"shortlist_size": 1})
    assert nothing_is_faster(model_preset("llama-2-7b"), resolve_cluster(request), training, options) > 3
