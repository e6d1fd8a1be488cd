"""What more of anything does to a price, over random small plans; and sums that must come out."""

import pytest
from cost_samples import DEVICE
from hypothesis import given, settings
from hypothesis import strategies as st
from price_instances import Instance, instances, skewed_shares

from planner.spec.cluster import PeakFlops
from planner.spec.estimate import Estimate
from planner.spec.workload import Workload

factors = st.sampled_from([1.01, 1.5, 4.0, 50.0])
modest = settings(max_examples=60, deadline=None)


def no_slower(found: Estimate, than: Estimate) -> bool:
    """Up to rounding."""
    return found.step_time_s <= than.step_time_s * (1 + 1e-9)


def kept_bytes(found: Estimate) -> list[int]:
    return [stage.memory["activations"] + stage.memory["logits"] for stage in found.stages]


@given(instances(), factors)
@modest
def test_more_bandwidth_between_devices_is_never_slower(instance, factor):
    now = instance.price()
    for name in ("node_link", "network_link"):
        link = getattr(instance, name)
        wider = link.model_copy(update={"bandwidth_bytes_per_s": link.bandwidth_bytes_per_s * factor})
        assert no_slower(instance.but(**{name: wider}).price(), now)


@given(instances(), factors)
@modest
def test_less_latency_is_never_slower(instance, factor):
    now = instance.price()
    for name in ("node_link", "network_link"):
        link = getattr(instance, name)
        nearer = link.model_copy(update={"latency_s": link.latency_s / factor})
        assert no_slower(instance.but(**{name: nearer}).price(), now)


@given(instances(), factors)
@modest
def test_more_memory_bandwidth_is_never_slower(instance, factor):
    bandwidth = DEVICE.memory_bandwidth_bytes_per_s * factor
    assert no_slower(instance.with_device(memory_bandwidth_bytes_per_s=bandwidth).price(), instance.price())


@given(instances(), factors)
@modest
def test_more_flops_are_never_slower(instance, factor):
    peak = PeakFlops(fp32=2e13 * factor, bf16=3e14 * factor)
    assert no_slower(instance.with_device(peak_flops_per_s=peak).price(), instance.price())


@given(instances(), st.sampled_from(["matmul_ratio", "memory_ratio", "kernel_launch_s", "matmul_half_depth"]))
@modest
def test_better_kernels_are_never_slower(instance, name):
    ratio = getattr(DEVICE.efficiency, name)
    better = DEVICE.efficiency.model_copy(update={name: ratio * 1.2 if name.endswith("ratio") else ratio / 2})
    assert no_slower(instance.with_device(efficiency=better).price(), instance.price())


@given(instances())
@modest
def test_a_longer_sequence_is_never_faster_nor_smaller(instance):
    now, longer = instance.price(), instance.but(sequence_length=2 * instance.sequence_length).price()
    assert no_slower(now, longer)
    assert all(less <= more for less, more in zip(kept_bytes(now), kept_bytes(longer), strict=True))


@given(instances())
@modest
def test_more_layers_are_never_faster(instance):
    assert no_slower(instance.price(), instance.but(layers=2 * instance.layers).price())


@given(instances())
@modest
def test_wider_layers_are_never_faster_nor_smaller(instance):
    now = instance.price()
    for wider in (instance.but(width_factor=2 * instance.width_factor), instance.but(hidden=2 * instance.hidden)):
        assert no_slower(now, wider.price())
        peaks = zip(now.stages, wider.price().stages, strict=True)
        assert all(less.peak_memory_bytes <= more.peak_memory_bytes for less, more in peaks)


@given(instances())
@modest
def test_recomputation_is_never_faster_and_never_keeps_more(instance):
    none, selective, full = (instance.but(recompute=name).price() for name in ("none", "selective", "full"))
    assert no_slower(none, selective)
    assert no_slower(selective, full)
    for stages in zip(kept_bytes(full), kept_bytes(selective), kept_bytes(none), strict=True):
        assert list(stages) == sorted(stages)


@given(instances(moe=True), skewed_shares())
@modest
def test_a_skewed_workload_is_never_faster_than_a_balanced_one(instance, workload):
    balanced, skewed = instance.price(), instance.price(workload)
    assert no_slower(balanced, skewed)
    assert balanced.time.get("expert_imbalance", 0.0) == 0.0
    assert skewed.time.get("expert_imbalance", 0.0) >= 0.0
    peaks = zip(balanced.stages, skewed.stages, strict=True)
    assert all(less.peak_memory_bytes <= more.peak_memory_bytes for less, more in peaks)


