"""estimate() as a whole is monotone: what is slower, farther, larger or hidden less never helps; by hypothesis.

Why it must hold: docs/log.md, "work hides traffic once".
"""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from questions import EXPERTS, Question, questions

from planner.spec.cluster import PeakFlops
from planner.spec.estimate import Estimate

modest = settings(max_examples=25, deadline=None)
factors = st.sampled_from([1.01, 1.5, 4.0, 50.0])

LOWER_KERNELS = (
    "matmul_ratio",
    "quantised_matmul_ratio",
    "half_tile_ratio",
    "misaligned_ratio",
    "attention_forward_ratio",
    "attention_backward_ratio",
    "memory_ratio",
)
HIGHER_KERNELS = ("matmul_half_depth", "kernel_launch_s", "overlap_slowdown_ratio")
HIGHER_STACK = (
    "block_host_s",
    "dropless_host_s",
    "step_host_s",
    "message_host_s",
    "elementwise_ratio",
    "loss_ratio",
    "quantise_ratio",
    "accumulate_bytes",
    "optimizer_ratio",
)
LOWER_STACK = (
    "attention_ratio",
    "grouped_matmul_ratio",
    "tensor_overlap_ratio",
    "expert_overlap_ratio",
    "data_overlap_ratio",
)
LESS_LINK = ("bandwidth_bytes_per_s", "efficiency_ratio", "pair_bandwidth_bytes_per_s")


def check_not_faster(worse: Question, question: Question) -> None:
    """Up to rounding."""
    assert worse.price().step_time_s >= question.price().step_time_s * (1 - 1e-9)


def held(found: Estimate, names: tuple[str, ...]) -> list[int]:
    return [sum(stage.memory[name] for name in names) for stage in found.stages]


def check_not_smaller(worse: Question, question: Question) -> None:
    """The whole of each stage, and what is kept of activations."""
    before, after = question.price(), worse.price()
    for names in (("activations", "logits"), tuple(before.stages[0].memory)):
        assert all(less <= more for less, more in zip(held(before, names), held(after, names), strict=True))


@pytest.mark.parametrize("name", LOWER_KERNELS)
@given(question=questions(), factor=factors)
@modest
def test_less_efficient_kernels_are_never_faster(name, question, factor):
    ratio = getattr(question.device.efficiency, name)
    check_not_faster(question.with_kernels(**{name: ratio / factor}), question)


@pytest.mark.parametrize("name", HIGHER_KERNELS)
@given(question=questions(), factor=factors)
@modest
def test_what_kernels_lose_is_never_a_gain(name, question, factor):
    lost = getattr(question.device.efficiency, name)
    check_not_faster(question.with_kernels(**{name: (lost or 1e-4) * factor}), question)


@given(question=questions(), last_wave=st.sampled_from([0.01, 0.5, 0.9]))
@modest
def test_a_last_wave_that_takes_a_whole_one_is_never_faster(question, last_wave):
    check_not_faster(question.with_kernels(last_wave_ratio=1.0), question.with_kernels(last_wave_ratio=last_wave))


@given(question=questions(), factor=factors)
@modest
def test_fewer_flops_are_never_faster(question, factor):
    peaks = question.device.peak_flops_per_s.model_dump()
    fewer = PeakFlops(**{name: peak / factor for name, peak in peaks.items()})
    check_not_faster(question.with_device(peak_flops_per_s=fewer), question)


@given(question=questions(), factor=factors)
@modest
def test_slower_memory_is_never_faster(question, factor):
    slower = question.device.memory_bandwidth_bytes_per_s / factor
    check_not_faster(question.with_device(memory_bandwidth_bytes_per_s=slower), question)


@pytest.mark.parametrize("name", ["link_bytes_per_s", "memory_bandwidth_bytes_per_s"])
@given(question=questions(), factor=factors)
@modest
def test_a_slower_host_is_never_faster(name, question, factor):
    host = question.device.host
    slower = host.model_copy(update={name: getattr(host, name) / factor})
    check_not_faster(question.with_device(host=slower), question)


@given(question=questions())
@modest
def test_offload_moves_bytes_from_the_device_to_its_host_and_never_the_other_way(question):
    kept = tuple(word for word in question.words if word != "offload")
    without, offloaded = question.but(words=kept).price(), question.but(words=(*kept, "offload")).price()
    for before, after in zip(without.stages, offloaded.stages, strict=True):
        assert after.memory["optimizer_states"] == before.host_bytes == 0
        assert after.host_bytes > 0
        assert all(after.memory[name] <= before.memory[name] for name in before.memory)


