"""The fit finds the constants of a machine that is known, from the times that the formulas give it."""

import pytest
from machine_samples import BETWEEN, INSIDE, KNOWN, MACHINE, samples

from planner.spec.cluster import Precision, Provenance
from planner.spec.errors import InputError
from profiles.fitting import fit
from profiles.measurement import CollectiveSample, LaunchSample, MatmulSample, OverlapSample
from profiles.pattern_search import fitted

ALONE = MACHINE.model_copy(update={"num_devices": 1, "devices_per_node": 1})


@pytest.fixture(scope="module")
def found():
    return fit("known", MACHINE, samples(), ("a machine that is known",))


@pytest.mark.parametrize(
    "name",
    [
        "half_tile_ratio",
        "misaligned_ratio",
        "attention_forward_ratio",
        "attention_backward_ratio",
        "memory_ratio",
        "overlap_slowdown_ratio",
    ],
)
def test_constants_of_kernels_are_found_again(found, name):
    expected = getattr(KNOWN.device.efficiency, name)
    assert getattr(found.device.efficiency, name) == pytest.approx(expected, rel=0.02)


def test_products_have_the_rate_the_tile_and_the_depth_that_they_had(found):
    efficiency, peaks = found.device.efficiency, found.device.peak_flops_per_s
    assert efficiency.matmul_tile == (128, 256)
    assert efficiency.matmul_half_depth == pytest.approx(200, rel=0.05)
    assert efficiency.matmul_ratio * peaks.bf16 == pytest.approx(3e14, rel=0.01)
    assert peaks.fp32 == pytest.approx(2e13, rel=0.1)
    assert peaks.fp16 is None


def test_memory_and_launches_are_found_again(found):
    assert found.device.memory_bandwidth_bytes_per_s == pytest.approx(2e12, rel=0.01)
    assert found.device.efficiency.kernel_launch_s == pytest.approx(3e-6)


@pytest.mark.parametrize("name", ["elementwise_ratio", "optimizer_ratio", "grouped_matmul_ratio"])
def test_what_the_software_adds_is_found_again(found, name):
    assert getattr(found.stack, name) == pytest.approx(getattr(KNOWN.stack, name), rel=0.02)


@pytest.mark.parametrize(("tier", "expected"), [("intra_node", INSIDE), ("inter_node", BETWEEN)])
@pytest.mark.parametrize("name", ["bandwidth_bytes_per_s", "latency_s", "pair_bandwidth_bytes_per_s"])
def test_links_are_found_again_inside_and_between_nodes(found, tier, expected, name):
    assert getattr(getattr(found, tier), name) == pytest.approx(getattr(expected, name), rel=0.03)


def test_the_formulas_give_the_samples_back(found):
    assert {"launch", "matmul bf16", "attention bf16", "update bf16", "all_to_all", "overlap"} <= {
        error.kind for error in found.errors
    }
    # Products in fp32 have a say in the peak alone.
    assert all(error.worst_error_ratio < 0.05 for error in found.errors if error.kind != "matmul fp32")


def test_the_device_says_that_it_was_measured(found):
    assert found.device.provenance is Provenance.MEASURED
    assert found.device.sources == ("a machine that is known",)
    assert (found.device.memory_bytes, found.device.reserve_bytes) == (MACHINE.memory_bytes, MACHINE.reserve_bytes)


def test_equal_samples_give_equal_constants(found):
    assert fit("known", MACHINE, samples(), ("a machine that is known",)) == found


def test_a_device_that_is_alone_has_no_link_and_no_slowdown():
    alone = [s for s in samples() if not isinstance(s, CollectiveSample | OverlapSample)]
    found = fit("known", ALONE, alone)
    assert (found.intra_node, found.inter_node) == (None, None)
    assert found.device.efficiency.overlap_slowdown_ratio == 1.0


def test_one_node_tells_nothing_of_the_network():
    node = MACHINE.model_copy(update={"num_devices": 8})
    inside = [s for s in samples() if not isinstance(s, CollectiveSample) or s.stride == 1]
    found = fit("known", node, inside)
    assert found.intra_node is not None
    assert found.inter_node is None


@pytest.mark.parametrize("kind", [MatmulSample, LaunchSample])
def test_work_that_was_not_measured_is_an_error_not_a_guess(kind):
    with pytest.raises(InputError, match=rf"samples: there is no {kind.__name__}.*more time"):
        fit("known", MACHINE, [sample for sample in samples() if not isinstance(sample, kind)])


def test_a_processor_that_only_computes_in_fp32_has_that_peak_alone():
    processor = MACHINE.model_copy(update={"precision": Precision.FP32})
    found = fit("known", processor, samples(machine=processor))
    assert found.device.peak_flops_per_s.model_dump(exclude_none=True).keys() == {"fp32"}


def test_the_pattern_search_finds_the_lowest_point_and_stays_within_its_bounds():
    def loss(constants):
        return (constants["a"] - 3.0) ** 2 + (constants["b"] - 1e-6) ** 2 * 1e12

    free = fitted({"a": 100.0, "b": 1.0}, loss)
    assert (free["a"], free["b"]) == (pytest.approx(3.0, rel=0.01), pytest.approx(1e-6, rel=0.01))
    bound = fitted({"a": 1.5, "b": 1.0}, loss, most={"a": 2.0}, least={"b": 1e-3})
    assert bound == {"a": 2.0, "b": 1e-3}