@given(st.integers(0, 400), st.integers(1, 40))
@modest
def test_a_little_more_load_on_one_rank_costs_a_little(ten_thousandths, more):
    """Tokens of an expert are no sizes of the model: an odd number of them is no slower than an even one."""
    instance = Instance(
        moe=True,
        layers=2,
        hidden=1024,
        width_factor=4,
        nodes=1,
        sequence_length=2048,
        batch_size=8,
        words=("dp4", "ep4", "etp1", "mbs1"),
    )
    steps = []
    for added in (ten_thousandths, ten_thousandths + more):
        hot = 0.125 + added / 10_000
        shares = ((hot, *((1 - hot) / 7 for _ in range(7))),)
        steps.append(instance.price(Workload(name="warm", expert_shares=shares)).step_time_s)
    assert steps[0] <= steps[1] * (1 + 1e-12)
    assert steps[1] <= steps[0] * (1 + 4 * more / 10_000 / 0.125 + 0.25)


def test_one_hot_expert_is_paid_for_by_name():
    instance = Instance(
        moe=True,
        layers=4,
        hidden=1024,
        width_factor=4,
        nodes=1,
        sequence_length=2048,
        batch_size=8,
        words=("dp4", "ep4", "etp1", "mbs1"),
    )
    hot = instance.price(Workload(name="hot", expert_shares=((0.51, *(0.07,) * 7),)))
    cold = instance.price()
    assert hot.time["expert_imbalance"] == pytest.approx(hot.step_time_s - cold.step_time_s, rel=0.1)
    # The rank with the hot expert has 0.51 + 0.07 of the tokens instead of a quarter.
    grown = cold.time["expert_all_to_all"] * (0.58 * 4 - 1)
    assert hot.time["expert_imbalance"] > grown


@given(instances(), skewed_shares())
@settings(max_examples=150, deadline=None)
def test_parts_of_time_are_not_negative_and_sum_to_the_step(instance, workload):
    found = instance.price(workload) if instance.moe else instance.price()
    assert min(found.time.values()) >= 0.0
    assert sum(found.time.values()) == pytest.approx(found.step_time_s, rel=1e-9)
    for stage in found.stages:
        assert sum(stage.memory.values()) == stage.peak_memory_bytes
        assert min(stage.memory.values()) >= 0


@given(instances())
@modest
def test_more_micro_batches_never_take_less_time_or_memory(instance):
    now, more = instance.price(), instance.but(batch_size=2 * instance.batch_size).price()
    assert no_slower(now, more)
    peaks = zip(now.stages, more.stages, strict=True)
    assert all(less.peak_memory_bytes <= larger.peak_memory_bytes for less, larger in peaks)


@given(instances())
@modest
def test_gpipe_never_holds_less_than_1f1b_of_the_same_plan(instance):
    words = tuple(word for word in instance.words if word not in ("gpipe", "zb", "vpp2"))
    plain, gpipe = instance.but(words=words).price(), instance.but(words=(*words, "gpipe")).price()
    assert all(less <= more for less, more in zip(kept_bytes(plain), kept_bytes(gpipe), strict=True))


@given(instances())
@modest
def test_zero_bubble_is_never_slower_than_1f1b_of_the_same_plan_nor_holds_less(instance):
    words = tuple(word for word in instance.words if word not in ("gpipe", "zb", "vpp2"))
    plain, split = instance.but(words=words).price(), instance.but(words=(*words, "zb")).price()
    assert no_slower(split, plain)
    assert all(less <= more for less, more in zip(kept_bytes(plain), kept_bytes(split), strict=True))


@given(instances())
@modest
def test_rates_follow_from_the_step(instance):
    found = instance.price()
    tokens = instance.batch_size * instance.sequence_length
    devices = 4 * instance.nodes
    assert found.tokens_per_s == pytest.approx(tokens / found.step_time_s)
    assert found.tokens_per_s_per_device == pytest.approx(found.tokens_per_s / devices)
    assert found.mfu == pytest.approx(found.tflops_per_device * 1e12 / 3e14)
    assert found.mfu < 1
