"""An estimate says how far off it may be, where its numbers come from, and what it takes for granted."""

from __future__ import annotations

import cost_samples as samples
import pytest

from planner.cost import estimate
from planner.spec.cluster import Provenance
from planner.spec.error_band import ErrorBand, ErrorBands
from planner.spec.placement import Placement
from planner.spec.stack import Stack
from planner.spec.training import Training
from planner.spec.workload import Workload

DENSE = ErrorBand(low_ratio=0.9, high_ratio=1.2, rows=74, basis="74 runs of dense models")
MOE = ErrorBand(low_ratio=1.1, high_ratio=1.6, rows=12, basis="12 runs of MoE models")
BANDS = ErrorBands(dense=DENSE, moe=MOE)
GPT = samples.gpt(4, 256, 8)
EXPERTS = samples.moe_model()


def price(model=GPT, plan="tp2-pp2-dp2-mbs1-sp", stack=None, training=None, **rest):
    where = samples.cluster(device=rest.pop("device", samples.DEVICE)).model_copy(
        update={"stack": stack or Stack(), "error_bands": rest.pop("bands", None)}
    )
    recipe = training or Training(global_batch_size=16, sequence_length=128)
    return estimate(model, where, recipe, samples.even_plan(plan, model, where, recipe), **rest)


def said(word: str, found) -> list[str]:
    return [text for text in found.assumptions if word in text]


def test_the_band_is_the_predicted_step_under_the_errors_of_the_class():
    found = price(bands=BANDS)
    assert found.error_band is not None
    assert found.error_band.step_time_low_s == pytest.approx(0.9 * found.step_time_s)
    assert found.error_band.step_time_high_s == pytest.approx(1.2 * found.step_time_s)
    assert (found.error_band.rows, found.error_band.basis) == (74, "74 runs of dense models")


def test_a_model_with_experts_has_the_band_of_moe_models():
    found = price(EXPERTS, "tp1-pp1-dp8-ep8-mbs1", bands=BANDS)
    assert found.error_band is not None and found.error_band.basis == MOE.basis
    assert found.error_band.step_time_low_s > found.step_time_s


def test_a_cluster_made_by_hand_has_no_band_and_the_same_price():
    alone, known = price(), price(bands=BANDS)
    assert alone.error_band is None
    assert alone == known.model_copy(update={"error_band": None})


def test_a_band_whose_ends_are_swapped_is_refused():
    with pytest.raises(ValueError, match="low_ratio: must be at most high_ratio"):
        ErrorBand(low_ratio=1.2, high_ratio=0.9, rows=8, basis="none")


@pytest.mark.parametrize(
    ("device", "fitted", "expected"),
    [
        (Provenance.DATASHEET, False, Provenance.DATASHEET),
        (Provenance.DATASHEET, True, Provenance.DATASHEET),
        (Provenance.FITTED, False, Provenance.FITTED),
        (Provenance.MEASURED, False, Provenance.MEASURED),
        (Provenance.MEASURED, True, Provenance.FITTED),
    ],
)
def test_the_provenance_of_a_price_is_the_weaker_of_device_and_stack(device, fitted, expected):
    found = price(
        device=samples.DEVICE.model_copy(update={"provenance": device}), stack=Stack(name="sample", fitted=fitted)
    )
    assert found.provenance is expected


def test_traffic_is_named_where_the_plan_has_it_with_the_stack_s_share():
    stack = Stack(name="sample", tensor_overlap_ratio=0.25, data_overlap_ratio=0.75)
    (text,) = said("of the traffic", price(stack=stack))
    assert text.endswith("under stack sample: tensor-parallel 25 %, between stages 0 %, data-parallel 75 %")
    (text,) = said("of the traffic", price(EXPERTS, "tp1-pp1-dp8-ep8-mbs1", stack=stack))
    assert text.endswith(": all-to-all 0 %, data-parallel 75 %")
    (text,) = said("of the traffic", price(plan="tp1-pp1-dp4-cp2-mbs1", stack=stack))
    assert text.endswith("data-parallel 75 %, ring attention 100 %")


def test_waiting_for_the_host_is_named_where_the_stack_has_none():
    assert said("waits for its host", price())
    assert not said("waits for its host", price(stack=Stack(name="sample", block_host_s=1e-4)))


def test_even_load_is_taken_for_granted_unless_a_workload_is_given():
    plan = "tp1-pp1-dp8-ep8-mbs1"
    skewed = Workload(name="skewed", expert_shares=((0.3, *[0.1] * 7),))
    assert said("spread evenly", price(EXPERTS, plan))
    assert not said("in order", price(EXPERTS, plan))
    in_order = price(EXPERTS, plan, workload=skewed)
    assert said("as workload 'skewed'", in_order) and said("in order", in_order)
    assert not said("spread evenly", in_order)
    placed = price(EXPERTS, plan, workload=skewed, placement=Placement(layers=(tuple(range(8)),) * 4, num_ranks=8))
    assert not said("in order", placed)
    assert not said("experts", price())


def test_a_capacity_factor_says_what_it_leaves_out():
    recipe = Training(global_batch_size=16, sequence_length=128, capacity_factor=1.25)
    assert said("capacity", price(EXPERTS, "tp1-pp1-dp8-ep8-mbs1", training=recipe))
    assert not said("capacity", price(EXPERTS, "tp1-pp1-dp8-ep8-mbs1"))


def test_schedules_say_what_they_take_for_granted():
    assert said("closed form", price())
    assert not said("closed form", price(plan="tp1-pp1-dp8-mbs1"))
    assert not said("weight's gradient", price())
    assert said("weight's gradient", price(plan="tp2-pp2-dp2-mbs1-sp-zb"))
    assert said("pieces of a stage", price(plan="tp2-pp2-dp2-mbs1-sp-vpp2"))
    assert not said("closed form", price(plan="tp2-pp2-dp2-mbs1-sp-gpipe"))


def test_quantised_products_are_named():
    peaks = samples.DEVICE.peak_flops_per_s.model_copy(update={"fp8": 6e14})
    efficiency = samples.DEVICE.efficiency.model_copy(update={"quantised_matmul_ratio": 0.6})
    device = samples.DEVICE.model_copy(update={"peak_flops_per_s": peaks, "efficiency": efficiency})
    recipe = Training(global_batch_size=16, sequence_length=128, precision="fp8")
    assert said("fp8 holds for products", price(device=device, training=recipe))
    assert not said("holds for products", price())


def test_every_price_says_what_is_not_modelled():
    for found in (price(), price(EXPERTS, "tp1-pp1-dp8-ep8-mbs1")):
        assert found.assumptions[-1].startswith("not modelled: ")
        assert len(found.assumptions) == len(set(found.assumptions)) <= 10
