"""`trimtab export`: a plan as files of a training framework."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from api.commands.asked import asked
from api.commands.lines import printable, say
from api.commands.options import (
    Batch,
    CapacityFactor,
    ClusterArgument,
    EncoderSequence,
    GradientOption,
    JsonOption,
    MemoryOption,
    ModelArgument,
    OptimizerOption,
    PlanArgument,
    PrecisionOption,
    Sequence,
    StackOption,
    write_text,
)
from planner.export import exported_or_advised
from planner.spec.errors import InputError
from planner.spec.export import Export, ExportTarget
from planner.spec.plan import Plan

TargetArgument = Annotated[
    str,
    typer.Argument(metavar="TARGET", help="Framework that is to run it: megatron, torchtitan, deepspeed, galvatron"),
]
RankOption = Annotated[int, typer.Option("--rank", metavar="N", help="Which plan of a shortlist; 1 is its best")]


def export(
    model: ModelArgument,
    cluster: ClusterArgument,
    plan: PlanArgument,
    target: TargetArgument,
    global_batch_size: Batch = None,
    sequence_length: Sequence = None,
    encoder_sequence_length: EncoderSequence = None,
    precision: PrecisionOption = "bf16",
    optimizer: OptimizerOption = "adam",
    gradient_precision: GradientOption = None,
    capacity_factor: CapacityFactor = None,
    memory_limit: MemoryOption = None,
    stack: StackOption = None,
    rank: RankOption = 1,
    output: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder that the files are written to")] = None,
    as_json: JsonOption = False,
) -> None:
    """Write PLAN for a training framework: launch files that say what is left to you.

    A plan that the framework cannot run is refused with the name of the rule. For example:

    trimtab export mixtral-8x7b 8x8:h100-sxm-80g shortlist.json megatron --output launch
    """
    framework = _target(target)
    given = asked(
        (model, cluster),
        (memory_limit, stack),
        (global_batch_size, sequence_length),
        precision=precision,
        optimizer=optimizer,
        gradient_precision=gradient_precision,
        encoder_sequence_length=encoder_sequence_length,
        capacity_factor=capacity_factor,
    )
    plans = given.plans(plan)
    chosen = _ranked(plans, rank)
    others = ((f"--rank {number}, plan {other.id}", other) for number, other in enumerate(plans, start=1))
    found = exported_or_advised(framework, (given.model, given.cluster, given.training(chosen)), chosen, others)
    if output is not None:
        _write(output, found)
    if as_json:
        say(found.model_dump_json(indent=2))
    elif output is None:
        say("\n".join(f"==> {file.name} <==\n{file.text}" for file in found.files))
    else:
        _show(output, found)


def _target(text: str) -> ExportTarget:
    try:
        return ExportTarget(text)
    except ValueError:
        raise InputError.at("target", f"must be {' or '.join(ExportTarget)}, got {text!r:.40}") from None


def _ranked(plans: tuple[Plan, ...], rank: int) -> Plan:
    if not 1 <= rank <= len(plans):
        raise InputError.at("--rank", f"must be 1 to {len(plans)}, the plans that PLAN holds, got {rank}")
    return plans[rank - 1]


def _write(output: Path, found: Export) -> None:
    """All files, in a folder that is made; raises InputError at `--output`."""
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError.at("--output", f"cannot make the folder {output}: {error.strerror or error}") from None
    for file in found.files:
        write_text(output / file.name, file.text)


def _show(output: Path, found: Export) -> None:
    say(f"Plan {found.plan_id} ({found.plan_summary}) for {found.versions}:")
    for file in found.files:
        say(f"  {printable(str(output / file.name))}")
    for title, lines in (("Left to you:", found.left_to_user), ("Notes:", found.notes)):
        if lines:
            say("\n".join((title, *(f"- {line}" for line in lines))))
