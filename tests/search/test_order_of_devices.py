"""Rule pipeline-across-slow-links: stages are neighbours in number; where that loses, another numbering shows it."""

from small_questions import MIB, a_cluster, a_model, a_training

from planner.cost import estimate
from planner.search import search
from planner.spec.cluster import Level, Link
from planner.spec.request import Options
from planner.spec.shortlist import CertificateStatus

FAST = Link(bandwidth_bytes_per_s=1e11, latency_s=2e-6)
PIPELINES = Options(
    axes=("dp", "pp"), sharding=("none",), recompute=("none",), schedules=("1f1b",), max_micro_batch_size=1
)


def two_nodes_of_two(network: Link, memory_bytes: int, across: bool):
    """Numbered node by node; or across: devices 0 and 1 are the first of each node, 2 and 3 the second.

    Then neighbours in number share the network, and devices of two neighbouring stages share a node: for two stages
    these levels say exactly which link carries what.
    """
    inner, outer = (network, FAST) if across else (FAST, network)
    levels = (Level(name="inner", num_devices=2, link=inner), Level(name="outer", num_devices=4, link=outer))
    return a_cluster(2, memory_bytes).model_copy(update={"nodes": 2, "levels": levels})


def best(cluster, training):
    found = search(a_model(blocks=4), cluster, training, PIPELINES)
    assert found.certificate.status is CertificateStatus.OPTIMAL
    assert "pipeline-across-slow-links" in found.certificate.space
    return found.plans[0]


def test_the_rule_wins_with_few_micro_batches_for_then_messages_are_less_than_gradients():
    network, training = Link(bandwidth_bytes_per_s=1e9, latency_s=5e-6), a_training(2)
    by_node, across = (two_nodes_of_two(network, 24 * MIB, order) for order in (False, True))
    found = best(by_node, training)
    assert len(found.plan.stages) == 2
    assert found.estimate.step_time_s < estimate(a_model(blocks=4), across, training, found.plan).step_time_s


def test_the_rule_loses_with_many_micro_batches_on_a_late_network_and_another_numbering_finds_better():
    network, training = Link(bandwidth_bytes_per_s=1e9, latency_s=1e-3), a_training(128)
    by_node, across = (best(two_nodes_of_two(network, 24 * MIB, order), training) for order in (False, True))
    assert len(across.plan.stages) == 2
    assert across.estimate.step_time_s < by_node.estimate.step_time_s


def test_one_plan_has_another_price_where_devices_are_numbered_across_nodes():
    network, training = Link(bandwidth_bytes_per_s=1e9, latency_s=1e-3), a_training(128)
    by_node, across = (two_nodes_of_two(network, 24 * MIB, order) for order in (False, True))
    plan = best(across, training).plan
    near, far = (estimate(a_model(blocks=4), cluster, training, plan).time for cluster in (across, by_node))
    assert near["pipeline_communication"] < far["pipeline_communication"]
    assert near["data_parallel_communication"] > far["data_parallel_communication"]
