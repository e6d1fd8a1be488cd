"""Inputs with which somebody once refuted the search, one test for each."""

import pytest
from every_plan import fastest
from small_questions import MIB, a_cluster, a_device, a_model, a_training

from planner.search import search
from planner.search.families import batch_sizes
from planner.spec.cluster import Cluster, Level, Link
from planner.spec.errors import InputError
from planner.spec.request import Options
from planner.spec.shortlist import CertificateStatus
from planner.spec.training import Training
from profiles import cluster_from_shorthand, model_preset, resolve_cluster


def slow_inside(near: float, far: float) -> Cluster:
    """Two nodes of two devices, joined better than the devices of a node."""
    tiers = ((2, near), (4, far))
    levels = tuple(
        Level(name=f"{size}", num_devices=size, link=Link(bandwidth_bytes_per_s=bandwidth, latency_s=5e-6))
        for size, bandwidth in tiers
    )
    return Cluster(nodes=2, devices_per_node=2, device=a_device(1000 * MIB), levels=levels)


@pytest.mark.parametrize(("near", "far"), [(3e9, 2.5e10), (1e9, 1e11)])
def test_data_parallelism_inside_tensor_parallelism_is_in_the_first_bounds(near, far):
    # The first bounds once counted the ranks of the outermost axes only, and excluded families that held the best plan.
    cluster, training = slow_inside(near, far), a_training(6).model_copy(update={"sequence_length": 1024})
    options = Options(
        axes=("dp", "tp", "sp"),
        sharding=("none",),
        recompute=("none",),
        without_rules=("tp-on-nearest-devices",),
        max_micro_batch_size=4,
    )
    model = a_model(blocks=1, hidden=256)
    found = search(model, cluster, training, options)
    assert found.plans[0].estimate.step_time_s == pytest.approx(fastest(model, cluster, training, options), rel=1e-9)
    assert found.certificate.status is CertificateStatus.OPTIMAL


def test_what_the_listener_raises_is_never_taken_for_the_end_of_time():
    def fails(share: float, text: str) -> None:
        if text.startswith(("trying", "solving")):
            raise TimeoutError("the database does not answer")

    with pytest.raises(TimeoutError, match="does not answer"):
        search(a_model(blocks=6), a_cluster(4, 24 * MIB), a_training(16), report=fails)


def test_batches_up_to_a_limit_are_cut_by_devices_that_are_no_power_of_two():
    sizes = batch_sizes(Training(global_batch_size="max", sequence_length=2048, max_global_batch_size=100), 48)
    assert sizes == [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96]


def test_more_bytes_in_flight_than_numbers_can_hold_are_too_many_bytes():
    options = Options(schedules=("gpipe",), axes=("pp", "tp", "sp"), max_micro_batch_size=1)
    cluster = resolve_cluster(cluster_from_shorthand("1x4:h100-sxm-80g"))
    training = Training(global_batch_size=2**24, sequence_length=1024)
    found = search(model_preset("llama-3.1-8b"), cluster, training, options)
    assert found.plans[0].estimate.fits
    assert len(found.plans[0].plan.stages) == 1


def test_small_models_have_large_micro_batches():
    training = Training(global_batch_size=1024, sequence_length=128)
    cluster = resolve_cluster(cluster_from_shorthand("1x8:a100-sxm-80g"))
    found = search(model_preset("bert-large"), cluster, training)
    assert found.plans[0].plan.micro_batch_size > 8


def test_offload_is_not_left_out_in_silence_for_a_framework():
    options = Options(offload=True, target="megatron")
    with pytest.raises(InputError, match=r"options\.offload: must be left out for megatron"):
        search(a_model(), a_cluster(4, 400 * MIB), a_training(8), options)
