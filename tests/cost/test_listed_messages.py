"""The list of a layer's messages: it is what is priced, and has nothing in it that does not move."""

import pytest
from cost_samples import cluster, gpt, moe_model

from planner.cost.boundary import entry_messages
from planner.cost.collectives import all_gather_s, all_to_all_s, reduce_scatter_s, send_receive_s, size
from planner.cost.experts import moe_feed_forward
from planner.cost.layer import layer_cost, part_without_experts
from planner.cost.message import Collective, Message, messages_s
from planner.cost.part import add, conditions, share
from planner.cost.state import state_of_experts, state_without_experts
from planner.cost.traffic import layer_traffic
from planner.spec.stack import Stack
from planner.spec.strategy import Axis, AxisKind, ExpertStrategy, Recompute, Sharding, Strategy
from planner.spec.training import Training

SEQUENCE, SAMPLES = 512, 4
CLUSTER = cluster(nodes=2)
LEVELS = CLUSTER.levels
TRAINING = Training(global_batch_size=SAMPLES, sequence_length=SEQUENCE)
MOE = moe_model(shared_width=512)
PRICE = conditions(MOE.hidden_size, CLUSTER, TRAINING)
# Ring attention is charged what exceeds its compute: with none, all of it.
AT_ONCE = {"attention_forward_flops_per_s": 1e40, "attention_backward_flops_per_s": 1e40, "launch_s": 0.0}
PRICE = PRICE._replace(rate=PRICE.rate._replace(**AT_ONCE))
BLOCK, EMBEDDING, HEAD = MOE.layers[1], MOE.layers[0], MOE.layers[-1]
DENSE = gpt(layers=1, hidden=MOE.hidden_size, heads=8).layers[1]


def strategies():
    """TP 2 with sequence parallelism, CP or Ulysses and DP in all orders that matter, under every stage of ZeRO."""
    orders = [("dp", "cp", "tp"), ("tp", "dp", "cp"), ("cp", "tp", "dp")]
    orders += [("dp", "ulysses", "tp"), ("ulysses", "tp", "dp"), ("dp", "cp", "ulysses", "tp")]
    for kinds in orders:
        for sharding in Sharding:
            degrees = {"dp": 2 if len(kinds) == 4 else 4, "cp": 2, "ulysses": 2, "tp": 2}
            axes = tuple(Axis(AxisKind(kind), degrees[kind]) for kind in kinds)
            yield Strategy(axes=axes, sharding=sharding, sequence_parallel=True)


@pytest.mark.parametrize("strategy", list(strategies()))
@pytest.mark.parametrize("layer", [BLOCK, DENSE, EMBEDDING, HEAD])
def test_listed_messages_take_as_long_as_the_layer_is_charged(layer, strategy):
    experts = layer is BLOCK
    if experts:
        spread = ExpertStrategy(expert_parallel_size=4, expert_tensor_parallel_size=2, expert_data_parallel_size=2)
        strategy = strategy.model_copy(update={"experts": spread})
    part_of = share(strategy, SAMPLES, SEQUENCE)
    part = part_without_experts(PRICE, layer, strategy, part_of)
    held = [state_without_experts(PRICE, layer, strategy, own_copy=True)]
    if experts:
        part = add((part, moe_feed_forward(PRICE, layer.moe, strategy, part_of, load_ratio=1.0)))
        held.append(state_of_experts(PRICE, layer, strategy))
    said = layer_traffic(PRICE, layer, strategy, SAMPLES, SEQUENCE)
    forward = part.tensor_forward_s + part.context_forward_s + part.all_to_all_s
    backward = part.tensor_backward_s + part.context_backward_s + part.all_to_all_s
    for messages, charged in (
        (said.forward, forward + sum(each.micro_forward_s for each in held)),
        (said.backward, backward + sum(each.micro_backward_s for each in held)),
        (said.step, sum(each.once_forward_s + each.once_backward_s for each in held)),
    ):
        assert messages_s(LEVELS, messages) == pytest.approx(charged, rel=1e-12)


