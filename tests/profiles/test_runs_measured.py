import pytest
from run_rows import case, record

from planner.cost.flops import model_flops_per_token
from profiles.runs import outcome_of, peak_memory_bytes, step_time_s
from profiles.runs.outcome import source_family
from profiles.runs.skipped import Skipped

NOTHING = {"step_time_s": None}
TOKENS = 64 * 4096


@pytest.mark.parametrize(
    ("measured", "seconds"),
    [
        ({"step_time_s": 1.5}, 1.5),
        ({"step_time_s": 1.5, "samples_per_s": 40.0}, 1.5),
        ({"step_time_s": None, "tokens_per_s_per_gpu": 8192.0}, 2.0),
        ({"step_time_s": None, "samples_per_s": 32}, 2.0),
        ({"step_time_s": None}, None),
    ],
)
def test_a_step_is_measured_directly_or_by_tokens_or_samples(measured, seconds):
    assert step_time_s(record(measured=measured), None) == seconds


def test_a_step_that_the_collector_derived_comes_before_flops():
    found = record(measured={**NOTHING, "tflops_per_gpu": 100}, derived={"step_time_s": 3.0, "how": "eq.(3)"})
    assert step_time_s(found, None) == 3.0


@pytest.mark.parametrize(
    "convention", ["model FLOPs (MFU-type)", "MFU active params", "MFU: 6N + 12*L*d*s (non causal)"]
)
def test_model_flops_leave_out_recomputation(convention):
    model = case().model
    found = record(measured={**NOTHING, "tflops_per_gpu": 100}, flops_convention=convention)
    expected = model_flops_per_token(model, 4096) * TOKENS / 100e12 / 16
    assert step_time_s(found, model) == pytest.approx(expected)
    assert step_time_s(found, None) is None


@pytest.mark.parametrize(
    "convention", ["HFU(4x fwd)", "HFU(4x fwd), eq.3", "Alpa: compute incl. remat", "hardware FLOPs"]
)
def test_hardware_flops_count_the_blocks_a_fourth_time(convention):
    model = case().model
    found = record(measured={**NOTHING, "tflops_per_gpu": 100}, flops_convention=convention)
    head = 6 * 2048 * 32000
    flops = head + (model_flops_per_token(model, 4096) - head) * 4 / 3
    assert step_time_s(found, model) == pytest.approx(flops * TOKENS / 100e12 / 16)


def test_a_rate_of_unknown_convention_is_no_measurement_unless_its_share_is_called_mfu():
    model = case().model
    assert step_time_s(record(measured={**NOTHING, "tflops_per_gpu": 100}), model) is None
    assert step_time_s(record(measured={**NOTHING, "tflops_per_gpu": 100, "mfu": 0.32}), model) is not None


@pytest.mark.parametrize(("unit", "size"), [("GiB", 2**30), ("GB", 10**9), (None, 10**9)])
def test_peak_memory_is_in_the_unit_that_the_row_names(unit, size):
    assert peak_memory_bytes(record(measured={"peak_mem_gb": 40}, peak_mem_unit=unit)) == 40 * size
    assert peak_memory_bytes(record()) is None


def test_an_outcome_sets_predicted_beside_measured():
    found = outcome_of(record(measured={"peak_mem_gb": 40}), case())
    assert found.error_ratio == found.predicted_step_time_s / 1.5 - 1
    assert found.memory_error_ratio == found.predicted_peak_memory_bytes / 40e9 - 1
    assert found.fits
    assert found.skipped is None


def test_a_skipped_outcome_keeps_what_was_measured():
    found = outcome_of(record(), Skipped("batch.micro: not known"))
    assert (found.skipped, found.measured_step_time_s) == ("batch.micro: not known", 1.5)
    assert (found.predicted_step_time_s, found.error_ratio, found.fits) == (None, None, None)


@pytest.mark.parametrize(
    ("source", "family"),
    [
        ("LiBai v0.2 benchmarks (Megatron-LM) - 2-D Parallel", "LiBai v0.2 benchmarks"),
        ("NVIDIA dgxc-benchmarking (LLMB) recipe README v25.04", "NVIDIA dgxc-benchmarking"),
        ("Korthikanti et al. 2022 (arXiv 2205.05198) Table 5", "Korthikanti et al. 2022"),
        ("MosaicML llm-foundry training benchmarks: H100 80GB", "MosaicML llm-foundry training benchmarks"),
        ("ours", "ours"),
    ],
)
def test_a_source_is_known_by_its_title_without_its_parts(source, family):
    assert source_family(source) == family


def test_the_share_of_the_peak_is_a_measure_where_its_flops_are_known():
    found = case()
    noted = record(measured={**NOTHING, "mfu": 0.4}, flops_convention="model FLOPs")
    expected = model_flops_per_token(found.model, 4096) * TOKENS / (0.4 * 312e12) / 16
    assert step_time_s(noted, found.model, found.cluster.device) == pytest.approx(expected)
    assert outcome_of(noted, found).measured_step_time_s == pytest.approx(expected)
    assert step_time_s(noted, found.model) is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "none of its fields is given"),
        (
            {"measured": {"tflops_per_gpu": 100}, "flops_convention": "ours"},
            "measured.tflops_per_gpu alone is given, and flops_convention is 'ours', which is not known",
        ),
        (
            {"measured": {"tflops_per_gpu": 100}},
            "measured.tflops_per_gpu alone is given, and flops_convention is absent",
        ),
        (
            {"measured": {"mfu": 0.4}, "flops_convention": "ours"},
            "measured.mfu alone is given, and flops_convention is 'ours', which is not known",
        ),
        (
            {"measured": {"mfu": 0.4}, "precision": "fp8", "hardware": {"gpu": "H100"}},
            "measured.mfu alone is given, and of which peak is not known for fp8",
        ),
    ],
)
def test_a_priced_row_of_which_no_step_time_can_be_derived_says_why(changes, words):
    changes = {**changes, "measured": {**NOTHING, **changes.get("measured", {})}}
    found = outcome_of(record(**changes), case(**changes))
    assert found.unmeasured == f"measured: no step time can be derived, {words}"
    assert found.error_ratio is None


def test_a_row_that_was_measured_ran_out_of_memory_or_has_no_price_is_not_called_unmeasured():
    assert outcome_of(record(), case()).unmeasured is None
    assert outcome_of(record(measured=NOTHING, oom=True), case()).unmeasured is None
    assert outcome_of(record(measured=NOTHING), Skipped("batch.micro: not known")).unmeasured is None
