"""How sure prices are: percentiles of classes of runs, and which class is nearest."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.spec.errors import InternalError
from planner.spec.parse import parse
from planner.spec.request import ClusterRequest
from planner.spec.stack import Stack
from profiles import cluster_from_shorthand, device_names, device_preset, resolve_cluster, stack_names, stack_preset
from profiles.error_bands import ErrorClass, band_of, error_bands, error_classes
from profiles.fit.bands import LEAST_ROWS, Band, bands, percentile

RATIOS = [0.9, 0.95, 0.98, 1.0, 1.0, 1.02, 1.05, 1.1, 1.2, 1.5]


def entries(device: str, stack: str, kind: str = "dense", ratios=RATIOS):
    return [(device, stack, kind, ratio) for ratio in ratios]


def by_name(found: list[Band]) -> dict[tuple[str, str, str], Band]:
    return {(each["device"], each["stack"], each["kind"]): each for each in found}


def classes(*names: tuple[str, str, str]) -> list[ErrorClass]:
    """Each class of these names with its own high_ratio: 1 + its place."""
    return [
        ErrorClass(device=device, stack=stack, kind=kind, rows=9, low_ratio=1.0, high_ratio=1.0 + place)
        for place, (device, stack, kind) in enumerate(names)
    ]


NEAREST_FIRST = (
    ("h100", "megatron", "dense"),
    ("*", "megatron", "dense"),
    ("h100", "*", "dense"),
    ("*", "*", "dense"),
    ("*", "*", "*"),
)


def test_a_class_has_its_tenth_and_ninetieth_percentile():
    found = by_name(bands(entries("h100", "megatron")))
    assert set(found) == set(NEAREST_FIRST)
    for each in found.values():
        assert (each["rows"], each["low_ratio"], each["high_ratio"]) == (10, pytest.approx(0.925), pytest.approx(1.35))


def test_percentiles_lie_between_values_by_a_straight_line():
    even = [1.0] * 4
    assert percentile([1.0, 2.0, 3.0, 4.0], even, 50.0) == 2.5
    assert percentile([4.0, 2.0, 1.0, 3.0], even, 12.5) == 1.0
    assert percentile([1.0, 2.0, 3.0, 4.0], even, 25.0) == 1.5
    assert percentile([1.0, 2.0, 3.0, 4.0], even, 99.0) == 4.0


def test_a_value_of_twice_the_weight_is_as_good_as_two():
    assert percentile([1.0, 2.0, 5.0], [1.0, 1.0, 2.0], 50.0) == pytest.approx(3.0)


@given(st.lists(st.floats(0.1, 10.0), min_size=1, max_size=30), st.floats(0.0, 50.0))
def test_percentiles_are_ordered_and_among_the_values(values, rank):
    even = [1.0] * len(values)
    low, high = percentile(values, even, rank), percentile(values, even, 100.0 - rank)
    assert min(values) * 0.999 <= low <= high <= max(values) * 1.001


def test_fewer_runs_than_eight_make_no_class_of_their_own_but_count_in_wider_ones():
    few = entries("b200", "megatron", ratios=RATIOS[: LEAST_ROWS - 1])
    found = by_name(bands([*entries("h100", "megatron"), *few]))
    assert ("b200", "megatron", "dense") not in found
    assert ("b200", "*", "dense") not in found
    assert found["*", "megatron", "dense"]["rows"] == len(RATIOS) + LEAST_ROWS - 1
    assert bands(few) == []


def test_dense_and_moe_models_are_classes_apart_but_in_the_widest():
    found = by_name(bands([*entries("h100", "megatron"), *entries("h100", "megatron", "moe", [2.0] * 8)]))
    assert found["*", "*", "dense"]["high_ratio"] < 1.5
    assert found["*", "*", "moe"]["low_ratio"] == 2.0
    assert found["*", "*", "*"]["rows"] == 18


def test_many_runs_of_one_machine_do_not_drown_the_others_in_a_wide_class():
    many = entries("a100", "megatron", ratios=[1.0] * 900)
    found = by_name(bands([*many, *entries("h100", "fsdp", ratios=[1.5] * 25)]))
    assert found["*", "*", "dense"]["high_ratio"] == 1.5
    assert found["a100", "megatron", "dense"]["high_ratio"] == 1.0


def test_bands_do_not_depend_on_the_order_of_the_runs():
    runs = [*entries("h100", "megatron"), *entries("a100", "fsdp", ratios=[1.0, 1.0, 2.0, 2.0, 3.0, 3.0, 4.0, 5.0])]
    assert bands(runs) == bands(runs[::-1])


@pytest.mark.parametrize("known", [0, 2, 3, 4])
def test_the_nearest_class_is_taken(known):
    found = band_of("h100", "megatron", "dense", classes(*NEAREST_FIRST[known:]))
    assert found.high_ratio == 1.0
    farther_first = classes(*NEAREST_FIRST[known:][::-1])
    assert band_of("h100", "megatron", "dense", farther_first).high_ratio == len(farther_first)


def test_a_pair_that_nobody_measured_has_the_wider_of_both_its_classes():
    found = band_of("h100", "megatron", "dense", classes(*NEAREST_FIRST[1:]))
    assert (found.low_ratio, found.high_ratio, found.rows) == (1.0, 2.0, 18)
    assert found.basis.count(" runs of ") == 2


def test_runs_of_another_device_stack_or_kind_are_not_near():
    others = (("a100", "megatron", "dense"), ("h100", "fsdp", "dense"), ("h100", "megatron", "moe"), ("*", "*", "moe"))
    assert band_of("h100", "megatron", "dense", classes(*others, ("*", "*", "*"))).high_ratio == 5.0


def test_without_any_class_there_is_no_answer():
    with pytest.raises(InternalError, match="has no error of all runs"):
        band_of("h100", "megatron", "dense", [])


def test_the_basis_says_which_runs_these_are():
    bases = [band_of("h100", "megatron", "dense", classes(name)).basis for name in NEAREST_FIRST]
    assert bases == [
        "9 runs of dense models on h100 with megatron",
        "9 runs of dense models on any device with megatron",
        "9 runs of dense models on h100 with any stack",
        "9 runs of dense models on any device with any stack",
        "9 runs of all models on any device with any stack",
    ]


def test_the_record_in_the_package_answers_for_all_devices_and_stacks():
    assert parse(tuple[ErrorClass, ...], [each.model_dump() for each in error_classes()]) == error_classes()
    known = {(each.device, each.stack, each.kind) for each in error_classes()}
    assert len(known) == len(error_classes())
    assert {each.device for each in error_classes()} <= {"*", *device_names()}
    assert {each.stack for each in error_classes()} <= {"*", *stack_names()}
    for device in device_names():
        for stack in stack_names():
            found = error_bands(device_preset(device).device, stack_preset(stack).stack)
            assert found.dense.rows >= LEAST_ROWS and found.moe.rows >= LEAST_ROWS
            assert "dense" in found.dense.basis and "MoE" in found.moe.basis


def test_a_resolved_cluster_has_the_bands_of_its_device_and_stack():
    cluster = resolve_cluster(cluster_from_shorthand("8x8:a100"))
    assert cluster.error_bands == error_bands(cluster.device, cluster.stack)
    named = cluster_from_shorthand("8x8:a100").model_copy(update={"stack": "megatron-deepspeed"})
    bands_there = resolve_cluster(named).error_bands
    assert bands_there is not None and bands_there.dense.basis.endswith(
        "runs of dense models on a100-sxm-80g with megatron-deepspeed"
    )


def test_what_is_called_like_a_preset_but_is_not_one_has_the_widest_class():
    preset = device_preset("a100-sxm-80g")
    slower = preset.device.model_copy(update={"memory_bandwidth_bytes_per_s": 1e12})
    own_stack = stack_preset("pytorch-fsdp").stack.model_copy(update={"step_host_s": 1.0})
    request = ClusterRequest(nodes=1, devices_per_node=8, device=slower, intra_node=preset.intra_node, stack=own_stack)
    found = resolve_cluster(request).error_bands
    assert found is not None and found.dense.basis.endswith("runs of dense models on any device with any stack")
    assert error_bands(preset.device, Stack()).moe.basis.startswith(str(found.moe.rows))


def test_a_preset_given_inline_is_the_preset():
    preset, stack = device_preset("a100-sxm-80g"), stack_preset("megatron-deepspeed").stack
    inline = ClusterRequest(
        nodes=1, devices_per_node=8, device=preset.device, intra_node=preset.intra_node, stack=stack
    )
    by_name_ = ClusterRequest(nodes=1, devices_per_node=8, device="a100-sxm-80g", stack="megatron-deepspeed")
    assert resolve_cluster(inline).error_bands == resolve_cluster(by_name_).error_bands
