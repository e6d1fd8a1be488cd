"""Replicas and shadows: the traffic that keeps them equal, and the memory that they take."""

import numpy as np
import pytest
from cost_samples import NETWORK_LINK, NODE_LINK, cluster, even_plan, moe_model
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.cost import Seats, StepPrices, estimate
from planner.cost.copies import ExpertBytes, equal_copies_s
from planner.cost.migration import migration_s
from planner.cost.transfer import transfer_s
from planner.spec.model import Model
from planner.spec.placement import Move, Placement
from planner.spec.training import Training

SENT = ExpertBytes(weights=1e9, gradients=3e9)
LEVELS = cluster(2, 4).levels
NEAR, FAR = (1e9 / link.bytes_per_s for link in (NODE_LINK, NETWORK_LINK))
"""Seconds for a gigabyte."""
MODEL = moe_model(experts=8, layers=4, hidden=1024, expert_width=4096)
WHERE = cluster(2, 4)
TRAINING = Training(global_batch_size=64, sequence_length=512)


def seconds(slots, shadows=0, stride=1, sent=SENT):
    """(forward, backward) of one layer on eight ranks."""
    forward, backward = equal_copies_s(LEVELS, np.array([slots]), 8, shadows, stride, sent)
    return forward[0], backward[0]


def with_extra(**extra):
    """Expert r on rank r, and in the second slot of the ranks named the experts given; the others' is expert 7's."""
    second = {f"r{rank}": rank for rank in range(8)} | extra
    return [expert for rank in range(8) for expert in (rank, second[f"r{rank}"])]


def test_experts_in_one_slot_each_need_no_traffic():
    assert seconds(range(8)) == (0.0, 0.0)


def test_copies_on_one_rank_need_no_traffic():
    assert seconds(with_extra()) == (0.0, 0.0)


def test_a_replica_sums_its_gradients_in_a_ring_of_those_that_hold_it():
    _, near = seconds(with_extra(r1=0))
    _, far = seconds(with_extra(r4=0))
    _, three = seconds(with_extra(r1=0, r2=0))
    assert near == pytest.approx(3 * NEAR + 2 * NODE_LINK.latency_s)
    assert far == pytest.approx(3 * FAR + 2 * NETWORK_LINK.latency_s)
    assert three == pytest.approx(2 * 2 / 3 * 3 * NEAR + 4 * NODE_LINK.latency_s)


def test_the_busiest_rank_sets_the_pace_and_others_work_beside_it():
    _, apart = seconds(with_extra(r1=0, r3=2))
    _, one = seconds(with_extra(r1=0))
    _, shared = seconds(with_extra(r1=0, r2=1))
    assert apart == pytest.approx(one)
    assert shared == pytest.approx(2 * one)


def test_weights_of_a_shadow_come_once_and_its_gradients_go_back():
    forward, backward = seconds(with_extra(r1=0), shadows=1)
    assert forward == pytest.approx(1 * NEAR + NODE_LINK.latency_s)
    assert backward == pytest.approx(3 * NEAR + NODE_LINK.latency_s)


def test_shadows_on_all_ranks_take_their_weights_from_a_neighbour():
    forward, _ = seconds([expert for rank in range(8) for expert in (rank, 0)], shadows=1)
    assert forward == pytest.approx(1 * FAR + NETWORK_LINK.latency_s + 1 * NEAR + NODE_LINK.latency_s, rel=0.2)


def test_ranks_of_expert_tensor_parallelism_lie_further_apart():
    _, backward = seconds(with_extra(r2=1), stride=1)
    levels = cluster(4, 4).levels
    _, apart = equal_copies_s(levels, np.array([with_extra(r2=1)]), 8, 0, 2, SENT)
    assert apart[0] == pytest.approx(3 * FAR + 2 * NETWORK_LINK.latency_s)
    assert backward == pytest.approx(3 * NEAR + 2 * NODE_LINK.latency_s)


