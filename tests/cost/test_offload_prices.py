"""Optimizer state in the host's memory, against closed forms: seconds of copies and update, bytes here and there."""

import pytest
from cost_samples import DEVICE, cluster, even_plan, gpt

from planner.cost import estimate
from planner.cost.layer import layer_cost
from planner.cost.parameters import total_parameters
from planner.cost.part import conditions
from planner.spec.cluster import HostShare, Precision
from planner.spec.errors import InputError
from planner.spec.stack import Stack
from planner.spec.strategy import Axis, AxisKind, Sharding, Strategy
from planner.spec.training import Optimizer, Training

HOST = HostShare(link_bytes_per_s=2e10, memory_bytes=10**11, memory_bandwidth_bytes_per_s=5e10)
MODEL = gpt(layers=4, hidden=1024, heads=16, tied=False)
TRAINING = Training(global_batch_size=16, sequence_length=1024)


def device_with(host: HostShare | None):
    return DEVICE.model_copy(update={"host": host})


def priced(text: str, host: HostShare = HOST, training: Training = TRAINING, stack: Stack | None = None):
    where = cluster(device=device_with(host))
    where = where.model_copy(update={"stack": stack or Stack()})
    return estimate(MODEL, where, training, even_plan(text, MODEL, where, training))


@pytest.mark.parametrize(
    ("changes", "copied", "updated", "kept"),
    [
        ({}, 4 + 2, 4 + 2 * 12 + 2, 12 + 6),
        ({"gradient_precision": Precision.BF16}, 2 + 2, 2 + 2 * 12 + 2, 12 + 4),
        ({"optimizer": Optimizer.SGD}, 4 + 2, 4 + 2 * 8 + 2, 8 + 6),
        ({"precision": Precision.FP32}, 4 + 4, 4 + 2 * 8 + 2 * 4, 8 + 8),
    ],
)
@pytest.mark.parametrize(("zero", "shards"), [("zero0", 1), ("zero1", 8), ("zero3", 8)])
def test_gradients_go_to_the_host_it_updates_and_weights_come_back(zero, shards, changes, copied, updated, kept):
    found = priced(f"dp8-mbs1-{zero}-offload", training=TRAINING.model_copy(update=changes))
    parameters = total_parameters(MODEL) / shards
    seconds = parameters * (copied / 2e10 + updated / 5e10)
    assert found.time["optimizer"] == pytest.approx(seconds)
    assert found.stages[0].host_bytes == pytest.approx(parameters * kept, abs=len(MODEL.layers))
    assert found.stages[0].host_limit_bytes == 10**11


def test_the_device_is_spared_the_state_and_nothing_else():
    without, offloaded = priced("dp8-mbs1-zero1"), priced("dp8-mbs1-zero1-offload")
    assert offloaded.stages[0].memory == without.stages[0].memory | {"optimizer_states": 0}
    assert (without.stages[0].host_bytes, without.stages[0].missing_host_bytes) == (0, 0)
    assert offloaded.step_time_s - without.step_time_s == pytest.approx(
        offloaded.time["optimizer"] - without.time["optimizer"]
    )


def test_a_stack_that_casts_shards_need_not_keep_them_in_fp32_where_the_host_does():
    stack = Stack(casts_shards=True)
    without, offloaded = (priced(text, stack=stack) for text in ("dp8-mbs1-zero3", "dp8-mbs1-zero3-offload"))
    assert offloaded.stages[0].memory["weights"] * 2 == without.stages[0].memory["weights"]


def test_a_plan_that_the_hosts_memory_cannot_hold_does_not_fit_and_says_so():
    host = HOST.model_copy(update={"memory_bytes": 10**8})
    found = priced("dp8-mbs1-zero1-offload", host)
    stage = found.stages[0]
    assert not found.fits
    assert stage.missing_bytes == 0
    assert stage.missing_host_bytes == stage.host_bytes - 10**8 > 0


def test_without_a_known_host_nothing_can_be_offloaded():
    where = cluster(device=device_with(None))
    plan = even_plan("dp8-mbs1-offload", MODEL, where, TRAINING)
    message = "offload must be false: nothing is known of the host of sample; give the device's host"
    with pytest.raises(InputError) as caught:
        estimate(MODEL, where, TRAINING, plan)
    (problem,) = caught.value.problems
    assert problem.field == "plan.stages[0].runs[0].strategy"
    assert problem.message == f"{message} (offload-needs-host)"
    with pytest.raises(InputError, match=r"cluster\.device\.host"):
        layer_cost(conditions(1024, where, TRAINING), MODEL.layers[1], Strategy(offload=True), 1, 1024)


def test_it_goes_with_every_stage_of_sharding_and_the_plan_says_it():
    spread = Strategy(axes=(Axis(AxisKind.DP, 2),), sharding=Sharding.FULL, offload=True)
    assert spread != spread.model_copy(update={"offload": False})
    found = priced("tp2-mbs1-zero3-offload")
    assert any(sentence.startswith("offloaded optimizer state") for sentence in found.assumptions)
    where = cluster(device=device_with(HOST))
    plan = even_plan("tp2-mbs1-zero3-offload", MODEL, where, TRAINING)
    assert plan.summary == "pp1 · tp2 dp4 zero3 offload · mbs1 x4"
