"""Statistics of a validation, on outcomes whose times are made up."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from run_rows import EXPERTS, case, record

from profiles.runs import errors, outcome_of, summarise
from profiles.runs.skipped import Skipped
from profiles.runs.summary import out_of_memory, rankings, regret_ratio, spearman

TIMES = st.lists(st.tuples(st.integers(1, 20), st.integers(1, 20)), min_size=2, max_size=12)


def outcome(predicted, measured=1.0, *, fits=True, plan=1, **changes):
    """The outcome of a row with these times; `plan` makes its micro-batch, and so its plan, another one."""
    changes.setdefault("id", f"p{predicted}-m{measured}-{plan}")
    changes = {
        **changes,
        "batch": {"micro": plan},
        "measured": {**changes.get("measured", {}), "step_time_s": measured},
    }
    made = outcome_of(record(**changes), case(**changes))
    return replace(made, predicted_step_time_s=predicted, fits=fits)


def test_errors_are_means_and_medians_of_absolute_values_and_a_bias():
    found = errors([0.1, -0.3, 0.2])
    assert found == pytest.approx(
        {"rows": 3, "mean_absolute_error": 0.2, "median_absolute_error": 0.2, "bias": 0.0}, abs=1e-12
    )
    assert errors([]) is None


@pytest.mark.parametrize(
    ("predicted", "measured", "expected"),
    [
        ([1, 2, 3], [10, 20, 30], 1.0),
        ([3, 2, 1], [10, 20, 30], -1.0),
        ([1, 1, 1], [10, 20, 30], 0.0),
        ([1, 2, 3, 4, 5], [1, 3, 2, 5, 4], 0.8),
        ([1, 2, 2, 3], [1, 2, 3, 4], 3 / np.sqrt(10)),
    ],
)
def test_rank_correlation_shares_the_ranks_of_equals(predicted, measured, expected):
    assert spearman(predicted, measured) == pytest.approx(expected)


@given(TIMES)
def test_rank_correlation_knows_no_direction_and_no_scale(times):
    predicted, measured = zip(*times, strict=True)
    found = spearman(predicted, measured)
    assert -1 - 1e-9 <= found <= 1 + 1e-9
    assert spearman(measured, predicted) == pytest.approx(found)
    assert spearman([10 * value + 3 for value in predicted], measured) == pytest.approx(found)


@given(TIMES)
def test_regret_is_never_negative_and_zero_for_a_right_order(times):
    predicted, measured = zip(*times, strict=True)
    assert regret_ratio(predicted, measured) >= 0
    assert regret_ratio(measured, measured) == 0


def test_of_equally_predicted_plans_the_first_is_taken():
    assert regret_ratio([1.0, 1.0, 2.0], [3.0, 2.0, 4.0]) == 0.5


def test_groups_of_three_different_plans_are_ranked_whether_usable_or_not():
    rows = [
        outcome(1.0, 2.0, plan=1, group="a", usable_for_accuracy=False),
        outcome(2.0, 1.0, plan=2, group="a"),
        outcome(3.0, 3.0, plan=4, group="a"),
        outcome(1.0, 1.0, plan=1, group="b"),
        outcome(2.0, 2.0, plan=1, group="b"),
        outcome(3.0, 3.0, plan=1, group="b"),
        outcome(3.0, 3.0, plan=2),
    ]
    found = rankings(rows)
    assert [each["group"] for each in found["by_group"]] == ["a"]
    assert found["by_group"][0]["plans"] == 3
    assert (found["mean_spearman"], found["mean_regret_ratio"]) == (pytest.approx(0.5), 1.0)
    assert rankings(rows[3:]) == {"groups": 0, "mean_spearman": None, "mean_regret_ratio": None, "by_group": []}


def test_rows_out_of_memory_are_called_and_rows_that_ran_raise_alarms():
    rows = [
        outcome(1.0, None, oom=True, fits=False),
        outcome(1.0, None, oom=True, fits=True),
        outcome(1.0, 1.0, fits=False),
        outcome(1.0, 1.0, fits=True),
        outcome(1.0, None, fits=False),
    ]
    assert out_of_memory(rows) == {"oom_rows": 2, "oom_called": 1, "ran_rows": 2, "false_alarms": 1}


def test_a_summary_counts_only_usable_rows_for_accuracy():
    found = summarise([outcome(1.1), outcome(9.0, plan=2, usable_for_accuracy=False)])
    assert (found["rows"], found["priced"], found["accuracy_rows"]) == (2, 2, 1)
    assert found["step_time"]["all"]["mean_absolute_error"] == pytest.approx(0.1)


def test_a_summary_has_a_line_for_each_part_of_vtrain_and_one_for_all_others():
    rows = [
        outcome(1.1, source="vTrain measured data (multi-node), Megatron-DeepSpeed", precision="fp16"),
        outcome(1.2, source="vTrain measured data (single-node), Megatron-DeepSpeed", precision="fp16"),
        outcome(1.3, source="ours"),
        outcome(1.4, source="ours", model=EXPERTS, parallel={"ep": 2}),
    ]
    lines = {name: round(each["bias"], 3) for name, each in summarise(rows)["step_time"].items()}
    assert lines == {
        "all": 0.25,
        "all sources but vTrain": 0.35,
        "vTrain multi-node": 0.1,
        "vTrain single-node": 0.2,
        "MoE": 0.4,
    }


def test_a_summary_divides_by_source_stack_device_kind_and_precision():
    found = summarise([outcome(1.1), outcome(1.2, precision="fp16", model=EXPERTS, parallel={"ep": 2})])
    assert list(found["by_stack"]) == ["megatron-2021", "megatron-core-2025"]
    assert list(found["by_device"]) == ["a100-sxm-80g"]
    assert list(found["by_kind"]) == ["dense", "moe"]
    assert list(found["by_precision"]) == ["bf16", "fp16"]
    assert list(found["by_source"]) == ["Somebody's measurements 2024"]


def test_the_worst_rows_are_those_by_the_largest_factor():
    found = summarise([outcome(0.25), outcome(3.0), outcome(1.1)], worst=2)["worst"]
    assert [round(row["error_ratio"], 3) for row in found] == [-0.75, 2.0]


def test_a_summary_counts_skipped_rows_by_reason():
    skipped = [outcome_of(record(id=f"s{n}"), Skipped(why)) for n, why in enumerate(["b", "a", "b"])]
    found = summarise([*skipped, outcome(1.0)])["skipped"]
    assert found["reasons"] == {"b": 2, "a": 1}
    assert (found["rows"], found["usable_rows"], found["usable_ratio"]) == (3, 3, 0.75)


def test_nothing_at_all_has_a_summary_too():
    found = summarise([])
    assert (found["rows"], found["step_time"], found["memory"]) == (0, {}, None)


def test_a_summary_counts_usable_rows_with_a_price_and_no_measured_time():
    rows = [
        outcome(1.0, None),
        outcome(1.0, None, usable_for_accuracy=False),
        outcome(1.0, None, oom=True),
        outcome(1.0),
        outcome_of(record(id="s", measured={"step_time_s": None}), Skipped("b")),
    ]
    found = summarise([replace(row, measured_step_time_s=row.record.measured.step_time_s) for row in rows])
    assert (found["accuracy_rows"], found["unmeasured_rows"]) == (1, 1)
