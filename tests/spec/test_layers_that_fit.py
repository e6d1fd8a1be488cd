import pytest
from pydantic import ValidationError

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

ATTENTION = GroupedQueryAttention(num_heads=4, num_kv_heads=4, head_dim=16)
ALL = ATTENTION.model_copy(update={"causal": False})
NETWORK = DenseFeedForward(width=128)
PATCHES = PatchEmbedding(tokens_per_sample=64, patch_values=48)
WIDE = {"hidden_size": 128, "tokens_per_sample": 16}
MERGING = Merging(**WIDE, input_size=64, merged_tokens=4)
ENCODER = Block(attention=ALL, feed_forward=NETWORK, tokens_per_sample="encoder")
DECODER = Block(attention=ATTENTION, cross_attention=ALL, feed_forward=NETWORK)
BOTH = Embedding(vocab_size=100, tokens_per_sample="encoder")
HEAD = Head(vocab_size=100)


def model(*layers, hidden_size=64):
    return Model(name="sample", hidden_size=hidden_size, runs=tuple(LayerRun(layer=layer) for layer in layers))


def block(**fields):
    return Block(attention=ALL, feed_forward=NETWORK, **fields)


@pytest.mark.parametrize(
    "layers",
    [
        (PATCHES, block(tokens_per_sample=64), MERGING, block(**WIDE), Head(**WIDE, vocab_size=10, pooled=True)),
        (BOTH, ENCODER, EncoderEnd(), DECODER, HEAD),
        (ENCODER, EncoderEnd(), DECODER),
    ],
)
def test_layers_that_fit_each_other_make_a_model(layers):
    assert model(*layers).layers == layers


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ((block(), PATCHES), "layer 1 is an embedding"),
        (
            (PATCHES, block()),
            "layer 1 takes sequence_length tokens of 64 channels, but layer 0 puts out 64 tokens of 64",
        ),
        ((PATCHES, MERGING, block(**WIDE), HEAD), "layer 3 takes sequence_length tokens of 64 channels"),
        ((PATCHES, block(tokens_per_sample=64, hidden_size=32)), "layer 1 takes 64 tokens of 32 channels"),
        ((block(hidden_size=32), MERGING), "layer 1 takes 64 tokens of 64 channels"),
        ((BOTH, ENCODER, EncoderEnd(), EncoderEnd(), DECODER), "layer 3 is a second encoder_end"),
        ((BOTH, ENCODER, DECODER), "layer 0 must not have it"),
        ((BOTH, block(), EncoderEnd(), DECODER), "layer 1 must have tokens_per_sample encoder"),
        ((BOTH, ENCODER, EncoderEnd(), ENCODER), "layer 3 must not have it"),
        ((Embedding(vocab_size=100), DECODER), "layer 1 has cross_attention, but no encoder_end stands before it"),
        (
            (BOTH, ENCODER, EncoderEnd(), DECODER, Head(vocab_size=100, hidden_size=32)),
            "layer 4 must have the model's hidden_size",
        ),
        (
            (Embedding(vocab_size=100, hidden_size=32), block(hidden_size=32), Head(vocab_size=100, tied=True)),
            "a tied head needs the hidden_size of the embedding",
        ),
    ],
)
def test_layers_that_do_not_fit_each_other_are_an_error_that_names_one(layers, message):
    with pytest.raises(ValidationError, match=message):
        model(*layers)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"cross_attention": ATTENTION}, "must have causal false and no window"),
        ({"cross_attention": ALL.model_copy(update={"window": 4})}, "must have causal false and no window"),
        ({"shared_norm": True}, "shared_norm: must be false unless parallel"),
        ({"parallel": True, "norms_both_sides": True}, "parallel: must be false with"),
        ({"parallel": True, "cross_attention": ALL}, "parallel: must be false with"),
    ],
)
def test_a_block_that_contradicts_itself_is_an_error(fields, message):
    with pytest.raises(ValidationError, match=message):
        block(**fields)


def test_parallel_parts_are_none_of_them_experts():
    experts = MoeFeedForward(num_experts=4, top_k=1, expert_width=8)
    with pytest.raises(ValidationError, match="parallel: must be false with"):
        Block(attention=ATTENTION, feed_forward=experts, parallel=True)
