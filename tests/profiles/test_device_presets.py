import pytest

from planner.spec.cluster import Precision, Provenance
from planner.spec.errors import NotFoundError
from profiles import device_names, device_preset
from profiles.catalogue import content


@pytest.mark.parametrize("name", device_names())
def test_every_preset_is_a_device_of_its_name_with_sources(name):
    preset = device_preset(name)
    assert preset.name == preset.device.name == name
    assert len(preset.device.sources) >= 5
    assert preset.device.reserve_bytes < preset.device.memory_bytes / 4


@pytest.mark.parametrize("name", device_names())
def test_every_assumption_is_called_one(name):
    device = device_preset(name).device
    told = " ".join(device.sources)
    for figure in ("memory_bytes", "matmul_ratio", "attention", "overlap_slowdown_ratio", "reserve_bytes"):
        assert figure in told
    assert "assumption" in told


def test_no_alias_names_two_devices():
    aliases = [alias for name in device_names() for alias in (name, *content("hardware", name)["aliases"])]
    assert len(set(aliases)) == len(aliases)
    assert all(alias == alias.lower() for alias in aliases)


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("h100", "h100-sxm-80g"),
        ("A100-80G", "a100-sxm-80g"),
        ("a100-40g", "a100-sxm-40g"),
        ("v100-32g", "v100-sxm2-32g"),
        ("v100-16g", "v100-sxm2-16g"),
        ("h200", "h200-sxm-141g"),
        ("b200", "b200-180g"),
        ("mi300x", "mi300x-192g"),
        ("rtx-titan", "rtx-titan-24g"),
        ("rtx-4090", "rtx-4090-24g"),
        ("cpu", "cpu-core"),
    ],
)
def test_devices_are_found_by_alias_and_in_any_case(alias, name):
    assert device_preset(alias).name == name


def test_an_unknown_device_lists_close_matches():
    with pytest.raises(NotFoundError, match="no device preset is named 'h100-sxm-80'; did you mean h100-sxm-80g"):
        device_preset("h100-sxm-80")


def test_volta_and_turing_have_no_bf16_units():
    for name in ("v100-sxm2-16g", "v100-sxm2-32g", "rtx-titan-24g"):
        assert device_preset(name).device.peak(Precision.BF16) is None


def test_the_peaks_of_bf16_are_those_without_sparsity():
    peaks = {name: device_preset(name).device.peak(Precision.BF16) for name in ("a100", "h100", "b200", "mi300x")}
    assert peaks == {"a100": 312e12, "h100": 989e12, "b200": 2250e12, "mi300x": 1307.4e12}


def test_only_the_cpu_core_is_measured():
    measured = [n for n in device_names() if device_preset(n).device.provenance is Provenance.MEASURED]
    assert measured == ["cpu-core"]


@pytest.mark.parametrize("name", [name for name in device_names() if name != "cpu-core"])
def test_links_inside_a_node_are_faster_than_between_nodes(name):
    preset = device_preset(name)
    assert preset.intra_node.bytes_per_s > 2 * preset.inter_node.bytes_per_s
    assert preset.intra_node.latency_s < preset.inter_node.latency_s
