"""The collection of published runs as a whole: it can be read, and hardly a usable row lacks a price."""

from pathlib import Path

import pytest

from profiles import stack_names
from profiles.runs import Outcome, outcomes_of, read_runs, summarise

RUNS = Path(__file__).parents[3] / "shared" / "data" / "published_runs.json"
pytestmark = pytest.mark.skipif(not RUNS.exists(), reason="the collection of published runs is not beside the project")


@pytest.fixture(scope="module")
def outcomes() -> tuple[Outcome, ...]:
    return outcomes_of(read_runs(RUNS))


def test_at_most_a_twentieth_of_the_usable_rows_is_skipped(outcomes):
    assert summarise(outcomes)["skipped"]["usable_ratio"] <= 0.05


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
