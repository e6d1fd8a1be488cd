"""`trimtab plan`: the offline stage in the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from api.commands.lines import say
from api.commands.options import (
    AxesOption,
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
    PrecisionOption,
    RecomputeOption,
    RequiredBatch,
    RequiredSequence,
    SchedulesOption,
    ShardingOption,
    StackOption,
    TargetOption,
    TimeLimit,
    UniformOption,
    WithoutRuleOption,
    check_writable,
    options_from,
    parts_of,
    read_model_and_cluster,
    training_from,
    write_text,
)
from api.commands.scenarios import Also, AlsoBatch, AlsoCapacity, AlsoLength, AlsoTopK, ScenariosOption, scenarios_from
from api.commands.terminal import progress_bar, show
from planner.search import compare_baselines, search
from planner.search.question import Question
from planner.spec.model import Model
from planner.spec.shortlist import Shortlist
from planner.view import (
    assumption_table,
    baseline_table,
    certificate_line,
    headline_table,
    memory_table,
    pruning_table,
    scenario_table,
    shortlist_picture,
    shortlist_table,
    stage_table,
    time_table,
)


def plan(
    model: ModelArgument,
    cluster: ClusterArgument,
    global_batch_size: RequiredBatch,
    sequence_length: RequiredSequence,
    encoder_sequence_length: EncoderSequence = None,
    precision: PrecisionOption = "bf16",
    optimizer: OptimizerOption = "adam",
    max_global_batch_size: MaxBatch = None,
    capacity_factor: CapacityFactor = None,
    memory_limit: MemoryOption = None,
    stack: StackOption = None,
    gradient_precision: GradientOption = None,
    shortlist_size: Annotated[int | None, typer.Option(help="Plans to hand out at most")] = None,
    target: TargetOption = None,
    uniform: UniformOption = False,
    offload: OffloadOption = False,
    max_micro_batch_size: MicroBatchOption = None,
    axes: AxesOption = None,
    sharding: ShardingOption = None,
    recompute: RecomputeOption = None,
    schedules: SchedulesOption = None,
    without_rule: WithoutRuleOption = None,
    explain_pruning: Annotated[
        bool, typer.Option("--explain-pruning", help="Show what each rule removed from the space, and why")
    ] = False,
    time_limit: TimeLimit = None,
    scenarios: ScenariosOption = None,
    also_batch: AlsoBatch = None,
    also_length: AlsoLength = None,
    also_capacity: AlsoCapacity = None,
    also_top_k: AlsoTopK = None,
    compare: Annotated[
        bool,
        typer.Option("--compare-baselines", help="Also search restricted spaces, and show how much slower they are"),
    ] = False,
    output: Annotated[Path | None, typer.Option(help="Write the shortlist to this JSON file")] = None,
    picture: Annotated[Path | None, typer.Option(help="Draw the shortlist into this SVG file")] = None,
    as_json: JsonOption = False,
) -> None:
    """Search the best parallel plans for training MODEL on CLUSTER.

    trimtab plan mixtral-8x7b 8x8:h100-sxm-80g --global-batch-size 1024 --sequence-length 4096

    trimtab plan llama-2-7b 1x8:a100-sxm-80g --global-batch-size 64 --sequence-length 4096 --compare-baselines

    trimtab plan llama-2-7b 1x8:a100-sxm-80g --global-batch-size 64 --sequence-length 4096 --target megatron

    trimtab plan llama-2-7b 2x8:a100-sxm-80g --global-batch-size 64 --sequence-length 4096 --explain-pruning

    trimtab plan llama-3.1-8b 8x8:h100-sxm-80g --global-batch-size 512 --sequence-length 8192 --also-length 131072
    """
    check_writable(output)
    check_writable(picture, "--picture")
    resolved, devices = read_model_and_cluster(model, cluster, memory_limit, stack, target)
    training = training_from(
        global_batch_size,
        sequence_length,
        encoder_sequence_length=encoder_sequence_length,
        precision=precision,
        optimizer=optimizer,
        gradient_precision=gradient_precision,
        max_global_batch_size=max_global_batch_size,
        capacity_factor=capacity_factor,
    )
    options = options_from(
        shortlist_size=shortlist_size,
        target=target,
        uniform=uniform or None,
        offload=offload or None,
        max_micro_batch_size=max_micro_batch_size,
        axes=parts_of(axes),
        sharding=parts_of(sharding),
        recompute=parts_of(recompute),
        schedules=parts_of(schedules),
        without_rules=without_rule or None,
        explain_pruning=explain_pruning or None,
        time_limit_s=time_limit,
        scenarios=scenarios_from(
            # No scenario depends on the devices.
            Question(resolved, devices.groups[0], training),
            scenarios,
            Also(also_batch, also_length, also_capacity, also_top_k),
        ),
    )
    with progress_bar("Searching") as report:
        shortlist = search(resolved, devices, training, options, report)
    if compare:
        with progress_bar("Searching baselines") as report:
            baselines = compare_baselines(
                lambda narrower, heard: search(resolved, devices, training, narrower, heard),
                options,
                shortlist.plans[0],
                report,
            )
        shortlist = shortlist.model_copy(update={"baselines": baselines})
    text = shortlist.model_dump_json(indent=2)
    if output is not None:
        write_text(output, text + "\n")
    if picture is not None:
        write_text(picture, shortlist_picture(resolved, shortlist), "--picture")
    if as_json:
        say(text)
    else:
        _show(resolved, shortlist)


def _show(model: Model, shortlist: Shortlist) -> None:
    best = shortlist.plans[0]
    show(shortlist_table(shortlist), highlight_first=True)
    if len(shortlist.scenarios) + len(shortlist.without_plan) > 1:
        show(scenario_table(shortlist))
    if shortlist.baselines:
        show(baseline_table(shortlist))
    show(
        headline_table(best.plan, best.estimate),
        stage_table(model, best.plan, best.estimate),
        time_table(best.estimate),
        memory_table(best.plan, best.estimate),
        assumption_table(best.estimate),
    )
    if shortlist.certificate.pruned_rules:
        show(pruning_table(shortlist.certificate))
    say(certificate_line(shortlist))
