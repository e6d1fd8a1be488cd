import math

import pytest

from planner.spec.cluster import Cluster, Device, Link, Precision
from planner.spec.errors import InputError
from planner.spec.model import MAX_LAYERS, Model, MoeFeedForward
from planner.spec.parse import parse

BLOCK = {
    "kind": "block",
    "attention": {"kind": "gqa", "num_heads": 4, "num_kv_heads": 2, "head_dim": 8},
    "feed_forward": {"kind": "moe", "num_experts": 4, "top_k": 2, "expert_width": 64},
}
EMBEDDING = {"kind": "embedding", "vocab_size": 96}
HEAD = {"kind": "head", "vocab_size": 96}
LINK = {"bandwidth_bytes_per_s": 1e9, "latency_s": 1e-5}
DEVICE = {
    "name": "toy",
    "memory_bytes": 1000,
    "memory_bandwidth_bytes_per_s": 1e9,
    "compute_units": 4,
    "peak_flops_per_s": {"fp32": 1e12},
    "efficiency": {
        "matmul_ratio": 0.8,
        "attention_forward_ratio": 0.5,
        "attention_backward_ratio": 0.5,
        "memory_ratio": 0.8,
        "kernel_launch_s": 1e-6,
    },
    "reserve_bytes": 0,
    "provenance": "datasheet",
}


def model(*layers, **changes):
    return {"name": "toy", "hidden_size": 32, "runs": [{"layer": layer} for layer in layers]} | changes


def cluster(**changes):
    levels = [
        {"name": "node", "num_devices": 4, "link": LINK},
        {"name": "cluster", "num_devices": 8, "link": LINK},
    ]
    return {"nodes": 2, "devices_per_node": 4, "device": DEVICE, "levels": levels} | changes


def levels(*sizes):
    return [{"name": f"tier of {size}", "num_devices": size, "link": LINK} for size in sizes]


def problem(kind, data):
    with pytest.raises(InputError) as caught:
        parse(kind, data)
    (found,) = caught.value.problems
    return found


@pytest.mark.parametrize(
    ("layers", "field", "message"),
    [
        ((EMBEDDING, HEAD), "runs", "at least one block"),
        ((BLOCK, EMBEDDING), "runs", "only layer 0 may be one"),
        ((HEAD, BLOCK), "runs", "only the last layer may be one"),
        ((BLOCK, HEAD | {"tied": True}), "runs", "needs an embedding of the same vocab_size"),
        (
            (EMBEDDING, BLOCK, HEAD | {"tied": True, "vocab_size": 97}),
            "runs",
            "needs an embedding of the same vocab_size",
        ),
        (
            (BLOCK | {"attention": BLOCK["attention"] | {"num_kv_heads": 3}},),
            "runs.0.layer.attention.num_heads",
            "multiple of num_kv_heads (3)",
        ),
        (
            (BLOCK | {"feed_forward": BLOCK["feed_forward"] | {"top_k": 5}},),
            "runs.0.layer.feed_forward.top_k",
            "must not exceed num_experts (4)",
        ),
    ],
)
def test_an_impossible_stack_of_layers_is_refused(layers, field, message):
    found = problem(Model, model(*layers))
    assert found.field == field
    assert message in found.message


def test_a_model_of_absurd_depth_is_refused_without_building_its_layers():
    runs = [{"layer": BLOCK, "num_layers": 2**52}]
    found = problem(Model, model(runs=runs))
    assert (found.field, f"at most {MAX_LAYERS} layers" in found.message) == ("runs", True)


def test_a_layer_of_unknown_kind_is_refused():
    assert problem(Model, model(BLOCK | {"kind": "mamba"})).field.startswith("runs.0.layer")


def test_layers_are_numbered_from_the_embedding_on():
    value = parse(Model, model(EMBEDDING, BLOCK, HEAD, runs=[{"layer": EMBEDDING}, {"layer": BLOCK, "num_layers": 3}]))
    assert len(value.layers) == 4
    assert value.moe_layers == (1, 2, 3)
    assert value.moe(2).num_experts == 4
    assert Model.model_validate_json(value.model_dump_json()) == value


@pytest.mark.parametrize(
    ("changes", "field", "message"),
    [
        ({"nodes": 0}, "nodes", "greater than or equal to 1"),
        ({"nodes": 3}, "levels", "must span all 12 devices"),
        ({"levels": []}, "levels", "at least 1"),
        ({"memory_limit_bytes": 1001}, "memory_limit_bytes", "exceeds the 1000 bytes of the device"),
        ({"memory_limit_bytes": 0}, "memory_limit_bytes", "greater than or equal to 1"),
        ({"levels": levels(2, 3, 8)}, "levels", "no multiple of 2"),
        ({"levels": levels(4, 16, 8)}, "levels", "larger than the cluster"),
    ],
)  # fmt: skip
def test_an_impossible_cluster_is_refused(changes, field, message):
    found = problem(Cluster, cluster(**changes))
    assert found.field == field
    assert message in found.message


def test_the_memory_limit_bounds_what_a_plan_may_use():
    assert parse(Cluster, cluster()).usable_bytes == 1000
    assert parse(Cluster, cluster(memory_limit_bytes=600)).usable_bytes == 600


def test_a_cluster_survives_json():
    value = parse(Cluster, cluster())
    assert value.num_devices == 8
    assert Cluster.model_validate_json(value.model_dump_json()) == value


@pytest.mark.parametrize("number", [0, -1, math.nan, math.inf, -math.inf, "fast", None, True and [1]])
def test_a_bandwidth_must_be_a_finite_number_above_zero(number):
    assert problem(Link, LINK | {"bandwidth_bytes_per_s": number}).field == "bandwidth_bytes_per_s"


@pytest.mark.parametrize("ratio", [0, 1.01, -0.5, math.nan])
def test_an_efficiency_is_a_share_of_at_most_one(ratio):
    assert problem(Link, LINK | {"efficiency_ratio": ratio}).field == "efficiency_ratio"


def test_two_devices_alone_may_reach_less_than_all_together():
    link = parse(Link, LINK | {"efficiency_ratio": 0.5, "pair_bandwidth_bytes_per_s": 1e8})
    assert (link.bytes_per_s, link.pair_bytes_per_s) == (5e8, 5e7)
    assert parse(Link, LINK).pair_bytes_per_s == 1e9


def test_a_device_without_units_for_a_number_format_has_no_peak_there():
    device = parse(Device, DEVICE)
    assert (device.peak(Precision.FP32), device.peak(Precision.BF16)) == (1e12, None)


@pytest.mark.parametrize(
    "groups",
    [
        {"num_groups": 3, "groups_per_token": 1},
        {"num_groups": 2, "groups_per_token": 3},
        {"num_groups": 4, "groups_per_token": 1},
    ],
)
def test_groups_of_experts_divide_them_and_hold_enough_for_a_token(groups):
    experts = {"kind": "moe", "num_experts": 4, "top_k": 2, "expert_width": 64}
    parse(MoeFeedForward, {**experts, "num_groups": 2, "groups_per_token": 1})
    with pytest.raises(InputError, match=r"num_groups|groups_per_token"):
        parse(MoeFeedForward, {**experts, **groups})
