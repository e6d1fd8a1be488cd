"""What a client may put in: numbers with which no price overflows, lists over which no search chokes."""

import pytest

from planner.spec.errors import InputError
from planner.spec.model import Model
from planner.spec.parse import parse
from planner.spec.request import ClusterRequest, MixedClusterRequest, Options
from planner.spec.training import Training

CLUSTER = {"nodes": 1, "devices_per_node": 8, "device": "h100-sxm-80g"}
LINK = {"bandwidth_bytes_per_s": 1e9, "latency_s": 1e-5}


def field(kind, data):
    with pytest.raises(InputError) as caught:
        parse(kind, data)
    return caught.value.problems[0].field


@pytest.mark.parametrize("bandwidth", [5e-324, 1e-31, 1e31, 1.7e308])
def test_a_bandwidth_is_none_with_which_prices_overflow(bandwidth):
    cluster = CLUSTER | {"intra_node": LINK | {"bandwidth_bytes_per_s": bandwidth}}
    assert field(ClusterRequest, cluster) == "intra_node.bandwidth_bytes_per_s"


def test_a_latency_may_be_zero_and_is_none_with_which_prices_overflow():
    assert parse(ClusterRequest, CLUSTER | {"intra_node": LINK | {"latency_s": 0}}).intra_node.latency_s == 0
    assert field(ClusterRequest, CLUSTER | {"intra_node": LINK | {"latency_s": 1e308}}) == "intra_node.latency_s"


def test_a_capacity_is_none_with_which_prices_overflow():
    recipe = {"global_batch_size": 8, "sequence_length": 128, "capacity_factor": 5e-324}
    assert field(Training, recipe) == "capacity_factor"


def test_lists_that_only_a_slip_makes_so_long_are_refused():
    level = {"name": "tier", "num_devices": 8, "link": LINK}
    connection = {"a": 0, "b": 1} | LINK
    scenarios = [{"name": str(number), "probability": 1 / 65} for number in range(65)]
    assert field(ClusterRequest, CLUSTER | {"levels": [level] * 65}) == "levels"
    assert field(ClusterRequest, CLUSTER | {"links": [connection] * (2**16 + 1)}) == "links"
    assert field(MixedClusterRequest, {"groups": [CLUSTER] * 65}) == "groups"
    assert field(Options, {"scenarios": scenarios}) == "scenarios"


def test_experts_of_all_layers_are_counted_without_building_any():
    attention = {"kind": "gqa", "num_heads": 1, "num_kv_heads": 1, "head_dim": 8}
    experts = {"kind": "moe", "num_experts": 2**17, "top_k": 1, "expert_width": 8}
    block = {"kind": "block", "attention": attention, "feed_forward": experts}
    model = {"name": "m", "hidden_size": 8, "runs": [{"layer": block, "num_layers": 8}]}
    assert parse(Model, model).moe_layers == tuple(range(8))
    assert field(Model, model | {"runs": [{"layer": block, "num_layers": 9}]}) == "runs"
