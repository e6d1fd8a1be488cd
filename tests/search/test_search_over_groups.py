"""Clusters of unlike groups: the search against all plans, against one cluster of equal devices, and its sense."""

from itertools import combinations, pairwise, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_questions import MIB, a_cluster, a_model, a_training

from planner.cost import estimate
from planner.search import search
from planner.search.assemble import assemble
from planner.search.families import Family
from planner.search.places import places
from planner.search.removed import Removed
from planner.search.space import Space
from planner.spec.cluster import Cluster, Level, Link
from planner.spec.errors import InputError, NoPlanFitsError
from planner.spec.mixed_cluster import MixedCluster
from planner.spec.plan import Schedule
from planner.spec.request import Options
from planner.spec.shortlist import CertificateStatus
from planner.spec.training import Training
from profiles import cluster_request_from_file, model_preset, resolve_cluster

FEW = Options(
    axes=("dp", "tp", "pp", "sp"),
    sharding=("none", "optimizer"),
    recompute=("none", "full"),
    max_micro_batch_size=2,
    schedules=("1f1b",),
)
BETWEEN = Link(bandwidth_bytes_per_s=2e9, latency_s=2e-5)


def slowed(cluster: Cluster, factor: float) -> Cluster:
    """The same with devices that compute and read memory so many times slower."""
    device = cluster.device
    peaks = {name: value and value / factor for name, value in device.peak_flops_per_s}
    update = {
        "name": "slow",
        "memory_bandwidth_bytes_per_s": device.memory_bandwidth_bytes_per_s / factor,
        "peak_flops_per_s": type(device.peak_flops_per_s)(**peaks),
    }
    return cluster.model_copy(update={"device": device.model_copy(update=update)})


def joined(*groups: Cluster, between: Link = BETWEEN) -> MixedCluster:
    return MixedCluster(groups=groups, inter_group=between)


def every_step_s(model, cluster, training, options):
    """Seconds of all plans that fit, written down without families and tables."""
    spaces = [Space(group, training, options, Removed()) for group in cluster.groups]
    batch = training.global_batch_size
    divisors = {n: [d for d in range(1, n + 1) if n % d == 0] for n in (1, 2, 3, 4, batch)}
    layers = range(len(model.layers))
    for cut in product(*(divisors[group.num_devices] for group in cluster.groups)):
        for micro_batches in divisors[batch]:
            family = Family(batch, sum(cut), micro_batches, Schedule(kind=options.schedules[0]), cut)
            where = places(cluster, family)
            for inner in combinations(layers[1:], sum(cut) - 1):
                stages = tuple(((first, end),) for first, end in pairwise((0, *inner, len(layers))))
                allowed = [
                    cutting(spaces[place.group].grid(model.layers[layer], place.num_devices), family, options)
                    for place, ((first, end),) in zip(where, stages, strict=True)
                    for layer in range(first, end)
                ]
                for chosen in product(*allowed):
                    split = [chosen[first:end] for ((first, end),) in stages]
                    price = estimate(model, cluster, training, assemble(cluster, training, family, stages, split))
                    if price.fits:
                        yield price.step_time_s


def cutting(grid, family, options):
    sizes = {strategy: family.samples / strategy.data_parallel_size for strategy in grid}
    return [each for each, size in sizes.items() if size.is_integer() and size <= options.max_micro_batch_size]


def best_step_s(model, cluster, training, options):
    """Of a certified plan; None if none fits."""
    try:
        found = search(model, cluster, training, options)
    except NoPlanFitsError:
        return None
    assert found.certificate.status is CertificateStatus.OPTIMAL
    return found.plans[0].estimate.step_time_s


@settings(max_examples=40, deadline=None)
@given(
    memory=st.tuples(st.integers(4, 40), st.integers(4, 40)),
    factor=st.sampled_from([0.5, 2.0, 5.0]),
    bandwidth=st.sampled_from([1e8, 1e10]),
    tied=st.booleans(),
    schedule=st.sampled_from(["1f1b", "gpipe", "zero_bubble"]),
    swapped=st.booleans(),
)
def test_no_plan_on_two_groups_is_faster_than_the_found_one_when_estimate_prices_them_all(
    memory, factor, bandwidth, tied, schedule, swapped
):
    groups = [a_cluster(2, memory[0] * MIB), slowed(a_cluster(1, memory[1] * MIB), factor)]
    between = Link(bandwidth_bytes_per_s=bandwidth, latency_s=1e-5)
    cluster = joined(*(reversed(groups) if swapped else groups), between=between)
    model, training = a_model(blocks=1, tied=tied), a_training(4)
    options = FEW.model_copy(update={"schedules": (schedule,)})
    expected = min(every_step_s(model, cluster, training, options), default=None)
    found = best_step_s(model, cluster, training, options)
    assert found == expected if expected is None else found == pytest.approx(expected, rel=1e-9)


def test_two_equal_groups_are_never_faster_than_one_cluster_and_as_fast_for_plans_that_cross_only_there():
    model, training = a_model(blocks=4), a_training(8)
    levels = (
        Level(name="node", num_devices=2, link=Link(bandwidth_bytes_per_s=1e10, latency_s=5e-6)),
        Level(name="cluster", num_devices=4, link=BETWEEN),
    )
    node = a_cluster(2, 400 * MIB)
    one = node.model_copy(update={"nodes": 2, "levels": levels})
    apart = best_step_s(model, joined(node, node), training, FEW)
    assert apart >= best_step_s(model, one, training, FEW) * (1 - 1e-12)
    alone = search(model, one, training, FEW.model_copy(update={"axes": ("pp",)})).plans[0]
    assert estimate(model, joined(node, node), training, alone.plan).step_time_s == pytest.approx(
        alone.estimate.step_time_s, rel=1e-12
    )
    pipelines = FEW.model_copy(update={"axes": ("pp",)})
    assert best_step_s(model, joined(node, node), training, pipelines) == pytest.approx(
        alone.estimate.step_time_s, rel=1e-9
    )


