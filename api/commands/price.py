"""`trimtab estimate`, `trimtab picture` and `trimtab timeline`: one given plan."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

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
    read_model_and_cluster,
    read_plan,
    training_from,
    training_of,
    write_text,
)
from api.commands.terminal import say, show
from planner.cost import estimate as price
from planner.spec.mixed_cluster import AnyCluster
from planner.spec.model import Model
from planner.spec.plan import Plan
from planner.spec.training import Training
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
    recipe = {
        "precision": precision,
        "gradient_precision": gradient_precision,
        "encoder_sequence_length": encoder_sequence_length,
    }
    resolved, devices, training, chosen = _asked(
        model, cluster, plan, global_batch_size, sequence_length, recipe, memory_limit, stack
    )
    priced = price(resolved, devices, training, chosen)
    if as_json:
        say(priced.model_dump_json(indent=2))
    else:
        show(
            headline_table(chosen, priced),
            stage_table(resolved, chosen, priced),
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
) -> None:
    """Draw PLAN as SVG: stages, devices, layers, strategies, memory."""
    recipe = {
        "precision": precision,
        "gradient_precision": gradient_precision,
        "encoder_sequence_length": encoder_sequence_length,
    }
    resolved, devices, training, chosen = _asked(
        model, cluster, plan, global_batch_size, sequence_length, recipe, memory_limit, stack
    )
    priced = price(resolved, devices, training, chosen)
    svg = plan_picture(resolved, chosen, priced)
    if output is None:
        say(svg)
    else:
        write_text(output, svg)


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
) -> None:
    """Run a step of PLAN event by event, as a Chrome trace that Perfetto opens.

    trimtab timeline llama-2-7b 1x8:a100-sxm-80g tp2-pp4-mbs1 --global-batch-size 64 --sequence-length 4096
    """
    recipe = {
        "precision": precision,
        "gradient_precision": gradient_precision,
        "encoder_sequence_length": encoder_sequence_length,
    }
    asked = _asked(model, cluster, plan, global_batch_size, sequence_length, recipe, memory_limit, stack)
    text = plan_timeline(*asked).model_dump_json(exclude_none=True)
    if output is None:
        say(text)
    else:
        write_text(output, text)


def _asked(
    model: str,
    cluster: str,
    plan: str,
    batch: str | None,
    sequence_length: int | None,
    recipe: Mapping[str, object],
    memory_limit: str | None,
    stack: str | None,
) -> tuple[Model, AnyCluster, Training, Plan]:
    """What the arguments name; a recipe that the options leave out is the plan's own."""
    resolved, devices = read_model_and_cluster(model, cluster, memory_limit, stack)
    given = None
    if batch is not None or sequence_length is not None:
        given = training_from(batch, sequence_length, **recipe)
    chosen = read_plan(plan, resolved, devices, given)
    return resolved, devices, given or training_of(chosen, **recipe), chosen
