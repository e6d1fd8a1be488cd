"""Arguments and options that several commands take, and how they become requests."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from api.commands.lines import printable
from api.resolution import resolve
from planner.search import plan_from_shorthand
from planner.spec.errors import InputError, Problem, TrimtabError
from planner.spec.mixed_cluster import AnyCluster
from planner.spec.model import Model
from planner.spec.parse import parse
from planner.spec.plan import Plan
from planner.spec.request import ClusterRequest, MixedClusterRequest, Options, Target
from planner.spec.shortlist import Shortlist
from planner.spec.training import Training
from profiles import cluster_request_from_file, model_request_from_file, parse_bytes, stack_names
from profiles.files import looks_like_file, read_json_file

ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="A config.json of Hugging Face, a model file, or a preset's name")
]
ClusterArgument = Annotated[
    str,
    typer.Argument(
        metavar="CLUSTER",
        help="Nodes x devices : device, as 8x8:h100-sxm-80g or 1x4:my-profile.json, groups joined by +, as "
        "1x8:a100-sxm-80g+1x8:v100-sxm2-32g, or a JSON file",
    ),
]
PlanArgument = Annotated[
    str, typer.Argument(metavar="PLAN", help="A plan's or shortlist's JSON file, or short: tp2-pp4-dp8-ep8-mbs1-zero1")
]
_BATCH = typer.Option("--global-batch-size", metavar="N|max", help="Samples per step; max: of largest throughput")
_SEQUENCE = typer.Option("--sequence-length", metavar="N", help="Tokens per sample")
RequiredBatch = Annotated[str, _BATCH]
RequiredSequence = Annotated[int, _SEQUENCE]
Batch = Annotated[str | None, _BATCH]
Sequence = Annotated[int | None, _SEQUENCE]
EncoderSequence = Annotated[
    int | None,
    typer.Option("--encoder-sequence-length", metavar="N", help="Tokens an encoder reads (T5); else as the decoder"),
]
PrecisionOption = Annotated[str, typer.Option(help="fp32, fp16, bf16, fp8, mxfp8 or nvfp4")]
MemoryOption = Annotated[
    str | None,
    typer.Option("--memory-limit", metavar="SIZE", help="Memory of a device that plans may use, as 24GB or 24GiB"),
]
StackOption = Annotated[
    str | None,
    typer.Option(help="Software that trains, as megatron-core-2024 (that of --target, or megatron-core-2026)"),
]
OptimizerOption = Annotated[str, typer.Option(help="adam or sgd")]
MaxBatch = Annotated[int | None, typer.Option(help="Upper end for --global-batch-size max")]
CapacityFactor = Annotated[float | None, typer.Option(help="Tokens an expert takes, over its share")]
AxesOption = Annotated[
    str | None,
    typer.Option(metavar="A,B,…", help="Of dp sdp tp pp ep cp sp, and ulysses, which is searched only if named"),
]
ShardingOption = Annotated[str | None, typer.Option(metavar="A,B,…", help="Of none optimizer gradients full")]
RecomputeOption = Annotated[str | None, typer.Option(metavar="A,B,…", help="Of none selective full")]
SchedulesOption = Annotated[str | None, typer.Option(metavar="A,B,…", help="Of 1f1b interleaved gpipe zero_bubble")]
TimeLimit = Annotated[float | None, typer.Option(help="Seconds after which a search takes the best so far")]
TargetOption = Annotated[
    str | None, typer.Option(help="Only plans that this framework can run: any, megatron, torchtitan or deepspeed")
]
MicroBatchOption = Annotated[
    int | None, typer.Option("--max-micro-batch-size", help="Samples per micro-batch and data-parallel rank, at most")
]
OffloadOption = Annotated[
    bool, typer.Option("--offload", help="Layers may keep their optimizer state on the host, which updates the weights")
]
WithoutRuleOption = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME", help="Switch off a rule that prunes by experience; may be given several times"),
]
UniformOption = Annotated[bool, typer.Option("--uniform", help="Only plans with one strategy for all blocks")]
JsonOption = Annotated[bool, typer.Option("--json", help="Machine output on stdout; messages on stderr")]
GradientOption = Annotated[
    str | None, typer.Option("--gradient-precision", help="fp32 (the usual), bf16 or fp16: of sums of gradients")
]


def read_model_and_cluster(
    model: str, cluster: str, memory_limit: str | None, stack: str | None = None, target: str | None = None
) -> tuple[Model, AnyCluster]:
    """What the arguments name, where they name no stack with that of the target; raises InputError."""
    request = cluster_request_from_file(cluster)
    if memory_limit is not None:
        limit = parse_bytes(memory_limit, "--memory-limit")
        request = _of_each_group(request, memory_limit_bytes=limit)
    if stack is not None:
        if not stack.strip():
            raise InputError.at("--stack", f"must name a software stack: {', '.join(stack_names())}")
        request = _of_each_group(request, stack=stack)
    try:
        return resolve(model_request_from_file(model), request, target=_target(target))
    except InputError as error:
        given = {"memory_limit_bytes": ("--memory-limit", memory_limit), "stack": ("--stack", stack)}
        raise _at_options(
            error, {field: option for field, (option, text) in given.items() if text is not None}
        ) from None


def _at_options(error: InputError, options: Mapping[str, str]) -> InputError:
    """The same, where an option has set a field of the cluster with the option's name."""
    problems = (Problem(options.get(p.field.rpartition(".")[2], p.field), p.message) for p in error.problems)
    return type(error)(*problems, num_more=error.num_more)