@pytest.mark.parametrize("name", LESS_LINK)
@given(question=questions(), factor=factors, data=st.data())
@modest
def test_a_slower_link_is_never_faster(name, question, factor, data):
    tier = data.draw(st.integers(0, len(question.links) - 1))
    link = question.links[tier]
    given_rate = getattr(link, name) or link.bandwidth_bytes_per_s
    slower = link.model_copy(update={name: given_rate / factor})
    check_not_faster(question.but(links=(*question.links[:tier], slower, *question.links[tier + 1 :])), question)


@given(question=questions(), factor=factors, data=st.data())
@modest
def test_a_farther_link_is_never_faster(question, factor, data):
    tier = data.draw(st.integers(0, len(question.links) - 1))
    farther = question.links[tier].model_copy(update={"latency_s": (question.links[tier].latency_s or 1e-6) * factor})
    check_not_faster(question.but(links=(*question.links[:tier], farther, *question.links[tier + 1 :])), question)


@pytest.mark.parametrize("name", HIGHER_STACK)
@given(question=questions(), factor=factors)
@modest
def test_software_that_adds_more_is_never_faster(name, question, factor):
    check_not_faster(question.with_stack(**{name: (getattr(question.stack, name) or 1e-4) * factor}), question)


@pytest.mark.parametrize("name", LOWER_STACK)
@given(question=questions(), factor=factors)
@modest
def test_software_that_reaches_or_hides_less_is_never_faster(name, question, factor):
    check_not_faster(question.with_stack(**{name: getattr(question.stack, name) / factor}), question)


@given(question=questions(), factor=st.integers(2, 3))
@modest
def test_a_longer_sequence_is_never_faster_nor_smaller(question, factor):
    longer = question.but(sequence_length=factor * question.sequence_length)
    check_not_faster(longer, question)
    check_not_smaller(longer, question)


@given(question=questions(), more=st.integers(1, 2))
@modest
def test_more_layers_on_every_stage_are_never_faster_nor_smaller(question, more):
    deeper = question.but(layers=question.layers + more * question.pieces)
    check_not_faster(deeper, question)
    if not question.experts:
        check_not_smaller(deeper, question)


@given(question=questions(), more=st.integers(1, 3))
@modest
def test_more_micro_batches_are_never_faster_nor_smaller(question, more):
    larger = question.but(micro_batches=question.micro_batches + more * question.stages)
    check_not_faster(larger, question)
    check_not_smaller(larger, question)


@given(question=questions(experts=True))
@modest
def test_more_experts_for_each_token_are_never_faster_nor_smaller(question):
    more = question.but(top_k=question.top_k + 1)
    assert more.top_k <= EXPERTS
    check_not_faster(more, question)
    check_not_smaller(more, question)


@pytest.mark.parametrize("name", ["hidden", "width"])
@given(question=questions(), steps=st.integers(1, 3))
@modest
def test_wider_layers_are_never_faster_nor_smaller(name, question, steps):
    wider = question.but(**{name: getattr(question, name) + 256 * steps})
    check_not_faster(wider, question)
    check_not_smaller(wider, question)


@given(question=questions())
@modest
def test_fewer_shards_are_never_smaller(question):
    """Of what is held through the step; what is gathered for a layer only exists where there are shards."""
    names = ("weights", "gradients", "optimizer_states")
    if question.zero != "zero0":
        found = [held(question.but(zero=f"zero{level}").price(), names) for level in range(4)]
        assert all(more >= less for one, other in pairwise(found) for more, less in zip(one, other, strict=True))


@given(question=questions(), memory=st.integers(10**7, 80 * 10**9), factor=factors)
@modest
def test_a_smaller_memory_never_makes_a_plan_fit(question, memory, factor):
    large = question.with_device(memory_bytes=memory).price()
    small = question.with_device(memory_bytes=int(memory / factor)).price()
    assert large.fits or not small.fits
    assert large.step_time_s == small.step_time_s
    missing = zip(large.stages, small.stages, strict=True)
    assert all(less.missing_bytes <= more.missing_bytes for less, more in missing)


@given(question=questions())
@modest
def test_parts_of_the_step_are_not_negative_and_sum_to_it(question):
    found = question.price()
    assert min(found.time.values()) >= 0.0
    assert sum(found.time.values()) == pytest.approx(found.step_time_s, rel=1e-9)
