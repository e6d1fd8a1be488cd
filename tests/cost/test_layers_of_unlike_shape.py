"""Layers with a width and a number of tokens of their own; encoders and decoders; windows; what merges and pools."""

import pytest
from cost_samples import cluster
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.cost import estimate
from planner.cost.boundary import carried_bytes, entry
from planner.cost.flops import layer_flops_per_sample
from planner.cost.layer import layer_cost
from planner.cost.message import Collective
from planner.cost.part import at_entry, conditions
from planner.cost.traffic import layer_traffic
from planner.search import plan_from_shorthand
from planner.spec.errors import InputError
from planner.spec.model import (
    Block,
    DenseFeedForward,
    Embedding,
    EncoderEnd,
    GroupedQueryAttention,
    Head,
    LayerRun,
    Merging,
    Model,
    MoeFeedForward,
    PatchEmbedding,
)
from planner.spec.strategy import Axis, AxisKind, ExpertStrategy, Recompute, Sharding, Strategy
from planner.spec.training import AttentionKernel, Training

CLUSTER = cluster(2, 4)
SEQUENCE, OWN_SEQUENCE, HIDDEN, OWN_HIDDEN = 512, 128, 256, 1024
TRAINING = Training(global_batch_size=64, sequence_length=SEQUENCE)
ATTENTION = GroupedQueryAttention(num_heads=8, num_kv_heads=8, head_dim=64)
ALL = ATTENTION.model_copy(update={"causal": False})
NETWORK = DenseFeedForward(width=2048, gated=False)
EXPERTS = MoeFeedForward(num_experts=8, top_k=2, expert_width=512)
BLOCK = Block(attention=ATTENTION, feed_forward=NETWORK)
LAYERS = [
    Embedding(vocab_size=4096, num_positions=512),
    BLOCK,
    Block(attention=ATTENTION, feed_forward=EXPERTS),
    Head(vocab_size=4096),
    Head(vocab_size=4096, tied=True, transform=True, bias=True),
]
OWN = {"hidden_size": OWN_HIDDEN, "tokens_per_sample": OWN_SEQUENCE}
SPREAD = ExpertStrategy(expert_parallel_size=4, expert_tensor_parallel_size=1, expert_data_parallel_size=2)


def strategies(layer):
    experts = SPREAD if getattr(layer, "moe", None) else None
    axes = (Axis(AxisKind.DP, 4), Axis(AxisKind.TP, 2))
    for sharding in Sharding:
        for again in Recompute:
            yield Strategy(axes=axes, sharding=sharding, sequence_parallel=True, recompute=again, experts=experts)


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.kind)
@pytest.mark.parametrize("kernel", list(AttentionKernel))
def test_a_layer_of_its_own_width_and_length_costs_what_it_costs_in_a_model_of_them(layer, kernel):
    own = layer.model_copy(update=OWN)
    short = TRAINING.model_copy(update={"sequence_length": OWN_SEQUENCE, "attention_kernel": kernel})
    here = conditions(HIDDEN, CLUSTER, TRAINING.model_copy(update={"attention_kernel": kernel}))
    there = conditions(OWN_HIDDEN, CLUSTER, short)
    for strategy in strategies(layer):
        assert layer_cost(here, own, strategy, 8, SEQUENCE) == layer_cost(there, layer, strategy, 8, OWN_SEQUENCE)
        assert layer_traffic(here, own, strategy, 8, SEQUENCE) == layer_traffic(there, layer, strategy, 8, OWN_SEQUENCE)
        arriving, tokens = at_entry(here, own, SEQUENCE)
        link = CLUSTER.link_between(0, 4)
        assert entry(arriving, strategy, 8, tokens, link) == entry(there, strategy, 8, OWN_SEQUENCE, link)


DECODER = Block(attention=ATTENTION, cross_attention=ALL, feed_forward=NETWORK)
ENCODER = Block(attention=ALL, feed_forward=NETWORK, tokens_per_sample="encoder")
ALONE = Strategy()


def price(layer, strategy=ALONE, samples=1, **recipe):
    training = TRAINING.model_copy(update=recipe)
    return layer_cost(conditions(HIDDEN, CLUSTER, training), layer, strategy, samples, training.sequence_length)


def test_an_encoder_block_is_priced_by_the_length_of_the_encoder():
    as_long = price(BLOCK.model_copy(update={"attention": ALL}), sequence_length=2048)
    assert price(ENCODER, encoder_sequence_length=2048) == as_long


