"""Restricted spaces: what is left of the options, and how the best of each compares with the best of all."""

import pytest
from small_questions import MIB, a_cluster, a_model, a_training

from planner.cost.targets import FRAMEWORKS
from planner.search import compare_baselines, search
from planner.search.baselines import BASELINES
from planner.search.restricted import for_target, restricted
from planner.spec.errors import CancelledError, InputError, NearestMiss, NoPlanFitsError
from planner.spec.plan import ScheduleKind
from planner.spec.request import ALL_AXES, Options, Target
from planner.spec.shortlist import BaselineResult, CertificateStatus, Shortlist
from planner.spec.strategy import AxisKind, Sharding
from planner.spec.workload import BALANCED

OUR_OWN = ("dp", "sdp", "tp", "pp", "dp+tp", "dp+pp")
"""Baselines that do not ask for uniform plans."""
ANYTHING = Options()
MISS = NearestMiss(summary="pp4", stage=3, missing_bytes=2**30, limit_bytes=2**34)


def question(memory=400 * MIB, **model):
    return a_model(**model), a_cluster(4, memory), a_training(8)


def compared(asked, options=ANYTHING, answer=search):
    best = search(*asked, options).plans[0]
    results = compare_baselines(
        lambda narrower, report: answer(*asked, narrower, report), options, best, lambda share, message: None
    )
    return {result.name: result for result in results}


def test_no_baseline_is_faster_than_the_whole_space():
    results = compared(question(blocks=4))
    assert tuple(results) == tuple(BASELINES)
    for name in OUR_OWN:
        assert results[name].plan is not None, results[name]
        assert results[name].speedup_ratio >= 1 - 1e-9
        assert results[name].status is CertificateStatus.OPTIMAL


@pytest.mark.parametrize(
    ("name", "kinds", "shardings", "staged"),
    [
        ("dp", {AxisKind.DP}, {Sharding.NONE}, False),
        ("sdp", {AxisKind.DP}, {Sharding.FULL}, False),
        ("tp", {AxisKind.TP}, {Sharding.NONE}, False),
        ("pp", set(), {Sharding.NONE}, True),
        ("dp+tp", {AxisKind.DP, AxisKind.TP}, {Sharding.NONE}, False),
        ("dp+pp", {AxisKind.DP}, {Sharding.NONE}, True),
    ],
)
def test_a_baseline_s_plans_have_its_axes_alone(name, kinds, shardings, staged):
    plan = search(*question(blocks=4), restricted(Options(), BASELINES[name])).plans[0].plan
    strategies = [run.strategy for stage in plan.stages for run in stage.runs]
    assert {axis.kind for strategy in strategies for axis in strategy.axes} <= kinds
    assert {strategy.sharding for strategy in strategies} <= shardings
    assert staged or len(plan.stages) == 1


def test_a_baseline_that_does_not_fit_names_its_nearest_miss():
    results = compared(question(memory=40 * MIB, blocks=12))
    miss = results["dp"].nearest_miss
    assert miss is not None
    assert miss.missing_bytes > 0
    assert results["dp"].plan is None


def test_a_baseline_that_the_options_leave_nothing_of_says_so():
    results = compared(question(), Options(axes=("dp", "pp"), sharding=("none",)))
    assert "must hold one of tp sp, not only dp pp" in results["tp"].impossible
    assert "options.axes" in results["sdp"].impossible
    assert results["dp+pp"].speedup_ratio == pytest.approx(1)


def test_baselines_are_searched_for_balanced_load_and_one_plan():
    asked = []

    def note(model, cluster, training, options, report):
        asked.append(options)
        raise NoPlanFitsError(MISS)

    results = compared(question(), Options(max_micro_batch_size=4), note)
    assert [result.nearest_miss for result in results.values()] == [MISS] * len(BASELINES)
    assert {options.shortlist_size for options in asked} == {1}
    assert {scenario.workload for options in asked for scenario in options.scenarios} == {BALANCED}
    assert {options.max_micro_batch_size for options in asked} == {4}
    assert [options.target for options in asked][-3:] == list(FRAMEWORKS)
    assert [options.uniform for options in asked] == [name == "3d-uniform" for name in BASELINES]


def test_progress_of_a_comparison_only_grows_and_can_stop_it():
    heard = []

    def answer(options, report):
        report(0.0, "begins")
        report(1.0, "ends")
        raise InputError.at("options", "no")

    best = search(*question()).plans[0]
    compare_baselines(answer, Options(), best, lambda share, message: heard.append(share))
    assert heard == sorted(heard)
    assert (heard[0], heard[-1]) == (0.0, 1.0)

    def stop(share, message):
        raise CancelledError("enough")

    with pytest.raises(CancelledError):
        compare_baselines(answer, Options(), best, stop)


@pytest.mark.parametrize("target", FRAMEWORKS)
def test_a_target_leaves_its_own_parts_of_the_options(target):
    framework = FRAMEWORKS[target]
    left = for_target(Options(target=target))
    assert left.uniform
    assert set(left.axes) == set(framework.axes) & set(ALL_AXES)
    assert set(left.schedules) <= set(framework.schedules)
    assert set(left.recompute) <= set(framework.recompute)
    assert for_target(left) == left
    assert for_target(Options(axes=("pp", "dp"), target=target)).axes == ("pp", "dp")


def test_no_target_leaves_the_options_as_they_are():
    options = Options(axes=("dp",))
    assert for_target(options) == options


def test_a_target_that_has_none_of_what_is_asked_for_says_what_it_has():
    with pytest.raises(
        InputError, match=r"options\.schedules: must hold one of 1f1b interleaved, not only zero_bubble"
    ):
        for_target(Options(target=Target.MEGATRON, schedules=(ScheduleKind.ZERO_BUBBLE,)))
    with pytest.raises(InputError, match=r"options\.target: must be any or deepspeed, not megatron"):
        restricted(Options(target=Target.MEGATRON), BASELINES["deepspeed"])


def test_a_shortlist_with_baselines_is_read_back_from_its_json():
    found = search(*question())
    entry = found.plans[0]
    with_plan = BaselineResult(
        name="dp",
        plan=entry.plan,
        step_time_s=entry.estimate.step_time_s,
        speedup_ratio=1.0,
        status=CertificateStatus.OPTIMAL,
    )
    shortlist = found.model_copy(update={"baselines": (with_plan, BaselineResult(name="pp", nearest_miss=MISS))})
    assert Shortlist.model_validate_json(shortlist.model_dump_json()) == shortlist
    assert Shortlist.model_validate(found.model_dump(exclude={"baselines"})) == found


@pytest.mark.parametrize(
    "outcome", [{}, {"nearest_miss": MISS, "impossible": "no"}, {"impossible": "no", "speedup_ratio": 2.0}]
)
def test_a_baseline_has_one_outcome(outcome):
    with pytest.raises(ValueError, match=r"exactly one of|must be set"):
        BaselineResult(name="dp", **outcome)
