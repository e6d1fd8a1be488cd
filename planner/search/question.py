"""What is planned, what a scenario makes of it, and how a plan is carried over. Knows no prices."""

from __future__ import annotations

from typing import NamedTuple

from planner.cost.check import check_plan, check_sequence
from planner.cost.load import check_workload, load_ratio
from planner.cost.targets import broken_target_rules
from planner.spec.errors import InputError, Problem
from planner.spec.mixed_cluster import AnyCluster
from planner.spec.model import Block, LayerRun, Model
from planner.spec.plan import Plan
from planner.spec.request import Target
from planner.spec.training import Training
from planner.spec.workload import Scenario


class Question(NamedTuple):
    """What is planned."""

    model: Model
    cluster: AnyCluster
    training: Training


def under(question: Question, scenario: Scenario) -> Question:
    """The question that a scenario makes of another, but for its workload.

    Raises InputError at the field of the scenario that cannot be.
    """
    model, training = question.model, question.training
    if not model.moe_layers:
        _no_experts(scenario)
    if scenario.top_k is not None:
        model = _with_top_k(model, scenario.top_k)
    changes: dict[str, object] = {
        "global_batch_size": scenario.global_batch_size,
        "sequence_length": scenario.sequence_length,
        "capacity_factor": scenario.capacity_factor,
    }
    update = {field: value for field, value in changes.items() if value is not None}
    if scenario.capacity_factor == "dropless":
        update["capacity_factor"] = None
    training = training.model_copy(update=update)
    try:
        check_sequence(model, training)
    except InputError as error:
        raise InputError(*(Problem(p.field.removeprefix("training."), p.message) for p in error.problems)) from None
    _check_shares(model, scenario)
    return Question(model, question.cluster, training)


def carried(plan: Plan, question: Question, target: Target) -> Plan | None:
    """The plan with the batch and sequence length of a question; None if the target or nobody can cut them that way.

    Stages, strategies and the samples of a micro-batch stay; the number of micro-batches follows the batch.
    """
    training = question.training
    batch = plan.global_batch_size if training.global_batch_size == "max" else training.global_batch_size
    if (batch, training.sequence_length) == (plan.global_batch_size, plan.sequence_length):
        return plan
    micro_batches, rest = divmod(batch, plan.samples_per_micro_batch)
    if rest or not in_rounds(micro_batches, len(plan.stages), plan.schedule.virtual_stages):
        return None
    other = plan.model_copy(
        update={
            "global_batch_size": batch,
            "sequence_length": training.sequence_length,
            "num_micro_batches": micro_batches,
        }
    )
    try:
        check_plan(*question, other)
    except InputError:
        return None
    broken = next(broken_target_rules(target, question.model, training, other), None)
    return other if broken is None else None


def in_rounds(num_micro_batches: int, num_stages: int, virtual_stages: int) -> bool:
    """Whether a schedule can take so many micro-batches: interleaving goes in rounds of the stages."""
    return virtual_stages == 1 or num_micro_batches % num_stages == 0


def _no_experts(scenario: Scenario) -> None:
    """Raise InputError where a scenario says something about experts."""
    told = {
        "workload.expert_shares": bool(scenario.workload.expert_shares),
        "capacity_factor": scenario.capacity_factor is not None,
        "top_k": scenario.top_k is not None,
    }
    problems = [Problem(field, "must be left out: the model has no experts") for field, given in told.items() if given]
    if problems:
        raise InputError(*problems)


def _with_top_k(model: Model, top_k: int) -> Model:
    fewest = min(model.moe(layer).num_experts for layer in model.moe_layers)
    if top_k > fewest:
        raise InputError.at("top_k", f"must be at most the {fewest} experts of a layer, got {top_k}")
    return model.model_copy(update={"runs": tuple(_run_with_top_k(run, top_k) for run in model.runs)})


def _run_with_top_k(run: LayerRun, top_k: int) -> LayerRun:
    block = run.layer
    if not isinstance(block, Block) or block.moe is None:
        return run
    experts = block.moe.model_copy(update={"top_k": top_k})
    return run.model_copy(update={"layer": block.model_copy(update={"feed_forward": experts})})


def _check_shares(model: Model, scenario: Scenario) -> None:
    """Raise InputError if the workload has not a share for each expert."""
    check_workload(len(model.moe_layers), scenario.workload)
    if scenario.workload.expert_shares:
        for number, layer in enumerate(model.moe_layers):
            load_ratio(model.moe(layer), number, 1, scenario.workload)
