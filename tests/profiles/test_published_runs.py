"""The collection of published runs as a whole: it can be read, hardly a usable row lacks a price, and prices are close.

The bounds are the aims of docs/validation.md.
"""

from pathlib import Path

import pytest

from profiles import stack_names
from profiles.runs import Outcome, Summary, outcomes_of, read_runs, summarise

RUNS = Path(__file__).parents[3] / "shared" / "data" / "published_runs.json"
pytestmark = pytest.mark.skipif(not RUNS.exists(), reason="the collection of published runs is not beside the project")


@pytest.fixture(scope="module")
def outcomes() -> tuple[Outcome, ...]:
    return outcomes_of(read_runs(RUNS))


@pytest.fixture(scope="module")
def summary(outcomes) -> Summary:
    return summarise(outcomes)


def test_at_most_a_twentieth_of_the_usable_rows_is_skipped(summary):
    assert summary["skipped"]["usable_ratio"] <= 0.05


@pytest.mark.parametrize(
    ("line", "statistic", "bound"),
    [
        ("all sources but vTrain", "mean_absolute_error", 0.12),
        ("all sources but vTrain", "median_absolute_error", 0.08),
        ("vTrain multi-node", "mean_absolute_error", 0.10),
        ("vTrain single-node", "mean_absolute_error", 0.075),
        ("Korthikanti et al., table 5", "mean_absolute_error", 0.04),
        ("MoE", "mean_absolute_error", 0.15),
    ],
)
def test_predicted_steps_are_close_to_measured_ones(summary, line, statistic, bound):
    # vTrain's single nodes are at the edge of their aim of 7 %; the bound leaves room for a next fit.
    assert summary["step_time"][line][statistic] <= bound


def test_plans_of_a_group_are_ranked_as_measured(summary):
    assert summary["ranking"]["groups"] >= 90
    assert summary["ranking"]["mean_spearman"] >= 0.8


def test_taking_the_predicted_best_plan_loses_little_time(summary):
    assert summary["ranking"]["mean_regret_ratio"] <= 0.05


def test_predicted_peaks_are_close_to_measured_ones(summary):
    assert summary["memory"]["rows"] >= 80
    assert summary["memory"]["median_absolute_error"] <= 0.10


def test_plans_that_ran_out_of_memory_are_called_and_hardly_any_that_ran(summary):
    found = summary["out_of_memory"]
    assert found["oom_called"] >= 0.8 * found["oom_rows"] > 0
    assert found["false_alarms"] <= 0.05 * found["ran_rows"]


def test_every_usable_row_was_measured(outcomes):
    usable = [outcome for outcome in outcomes if outcome.record.usable_for_accuracy and outcome.case]
    assert all(outcome.measured_step_time_s is not None for outcome in usable)


def test_every_row_is_priced_or_says_why_not(outcomes):
    assert all((outcome.case is None) == bool(outcome.skipped) for outcome in outcomes)
    assert all(outcome.skipped is None or ":" in outcome.skipped for outcome in outcomes)


def test_the_stacks_are_those_that_have_a_profile(outcomes):
    stacks = {outcome.case.cluster.stack.name for outcome in outcomes if outcome.case}
    assert stacks <= set(stack_names())
    assert len(stacks) >= 6
