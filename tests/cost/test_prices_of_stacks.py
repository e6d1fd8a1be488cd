"""Seconds that software stacks add and hide, by numbers worked out by hand."""

import pytest
from cost_samples import DEVICE, cluster, even_plan, gpt, moe_model

from planner.cost import estimate
from planner.cost.attention import attention
from planner.cost.boundary import entry
from planner.cost.collectives import all_gather_s, point_to_point_s
from planner.cost.dense import linear_s
from planner.cost.kernels import hidden_s, matmul_s, overlapped_s, quantise_s, rates
from planner.cost.layer import LayerCost, compose, layer_cost
from planner.cost.part import Conditions, Part, conditions, share
from planner.cost.state import State
from planner.spec.cluster import Cluster, PeakFlops, Precision, link_between
from planner.spec.model import Block, DenseFeedForward, GroupedQueryAttention, Head
from planner.spec.stack import Stack
from planner.spec.strategy import Axis, AxisKind, ExpertStrategy, Recompute, Strategy
from planner.spec.training import AttentionKernel, Training

HIDDEN, SEQUENCE = 1024, 512
BF16 = Training(global_batch_size=8, sequence_length=SEQUENCE)
FP8 = BF16.model_copy(update={"precision": Precision.FP8})
ALONE = Strategy()
EIGHT_BITS = DEVICE.model_copy(
    update={
        "peak_flops_per_s": PeakFlops(fp32=2e13, bf16=3e14, fp8=6e14),
        "efficiency": DEVICE.efficiency.model_copy(update={"quantised_matmul_ratio": 0.6}),
    }
)
NO_STATE = State(*(0.0,) * len(State._fields))


def where(**fields: float) -> Cluster:
    return cluster(nodes=2, devices_per_node=4, device=EIGHT_BITS).model_copy(update={"stack": Stack(**fields)})


def priced(training: Training = BF16, **fields: float) -> Conditions:
    return conditions(HIDDEN, where(**fields), training)


def composed(part: Part, held: State = NO_STATE, recompute: Recompute = Recompute.NONE, **fields: float) -> LayerCost:
    return compose(priced(**fields), recompute, 0.0, part, held)


# What the host adds.


@pytest.mark.parametrize(
    ("recompute", "waits"),
    [(Recompute.NONE, (6.0, 4.0)), (Recompute.SELECTIVE, (6.0, 3.0)), (Recompute.FULL, (6.0, 10.0))],
)
def test_a_device_waits_for_the_host_for_what_each_pass_is_quicker(recompute, waits):
    """Ten seconds a pass; full recomputation submits two passes in the backward one, which is four seconds longer."""
    cost = composed(Part(forward_s=4.0, backward_s=6.0, core_forward_s=1.0, host_s=10.0), recompute=recompute)
    assert (cost.forward[-1], cost.backward[-1]) == waits


def test_a_device_that_is_slower_than_the_host_does_not_wait():
    cost = composed(Part(forward_s=4.0, backward_s=6.0, host_s=3.0))
    assert (cost.forward[-1], cost.backward[-1]) == (0.0, 0.0)


def test_the_host_submits_while_traffic_is_awaited():
    cost = composed(Part(forward_s=4.0, backward_s=6.0, tensor_forward_s=5.0, host_s=10.0))
    assert cost.forward[-1] == 1.0


def test_a_block_that_the_host_bounds_takes_the_time_of_the_host():
    block = Block(
        attention=GroupedQueryAttention(num_heads=16, num_kv_heads=16, head_dim=64),
        feed_forward=DenseFeedForward(width=4096),
    )
    cost = layer_cost(priced(block_host_s=1.0), block, ALONE, 1, SEQUENCE)
    assert (cost.forward_s, cost.backward_s) == pytest.approx((1.0, 1.0))


@pytest.mark.parametrize(
    ("capacity_factor", "recompute", "waits"),
    [(None, "none", 1), (None, "selective", 1), (None, "full", 2), (1.0, "none", 0), (1.0, "full", 0)],
)
def test_experts_without_a_capacity_wait_for_the_host_in_every_forward_pass(capacity_factor, recompute, waits):
    block = moe_model(hidden=HIDDEN).layers[1]
    spread = Strategy(recompute=recompute, experts=ExpertStrategy())
    training = BF16.model_copy(update={"capacity_factor": capacity_factor})
    costs = [
        layer_cost(priced(training, dropless_host_s=seconds), block, spread, 1, SEQUENCE) for seconds in (0.0, 0.25)
    ]
    passes = [cost.forward_s + cost.backward_s for cost in costs]
    assert passes[1] - passes[0] == pytest.approx(0.25 * waits)


