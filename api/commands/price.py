"""`trimtab estimate`, `trimtab picture` and `trimtab timeline`: one given plan."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from api.commands.asked import asked
from api.commands.lines import say
from api.commands.options import (
    Batch,
    ClusterArgument,
    EncoderSequence,
    GradientOption,
    JsonOption,
    MemoryOption,
    ModelArgument,
    PlanArgument,
    PrecisionOption,
    Sequence,
    StackOption,
    write_text,
)
from api.commands.terminal import show
from planner.cost import estimate as price
from planner.spec.plan import Plan
from planner.view import (
    assumption_table,
    headline_table,
    memory_table,
    plan_picture,
    plan_timeline,
    stage_table,
    time_table,
)


def estimate(
    model: ModelArgument,
    cluster: ClusterArgument,
    plan: PlanArgument,
    global_batch_size: Batch = None,
    sequence_length: Sequence = None,
    encoder_sequence_length: EncoderSequence = None,
    precision: PrecisionOption = "bf16",
    memory_limit: MemoryOption = None,
    stack: StackOption = None,
    gradient_precision: GradientOption = None,
    as_json: JsonOption = False,
) -> None:
    """Predict the time and memory of PLAN, whether it fits or not."""
    given = asked(
        (model, cluster),
        (memory_limit, stack),
        (global_batch_size, sequence_length),
        precision=precision,
        gradient_precision=gradient_precision,
        encoder_sequence_length=encoder_sequence_length,
    )
    chosen = given.plan(plan)
    priced = price(given.model, given.cluster, given.training(chosen), chosen)
    if as_json:
        say(priced.model_dump_json(indent=2))
    else:
        show(
            headline_table(chosen, priced),
            stage_table(given.model, chosen, priced),
            time_table(priced),
            memory_table(chosen, priced),
            assumption_table(priced),
        )


def picture(
    model: ModelArgument,
    cluster: ClusterArgument,
    plan: PlanArgument,
    global_batch_size: Batch = None,
    sequence_length: Sequence = None,
    encoder_sequence_length: EncoderSequence = None,
    precision: PrecisionOption = "bf16",
    memory_limit: MemoryOption = None,
    stack: StackOption = None,
    gradient_precision: GradientOption = None,
    output: Annotated[Path | None, typer.Option(help="Write here instead of stdout")] = None,
    as_json: JsonOption = False,
) -> None:
    """Draw PLAN as SVG: stages, devices, layers, strategies, memory."""
    given = asked(
        (model, cluster),
        (memory_limit, stack),
        (global_batch_size, sequence_length),
        precision=precision,
        gradient_precision=gradient_precision,
        encoder_sequence_length=encoder_sequence_length,
    )
    chosen = given.plan(plan)
    priced = price(given.model, given.cluster, given.training(chosen), chosen)
    svg = plan_picture(given.model, chosen, priced)
    if output is not None:
        write_text(output, svg)
    if as_json:
        say(_written(chosen, output, svg=svg))
    elif output is None:
        say(svg)


def timeline(
    model: ModelArgument,
    cluster: ClusterArgument,
    plan: PlanArgument,
    global_batch_size: Batch = None,
    sequence_length: Sequence = None,
    encoder_sequence_length: EncoderSequence = None,
    precision: PrecisionOption = "bf16",
    memory_limit: MemoryOption = None,
    stack: StackOption = None,
    gradient_precision: GradientOption = None,
    output: Annotated[Path | None, typer.Option(help="Write here instead of stdout")] = None,
    as_json: JsonOption = False,
) -> None:
    """Run a step of PLAN event by event, as a Chrome trace that Perfetto opens.

    trimtab timeline llama-2-7b 1x8:a100-sxm-80g tp2-pp4-mbs1 --global-batch-size 64 --sequence-length 4096
    """
    given = asked(
        (model, cluster),
        (memory_limit, stack),
        (global_batch_size, sequence_length),
        precision=precision,
        gradient_precision=gradient_precision,
        encoder_sequence_length=encoder_sequence_length,
    )
    chosen = given.plan(plan)
    drawn = plan_timeline(given.model, given.cluster, given.training(chosen), chosen)
    text = drawn.model_dump_json(exclude_none=True)
    if output is None:
        say(text)
        return
    write_text(output, text)
    if as_json:
        say(_written(chosen, output))


def _written(plan: Plan, output: Path | None, **content: str) -> str:
    """For programs: which plan it was, and where the file is, or what would stand in it."""
    found = {"plan_id": plan.id, "plan_summary": plan.summary}
    return json.dumps({**found, **content} if output is None else {**found, "output": str(output)}, ensure_ascii=False)
