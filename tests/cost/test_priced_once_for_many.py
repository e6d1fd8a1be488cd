"""What is priced once for many stages, layers or workloads costs what it costs alone."""

import pytest
from test_switch_of_many_layouts import MODEL as LAYERED

from planner.cost import estimate, estimates
from planner.spec.model import Model
from planner.spec.plan import Plan, Stage, StageRun
from planner.spec.strategy import Axis, AxisKind, ExpertStrategy, Sharding, Strategy
from planner.spec.training import Training
from planner.spec.workload import BALANCED, Workload
from profiles import cluster_from_shorthand, model_preset, resolve_cluster

MODEL = model_preset("olmoe-1b-7b")
CLUSTER = resolve_cluster(cluster_from_shorthand("4x8:h100-sxm-80g"))
TRAINING = Training(global_batch_size=64, sequence_length=2048)


def plan():
    """Four stages of layers under one strategy or another."""
    dense = Strategy(axes=(Axis(AxisKind.DP, 8),), sharding=Sharding.OPTIMIZER)
    spread = ExpertStrategy(expert_parallel_size=4, expert_data_parallel_size=2)
    moe = dense.model_copy(update={"experts": spread})
    full = moe.model_copy(update={"sharding": Sharding.FULL})
    runs = [[(1, dense), (4, moe)], [(4, moe)], [(2, moe), (2, full)], [(4, moe), (1, dense)]]
    stages, layer = [], 0
    for number, stage in enumerate(runs):
        made = []
        for layers, strategy in stage:
            made.append(StageRun(first_layer=layer, num_layers=layers, strategy=strategy))
            layer += layers
        stages.append(Stage(first_device=8 * number, num_devices=8, runs=tuple(made)))
    return Plan(
        global_batch_size=64, sequence_length=2048, micro_batch_size=1, num_micro_batches=8, stages=tuple(stages)
    )


def skewed(name, num_layers):
    rows = []
    for layer in range(num_layers):
        weights = [1.0 + (expert + layer) % 7 for expert in range(64)]
        rows.append(tuple(weight / sum(weights) for weight in weights))
    return Workload(name=name, expert_shares=tuple(rows))


def test_a_plan_costs_under_many_workloads_what_it_costs_under_each():
    workloads = [BALANCED, skewed("one for all", 1), skewed("each its own", 16), BALANCED]
    prices = estimates(MODEL, CLUSTER, TRAINING, plan(), workloads)
    assert prices == [estimate(MODEL, CLUSTER, TRAINING, plan(), workload) for workload in workloads]
    assert len({price.step_time_s for price in prices}) == 3


def test_plans_that_share_strategies_cost_what_those_cost_that_were_read_from_a_file():
    read = Plan.model_validate_json(plan().model_dump_json())
    assert estimate(MODEL, CLUSTER, TRAINING, read) == estimate(MODEL, CLUSTER, TRAINING, plan())
    assert len(read.distinct_strategies) == 3


def test_equal_layers_apart_from_each_other_cost_what_they_cost_as_neighbours():
    apart = MODEL.model_dump()
    first, block, last = apart["runs"]
    apart["runs"] = [first, *({**block, "num_layers": number} for number in (3, 8, 5)), last]
    prices = [estimate(model, CLUSTER, TRAINING, plan()) for model in (Model.model_validate(apart), MODEL)]
    assert prices[0].step_time_s == pytest.approx(prices[1].step_time_s, rel=1e-12)
    assert [stage.memory for stage in prices[0].stages] == [stage.memory for stage in prices[1].stages]


def test_stretches_are_the_runs_of_a_model_between_two_layers():
    found = [(layer.kind, first, end) for layer, first, end in LAYERED.stretches(2, 12)]
    assert found == [("block", 2, 4), ("block", 4, 11), ("head", 11, 12)]
    assert list(LAYERED.stretches(4, 4)) == []
    assert [end - first for _, first, end in LAYERED.stretches(0, 12)] == [1, 3, 7, 1]
