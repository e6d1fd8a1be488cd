"""Galvatron's case study (arXiv 2211.13878, section 5): BERT-Huge and Swin-Huge on 8 devices by memory."""

from functools import cache
from itertools import pairwise

import pytest

from planner.search import search
from planner.spec.explanation import Constraint
from planner.spec.request import Options
from planner.spec.shortlist import CertificateStatus
from planner.spec.training import Training
from planner.view.explanation import explain
from profiles import cluster_from_shorthand, model_preset, resolve_cluster

AXES = Options(axes=("dp", "sdp", "tp", "pp", "sp"), schedules=("1f1b",), recompute=("none", "full"), shortlist_size=1)
LENGTHS = {"bert-huge-32": 512, "swin-huge-32": 3136}
GIGABYTES = (5, 6, 8, 12)


@cache
def answer(name: str, gigabytes: int):
    cluster = resolve_cluster(cluster_from_shorthand("1x8:rtx-titan-24g"))
    cluster = cluster.model_copy(update={"memory_limit_bytes": gigabytes * 10**9})
    training = Training(global_batch_size=64, sequence_length=LENGTHS[name], precision="fp32")
    question = (model_preset(name), cluster, training)
    return question, search(*question, AXES)


def tensor_degrees(plan) -> list[int]:
    """By layer."""
    return [strategy.tp for stage in plan.stages for _, strategy in stage.strategies()]


@pytest.mark.parametrize("name", LENGTHS)
def test_more_memory_is_never_slower_and_every_answer_is_the_best(name):
    found = [answer(name, size)[1] for size in GIGABYTES]
    assert all(each.certificate.status is CertificateStatus.OPTIMAL for each in found)
    times = [each.plans[0].estimate.step_time_s for each in found]
    assert all(later <= earlier for earlier, later in pairwise(times))
    assert times[-1] < times[0]


@pytest.mark.parametrize("name", LENGTHS)
def test_with_little_memory_tensor_parallelism_cuts_deeper_or_the_pipeline_does(name):
    little, much = (answer(name, size)[1].plans[0].plan for size in (GIGABYTES[0], GIGABYTES[-1]))
    copies = [len(plan.stages) * sum(tensor_degrees(plan)) for plan in (little, much)]
    assert copies[0] > copies[1]


def test_layers_with_large_activations_are_cut_by_samples_and_those_with_many_parameters_by_tensors():
    # Swin's first two stages have 16 and 4 times the tokens of its third, and 1/16 and 1/4 of its parameters.
    for size in GIGABYTES:
        degrees = tensor_degrees(answer("swin-huge-32", size)[1].plans[0].plan)
        assert max(degrees[:4]) < min(degrees[8:24])


@pytest.mark.parametrize("name", LENGTHS)
def test_what_binds_changes_from_memory_to_time(name):
    binds = []
    for size in (GIGABYTES[0], 24):
        question, found = answer(name, size)
        stages = explain(*question, found.plans[0].plan, best_of_space=True).stages
        binds.append({constraint for stage in stages for constraint in stage.binding})
    assert Constraint.MEMORY in binds[0]
    assert binds[1] == {Constraint.TIME}
