from math import prod

import pytest

from planner.search.removed import Removed
from planner.search.space import Space
from planner.search.tree import PATH_RULES, count_paths, divisors, dp_and_sdp_apart, paths, tp_on_nearest_devices
from planner.spec.cluster import Cluster
from planner.spec.request import ALL_AXES, USUAL_AXES, Options
from planner.spec.strategy import AxisKind, Sharding
from planner.spec.training import Training
from profiles import cluster_from_shorthand, model_preset, resolve_cluster

GALVATRON_AXES = (AxisKind.DP, AxisKind.SDP, AxisKind.TP)


def a_cluster(shorthand: str = "1x8:a100-sxm-80g") -> Cluster:
    return resolve_cluster(cluster_from_shorthand(shorthand))


def passes(rule, path) -> bool:
    """Whether the rule lets every beginning of a complete path through."""
    sizes = [axis.degree for axis in path]
    rests = [prod(sizes[number + 1 :]) for number in range(len(path))]
    return all(rule(path[: number + 1], rest, a_cluster()) for number, rest in enumerate(rests))


def all_paths(num_devices: int):
    """The tree over all pipeline degrees."""
    return [
        path for stages in divisors(num_devices) for path in paths(num_devices // stages, GALVATRON_AXES, a_cluster())
    ]


@pytest.mark.parametrize(
    ("num_devices", "whole_tree", "dp_and_sdp_never_meet"),
    [(8, 34, 22), (16, 73, 37), (32, 136, 56), (64, 229, 79)],
)
def test_the_tree_has_as_many_strategies_as_galvatron_published(num_devices, whole_tree, dp_and_sdp_never_meet):
    # Source: Galvatron (arXiv 2211.13878), section 3.2, for 8 devices; the same rule counted for more.
    found = all_paths(num_devices)
    assert len(found) == len(set(found)) == whole_tree
    assert sum(passes(dp_and_sdp_apart, path) for path in found) == dp_and_sdp_never_meet


def test_recomputation_doubles_the_strategies_of_a_block():
    block = model_preset("gpt-3-175b").layers[1]
    counts = []
    for recompute in (("none",), ("none", "full")):
        options = Options(axes=("dp", "sdp", "tp"), sharding=("none", "full"), recompute=recompute)
        space = Space(a_cluster(), Training(global_batch_size=8, sequence_length=2048), options, Removed())
        strategies = [s for stages in divisors(8) for s in space.grid(block, 8 // stages)]
        assert len(strategies) == len(set(strategies))
        counts.append(len(strategies))
    allowed = [p for p in all_paths(8) if passes(dp_and_sdp_apart, p) and passes(tp_on_nearest_devices, p)]
    assert counts == [len(allowed), 2 * len(allowed)]


def test_with_recomputation_the_tree_has_68_and_44_strategies_on_8_devices():
    every = all_paths(8)
    apart = [path for path in every if passes(dp_and_sdp_apart, path)]
    recompute = (False, True)
    assert len({(path, again) for path in every for again in recompute}) == 68
    assert len({(path, again) for path in apart for again in recompute}) == 44


@pytest.mark.parametrize("num_devices", [1, 2, 6, 12, 64])
def test_every_path_uses_each_axis_once_and_all_devices(num_devices):
    for path in paths(num_devices, list(AxisKind), a_cluster()):
        product = 1
        for axis in path:
            assert axis.degree >= 2
            product *= axis.degree
        assert product == num_devices
        assert len({axis.kind for axis in path}) == len(path)


def test_sdp_alone_is_written_as_dp_with_full_sharding_and_beside_dp_as_hybrid_sharding():
    block = model_preset("gpt-3-175b").layers[1]
    space = Space(
        a_cluster("1x4:a100-sxm-80g"),
        Training(global_batch_size=8, sequence_length=2048),
        Options(axes=("sdp",), recompute=("none",)),
        Removed(),
    )
    (only,) = space.grid(block, 4)
    assert only.axes == ((AxisKind.DP, 4),)
    assert only.sharding is Sharding.FULL


def test_ulysses_is_searched_where_it_is_named_between_the_ring_and_tensor_parallelism():
    block = model_preset("llama-3.1-8b").layers[1]
    training = Training(global_batch_size=64, sequence_length=4096)
    found = {}
    for axes in (USUAL_AXES, ALL_AXES):
        removed = Removed()
        grid = Space(a_cluster("2x8:h100-sxm-80g"), training, Options(axes=axes), removed).grid(block, 16)
        orders = {tuple(axis.kind.value for axis in shape.axes) for shape in grid.shapes}
        found[axes] = {order for order in orders if "ulysses" in order}
        assert ("ulysses-inside-cp" in removed.counts) == bool(found[axes])
    assert not found[USUAL_AXES]
    assert ("dp", "cp", "ulysses", "tp") in found[ALL_AXES]
    assert all(set(order[order.index("ulysses") :]) <= {"ulysses", "tp"} for order in found[ALL_AXES])


def test_every_rule_that_removes_something_is_counted_and_listed_by_its_name():
    removed = Removed()
    space = Space(
        a_cluster("2x8:h100-sxm-80g"), Training(global_batch_size=64, sequence_length=4096), Options(), removed
    )
    space.grid(model_preset("mixtral-8x7b").layers[1], 16)
    expected = {"dp-and-sdp-apart", "tp-on-nearest-devices", "cp-inside-dp", "tp-within-node", "experts-divide"}
    assert expected <= set(removed.counts)
    assert all(count > 0 and removed.listed(rule) for rule, count in removed.counts.items())


@pytest.mark.parametrize("num_devices", [1, 6, 8, 24, 64])
def test_what_the_rules_remove_and_what_they_keep_is_the_whole_tree(num_devices):
    removed = Removed()
    kept = list(paths(num_devices, list(AxisKind), a_cluster(), PATH_RULES, removed))
    assert len(kept) + sum(removed.counts.values()) == count_paths(num_devices, len(AxisKind))
    assert all(passes(rule, path) for rule in PATH_RULES for path in kept)


def test_a_rule_that_is_switched_off_removes_nothing_and_leaves_a_larger_space():
    block, sizes = model_preset("gpt-3-175b").layers[1], []
    for without in ((), ("tp-within-node", "tp-on-nearest-devices")):
        removed = Removed()
        training = Training(global_batch_size=64, sequence_length=2048)
        space = Space(a_cluster("2x8:a100-sxm-80g"), training, Options(without_rules=without), removed)
        sizes.append(len(space.grid(block, 16)))
        assert not set(without) & set(removed.counts)
    assert sizes[0] < sizes[1]
