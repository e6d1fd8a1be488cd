"""Ulysses' sequence parallelism against closed forms: what it exchanges, what it leaves as it was, what it keeps."""

import pytest
from cost_samples import cluster, even_plan, gpt

from planner.cost import estimate
from planner.cost.attention import attention, head_exchange
from planner.cost.boundary import layout, transition_s
from planner.cost.collectives import all_to_all_s
from planner.cost.layer import layer_cost
from planner.cost.part import conditions, share
from planner.cost.state import state_without_experts
from planner.spec.model import Block, DenseFeedForward, GroupedQueryAttention, LatentAttention
from planner.spec.stack import Stack
from planner.spec.strategy import Axis, AxisKind, Recompute, Sharding, Strategy
from planner.spec.training import AttentionKernel, Training

SEQUENCE, HIDDEN, HEADS, HEAD_DIM = 4096, 1024, 16, 64
CLUSTER = cluster(nodes=2)
TRAINING = Training(global_batch_size=16, sequence_length=SEQUENCE)
UNFUSED = TRAINING.model_copy(update={"attention_kernel": AttentionKernel.UNFUSED})
PRICE = conditions(HIDDEN, CLUSTER, TRAINING)
LATENT = LatentAttention(
    num_heads=HEADS, q_lora_rank=128, kv_lora_rank=64, qk_nope_head_dim=64, qk_rope_head_dim=32, v_head_dim=64
)


def grouped(kv_heads: int) -> GroupedQueryAttention:
    return GroupedQueryAttention(num_heads=HEADS, num_kv_heads=kv_heads, head_dim=HEAD_DIM)


def strategy(sequence_parallel: bool = False, sharding: Sharding = Sharding.NONE, **degrees: int) -> Strategy:
    """Axes, outermost first."""
    axes = tuple(Axis(AxisKind(kind), degree) for kind, degree in degrees.items())
    return Strategy(axes=axes, sequence_parallel=sequence_parallel, sharding=sharding)


def part(spread: Strategy, kind: GroupedQueryAttention | LatentAttention, training: Training = TRAINING):
    return attention(conditions(HIDDEN, CLUSTER, training), kind, spread, share(spread, 2, SEQUENCE))


@pytest.mark.parametrize(
    ("kind", "degree", "widths"),
    [
        (grouped(16), 4, (1024, 1024, 1024, 1024)),
        (grouped(8), 4, (1024, 512, 512, 1024)),
        (grouped(2), 8, (1024, 512, 512, 1024)),
        (LATENT, 4, (16 * 96, 16 * 96, 16 * 64, 16 * 64)),
    ],
)
def test_queries_keys_values_and_output_are_exchanged_each_way_and_nothing_hides_it(kind, degree, widths):
    """Of grouped keys and values, each rank gets at least one: two groups are copied to eight."""
    spread, group = strategy(ulysses=degree), ((degree, 1),)
    tokens = 2 * SEQUENCE / degree
    seconds = sum(all_to_all_s(CLUSTER.levels, group, 2.0 * tokens * width) for width in widths)
    found = part(spread, kind)
    assert found.context_forward_s == pytest.approx(seconds)
    assert found.context_backward_s == pytest.approx(seconds)
    assert [each.moved_bytes for each in head_exchange(PRICE, kind, spread, share(spread, 2, SEQUENCE))] == [
        2.0 * tokens * width for width in widths
    ]


@pytest.mark.parametrize("training", [TRAINING, UNFUSED])
@pytest.mark.parametrize("degree", [2, 4])
def test_each_rank_computes_its_share_of_the_attention_core(degree, training):
    launch_s = PRICE.rate.launch_s
    launches = 1 if training is TRAINING else 3
    whole, cut = (part(each, grouped(16), training).core_forward_s for each in (Strategy(), strategy(ulysses=degree)))
    assert (cut - launches * launch_s) * degree == pytest.approx(whole - launches * launch_s, rel=0.02)


