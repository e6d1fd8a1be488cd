"""Activations that torch keeps in blocks with cross-attention, windows, other norms, against the planner's formulas."""

import pytest
from block_prices import price, strategy, training
from kept_blocks import Again
from torch_bytes import kept_bytes
from unlike_blocks import BothSides, DecoderBlock, Parallel, PatchMerging, SwinBlock

from planner.spec.model import Block, DenseFeedForward, GroupedQueryAttention, Merging, Norm
from planner.spec.strategy import Recompute

HIDDEN, HEADS, WIDTH = 512, 8, 2048
SELF = GroupedQueryAttention(num_heads=HEADS, num_kv_heads=HEADS, head_dim=HIDDEN // HEADS)
ALL = SELF.model_copy(update={"causal": False})
NETWORK = DenseFeedForward(width=WIDTH, gated=False)


@pytest.mark.parametrize("lengths", [(256, 256), (128, 1024), (1024, 64)])
@pytest.mark.parametrize("unfused", [False, True])
@pytest.mark.parametrize("relu", [False, True])
def test_a_decoder_block_with_cross_attention_keeps_what_torch_keeps(lengths, unfused, relu):
    decoder, encoder = lengths
    network = NETWORK.model_copy(update={"relu": relu})
    block = Block(attention=SELF, cross_attention=ALL, feed_forward=network)
    recipe = training(decoder, unfused).model_copy(update={"encoder_sequence_length": encoder})
    predicted = price(HIDDEN, block, strategy(Recompute.NONE), recipe, 2).activation_bytes
    build = lambda: DecoderBlock(HIDDEN, HEADS, WIDTH, (2, encoder), unfused, relu)  # noqa: E731
    assert predicted == pytest.approx(kept_bytes(build, 2, decoder, HIDDEN), rel=0.01)


def test_a_decoder_block_that_is_recomputed_whole_keeps_its_input():
    block = Block(attention=SELF, cross_attention=ALL, feed_forward=NETWORK)
    predicted = price(HIDDEN, block, strategy(Recompute.FULL), training(256), 2).activation_bytes
    counted = kept_bytes(lambda: Again(DecoderBlock(HIDDEN, HEADS, WIDTH, (2, 256))), 2, 256, HIDDEN)
    assert predicted == counted


@pytest.mark.parametrize("unfused", [False, True])
@pytest.mark.parametrize(("side", "window"), [(28, 7), (16, 8), (7, 7)])
def test_a_block_with_windows_keeps_what_torch_keeps(side, window, unfused):
    attention = ALL.model_copy(update={"window": window**2, "qkv_bias": True, "output_bias": True})
    network = DenseFeedForward(width=WIDTH, gated=False, bias=True)
    block = Block(attention=attention, feed_forward=network, norm=Norm.LAYER, tokens_per_sample=side**2)
    predicted = price(HIDDEN, block, strategy(Recompute.NONE), training(1, unfused), 2).activation_bytes
    counted = kept_bytes(lambda: SwinBlock(HIDDEN, HEADS, side, window, unfused), 2, side**2, HIDDEN)
    assert predicted == pytest.approx(counted, rel=0.01)


def test_a_merging_keeps_what_torch_keeps():
    layer = Merging(hidden_size=2 * HIDDEN, tokens_per_sample=14**2, input_size=HIDDEN, merged_tokens=4)
    predicted = price(99, layer, strategy(Recompute.NONE), training(1), 2).activation_bytes
    assert predicted == pytest.approx(kept_bytes(lambda: PatchMerging(HIDDEN, 28), 2, 28**2, HIDDEN), rel=0.01)


def test_a_block_with_norms_on_both_sides_keeps_what_torch_keeps():
    block = Block(attention=SELF, feed_forward=NETWORK, norms_both_sides=True)
    predicted = price(HIDDEN, block, strategy(Recompute.NONE), training(512), 2).activation_bytes
    assert predicted == pytest.approx(kept_bytes(lambda: BothSides(HIDDEN, HEADS, WIDTH), 2, 512, HIDDEN), rel=0.01)


@pytest.mark.parametrize("shared_norm", [False, True])
def test_a_parallel_block_keeps_what_torch_keeps(shared_norm):
    block = Block(attention=SELF, feed_forward=NETWORK, norm=Norm.LAYER, parallel=True, shared_norm=shared_norm)
    predicted = price(HIDDEN, block, strategy(Recompute.NONE), training(512), 2).activation_bytes
    counted = kept_bytes(lambda: Parallel(HIDDEN, HEADS, WIDTH, shared_norm), 2, 512, HIDDEN)
    assert predicted == pytest.approx(counted, rel=0.01)
