from itertools import pairwise

import pytest
from every_plan import fastest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_questions import MIB, a_cluster, a_model, a_training

from planner.cost import estimate
from planner.search import search
from planner.spec.cluster import HostShare
from planner.spec.errors import CancelledError, InputError, NoPlanFitsError
from planner.spec.request import Options
from planner.spec.shortlist import CertificateStatus
from planner.spec.workload import BALANCED, Scenario, Workload
from profiles import cluster_from_shorthand, model_preset, resolve_cluster

FEW = Options(axes=("dp", "tp", "pp", "ep", "sp"), sharding=("none", "optimizer"), recompute=("none", "full"))


@settings(max_examples=20, deadline=None)
@given(
    memory=st.integers(4, 40),
    bandwidth=st.sampled_from([1e9, 1e10, 1e11]),
    experts=st.sampled_from([0, 4]),
    tied=st.booleans(),
    schedule=st.sampled_from(["1f1b", "gpipe", "zero_bubble"]),
)
def test_no_plan_of_the_space_is_faster_than_the_found_one_when_estimate_prices_them_all(
    memory, bandwidth, experts, tied, schedule
):
    model, training = a_model(blocks=1, experts=experts, tied=tied), a_training(4)
    cluster = a_cluster(2, memory * MIB, bandwidth)
    options = FEW.model_copy(update={"max_micro_batch_size": 2, "schedules": (schedule,)})
    expected = fastest(model, cluster, training, options)
    if expected is None:
        with pytest.raises(NoPlanFitsError):
            search(model, cluster, training, options)
        return
    best = search(model, cluster, training, options)
    assert best.plans[0].estimate.fits
    assert best.plans[0].estimate.step_time_s == pytest.approx(expected, rel=1e-9)
    assert best.certificate.status is CertificateStatus.OPTIMAL
    assert best.certificate.lower_bound_s == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("bandwidth", [1e9, 1e11])
def test_with_ulysses_no_plan_of_the_space_is_faster_than_the_found_one(bandwidth):
    question = (a_model(blocks=1), a_cluster(4, 40 * MIB, bandwidth), a_training(4))
    plain = {"recompute": ("none",), "sharding": ("none",), "max_micro_batch_size": 2}
    options = FEW.model_copy(update={"axes": ("dp", "tp", "sp", "cp", "ulysses"), **plain})
    best = search(*question, options).plans[0]
    assert best.estimate.step_time_s == pytest.approx(fastest(*question, options), rel=1e-9)


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(6, 200), min_size=2, max_size=3, unique=True))
def test_more_memory_is_never_slower(sizes):
    times = []
    for memory in sorted(sizes):
        try:
            found = search(a_model(blocks=3), a_cluster(4, memory * MIB), a_training(8), FEW)
            times.append(found.plans[0].estimate.step_time_s)
        except NoPlanFitsError:
            times.append(float("inf"))
    assert all(later <= earlier * (1 + 1e-12) for earlier, later in pairwise(times))


def test_the_same_question_has_the_same_answer():
    question = (a_model(blocks=4, experts=8), a_cluster(4, 60 * MIB), a_training(16))
    one, two = search(*question), search(*question)
    assert [entry.plan.id for entry in one.plans] == [entry.plan.id for entry in two.plans]
    assert one.certificate == two.certificate


def test_every_plan_of_the_shortlist_is_priced_and_the_first_is_best_for_balanced_load():
    model, cluster, training = a_model(blocks=4, experts=8), a_cluster(4, 80 * MIB), a_training(16)
    found = search(model, cluster, training)
    balanced = [entry.estimate.step_time_s for entry in found.plans]
    assert balanced[0] == min(balanced)
    assert "balanced" in found.plans[0].best_for
    assert [entry.rank for entry in found.plans] == list(range(1, len(found.plans) + 1))
    for entry in found.plans:
        assert entry.estimate == estimate(model, cluster, training, entry.plan)
        assert set(entry.switch_cost_s) == {other.plan.id for other in found.plans} - {entry.plan.id}
    assert sum(scenario.probability for scenario in found.scenarios) == pytest.approx(1)