@pytest.mark.parametrize("text", ["dp8-mbs1", "pp2-dp4-mbs1-zero1"])
def test_a_step_takes_what_the_host_needs_once(text):
    model, steps = gpt(layers=4, hidden=HIDDEN, heads=8), []
    for seconds in (0.0, 0.5):
        stack = where(step_host_s=seconds)
        steps.append(estimate(model, stack, BF16, even_plan(text, model, stack, BF16)))
    assert steps[1].step_time_s - steps[0].step_time_s == pytest.approx(0.5)
    assert steps[1].time["host"] == pytest.approx(0.5)


@pytest.mark.parametrize("host_s", [0.0, 0.125])
def test_a_message_between_stages_waits_for_the_host(host_s):
    spread = Strategy(axes=(Axis(AxisKind.TP, 4),))
    price = priced(message_host_s=host_s)
    whole = 2.0 * SEQUENCE * HIDDEN
    sent = point_to_point_s(price.levels, 0, 4, whole / 4) + all_gather_s(price.levels, ((4, 1),), whole)
    assert entry(price, spread, 1, SEQUENCE, link_between(price.levels, 0, 4)).pass_s == pytest.approx(sent + host_s)


# What hides.


@pytest.mark.parametrize(
    ("traffic_s", "beside_s", "ratio", "hidden"),
    [(4.0, 10.0, 0.5, 2.0), (10.0, 4.0, 0.5, 2.0), (4.0, 10.0, 1.0, 4.0), (4.0, 10.0, 0.0, 0.0), (4.0, 0.0, 1.0, 0.0)],
)
def test_traffic_hides_in_part_as_far_as_the_work_beside_it_reaches(traffic_s, beside_s, ratio, hidden):
    assert hidden_s(traffic_s, beside_s, ratio) == hidden


def test_work_that_hides_tensor_parallel_traffic_hides_no_exchange_of_tokens():
    """Of ten seconds of work five hide traffic between tensor-parallel ranks; half of the rest hides the exchange."""
    part = Part(forward_s=10.0, backward_s=10.0, tensor_forward_s=12.0, tensor_backward_s=4.0, all_to_all_s=7.0)
    cost = composed(part, tensor_overlap_ratio=0.5, expert_overlap_ratio=0.5)
    assert (cost.forward[2], cost.forward[4]) == (12.0 - 5.0, 7.0 - 2.5)
    assert (cost.backward[2], cost.backward[4]) == (4.0 - 2.0, 7.0 - 3.5)


def test_work_that_hides_a_ring_hides_no_other_traffic():
    part = Part(forward_s=10.0, backward_s=10.0, ring_forward_s=8.0, tensor_forward_s=6.0)
    assert composed(part, tensor_overlap_ratio=1.0).forward[2] == 4.0


def test_of_data_parallel_traffic_a_part_hides_and_slows_the_work_down():
    """Four seconds of traffic beside ten of work: half of it hides and costs 15 %, the other half is seen whole."""
    part = Part(forward_s=10.0, backward_s=10.0)
    each = composed(part, NO_STATE._replace(micro_forward_s=4.0), data_overlap_ratio=0.5)
    once = composed(part, NO_STATE._replace(once_forward_s=4.0), data_overlap_ratio=0.5)
    assert each.forward[6] == once.once_communication_s == pytest.approx(2.0 + 0.15 * 2.0)


def test_what_slows_down_by_more_than_two_is_no_slower_than_one_after_the_other():
    rate = priced().rate._replace(overlap_slowdown_ratio=5.0)
    assert overlapped_s(rate, 3.0, 2.0) == 5.0


def test_gradients_of_weights_that_hide_traffic_are_not_put_off():
    """Ten seconds forward put off ten of twenty; traffic of 15 keeps the rest, which may then be put off but for 5."""
    part = Part(forward_s=10.0, backward_s=20.0)
    assert composed(part).weight_gradient_s == 10.0
    free = priced()
    free = free._replace(rate=free.rate._replace(overlap_slowdown_ratio=1.0))
    beside = compose(free, Recompute.NONE, 0.0, part, NO_STATE._replace(micro_backward_s=15.0))
    assert beside.weight_gradient_s == 20.0 - 15.0


# Kernels.


def test_casts_read_two_bytes_and_write_two_of_one():
    rate = priced(FP8, quantise_ratio=1.5).rate
    assert quantise_s(rate, 1e9) == pytest.approx(4e9 * 1.5 / (0.8 * 2e12) + 3e-6)
    assert quantise_s(priced(BF16, quantise_ratio=1.5).rate, 1e9) == 0.0


def test_each_product_of_a_matrix_casts_what_comes_in():
    price = priced(FP8)
    forward, backward = linear_s(price, 512, 2048, 1024)
    products = matmul_s(price.rate, 512, 1024, 2048) + matmul_s(price.rate, 1024, 2048, 512)
    assert forward == pytest.approx(matmul_s(price.rate, 512, 2048, 1024) + quantise_s(price.rate, 512 * 1024))
    assert backward == pytest.approx(products + quantise_s(price.rate, 512 * 2048))