def test_a_ring_passes_keys_and_values_forward_and_their_gradients_too_backward():
    strategy = next(strategies())
    said = layer_traffic(PRICE, DENSE, strategy, SAMPLES, SEQUENCE)
    keys_and_values = 2 * (SAMPLES // 4) * (SEQUENCE // 2) * 2 * (MOE.hidden_size // 2)
    message = Message(Collective.SEND_RECEIVE, ((2, 2),), keys_and_values)
    for messages, times in ((said.forward, 1), (said.backward, 2)):
        assert tuple(each for each in messages if each.collective is Collective.SEND_RECEIVE) == (message,) * times


def test_nothing_is_listed_that_moves_nothing():
    alone = Strategy(experts=ExpertStrategy())
    assert layer_traffic(PRICE, BLOCK, alone, SAMPLES, SEQUENCE) == ((), (), (), ())
    for strategy in strategies():
        for messages in layer_traffic(PRICE, DENSE, strategy, SAMPLES, SEQUENCE):
            assert all(size(each.group) > 1 and each.moved_bytes > 0 and each.times > 0 for each in messages)


@pytest.mark.parametrize(
    ("recompute", "collectives"),
    [
        (Recompute.NONE, []),
        (Recompute.SELECTIVE, ["send_recv"]),
        (Recompute.FULL, ["send_recv", *["all_gather", "reduce_scatter"] * 2]),
    ],
)
def test_recomputation_sends_again_what_it_computes_again(recompute, collectives):
    strategy = next(strategies()).model_copy(update={"recompute": recompute})
    said = layer_traffic(PRICE, DENSE, strategy, SAMPLES, SEQUENCE)
    assert [each.collective for each in said.recomputation] == collectives


@pytest.mark.parametrize("keeps_products", [False, True])
@pytest.mark.parametrize("recompute", list(Recompute))
def test_what_is_sent_again_takes_as_long_as_recomputation_is_charged(recompute, keeps_products):
    """Selective recomputation that keeps attention's output repeats Ulysses' exchanges, but no ring."""
    price = PRICE._replace(stack=Stack(selective_products=keeps_products))
    for strategy in strategies():
        again = strategy.model_copy(update={"recompute": recompute})
        plain, more = (layer_cost(price, DENSE, each, SAMPLES, SEQUENCE).backward for each in (strategy, again))
        charged = sum(more[part] - plain[part] for part in (2, 3))
        said = layer_traffic(price, DENSE, again, SAMPLES, SEQUENCE).recomputation
        assert messages_s(LEVELS, said) == pytest.approx(charged, rel=1e-9)


def test_messages_cost_what_their_collectives_cost_one_after_the_other():
    group = ((4, 2),)
    messages = (
        Message(Collective.ALL_GATHER, group, 1e6),
        Message(Collective.REDUCE_SCATTER, group, 2e6, 3),
        Message(Collective.ALL_TO_ALL, group, 3e6, 2),
        Message(Collective.SEND_RECEIVE, group, 4e6),
    )
    expected = all_gather_s(LEVELS, group, 1e6) + 3 * reduce_scatter_s(LEVELS, group, 2e6)
    expected += 2 * all_to_all_s(LEVELS, group, 3e6) + send_receive_s(LEVELS, group, 4e6)
    assert messages_s(LEVELS, messages) == pytest.approx(expected, rel=1e-12)


def test_nothing_and_groups_of_one_are_free():
    for collective in Collective:
        assert messages_s(LEVELS, (Message(collective, ((8, 1),), 0.0), Message(collective, ((1, 1),), 1e9))) == 0.0


def test_a_stage_is_sent_each_ranks_share_and_ranks_with_equal_shares_send_a_part_each():
    whole = 2 * 2 * SEQUENCE * MOE.hidden_size
    axes = (Axis(AxisKind.DP, 2), Axis(AxisKind.TP, 4))
    split = entry_messages(PRICE, Strategy(axes=axes, sequence_parallel=True), SAMPLES, SEQUENCE)
    assert split == (Message(Collective.SEND_RECEIVE, ((2, 8),), whole / 4),)
    sent, gathered = entry_messages(PRICE, Strategy(axes=axes), SAMPLES, SEQUENCE)
    assert sent == split[0]
    assert gathered == Message(Collective.ALL_GATHER, ((4, 1),), whole)