def test_a_skewed_scenario_of_the_user_brings_its_best_plan_into_the_shortlist():
    hot = Workload(name="hot", expert_shares=((0.65, *(0.05,) * 7),))
    options = Options(scenarios=(Scenario(workload=BALANCED, probability=0.5), Scenario(workload=hot, probability=0.5)))
    model, cluster, training = a_model(blocks=2, experts=8, hidden=256), a_cluster(4, 400 * MIB), a_training(16)
    found = search(model, cluster, training, options)
    times = {entry.plan.id: estimate(model, cluster, training, entry.plan, hot).step_time_s for entry in found.plans}
    winner = next(entry for entry in found.plans if "hot" in entry.best_for)
    assert times[winner.plan.id] == min(times.values())


def test_when_nothing_fits_the_error_says_which_stage_of_which_plan_lacks_how_many_bytes():
    with pytest.raises(NoPlanFitsError) as caught:
        search(model_preset("mixtral-8x7b"), resolve_cluster(cluster_from_shorthand("1x2:a100-sxm-40g")), a_training(4))
    miss = caught.value.nearest_miss
    assert miss.missing_bytes > 0
    assert miss.stage in (0, 1)
    assert miss.summary in str(caught.value)


def test_a_batch_that_no_degrees_can_cut_is_an_input_error():
    options = Options(axes=("dp",))
    with pytest.raises(InputError, match=r"training\.global_batch_size: no way to cut 3 samples over 4 devices"):
        search(a_model(), a_cluster(4, 400 * MIB), a_training(3), options)


def test_progress_only_grows_and_ends_at_one():
    heard: list[float] = []
    search(a_model(experts=4), a_cluster(4, 80 * MIB), a_training(8), report=lambda share, text: heard.append(share))
    assert heard == sorted(heard)
    assert heard[0] >= 0
    assert heard[-1] == 1


def test_what_the_listener_raises_stops_the_search():
    def stop(share: float, text: str) -> None:
        if share > 0.2:
            raise CancelledError("enough")

    with pytest.raises(CancelledError):
        search(a_model(), a_cluster(4, 80 * MIB), a_training(8), report=stop)


@pytest.mark.parametrize(
    "question", [(a_model(blocks=6), 24), (a_model(blocks=5, experts=8), 30)], ids=["dense", "moe"]
)
def test_at_a_limit_the_bound_is_still_valid(question):
    model, cluster, training = question[0], a_cluster(4, question[1] * MIB), a_training(16)
    whole = search(model, cluster, training)
    optimum = whole.plans[0].estimate.step_time_s
    statuses = set()
    limits = [{"time_limit_s": 100.0 * calls} for calls in (1e-9, 3, 10, 30, 100, 1e6)]
    limits += [{"effort_limit": effort} for effort in (1, 100, 10_000, 10**9)]
    for limit in limits:
        ticks = iter(range(10**9))
        hurried = search(model, cluster, training, Options(**limit), clock=lambda ticks=ticks: 100.0 * next(ticks))
        found, certificate = hurried.plans[0].estimate, hurried.certificate
        assert found.fits
        assert 0 < certificate.lower_bound_s <= optimum * (1 + 1e-12)
        assert found.step_time_s >= optimum * (1 - 1e-12)
        assert certificate.gap_ratio == pytest.approx(found.step_time_s / certificate.lower_bound_s - 1, abs=1e-12)
        if certificate.status is CertificateStatus.OPTIMAL:
            assert found.step_time_s == pytest.approx(optimum, rel=1e-12)
        statuses.add(certificate.status)
    assert statuses == set(CertificateStatus), "some limits are reached and some are not"


def test_batch_size_max_finds_the_highest_throughput_of_the_batch_sizes():
    model, cluster = a_model(blocks=2), a_cluster(2, 60 * MIB)
    options = FEW.model_copy(update={"max_micro_batch_size": 2})
    largest = a_training("max").model_copy(update={"max_global_batch_size": 16})
    found = search(model, cluster, largest, options).plans[0].estimate
    rates = []
    for batch in (1, 2, 4, 8, 16):
        try:
            rates.append(search(model, cluster, a_training(batch), options).plans[0].estimate.tokens_per_s)
        except (NoPlanFitsError, InputError):
            continue
    assert found.tokens_per_s == pytest.approx(max(rates), rel=1e-9)