def _target(text: str | None) -> Target:
    try:
        return Target.ANY if text is None else Target(text)
    except ValueError:
        raise InputError.at("--target", f"must be {' or '.join(Target)}, got {text!r:.40}") from None


def _of_each_group(
    request: ClusterRequest | MixedClusterRequest, **changes: object
) -> ClusterRequest | MixedClusterRequest:
    if isinstance(request, ClusterRequest):
        return request.model_copy(update=changes)
    return request.model_copy(update={"groups": tuple(group.model_copy(update=changes) for group in request.groups)})


def training_from(batch: str | None, sequence_length: int | None, **recipe: object) -> Training:
    """The recipe that the options describe; raises InputError that names the option."""
    size: object = int(batch) if batch is not None and batch.removeprefix("-").isdecimal() else batch
    given: dict[str, Any] = {"global_batch_size": size, "sequence_length": sequence_length, **recipe}
    return parse(Training, {key: value for key, value in given.items() if value is not None}, "training")


def parts_of(text: str | None) -> tuple[str, ...] | None:
    """Words with commas between."""
    return None if text is None else tuple(part.strip() for part in text.split(","))


def options_from(**given: object) -> Options:
    """What the search may do, as far as it is given; raises InputError that names the option."""
    return parse(Options, {key: value for key, value in given.items() if value is not None}, "options")


def read_plan(text: str, model: Model, cluster: AnyCluster, training: Training | None) -> Plan:
    """A plan from a file (a shortlist's: its first), or from shorthand, which needs the training; raises InputError."""
    return read_plans(text, model, cluster, training)[0]


_PRINTED = re.compile(r".* · .*|[0-9a-f]{16}")
"""As tables and pages show a plan."""
_TAKEN = "it must be a JSON file, as `trimtab plan --output FILE` writes one, or short: tp2-pp4-dp8-mbs1-zero1"


def read_plans(text: str, model: Model, cluster: AnyCluster, training: Training | None) -> tuple[Plan, ...]:
    """One plan, or all of a shortlist, the best first; raises InputError."""
    if not text.strip():
        raise InputError.at("plan", f"is empty; {_TAKEN}")
    if not looks_like_file(text):
        if _PRINTED.fullmatch(text.strip()):
            raise InputError.at("plan", f"{text!r:.80} is a plan's summary or id, which do not say all of it; {_TAKEN}")
        if training is None:
            raise InputError.at(
                "training.global_batch_size", "is required for a plan in shorthand, and so is sequence_length"
            )
        return (plan_from_shorthand(text, model, cluster, training),)
    data = read_json_file(Path(text), "plan")
    if "plans" in data:
        return tuple(entry.plan for entry in parse(Shortlist, data, "plan").plans)
    return (parse(Plan, data, "plan"),)


def training_of(plan: Plan, **recipe: object) -> Training:
    """The recipe that a plan was made for, as far as a plan says; the rest is given."""
    return training_from(str(plan.global_batch_size), plan.sequence_length, **recipe)


def check_writable(path: Path | None, field: str = "--output") -> None:
    """Find out before long work whether its result can be written; raises InputError at `field`."""
    if path is not None and not os.access(path.parent, os.W_OK):
        raise InputError.at(field, f"cannot write {path}: there is no folder {path.parent} to write to")


def write_text(path: Path, text: str, field: str = "--output") -> None:
    """Write a file that the user named; raises InputError at `field`."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError.at(field, f"cannot write {path}: {error.strerror or error}") from None


def shown(error: TrimtabError) -> str:
    """One line for the terminal; fields that an option sets are named by the option."""
    if not isinstance(error, InputError):
        return printable(" ".join(str(error).split()))
    # A row's id stands in the field; its line breaks are to be seen.
    lines = [f"{printable(_as_typed(problem.field))}: {problem.message}" for problem in error.problems]
    return printable(" ".join("; ".join(lines).split()))


_SET_BY_OPTION = re.compile(r"(?:training|options)\.(?P<name>\w+)(?P<place>.*)")
_ROW = re.compile(r"(?:\.|\[)(?P<number>\d+)\]?(?P<rest>\..+)")
_NAMED_OTHERWISE = {"time_limit_s": "time-limit", "without_rules": "without-rule"}
"""Options that are not called as the fields that they set."""


def _as_typed(field: str) -> str:
    """The option that sets the field; behind it the place in a file of scenarios, not that of a word among commas."""
    found = _SET_BY_OPTION.fullmatch(field)
    if found is None:
        return field
    option = _NAMED_OTHERWISE.get(found["name"], found["name"].replace("_", "-"))
    row = _ROW.fullmatch(found["place"])
    return f"--{option}[{row['number']}]{row['rest']}" if row else f"--{option}"