def layers_of(plan):
    return [sum(run.num_layers for run in stage.runs) for stage in plan.stages]


def test_the_slower_group_gets_fewer_layers_wherever_it_stands():
    model, training = a_model(blocks=8), a_training(8)
    node = a_cluster(2, 400 * MIB)
    for groups in ((node, slowed(node, 3.0)), (slowed(node, 3.0), node)):
        plan = search(model, joined(*groups), training, FEW).plans[0].plan
        by_group = [0, 0]
        for stage, layers in zip(plan.stages, layers_of(plan), strict=True):
            by_group[stage.first_device >= 2] += layers
        slow = 0 if groups[1] is node else 1
        assert by_group[slow] < by_group[1 - slow]


def test_a_group_with_little_memory_gets_fewer_layers_than_its_speed_would_have():
    model, training = a_model(blocks=8), a_training(8)
    node, roomy = a_cluster(2, 12 * MIB), a_cluster(2, 400 * MIB)
    tight = search(model, joined(roomy, node), training, FEW).plans[0]
    assert all(stage.missing_bytes == 0 for stage in tight.estimate.stages)
    assert tight.estimate.step_time_s > best_step_s(model, joined(roomy, roomy), training, FEW)


@settings(max_examples=10, deadline=None)
@given(memory=st.integers(6, 30), more=st.integers(0, 20), group=st.integers(0, 1))
def test_more_memory_in_one_group_is_never_slower(memory, more, group):
    model, training = a_model(blocks=2), a_training(4)
    sizes = [memory, memory]
    less = best_step_s(model, joined(*(a_cluster(2, size * MIB) for size in sizes)), training, FEW)
    sizes[group] += more
    enough = best_step_s(model, joined(*(a_cluster(2, size * MIB) for size in sizes)), training, FEW)
    assert less is None or enough <= less * (1 + 1e-12)


def test_where_nothing_fits_the_nearest_miss_names_the_limit_of_its_group():
    model, training = a_model(blocks=8), a_training(8)
    with pytest.raises(NoPlanFitsError) as error:
        search(model, joined(a_cluster(2, 400 * MIB), a_cluster(2, 2 * MIB)), training, FEW)
    miss = error.value.nearest_miss
    assert miss.missing_bytes > 0
    assert miss.limit_bytes == 2 * MIB


def test_no_stage_lies_in_two_groups_and_sizes_may_differ():
    model, training = a_model(blocks=8), a_training(8)
    cluster = joined(a_cluster(4, 400 * MIB), slowed(a_cluster(1, 400 * MIB), 4.0))
    plan = search(model, cluster, training, FEW).plans[0].plan
    for stage in plan.stages:
        cluster.group_number(stage.first_device, stage.num_devices)
    assert sum(stage.num_devices for stage in plan.stages) == 5


def test_interleaving_on_groups_is_removed_by_a_named_rule():
    options = FEW.model_copy(update={"schedules": ("1f1b", "interleaved")})
    found = search(a_model(blocks=4), joined(a_cluster(2, 400 * MIB), a_cluster(2, 400 * MIB)), a_training(8), options)
    assert found.certificate.pruned["interleaving-on-equal-devices"] > 0


def test_interleaving_on_groups_is_searched_and_priced_alike_where_its_rule_is_off():
    cluster = joined(a_cluster(2, 400 * MIB), a_cluster(1, 400 * MIB))
    options = FEW.model_copy(
        update={
            "schedules": ("interleaved",),
            "without_rules": ("interleaving-on-equal-devices",),
            "axes": ("dp", "pp"),
        }
    )
    found = search(a_model(blocks=6), cluster, a_training(6), options)
    assert found.plans[0].plan.schedule.virtual_stages > 1
    assert "interleaving-on-equal-devices" not in found.certificate.pruned


@pytest.mark.parametrize(
    ("change", "field", "words"),
    [
        ({"axes": ("dp", "tp")}, "options.axes", "must hold pp"),
        ({"uniform": True}, "options.uniform", "uniform-on-equal-devices"),
        ({"target": "megatron"}, "options.uniform", "megatron"),
    ],
)
def test_what_has_no_meaning_on_groups_is_refused_by_name(change, field, words):
    cluster = joined(a_cluster(2, 400 * MIB), a_cluster(2, 400 * MIB))
    with pytest.raises(InputError) as error:
        search(a_model(), cluster, a_training(8), Options().model_copy(update=change))
    [problem] = error.value.problems
    assert problem.field == field
    assert words in problem.message


def test_the_certificate_says_that_stages_are_neighbours_in_number():
    cluster = joined(a_cluster(2, 400 * MIB), a_cluster(2, 400 * MIB))
    for where, words in ((cluster, "group after group"), (a_cluster(2, 400 * MIB), "pipeline-across-slow-links")):
        assert words in search(a_model(), where, a_training(8), FEW).certificate.space


def test_a100_and_v100_together_train_llama_faster_than_either():
    training = Training(global_batch_size=64, sequence_length=4096, precision="fp16")
    steps = [
        best_step_s(model_preset("llama-2-7b"), resolve_cluster(cluster_request_from_file(text)), training, Options())
        for text in ("1x8:a100-sxm-80g", "1x8:v100-sxm2-32g", "1x8:a100-sxm-80g+1x8:v100-sxm2-32g")
    ]
    assert steps[2] < min(steps[:2])