@given(st.data())
@settings(max_examples=100)
def test_traffic_is_that_of_the_messages_written_one_by_one(data):
    ranks, per_rank = data.draw(st.sampled_from([2, 4, 8])), data.draw(st.sampled_from([2, 3]))
    experts = ranks * data.draw(st.integers(1, per_rank - 1))
    shadows = data.draw(st.integers(0, per_rank - experts // ranks))
    rows = []
    for _ in range(data.draw(st.integers(1, 3))):
        own = [*range(experts)]
        own += data.draw(
            st.lists(
                st.integers(0, experts - 1),
                min_size=ranks * (per_rank - shadows) - experts,
                max_size=ranks * (per_rank - shadows) - experts,
            )
        )
        own = data.draw(st.permutations(own))
        more = data.draw(st.lists(st.integers(0, experts - 1), min_size=ranks * shadows, max_size=ranks * shadows))
        split = [own[r * (per_rank - shadows) : (r + 1) * (per_rank - shadows)] for r in range(ranks)]
        rows.append([e for r in range(ranks) for e in (*split[r], *more[r * shadows : (r + 1) * shadows])])
    forward, backward = equal_copies_s(LEVELS, np.array(rows), ranks, shadows, 1, SENT)
    for number, row in enumerate(rows):
        assert (forward[number], backward[number]) == pytest.approx(one_by_one(row, ranks, per_rank, shadows), rel=1e-9)


def one_by_one(row, ranks, per_rank, shadows):
    """(forward, backward) of one layer, from lists of (sender, receiver, bytes); latency is left to transfer_s."""
    sums, chains = [], []
    for expert in set(row):
        slots = [slot for slot, placed in enumerate(row) if placed == expert]
        own = sorted({slot // per_rank for slot in slots if slot % per_rank < per_rank - shadows})
        every = sorted({slot // per_rank for slot in slots})
        steps = 2 * (len(own) - 1)
        for here, there in zip(own, [*own[1:], own[0]], strict=True):
            # A ring takes as many steps as messages of that fraction, each with its latency.
            sums += [(here, there, SENT.gradients / len(own))] * steps
        for here, there in zip(every, [*every[1:], every[0]], strict=True):
            if there not in own:
                chains.append((here, there))
    summed = total(sums)
    forward = total([(here, there, SENT.weights) for here, there in chains])
    return forward, total([(there, here, SENT.gradients) for here, there in chains]) + summed


def total(messages):
    return transfer_s(LEVELS, *zip(*messages, strict=True)) if messages else 0.0


def placed(slots, shadows=0):
    return Placement(layers=(tuple(slots),) * 4, num_ranks=8, shadow_slots_per_rank=shadows)


def priced(zero, placement):
    plan = even_plan(f"dp8-ep8-mbs1-{zero}", MODEL, WHERE, TRAINING)
    return estimate(MODEL, WHERE, TRAINING, plan, placement=placement)


@pytest.mark.parametrize("zero", ["zero0", "zero1", "zero2", "zero3"])
def test_replicas_take_time_and_memory_and_shadows_no_optimizer_state(zero):
    none, replicas = priced(zero, placed(range(8))), priced(zero, placed(with_extra(r4=0)))
    shadows = priced(zero, placed(with_extra(r4=0), shadows=1))
    part = "data_parallel_communication"
    assert none.time.get(part, 0.0) < shadows.time[part]
    assert none.time.get(part, 0.0) < replicas.time[part]
    memory = [price.stages[0].memory for price in (none, replicas, shadows)]
    assert memory[1]["optimizer_states"] > memory[0]["optimizer_states"] == memory[2]["optimizer_states"]
    assert memory[1]["weights"] == memory[2]["weights"] > memory[0]["weights"]
    assert memory[1]["gradients"] == memory[2]["gradients"] > memory[0]["gradients"]


def test_copies_are_made_equal_once_per_step_whatever_the_micro_batches():
    added = []
    for batch in (64, 256):
        training = TRAINING.model_copy(update={"global_batch_size": batch})
        plan = even_plan("dp8-ep8-mbs1-zero0", MODEL, WHERE, training)
        none, shadow = (
            estimate(MODEL, WHERE, training, plan, placement=placed(slots, number))
            for slots, number in ((range(8), 0), (with_extra(r4=0), 1))
        )
        part = "data_parallel_communication"
        added.append(shadow.time[part] - none.time.get(part, 0.0))
    assert added[0] == pytest.approx(added[1], rel=1e-6)


def test_shards_of_expert_data_parallel_devices_are_kept_equal_by_each_for_its_own():
    model = moe_model(experts=4, layers=4, hidden=1024, expert_width=4096)
    split = ((0.5, 0.5, 0.5, 0.5, 1.0, 0.0, 0.5, 0.5),) * 4
    alone = Placement(layers=((0, 0, 1, 1, 2, 2, 3, 3),) * 4, num_ranks=4, split=split)
    spread = Placement(layers=((0, 0, 1, 1, 2, 0, 3, 3),) * 4, num_ranks=4, split=split)
    added = []
    for zero in ("zero0", "zero1"):
        plan = even_plan(f"dp8-ep4-mbs1-{zero}", model, WHERE, TRAINING)
        prices = [estimate(model, WHERE, TRAINING, plan, placement=each) for each in (alone, spread)]
        part = "data_parallel_communication"
        added.append(prices[1].time[part] - prices[0].time[part])
    assert 0.0 < added[1] < 0.75 * added[0]


def test_many_placements_at_once_cost_what_each_costs():
    plan = even_plan("dp8-ep8-mbs1-zero2", MODEL, WHERE, TRAINING)
    even = np.full((4, 8), 0.125)
    asked = [placed(range(8)), placed(with_extra(r4=0)), placed(with_extra(r4=0, r1=3), 1), None]
    arrays = [each and Seats(np.array(each.layers), each.num_ranks, None, each.shadow_slots_per_rank) for each in asked]
    found = StepPrices(MODEL, WHERE, TRAINING, plan).under([(even, each) for each in arrays])
    expected = [estimate(MODEL, WHERE, TRAINING, plan, placement=each).step_time_s for each in asked]
    np.testing.assert_allclose(found.seconds, expected, rtol=1e-9)


def test_a_move_into_a_shadow_slot_costs_nothing():
    plan = even_plan("dp8-ep8-mbs1-zero2", MODEL, WHERE, TRAINING)
    moves = [Move(layer=0, expert=0, from_rank=0, to_rank=4, to_slot=9)]
    target = placed(with_extra(r4=0))
    assert migration_s(MODEL, WHERE, TRAINING, plan, moves, to=target) > 0.0
    assert migration_s(MODEL, WHERE, TRAINING, plan, moves, to=placed(with_extra(r4=0), 1)) == 0.0


def test_estimates_say_what_they_take_for_granted_of_copies_and_routing_groups():
    none, replicas, shadows = (
        " ".join(priced("zero0", placed(slots, number)).assumptions)
        for slots, number in ((range(8), 0), (with_extra(r4=0), 0), (with_extra(r4=0), 1))
    )
    assert "replicas of an expert" in replicas and "replicas of an expert" not in none
    assert "shadow experts" in shadows and "shadow experts" not in replicas
    content = MODEL.model_dump()
    content["runs"][1]["layer"]["feed_forward"] |= {"num_groups": 4, "groups_per_token": 2}
    grouped = Model.model_validate(content)
    plan = even_plan("dp8-ep8-mbs1-zero0", grouped, WHERE, TRAINING)
    found = estimate(grouped, WHERE, TRAINING, plan)
    assert "node-limited routing" in " ".join(found.assumptions)
    assert found.step_time_s == pytest.approx(estimate(MODEL, WHERE, TRAINING, plan).step_time_s)


def test_copies_make_smaller_products_that_read_more_weights():
    layers = (tuple(range(8)), tuple(with_extra()))
    plan = even_plan("dp8-ep8-mbs1-zero0", MODEL, WHERE, TRAINING)
    none, twice = (
        estimate(MODEL, WHERE, TRAINING, plan, placement=Placement(layers=(row,) * 4, num_ranks=8)) for row in layers
    )
    assert twice.time["compute"] > none.time["compute"]
