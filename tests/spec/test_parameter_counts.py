"""Parameter counts part by part, against counts by hand. Whole models: tests/profiles, against the library's own."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.cost.parameters import (
    active_parameters,
    attention_parameters,
    expert_parameters,
    layer_parameters,
    total_parameters,
)
from planner.spec.model import (
    Block,
    DenseFeedForward,
    Embedding,
    GroupedQueryAttention,
    Head,
    LatentAttention,
    LayerRun,
    Model,
    MoeFeedForward,
    Norm,
)

HIDDEN = 10
PLAIN = GroupedQueryAttention(num_heads=4, num_kv_heads=2, head_dim=3)
LATENT = LatentAttention(
    num_heads=2, q_lora_rank=5, kv_lora_rank=7, qk_nope_head_dim=3, qk_rope_head_dim=2, v_head_dim=4
)


def test_grouped_query_attention_has_four_matrices():
    queries, keys, values, output = 10 * 12, 10 * 6, 10 * 6, 12 * 10
    assert attention_parameters(PLAIN, HIDDEN) == (queries + keys + values + output, 0)


@pytest.mark.parametrize(
    ("change", "split", "replicated"),
    [
        ({"qkv_bias": True}, 12 + 6 + 6, 0),
        ({"output_bias": True}, 0, 10),
        ({"sinks": True}, 4, 0),
        ({"qk_norm": "per_head"}, 0, 3 + 3),
        ({"qk_norm": "full"}, 0, 12 + 6),
    ],
)
def test_each_extra_of_attention_adds_its_parameters(change, split, replicated):
    base, extra = attention_parameters(PLAIN, HIDDEN), attention_parameters(PLAIN.model_copy(update=change), HIDDEN)
    assert (extra[0] - base[0], extra[1] - base[1]) == (split, replicated)


def test_latent_attention_splits_by_heads_and_replicates_its_down_projections():
    up = 5 * 2 * (3 + 2) + 7 * 2 * (3 + 4) + 2 * 4 * 10
    down_and_norms = (10 * 5 + 5) + (10 * (7 + 2) + 7)
    assert attention_parameters(LATENT, HIDDEN) == (up, down_and_norms)
    whole = LATENT.model_copy(update={"q_lora_rank": None})
    assert attention_parameters(whole, HIDDEN) == (up - 5 * 10 + 10 * 10, down_and_norms - (10 * 5 + 5))
    biased = LATENT.model_copy(update={"bias": True})
    assert attention_parameters(biased, HIDDEN) == (up, down_and_norms + 5 + (7 + 2) + 10)


def test_a_gated_network_has_three_matrices_and_a_plain_one_two():
    norms = 2 * HIDDEN
    attention = sum(attention_parameters(PLAIN, HIDDEN))
    gated = Block(attention=PLAIN, feed_forward=DenseFeedForward(width=20))
    plain = Block(attention=PLAIN, feed_forward=DenseFeedForward(width=20, gated=False, bias=True), norm=Norm.LAYER)
    assert layer_parameters(gated, HIDDEN).total == attention + norms + 3 * 10 * 20
    assert layer_parameters(plain, HIDDEN).total == attention + 2 * norms + 2 * 10 * 20 + 20 + 10


def test_experts_router_and_shared_experts_are_counted_apart():
    moe = MoeFeedForward(
        num_experts=6, top_k=2, expert_width=8, bias=True, router_bias=True, shared_width=16, shared_gate=True
    )
    expert = 3 * 10 * 8 + 2 * 8 + 10
    assert expert_parameters(moe, HIDDEN) == expert
    parts = layer_parameters(Block(attention=PLAIN, feed_forward=moe), HIDDEN)
    assert (parts.experts, parts.active_experts) == (6 * expert, 2 * expert)
    assert parts.split == attention_parameters(PLAIN, HIDDEN)[0] + 3 * 10 * 16
    assert parts.replicated == 2 * HIDDEN + (6 * 10 + 6) + 10


def test_embedding_positions_are_replicated_and_a_tied_head_has_only_its_norm():
    assert layer_parameters(Embedding(vocab_size=50, num_positions=30), HIDDEN)[:2] == (500, 300)
    assert layer_parameters(Head(vocab_size=50), HIDDEN)[:2] == (500, 10)
    assert layer_parameters(Head(vocab_size=50, tied=True, norm=Norm.LAYER), HIDDEN)[:2] == (0, 20)


blocks = st.builds(
    Block,
    attention=st.sampled_from([PLAIN, LATENT]),
    feed_forward=st.builds(
        MoeFeedForward,
        num_experts=st.integers(2, 8),
        top_k=st.integers(1, 2),
        expert_width=st.integers(1, 32),
        shared_width=st.integers(0, 8),
    )
    | st.builds(DenseFeedForward, width=st.integers(1, 64), gated=st.booleans()),
)


@given(st.lists(blocks, min_size=1, max_size=4), st.booleans())
def test_the_whole_is_the_sum_of_its_layers_and_at_least_what_is_active(stack, tied):
    layers = [Embedding(vocab_size=50), *stack, Head(vocab_size=50, tied=tied)]
    model = Model(name="m", hidden_size=HIDDEN, runs=tuple(LayerRun(layer=layer) for layer in layers))
    assert total_parameters(model) == sum(layer_parameters(layer, HIDDEN).total for layer in model.layers)
    assert active_parameters(model) <= total_parameters(model)
    without = active_parameters(model, embedding=False)
    assert active_parameters(model) - without == (0 if tied else 50 * HIDDEN)


@given(blocks, st.integers(1, 9))
def test_a_run_of_equal_layers_counts_each_of_them(block, num_layers):
    one = Model(name="m", hidden_size=HIDDEN, runs=(LayerRun(layer=block),))
    run = Model(name="m", hidden_size=HIDDEN, runs=(LayerRun(layer=block, num_layers=num_layers),))
    assert total_parameters(run) == num_layers * total_parameters(one)
    assert active_parameters(run) == num_layers * active_parameters(one)