def test_it_computes_as_much_as_a_ring_but_its_traffic_does_not_hide():
    ring, exchange = part(strategy(cp=4), grouped(16)), part(strategy(ulysses=4), grouped(16))
    assert exchange.forward_s == pytest.approx(ring.forward_s)
    assert exchange.context_forward_s > ring.context_forward_s
    assert (exchange.ring_forward_s, exchange.ring_backward_s) == (0.0, 0.0)


def test_a_ring_of_ulysses_groups_passes_on_what_a_ring_of_that_many_parts_does_less_often():
    """USP (arXiv 2405.07719): the ring turns over cp ranks, not over all parts of the sequence."""
    spread = strategy(cp=2, ulysses=4)
    both = part(spread, grouped(16))
    tokens = 2 * SEQUENCE / 8
    exchange = 4 * all_to_all_s(CLUSTER.levels, ((4, 1),), 2.0 * tokens * 1024)
    alone = part(strategy(cp=8), grouped(16))
    assert both.forward_s == pytest.approx(alone.forward_s)
    assert both.context_forward_s - exchange <= alone.context_forward_s + 1e-12


@pytest.mark.parametrize("stack", [Stack(), Stack(selective_products=True)])
def test_selective_recomputation_exchanges_again(stack):
    block = Block(attention=grouped(16), feed_forward=DenseFeedForward(width=4096))
    again = strategy(ulysses=4).model_copy(update={"recompute": Recompute.SELECTIVE})
    price = PRICE._replace(stack=stack)
    plain, more = (layer_cost(price, block, each, 2, SEQUENCE) for each in (strategy(ulysses=4), again))
    assert more.backward[3] == pytest.approx(2 * plain.backward[3])
    assert more.activation_bytes < plain.activation_bytes


def test_states_are_sharded_over_the_parts_of_the_sequence_as_over_samples():
    block = Block(attention=grouped(16), feed_forward=DenseFeedForward(width=4096))
    ways = (strategy(sharding=Sharding.FULL, dp=8), strategy(sharding=Sharding.FULL, dp=2, ulysses=4))
    by_samples, by_sequence = (state_without_experts(PRICE, block, each, own_copy=True) for each in ways)
    assert by_sequence._replace(micro_forward_s=0, micro_backward_s=0) == by_samples._replace(
        micro_forward_s=0, micro_backward_s=0
    )
    assert by_sequence.micro_forward_s == pytest.approx(by_samples.micro_forward_s)


def test_activations_stay_where_they_are_between_ulysses_and_sequence_parallelism():
    """Both leave each device an unbroken part of the tokens; the ring's parts are in two pieces."""
    assert layout(strategy(dp=2, ulysses=4)) == layout(strategy(sequence_parallel=True, dp=2, tp=4))
    assert layout(strategy(ulysses=2, tp=4, sequence_parallel=True)) == layout(strategy(ulysses=8))
    assert layout(strategy(tp=4, ulysses=2, sequence_parallel=True)) != layout(strategy(ulysses=8))
    assert layout(strategy(cp=8)) != layout(strategy(ulysses=8))
    assert layout(strategy(dp=8)) != layout(strategy(ulysses=8))
    assert transition_s(PRICE, strategy(ulysses=8), strategy(dp=8), 8, SEQUENCE) > (0.0, 0.0)


def test_a_degree_of_one_is_the_plan_without():
    model, where = gpt(layers=2, hidden=HIDDEN, heads=HEADS, positions=SEQUENCE), cluster()
    plain, one = (even_plan(text, model, where, TRAINING) for text in ("tp2-mbs1-zero1", "tp2-ulysses1-mbs1-zero1"))
    assert plain == one
    cut = even_plan("tp2-ulysses2-mbs1-zero1-sp", model, where, TRAINING)
    assert cut.summary == "pp1 · tp2 ulysses2 dp2 sp zero1 · mbs1 x8"
    found = estimate(model, where, TRAINING, cut)
    assert found.time["context_parallel_communication"] > 0
    assert any("Ulysses 0 %" in sentence for sentence in found.assumptions)