@pytest.mark.parametrize("kernel", list(AttentionKernel))
def test_cross_attention_to_as_many_tokens_costs_what_full_attention_costs(kernel):
    """Beside the rotary embedding, which it has not; it keeps queries, keys, values, output; and an input of a norm."""
    twice = price(BLOCK.model_copy(update={"attention": ALL}), attention_kernel=kernel)
    cross = price(DECODER.model_copy(update={"attention": ALL}), attention_kernel=kernel)
    network = price(BLOCK.model_copy(update={"feed_forward": DenseFeedForward(width=1)}), attention_kernel=kernel)
    assert twice.forward_s < cross.forward_s < twice.forward_s + network.forward_s
    assert twice.activation_bytes < cross.activation_bytes <= twice.activation_bytes + network.activation_bytes


@given(
    length=st.sampled_from([64, 256, 512, 1024]),
    recompute=st.sampled_from(list(Recompute)),
    kernel=st.sampled_from(list(AttentionKernel)),
    tp=st.sampled_from([1, 2, 4]),
)
@settings(max_examples=60, deadline=None)
def test_a_longer_encoder_is_never_faster_nor_smaller(length, recompute, kernel, tp):
    axes = (Axis(AxisKind.TP, tp),) if tp > 1 else ()
    strategy = Strategy(axes=axes, sequence_parallel=tp > 1, recompute=recompute)
    for layer in (ENCODER, EncoderEnd(), DECODER, Embedding(vocab_size=4096, tokens_per_sample="encoder")):
        found = [
            price(layer, strategy, attention_kernel=kernel, encoder_sequence_length=each)
            for each in (length, 2 * length)
        ]
        assert found[0].forward_s <= found[1].forward_s
        assert found[0].backward_s <= found[1].backward_s
        assert found[0].activation_bytes <= found[1].activation_bytes


@given(window=st.sampled_from([16, 32, 64, 128]), kernel=st.sampled_from(list(AttentionKernel)))
@settings(max_examples=20, deadline=None)
def test_larger_windows_are_never_faster_nor_smaller_and_one_for_all_is_full_attention(window, kernel):
    def block(size):
        return BLOCK.model_copy(update={"attention": ALL.model_copy(update={"window": size})})

    one, other = price(block(window), attention_kernel=kernel), price(block(2 * window), attention_kernel=kernel)
    assert one.activation_bytes <= other.activation_bytes
    if kernel is AttentionKernel.FLASH:
        # Scores in memory are made in tiles, which small windows do not fill.
        assert one.forward_s <= other.forward_s * (1 + 1e-9)
    whole, full = price(block(SEQUENCE), attention_kernel=kernel), price(block(None), attention_kernel=kernel)
    assert whole.activation_bytes == full.activation_bytes


def test_tensor_parallel_cross_attention_sends_the_encoders_output_or_its_gradient():
    here = conditions(HIDDEN, CLUSTER, TRAINING.model_copy(update={"encoder_sequence_length": 128}))
    for sequence_parallel in (False, True):
        strategy = Strategy(axes=(Axis(AxisKind.TP, 4),), sequence_parallel=sequence_parallel)
        plain, cross = (layer_traffic(here, layer, strategy, 2, SEQUENCE) for layer in (BLOCK, DECODER))
        encoder_bytes = 2 * 128 * HIDDEN * 2
        forward, backward = (
            [message for message in more if message not in less and message.moved_bytes == encoder_bytes]
            for more, less in ((cross.forward, plain.forward), (cross.backward, plain.backward))
        )
        kinds = [message.collective for message in forward], [message.collective for message in backward]
        if sequence_parallel:
            assert kinds == ([Collective.ALL_GATHER], [Collective.REDUCE_SCATTER])
        else:
            assert kinds == ([], [Collective.ALL_REDUCE])


def test_what_crosses_into_encoder_and_decoder_is_what_both_need():
    here = conditions(HIDDEN, CLUSTER, TRAINING.model_copy(update={"encoder_sequence_length": 128}))
    for layer in (ENCODER, EncoderEnd(), DECODER):
        assert at_entry(here, layer, SEQUENCE)[1] == SEQUENCE + 128
    assert at_entry(here, Head(vocab_size=10), SEQUENCE)[1] == SEQUENCE
    merging = Merging(hidden_size=512, tokens_per_sample=16, input_size=256, merged_tokens=4)
    arriving, tokens = at_entry(here, merging, SEQUENCE)
    assert (arriving.hidden_size, tokens) == (256, 64)


