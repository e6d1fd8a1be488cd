"""Clusters of several groups: each stage under its own, messages between them over the link that joins them."""

import pytest
from cost_samples import DEVICE, NETWORK_LINK, NODE_LINK, cluster, even_plan, gpt, moe_model
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.cost import estimate
from planner.cost.collectives import all_gather_s, levels_from, tiers
from planner.cost.migration import PAUSE_S, migration_s
from planner.cost.switch import RESTART_PAUSE_S, switch_plan_s
from planner.spec.cluster import Level, Link
from planner.spec.errors import InputError
from planner.spec.mixed_cluster import MixedCluster
from planner.spec.placement import Move
from planner.spec.plan import Plan, Stage, StageRun
from planner.spec.stack import Stack
from planner.spec.strategy import Axis, AxisKind, Sharding, Strategy
from planner.spec.training import Training

MODEL = gpt(layers=8, hidden=512, heads=8, vocab=4096)
TRAINING = Training(global_batch_size=32, sequence_length=512)
SLOWER = DEVICE.model_copy(
    update={
        "name": "slower",
        "memory_bytes": 20 * 10**9,
        "reserve_bytes": 10**8,
        "memory_bandwidth_bytes_per_s": 1e12,
        "peak_flops_per_s": DEVICE.peak_flops_per_s.model_copy(update={"bf16": 1e14, "fp16": 1e14}),
    }
)
TWO = cluster(nodes=2)


def mixed(*groups, between=NETWORK_LINK):
    return MixedCluster(groups=groups, inter_group=between)


def data_parallel(*stages):
    """A plan of (devices, layers) by stage, data parallel with ZeRO-1."""
    made, device, layer = [], 0, 0
    for devices, layers in stages:
        strategy = Strategy(axes=(Axis(AxisKind.DP, devices),), sharding=Sharding.OPTIMIZER)
        runs = (StageRun(first_layer=layer, num_layers=layers, strategy=strategy),)
        made.append(Stage(first_device=device, num_devices=devices, runs=runs))
        device, layer = device + devices, layer + layers
    return Plan(
        global_batch_size=32,
        sequence_length=512,
        micro_batch_size=8 // stages[0][0],
        num_micro_batches=4,
        stages=tuple(made),
    )


def price(where, plan, model=MODEL):
    return estimate(model, where, TRAINING, plan)


UNEVEN = data_parallel((8, 6), (4, 2), (4, 2))
ACROSS = mixed(cluster(), cluster(device=SLOWER))


@settings(max_examples=60, deadline=None)
@given(
    words=st.sampled_from(
        [
            "tp2-pp8",
            "tp4-sp-pp2",
            "tp8-sp-pp2",
            "tp2-cp2-pp4",
            "zero1-pp8",
            "zero3-pp2",
            "tp2-zero2-recompute:full-pp4",
            "cp2-zero1-pp2",
        ]
    ),
    schedule=st.sampled_from(["", "-vpp2", "-gpipe", "-zb"]),
    tied=st.booleans(),
    bandwidth=st.floats(1e8, 1e12),
)
def test_equal_groups_joined_like_nodes_cost_what_one_cluster_costs(words, schedule, tied, bandwidth):
    """For all plans whose stages lie in one node."""
    model = gpt(layers=16, hidden=512, heads=8, vocab=4096, tied=tied)
    network = Link(bandwidth_bytes_per_s=bandwidth, latency_s=1e-5)
    one, node = cluster(nodes=2, network_link=network), cluster(nodes=1)
    plan = even_plan(f"{words}{schedule}-mbs1", model, one, TRAINING)
    together, apart = (estimate(model, where, TRAINING, plan) for where in (one, mixed(node, node, between=network)))
    assert apart.step_time_s == pytest.approx(together.step_time_s, rel=1e-12)
    assert apart.stages == together.stages
    assert apart.mfu == pytest.approx(together.mfu, rel=1e-12)


def test_each_stage_has_the_device_memory_and_reserve_of_its_group():
    found = price(ACROSS, UNEVEN)
    assert [stage.device for stage in found.stages] == ["sample", "slower", "slower"]
    assert [stage.limit_bytes for stage in found.stages] == [80 * 10**9, 20 * 10**9, 20 * 10**9]
    assert [stage.memory["reserve"] for stage in found.stages] == [10**9, 10**8, 10**8]
    assert found.fits


def test_a_memory_limit_of_one_group_binds_its_stages_alone():
    small = cluster(device=SLOWER, memory_limit_bytes=15 * 10**7)
    found = price(mixed(cluster(), small), UNEVEN)
    assert [stage.missing_bytes > 0 for stage in found.stages] == [False, True, True]
    assert not found.fits


