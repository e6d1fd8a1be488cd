"""`trimtab explain` and `trimtab diff`: why a plan is as it is, and how two plans differ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import typer

from api.commands.asked import asked
from api.commands.lines import say
from api.commands.options import (
    AxesOption,
    Batch,
    CapacityFactor,
    ClusterArgument,
    EncoderSequence,
    GradientOption,
    JsonOption,
    MaxBatch,
    MemoryOption,
    MicroBatchOption,
    ModelArgument,
    OffloadOption,
    OptimizerOption,
    PlanArgument,
    PrecisionOption,
    RecomputeOption,
    SchedulesOption,
    Sequence,
    ShardingOption,
    StackOption,
    TargetOption,
    TimeLimit,
    UniformOption,
    WithoutRuleOption,
    options_from,
    parts_of,
    training_from,
)
from api.commands.terminal import progress_bar, show
from planner.cost import estimate
from planner.search import search
from planner.spec.errors import InputError
from planner.spec.explanation import Explanation
from planner.spec.mixed_cluster import AnyCluster
from planner.spec.model import Model
from planner.spec.plan import Plan
from planner.spec.request import Options
from planner.spec.shortlist import CertificateStatus, Shortlist
from planner.spec.training import Training
from planner.view import Rival, binding_table, certificate_line, diff_table, neighbour_table, plan_diff, reason_table
from planner.view import explain as explanation_of

ExplainedPlan = Annotated[
    str | None,
    typer.Argument(metavar="PLAN", help="A plan's or shortlist's JSON file, or short; without it, search the best"),
]


def explain(
    model: ModelArgument,
    cluster: ClusterArgument,
    plan: ExplainedPlan = None,
    global_batch_size: Batch = None,
    sequence_length: Sequence = None,
    precision: PrecisionOption = "bf16",
    optimizer: OptimizerOption = "adam",
    max_global_batch_size: MaxBatch = None,
    capacity_factor: CapacityFactor = None,
    memory_limit: MemoryOption = None,
    stack: StackOption = None,
    gradient_precision: GradientOption = None,
    encoder_sequence_length: EncoderSequence = None,
    target: TargetOption = None,
    uniform: UniformOption = False,
    offload: OffloadOption = False,
    max_micro_batch_size: MicroBatchOption = None,
    axes: AxesOption = None,
    sharding: ShardingOption = None,
    recompute: RecomputeOption = None,
    schedules: SchedulesOption = None,
    without_rule: WithoutRuleOption = None,
    time_limit: TimeLimit = None,
    as_json: JsonOption = False,
) -> None:
    """Say why the best plan, or PLAN, is as it is: what binds each stage, what its neighbours cost, who came next.

    trimtab explain mixtral-8x7b 8x8:h100-sxm-80g --global-batch-size 1024 --sequence-length 4096
    """
    options = {
        "target": target,
        "uniform": uniform or None,
        "offload": offload or None,
        "max_micro_batch_size": max_micro_batch_size,
        "axes": parts_of(axes),
        "sharding": parts_of(sharding),
        "recompute": parts_of(recompute),
        "schedules": parts_of(schedules),
        "without_rules": without_rule or None,
        "time_limit_s": time_limit,
    }
    given = asked(
        (model, cluster),
        (memory_limit, stack),
        (global_batch_size, sequence_length),
        target,
        precision=precision,
        optimizer=optimizer,
        gradient_precision=gradient_precision,
        encoder_sequence_length=encoder_sequence_length,
        max_global_batch_size=max_global_batch_size,
        capacity_factor=capacity_factor,
    )
    shortlist = None
    if plan is None:
        training = given.given or training_from(None, None)
        explanation, shortlist = _of_search(given.model, given.cluster, training, options_from(**options))
    else:
        _refuse(options)
        best, *others = given.plans(plan)
        explanation = explanation_of(given.model, given.cluster, given.training(best), best, _runner_up(others))
    if as_json:
        say(explanation.model_dump_json(indent=2))
    else:
        _show(explanation, shortlist)


def _of_search(
    model: Model, cluster: AnyCluster, training: Training, options: Options
) -> tuple[Explanation, Shortlist]:
    with progress_bar("Searching") as report:
        shortlist = search(model, cluster, training, options, report)
    best, *others = (entry.plan for entry in shortlist.plans)
    optimal = shortlist.certificate.status is CertificateStatus.OPTIMAL
    return explanation_of(model, cluster, training, best, _runner_up(others), optimal), shortlist


def _runner_up(others: list[Plan]) -> Rival | None:
    return Rival(others[0]) if others else None


def _refuse(given: Mapping[str, object]) -> None:
    """Options of a search have no effect where a plan is given."""
    for name, value in given.items():
        if value is not None:
            raise InputError.at(f"options.{name.removesuffix('_s')}", "is for a search; PLAN is given, so leave it out")


def _show(explanation: Explanation, shortlist: Shortlist | None) -> None:
    show(reason_table(explanation), binding_table(explanation), neighbour_table(explanation))
    if explanation.rival is not None:
        show(diff_table(explanation.rival, ("this plan", "the other")))
    if shortlist is not None:
        say(certificate_line(shortlist))


def diff(
    model: ModelArgument,
    cluster: ClusterArgument,
    first: PlanArgument,
    second: PlanArgument,
    global_batch_size: Batch = None,
    sequence_length: Sequence = None,
    precision: PrecisionOption = "bf16",
    memory_limit: MemoryOption = None,
    stack: StackOption = None,
    gradient_precision: GradientOption = None,
    encoder_sequence_length: EncoderSequence = None,
    as_json: JsonOption = False,
) -> None:
    """Set two plans side by side: what they choose differently, which seconds and bytes differ, which is faster.

    trimtab diff llama-2-7b 1x8:a100-sxm-80g tp8-mbs1 tp4-mbs1-zero1 --global-batch-size 64 --sequence-length 4096
    """
    given = asked(
        (model, cluster),
        (memory_limit, stack),
        (global_batch_size, sequence_length),
        precision=precision,
        gradient_precision=gradient_precision,
        encoder_sequence_length=encoder_sequence_length,
    )
    plans = [given.plan(text) for text in (first, second)]
    one, other = ((plan, estimate(given.model, given.cluster, given.training(plan), plan)) for plan in plans)
    found = plan_diff(given.model, one, other)
    if as_json:
        say(found.model_dump_json(indent=2))
    else:
        show(diff_table(found))
        say(f"{found.reason}.")
