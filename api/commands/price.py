"""`trimtab estimate` and `trimtab picture`: one given plan."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from api.commands.options import (
    Batch,
    ClusterArgument,
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
from planner.spec.estimate import Estimate
from planner.spec.model import Model
from planner.spec.plan import Plan
from planner.view import assumption_table, headline_table, memory_table, plan_picture, stage_table, time_table


def estimate(
    model: ModelArgument,
    cluster: ClusterArgument,
    plan: PlanArgument,
    global_batch_size: Batch = None,
    sequence_length: Sequence = None,
    precision: PrecisionOption = "bf16",
    gradient_precision: GradientOption = None,
    memory_limit: MemoryOption = None,
    stack: StackOption = None,
    as_json: JsonOption = False,
) -> None:
    """Predict the time and memory of PLAN, whether it fits or not."""
    resolved, chosen, priced = _priced(
        model,
        cluster,
        plan,
        _Recipe(global_batch_size, sequence_length, precision, gradient_precision),
        memory_limit,
        stack,
    )
    if as_json:
        say(priced.model_dump_json(indent=2))
    else:
        show(
            headline_table(chosen, priced),
            stage_table(resolved, chosen),
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
    precision: PrecisionOption = "bf16",
    gradient_precision: GradientOption = None,
    memory_limit: MemoryOption = None,
    stack: StackOption = None,
    output: Annotated[Path | None, typer.Option(help="Write here instead of stdout")] = None,
) -> None:
    """Draw PLAN as SVG: stages, devices, layers, strategies, memory."""
    resolved, chosen, priced = _priced(
        model,
        cluster,
        plan,
        _Recipe(global_batch_size, sequence_length, precision, gradient_precision),
        memory_limit,
        stack,
    )
    svg = plan_picture(resolved, chosen, priced)
    if output is None:
        say(svg)
    else:
        write_text(output, svg)


class _Recipe(NamedTuple):
    """The options that say how the model is trained."""

    batch: str | None
    sequence_length: int | None
    precision: str
    gradient_precision: str | None


def _priced(
    model: str,
    cluster: str,
    plan: str,
    recipe: _Recipe,
    memory_limit: str | None,
    stack: str | None,
) -> tuple[Model, Plan, Estimate]:
    """Model, plan and price; a recipe that the options leave out is the plan's own."""
    resolved, devices = read_model_and_cluster(model, cluster, memory_limit, stack)
    given = None
    formats = {"precision": recipe.precision, "gradient_precision": recipe.gradient_precision}
    if recipe.batch is not None or recipe.sequence_length is not None:
        given = training_from(recipe.batch, recipe.sequence_length, **formats)
    chosen = read_plan(plan, resolved, devices, given)
    return resolved, chosen, price(resolved, devices, given or training_of(chosen, **formats), chosen)
