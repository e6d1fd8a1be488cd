"""Bytes that software stacks add: copies of gradients, unfused kernels, what the allocator holds."""

import pytest
from cost_samples import DEVICE, cluster, even_plan, gpt

from planner.cost import estimate
from planner.cost.layer import LayerCost, layer_cost
from planner.cost.parameters import layer_parameters
from planner.cost.part import conditions
from planner.spec.cluster import Precision
from planner.spec.model import Block, DenseFeedForward, GroupedQueryAttention, Head
from planner.spec.stack import Stack
from planner.spec.strategy import Axis, AxisKind, Recompute, Sharding, Strategy
from planner.spec.training import Training

HIDDEN, WIDTH, HEADS, SEQUENCE, VOCAB = 1024, 4096, 16, 512, 8192
BLOCK = Block(
    attention=GroupedQueryAttention(num_heads=HEADS, num_kv_heads=HEADS, head_dim=64),
    feed_forward=DenseFeedForward(width=WIDTH),
)
PARAMETERS = layer_parameters(BLOCK, HIDDEN).total
BF16 = Training(global_batch_size=8, sequence_length=SEQUENCE)
FP16 = BF16.model_copy(update={"precision": Precision.FP16, "gradient_precision": Precision.FP16})
ALONE = Strategy()
SHARDED = Strategy(axes=(Axis(AxisKind.DP, 8),), sharding=Sharding.FULL)


def cost(stack: Stack, spread: Strategy = ALONE, training: Training = BF16, layer: Block | Head = BLOCK) -> LayerCost:
    where = cluster().model_copy(update={"stack": stack})
    return layer_cost(conditions(HIDDEN, where, training), layer, spread, spread.data_parallel_size, SEQUENCE)


def test_gradients_in_16_bits_beside_their_sums_take_their_bytes():
    found = cost(Stack(computed_gradient_bytes=2.0))
    assert found.gradients_bytes == 6 * PARAMETERS
    assert cost(Stack(computed_gradient_bytes=2.0), training=FP16).gradients_bytes == 2 * PARAMETERS


def test_gradients_for_the_update_take_bytes_only_where_they_are_summed_in_16_bits():
    stack = Stack(update_gradient_bytes=4.0)
    assert cost(stack, training=FP16).optimizer_bytes == 16 * PARAMETERS
    assert cost(stack).optimizer_bytes == 12 * PARAMETERS


def test_shards_that_are_cast_as_they_are_gathered_have_no_copy_in_16_bits():
    found = cost(Stack(casts_shards=True), SHARDED)
    assert (found.weights_bytes, found.gradients_bytes, found.optimizer_bytes) == (
        4 * PARAMETERS // 8,
        4 * PARAMETERS // 8,
        8 * PARAMETERS // 8,
    )
    assert cost(Stack(casts_shards=True)) == cost(Stack())


def test_fp32_has_no_copies_whatever_the_stack():
    stack = Stack(computed_gradient_bytes=2.0, update_gradient_bytes=4.0, casts_shards=True)
    single = BF16.model_copy(update={"precision": Precision.FP32})
    for spread in (ALONE, SHARDED):
        assert cost(stack, spread, single).fixed_bytes == cost(Stack(), spread, single).fixed_bytes


def test_blocks_of_single_operations_keep_a_width_and_two_fp32_inputs_more():
    more = cost(Stack(eager_blocks=True)).activation_bytes - cost(Stack()).activation_bytes
    assert more == SEQUENCE * (2 * 4 * HIDDEN + 2 * WIDTH)


def test_a_loss_of_single_operations_holds_twice_the_scores():
    head = Head(vocab_size=VOCAB)
    assert cost(Stack(), layer=head).logits_bytes == 6 * SEQUENCE * VOCAB
    assert cost(Stack(eager_loss=True), layer=head).logits_bytes == 12 * SEQUENCE * VOCAB


def test_keeping_every_second_product_keeps_less_and_computes_more_than_keeping_all_but_the_core():
    again = Strategy(recompute=Recompute.SELECTIVE)
    core, products = cost(Stack(), again), cost(Stack(selective_products=True), again)
    whole = cost(Stack(), Strategy(recompute=Recompute.FULL))
    assert whole.activation_bytes < products.activation_bytes < core.activation_bytes
    assert core.backward[1] < products.backward[1] < whole.backward[1]


@pytest.mark.parametrize("ratio", [0.0, 0.25, 0.5])
def test_the_allocator_holds_its_share_of_what_comes_and_goes_and_none_of_what_stays(ratio):
    plain, held = cost(Stack()), cost(Stack(fragmentation_ratio=ratio))
    assert held.fixed_bytes == plain.fixed_bytes
    assert held.activation_bytes == (1 + ratio) * plain.activation_bytes
    assert held.workspace_bytes == pytest.approx((1 + ratio) * plain.workspace_bytes, abs=1)


def test_what_libraries_take_is_reserved_on_every_stage():
    model = gpt(layers=4, hidden=HIDDEN, heads=HEADS)
    where = cluster().model_copy(update={"stack": Stack(library_bytes=10**9)})
    found = estimate(model, where, BF16, even_plan("pp2-dp4-mbs1", model, where, BF16))
    assert [stage.memory["reserve"] for stage in found.stages] == [DEVICE.reserve_bytes + 10**9] * 2