def test_a_stage_of_the_decoder_keeps_the_encoders_output_once_for_each_micro_batch_in_flight():
    runs = [
        LayerRun(layer=Embedding(vocab_size=512, tokens_per_sample="encoder")),
        LayerRun(layer=ENCODER, num_layers=2),
        LayerRun(layer=EncoderEnd()),
        LayerRun(layer=DECODER, num_layers=8),
        LayerRun(layer=Head(vocab_size=512)),
    ]
    model = Model(name="sample", hidden_size=HIDDEN, runs=tuple(runs))
    training = TRAINING.model_copy(update={"encoder_sequence_length": 128, "global_batch_size": 16})
    where = cluster(1, 4)
    plan = plan_from_shorthand("pp4-mbs1", model, where, training)
    found = estimate(model, where, training, plan)
    here = conditions(HIDDEN, where, training)
    for number, flight in ((2, 2), (3, 1)):
        stage = plan.stages[number]
        (run,) = stage.runs
        blocks = sum(isinstance(layer, Block) for layer in model.layers[run.first_layer : run.end_layer])
        kept = blocks * layer_cost(here, DECODER, run.strategy, 1, SEQUENCE).activation_bytes
        carried = carried_bytes(here, DECODER, run.strategy, 1)
        assert carried == 128 * HIDDEN * 2
        last = layer_cost(here, model.layers[-1], run.strategy, 1, SEQUENCE).activation_bytes if number == 3 else 0
        assert found.stages[number].memory["activations"] == flight * (kept + carried) + last


def test_flops_of_an_encoder_and_a_decoder_grow_with_their_own_lengths():
    def flops(layer, decoder, encoder):
        return layer_flops_per_sample(layer, HIDDEN, decoder, encoder)

    assert flops(ENCODER, 64, 128) == flops(ENCODER, 999, 128) == flops(BLOCK, 128, 5)
    cross = 4 * HIDDEN * 512 + HIDDEN
    assert flops(DECODER, 128, 128) - flops(BLOCK, 128, 128) == 128 * (2 * cross + 4 * 512 * 128)
    more = flops(DECODER, 128, 256) - flops(DECODER, 128, 128)
    assert more == 2 * 128 * (2 * HIDDEN * 512) + 128 * 4 * 512 * 128


def test_a_pooled_head_scores_one_token_of_a_sample():
    head = Head(vocab_size=4096)
    pooled = head.model_copy(update={"pooled": True})
    assert price(pooled).logits_bytes * SEQUENCE == pytest.approx(price(head).logits_bytes, rel=1e-3)
    assert price(pooled).forward_s < price(head).forward_s
    flops = [layer_flops_per_sample(layer, HIDDEN, SEQUENCE, SEQUENCE) for layer in (pooled, head)]
    assert flops[0] * SEQUENCE == flops[1]


def test_patch_embeddings_and_mergings_send_nothing_between_tensor_parallel_ranks():
    here = conditions(HIDDEN, CLUSTER, TRAINING)
    merging = Merging(hidden_size=512, tokens_per_sample=64, input_size=256, merged_tokens=4)
    strategy = Strategy(axes=(Axis(AxisKind.TP, 4),), sequence_parallel=True)
    for layer in (PatchEmbedding(tokens_per_sample=256, patch_values=48), merging):
        traffic = layer_traffic(here, layer, strategy, 2, SEQUENCE)
        assert traffic.forward == traffic.backward == ()
        # Every rank sees other tokens, so their gradients are summed once per step.
        assert [message.collective for message in traffic.step] == [Collective.ALL_REDUCE]


@pytest.mark.parametrize("parallel", [False, True])
def test_parallel_parts_are_reduced_together(parallel):
    block = BLOCK.model_copy(update={"parallel": parallel})
    strategy = Strategy(axes=(Axis(AxisKind.TP, 4),))
    traffic = layer_traffic(conditions(HIDDEN, CLUSTER, TRAINING), block, strategy, 2, SEQUENCE)
    assert len(traffic.forward) == len(traffic.backward) == (1 if parallel else 2)
    cost = layer_cost(conditions(HIDDEN, CLUSTER, TRAINING), block, strategy, 2, SEQUENCE)
    assert cost.forward[2] > 0


def test_an_encoders_length_is_refused_where_there_is_no_encoder():
    model = Model(name="sample", hidden_size=HIDDEN, runs=(LayerRun(layer=BLOCK),))
    where, given_length = cluster(1, 1), TRAINING.model_copy(update={"encoder_sequence_length": 8})
    plan = plan_from_shorthand("mbs1", model, where, TRAINING)
    with pytest.raises(InputError, match="must be left out: the model has no encoder apart"):
        estimate(model, where, given_length, plan)