def test_a_stage_takes_longer_on_slower_devices_and_others_take_as_long_as_before():
    fast, slow = price(mixed(cluster(), cluster()), UNEVEN), price(ACROSS, UNEVEN)
    assert slow.stages[0].time == fast.stages[0].time
    assert all(slow.stages[i].time.micro_batch_s > fast.stages[i].time.micro_batch_s for i in (1, 2))
    assert slow.step_time_s > fast.step_time_s


@settings(max_examples=60, deadline=None)
@given(
    group=st.integers(0, 1),
    factor=st.floats(1, 4),
    what=st.sampled_from(["memory_bandwidth_bytes_per_s", "peak_flops_per_s", "inter_group", "intra_node"]),
)
def test_a_faster_group_or_link_is_never_slower(group, factor, what):
    groups, between = [cluster(), cluster(device=SLOWER)], NETWORK_LINK
    device = groups[group].device
    if what == "inter_group":
        between = Link(bandwidth_bytes_per_s=factor * 2.5e10, latency_s=1e-5, efficiency_ratio=0.8)
    elif what == "intra_node":
        faster = NODE_LINK.model_copy(update={"bandwidth_bytes_per_s": factor * 3e11})
        groups[group] = cluster(device=device, node_link=faster)
    elif what == "peak_flops_per_s":
        peaks = {name: factor * rate for name, rate in device.peak_flops_per_s.model_dump(exclude_none=True).items()}
        groups[group] = cluster(device=device.model_copy(update={what: peaks}))
    else:
        groups[group] = cluster(device=device.model_copy(update={what: factor * device.memory_bandwidth_bytes_per_s}))
    before = price(ACROSS, UNEVEN).step_time_s
    assert price(mixed(*groups, between=between), UNEVEN).step_time_s <= before * (1 + 1e-12)


def test_messages_between_groups_take_the_link_that_joins_them():
    slow = Link(bandwidth_bytes_per_s=1e9, latency_s=1e-4)
    usual, slowed = price(ACROSS, UNEVEN), price(mixed(*ACROSS.groups, between=slow), UNEVEN)
    crossing = 2.0 * 512 * 512 * 8 / 4 * 2 / 2
    added = 2 * (crossing / slow.pair_bytes_per_s + 1e-4 - crossing / NETWORK_LINK.pair_bytes_per_s - 1e-5)
    gained = [b.time.micro_batch_s - a.time.micro_batch_s for a, b in zip(usual.stages, slowed.stages, strict=True)]
    assert gained == pytest.approx([0.0, added, 0.0], abs=1e-12)


def test_the_side_with_fewer_devices_sets_the_pace_of_messages():
    slow, usual = Link(bandwidth_bytes_per_s=1e8, latency_s=0.0), Link(bandwidth_bytes_per_s=1e12, latency_s=0.0)
    for sizes in (((8, 6), (4, 4)), ((4, 6), (8, 4))):
        groups = tuple(cluster(devices_per_node=devices) for devices, _ in sizes)
        plan = data_parallel(*sizes)
        long, short = (price(mixed(*groups, between=link), plan).stages[1].time.micro_batch_s for link in (slow, usual))
        whole = 2.0 * 8 * 512 * 512
        assert long - short == pytest.approx(2 * whole / 4 * (1 / 1e8 - 1 / 1e12))


def test_tied_weights_are_summed_over_the_link_between_groups():
    untied = gpt(layers=8, hidden=512, heads=8, vocab=4096, tied=False)
    once = [price(ACROSS, UNEVEN, model).stages[2].time.once_per_step_s for model in (MODEL, untied)]
    matrix = 4096 * 512 * 4
    assert once[0] - once[1] == pytest.approx(matrix / NETWORK_LINK.pair_bytes_per_s + NETWORK_LINK.latency_s)


def test_utilisation_is_of_the_summed_peak():
    found = price(ACROSS, UNEVEN)
    peak = (8 * 3e14 + 8 * 1e14) / 16
    assert found.mfu == pytest.approx(found.tflops_per_device * 1e12 / peak)


def test_the_slowest_host_of_a_step_counts():
    slow_host = cluster(device=SLOWER).model_copy(update={"stack": Stack(name="slow host", step_host_s=0.5)})
    gained = price(mixed(cluster(), slow_host), UNEVEN).time["host"] - price(ACROSS, UNEVEN).time.get("host", 0.0)
    assert gained == pytest.approx(0.5)


def test_a_stage_across_groups_is_refused_with_the_groups():
    plan = data_parallel((4, 6), (8, 2), (4, 2))
    with pytest.raises(InputError) as caught:
        price(ACROSS, plan)
    (problem,) = caught.value.problems
    assert problem.field == "plan.stages[1]"
    assert "has devices 4–11; a stage must lie in one group" in problem.message
    assert "devices 0–7 sample, devices 8–15 slower" in problem.message