def test_gpipe_is_searched_where_it_is_the_only_schedule():
    options = FEW.model_copy(update={"schedules": ("gpipe",), "axes": ("dp", "pp")})
    found = search(a_model(blocks=4), a_cluster(4, 30 * MIB), a_training(8), options)
    kinds = {entry.plan.schedule.kind.value for entry in found.plans if len(entry.plan.stages) > 1}
    assert kinds <= {"gpipe"}


def test_zero_bubble_is_searched_where_it_may_be_used():
    options = FEW.model_copy(update={"schedules": ("1f1b", "zero_bubble"), "axes": ("dp", "pp")})
    question = (a_model(blocks=4), a_cluster(4, 30 * MIB, 1e9), a_training(8))
    plain, split = (search(*question, each) for each in (options.model_copy(update={"schedules": ("1f1b",)}), options))
    assert split.plans[0].plan.schedule.kind.value == "zero_bubble"
    assert split.plans[0].plan.summary.startswith(f"pp{len(split.plans[0].plan.stages)} zb")
    assert split.plans[0].estimate.step_time_s < plain.plans[0].estimate.step_time_s
    assert split.certificate.status is CertificateStatus.OPTIMAL


def test_mixtral_on_64_h100_has_an_optimal_plan_with_expert_parallelism():
    cluster = resolve_cluster(cluster_from_shorthand("8x8:h100-sxm-80g"))
    training = a_training(1024).model_copy(update={"sequence_length": 4096})
    found = search(model_preset("mixtral-8x7b"), cluster, training)
    best = found.plans[0]
    assert found.certificate.status is CertificateStatus.OPTIMAL
    assert best.estimate.fits
    assert any(
        run.strategy.experts.expert_parallel_size > 1 for run in best.plan.stages[0].runs if run.strategy.experts
    )
    assert 0.4 < best.estimate.mfu < 0.65


@pytest.mark.parametrize("memory", [20, 36, 40])
def test_where_the_balanced_optimum_does_not_fit_under_the_only_scenario_another_plan_serves_it(memory):
    hot = Workload(name="hot", expert_shares=((0.93, *(0.01,) * 7),))
    options = FEW.model_copy(update={"scenarios": (Scenario(workload=hot, probability=1.0),)})
    found = search(a_model(blocks=2, experts=8), a_cluster(4, memory * MIB), a_training(16), options)
    assert ("hot" in found.plans[0].out_of_memory_in) == (memory < 40)
    assert all(("hot" in entry.best_for) <= ("hot" not in entry.out_of_memory_in) for entry in found.plans)
    assert any("hot" in entry.best_for for entry in found.plans)


def test_scenarios_under_which_nothing_fits_are_named_in_the_error():
    hot = Workload(name="hot", expert_shares=((0.93, *(0.01,) * 7),))
    options = FEW.model_copy(update={"axes": ("dp", "ep"), "scenarios": (Scenario(workload=hot, probability=1.0),)})
    with pytest.raises(InputError, match=r"options\.scenarios: no plan fits in memory under any of them"):
        search(a_model(blocks=2, experts=8), a_cluster(4, 16 * MIB), a_training(16), options)


@pytest.mark.parametrize("memory", [3, 5, 8, 40])
@pytest.mark.parametrize("host", [1, 6, 100])
def test_offload_is_searched_where_it_is_allowed_and_the_host_limits_it(memory, host):
    share = HostShare(link_bytes_per_s=1e10, memory_bytes=host * MIB, memory_bandwidth_bytes_per_s=2e10)
    cluster = a_cluster(2, memory * MIB)
    cluster = cluster.model_copy(update={"device": cluster.device.model_copy(update={"host": share})})
    model, training = a_model(blocks=1), a_training(4)
    options = FEW.model_copy(update={"max_micro_batch_size": 2, "offload": True})
    expected = fastest(model, cluster, training, options)
    if expected is None:
        with pytest.raises(NoPlanFitsError):
            search(model, cluster, training, options)
        return
    found = search(model, cluster, training, options).plans[0]
    assert found.estimate.step_time_s == pytest.approx(expected, rel=1e-9)
    assert all(stage.missing_host_bytes == 0 for stage in found.estimate.stages)


def test_offload_without_a_known_host_is_left_out_by_a_rule():
    found = search(a_model(), a_cluster(2, 60 * MIB), a_training(4), FEW.model_copy(update={"offload": True}))
    assert found.certificate.pruned["offload-needs-host"]
