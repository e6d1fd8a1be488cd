"""Measures in a wrong unit are refused, by what the model needs and the devices do."""

import pytest
from run_rows import EXPERTS, record, row, text

from planner.spec.errors import InputError
from profiles.runs import read_runs

PEAK = "of the peak of 16 a100-sxm-80g with this model and batch"
NONE = {"step_time_s": None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"measured": {"step_time_s": 1500.0}},
            f"measured.step_time_s: is 1500 s, which is 0.022 % {PEAK}; seconds are expected",
        ),
        ({"measured": {"step_time_s": 0.0015}}, f"is 0.0015 s, which is 22,170 % {PEAK}; seconds are expected"),
        (
            {"measured": {**NONE, "tokens_per_s_per_gpu": 10.9}},
            f"measured.tokens_per_s_per_gpu: is 10.9 tokens/s, which is 0.022 % {PEAK}; tokens per second of one",
        ),
        (
            {"measured": {**NONE, "samples_per_s": 0.04}},
            "measured.samples_per_s: is 0.04 samples/s, which is 0.021 %",
        ),
        ({"measured": NONE, "derived": {"step_time_s": 1500.0}}, "derived.step_time_s: is 1500 s, which is 0.022 %"),
        (
            {"measured": {**NONE, "tflops_per_gpu": 0.2}, "flops_convention": "MFU"},
            "measured.tflops_per_gpu: is 0.2 TFLOP/s, which is 0.064 %",
        ),
        (
            {"measured": {**NONE, "mfu": 0.0004}},
            "measured.mfu: is 0.0004 of the peak, which is 0.04 %",
        ),
        ({"measured": {"tflops_per_gpu": 140e12}}, "measured.tflops_per_gpu: must be 10¹² FLOP/s of one device, from"),
        ({"measured": {"tflops_per_gpu": 0.05}}, "from 0.1 to 20000, got 0.05"),
        (
            {"measured": {"peak_mem_gb": 115}},
            "measured.peak_mem_gb: is 115 GB, but a100-sxm-80g has 85.9 GB; GB of one device are expected",
        ),
        (
            {"measured": {"peak_mem_gb": 105}, "peak_mem_unit": "GiB"},
            "measured.peak_mem_gb: is 105 GiB, but a100-sxm-80g has 80 GiB",
        ),
        (
            {"model": {"params_b": 850.0}},
            "model.params_b: is 850, but layers and sizes make 0.853; 10⁹ parameters are expected",
        ),
        ({"model": {"params_b": 0.2}}, "model.params_b: is 0.2, but"),
    ],
)
def test_a_measure_in_another_unit_is_named_with_its_row_and_what_is_expected(changes, message):
    with pytest.raises(InputError) as caught:
        read_runs(text(row(id="fine"), row(**changes)))
    assert str(caught.value).startswith("runs[1] (made-up-1).")
    assert message in str(caught.value)
    assert len(caught.value.problems) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"hardware": {"gpu": "TPUv4"}, "measured": {"step_time_s": 1500.0, "peak_mem_gb": 900}},
        {"model": {"family": "mamba"}, "measured": {"step_time_s": 1500.0}},
        {"model": {"layers": None, "params_b": 850.0}},
        {"batch": {"global": None}, "measured": {"step_time_s": 1500.0}},
        {"measured": {"step_time_s": 1.5, "peak_mem_gb": 80}, "model": {"params_b": 0.4}},
        {"model": {**EXPERTS, "params_b": 4.0}, "measured": {"step_time_s": 30.0}},
    ],
)
def test_what_cannot_be_compared_or_is_near_enough_is_left_alone(changes):
    assert record(**changes).id == "made-up-1"


def test_several_wrong_units_of_one_row_are_all_told():
    with pytest.raises(InputError) as caught:
        record(measured={"step_time_s": 1500.0, "peak_mem_gb": 80_00}, model={"params_b": 850.0})
    assert [problem.field.rpartition(").")[2] for problem in caught.value.problems] == [
        "measured.peak_mem_gb",
        "model.params_b",
        "measured.step_time_s",
    ]