def test_a_number_format_that_a_group_lacks_is_refused():
    old = SLOWER.model_copy(update={"peak_flops_per_s": {"fp32": 1e13, "fp16": 1e14}})
    with pytest.raises(InputError, match="slower has no bf16"):
        price(mixed(cluster(), cluster(device=old)), UNEVEN)


def test_assumptions_name_the_groups_and_the_link_between_them():
    said = price(ACROSS, UNEVEN).assumptions
    assert any("2 groups, devices 0–7 sample, devices 8–15 slower" in text and "20 GB/s" in text for text in said)
    assert len(set(said)) == len(said)


def test_assumptions_tell_the_order_of_renumbered_devices():
    order = (1, 0, *range(2, 16))
    found = price(TWO.model_copy(update={"device_order": order}), data_parallel((8, 6), (8, 4)))
    assert any("counted from 0, they are 1, 0, 2–15 of the graph" in text for text in found.assumptions)


def test_going_over_to_another_plan_counts_on_the_narrowest_link():
    slowest = Link(bandwidth_bytes_per_s=1e9, latency_s=1e-4)
    plans = (UNEVEN, data_parallel((4, 6), (4, 2), (8, 2)))
    across, inside = (
        switch_plan_s(MODEL, where, TRAINING, *plans) - RESTART_PAUSE_S
        for where in (mixed(cluster(), cluster(), between=slowest), TWO)
    )
    assert across > inside > 0


@pytest.mark.parametrize("pair", [None, 1e11])
@pytest.mark.parametrize("size", [5, 8])
def test_going_over_counts_every_message_of_a_smaller_last_island(pair, size):
    """On links that are alike, how devices are divided into islands does not matter."""
    link = Link(bandwidth_bytes_per_s=3e11, latency_s=1e-6, pair_bandwidth_bytes_per_s=pair)
    plans = data_parallel((4, 6), (8, 4)), data_parallel((8, 6), (4, 4))
    whole = (Level(name="cluster", num_devices=12, link=link),)
    parted = (Level(name="island", num_devices=size, link=link), *whole)
    one, other = (
        switch_plan_s(
            MODEL, cluster(nodes=3, devices_per_node=4).model_copy(update={"levels": tiers}), TRAINING, *plans
        )
        for tiers in (whole, parted)
    )
    assert other == pytest.approx(one) if pair is None else other >= one


def test_experts_move_inside_their_group():
    model = moe_model()
    plan = even_plan("ep8-pp2-mbs2", model, TWO, TRAINING)
    moves = [Move(layer=layer, expert=0, from_rank=0, to_rank=3, to_slot=3) for layer in range(4)]
    across = mixed(cluster(), cluster(), between=Link(bandwidth_bytes_per_s=1.0, latency_s=1.0))
    found, together = (migration_s(model, where, TRAINING, plan, moves) for where in (across, TWO))
    assert found == pytest.approx(together)
    assert found > PAUSE_S


LEVELS = (*TWO.levels, Level(name="pod", num_devices=64, link=NETWORK_LINK))


@pytest.mark.parametrize(("first", "size"), [(0, 16), (8, 8), (48, 16), (12, 4), (32, 32)])
def test_a_stage_that_begins_at_a_multiple_of_its_size_finds_the_tiers_as_they_are(first, size):
    assert levels_from(LEVELS, first, size) is LEVELS


def test_a_stage_that_begins_inside_a_node_shares_less_of_it():
    seen = levels_from(LEVELS, 4, 8)
    assert [level.num_devices for level in seen] == [4, 4, 64]
    group = ((8, 1),)
    assert all_gather_s(seen, group, 1e9) > all_gather_s(LEVELS, group, 1e9)


@given(size=st.integers(2, 48), first=st.integers(0, 63), data=st.data())
def test_every_group_of_a_stage_meets_on_some_tier(size, first, data):
    """No message of a stage is free, wherever it begins and however its devices divide."""
    degree = data.draw(st.sampled_from([d for d in range(2, size + 1) if size % d == 0]))
    stride = data.draw(st.sampled_from([s for s in range(1, size // degree + 1) if size % (degree * s) == 0]))
    crossed = tiers(levels_from(LEVELS, first, size), ((degree, stride),))
    assert crossed[-1].members == degree


@pytest.mark.parametrize("degree", [4, 72, 76])
def test_a_partial_rack_is_as_slow_as_its_smallest_part(degree):
    racks = (
        Level(name="node", num_devices=4, link=NODE_LINK),
        Level(name="rack", num_devices=72, link=NODE_LINK),
        Level(name="cluster", num_devices=76, link=NETWORK_LINK),
    )
    found = [(tier.members, tier.below) for tier in tiers(racks, ((degree, 1),))]
    assert found == {4: [(4, 1)], 72: [(4, 1), (72, 4)], 76: [(4, 1), (76, 4)]}[degree]