def test_products_in_8_bits_have_their_own_peak_and_efficiency():
    assert priced(FP8).rate.matmul_flops_per_s == pytest.approx(0.6 * 6e14)
    assert priced(BF16).rate.matmul_flops_per_s == pytest.approx(0.7 * 3e14)


def test_the_head_is_as_quick_in_8_bits_as_in_16():
    found = [layer_cost(priced(training), Head(vocab_size=8192), ALONE, 1, SEQUENCE) for training in (BF16, FP8)]
    assert found[0].forward_s == found[1].forward_s
    assert found[0].backward_s == found[1].backward_s


@pytest.mark.parametrize(
    ("precision", "stored", "operand"),
    [(Precision.FP32, 4, 4), (Precision.FP16, 2, 2), (Precision.BF16, 2, 2), (Precision.FP8, 2, 1)],
)
def test_operands_in_8_bits_take_a_byte(precision, stored, operand):
    device = EIGHT_BITS.model_copy(update={"peak_flops_per_s": PeakFlops(fp32=1e13, fp16=1e14, bf16=1e14, fp8=2e14)})
    found = rates(device, Stack(), precision)
    assert (found.element_bytes, found.operand_bytes) == (stored, operand)


def test_a_block_in_8_bits_keeps_inputs_of_its_products_in_a_byte():
    """The inputs of attention and of the network, and of the network's second matrix; all else stays in 16 bits."""
    block = Block(
        attention=GroupedQueryAttention(num_heads=16, num_kv_heads=16, head_dim=64),
        feed_forward=DenseFeedForward(width=4096),
    )
    kept = [layer_cost(priced(training), block, ALONE, 1, SEQUENCE).activation_bytes for training in (BF16, FP8)]
    assert kept[0] - kept[1] == SEQUENCE * (2 * HIDDEN + 4096)


def test_products_of_many_experts_reach_a_part_of_the_rate_of_one():
    plain, slower = priced(), priced(grouped_matmul_ratio=0.5)
    for groups, times in ((1, 1.0), (4, 2.0)):
        expected = [times * seconds for seconds in linear_s(plain, 512, 2048, 1024, groups)]
        assert linear_s(slower, 512, 2048, 1024, groups) == pytest.approx(expected)


def test_a_stack_reaches_a_part_of_the_best_fused_attention():
    rate = rates(EIGHT_BITS, Stack(attention_ratio=0.5), Precision.BF16)
    assert (rate.attention_forward_flops_per_s, rate.attention_backward_flops_per_s) == pytest.approx(
        (0.5 * 0.5 * 3e14, 0.5 * 0.4 * 3e14)
    )


# The fused softmax of 2021.


@pytest.mark.parametrize(
    ("samples", "tp", "fused"), [(1, 1, False), (2, 1, True), (4, 2, True), (2, 2, False), (6, 1, True)]
)
def test_scores_of_no_multiple_of_four_take_kernels_of_their_own(samples, tp, fused):
    """Six heads: three more kernels each way read and write 2 bytes of each score, and the host submits them."""
    kind = GroupedQueryAttention(num_heads=6, num_kv_heads=6, head_dim=64)
    strategy = Strategy(axes=(Axis(AxisKind.TP, tp),)) if tp > 1 else ALONE
    unfused = BF16.model_copy(update={"attention_kernel": AttentionKernel.UNFUSED})
    price = priced(unfused, block_host_s=1.0, fused_softmax_batch=4, unfused_softmax_host_ratio=0.4)
    found = attention(price, kind, strategy, share(strategy, samples, SEQUENCE))
    assert found.host_s == (0.0 if fused else pytest.approx(0.4))
    scores = samples * 6 / tp * SEQUENCE**2
    query = matmul_s(price.rate, SEQUENCE, SEQUENCE, 64, samples * 6 / tp)
    value = matmul_s(price.rate, SEQUENCE, 64, SEQUENCE, samples * 6 / tp)
    softmax = scores * 4 / (0.8 * 2e12) + 3e-6
    own = 0.0 if fused else scores * 12 / (0.8 * 2e12) + 3 * 3e-6
    assert found.core_forward_s == pytest.approx(query + value + softmax + own)


def test_traffic_once_per_step_hides_behind_the_wait_for_the_host():
    part = Part(forward_s=4.0, backward_s=4.0, host_s=10.0)
    cost = composed(part, NO_STATE._replace(once_backward_s=12.0))
    assert cost.once_communication_s == pytest.approx(12.0 - 10.0 + 0.15 * 10.0)


def test_a_pass_that_waits_for_the_host_puts_nothing_off():
    assert composed(Part(forward_s=4.0, backward_s=8.0, host_s=10.0)).weight_gradient_s == 0.0
    assert composed(Part(forward_s=4.0, backward_s=8.0, host_s=7.0)).weight_gradient_s == 1.0
