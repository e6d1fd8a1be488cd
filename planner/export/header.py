"""The lines that every exported file begins with: which plan it is, what is left to the user, what is assumed."""

from __future__ import annotations

from collections.abc import Iterable
from textwrap import wrap

from planner.export.job import Job
from planner.spec.cluster import Cluster

_WIDTH = 116


def header(job: Job, framework: str, left: Iterable[str], notes: Iterable[str], mark: str = "#") -> str:
    """Comment lines, the last one ended; names of a user cannot end a comment."""
    lines = [
        f"{one_line(job.model.name)} for {framework}, exported by Trimtab.",
        f"Plan {job.plan.id}: {job.plan.summary}",
        f"On {_devices(job)}; {job.plan.global_batch_size} samples of {job.plan.sequence_length} tokens per step, "
        f"in {job.training.precision}.",
        *_list("Left to you:", left),
        *_list("Notes:", notes),
    ]
    wrapped = [part for line in lines for part in _wrapped(line, len(mark) + 1)]
    return "".join(f"{mark} {line}".rstrip() + "\n" for line in wrapped)


def placement_notes(job: Job) -> tuple[str, ...]:
    """What no launch file can say: which device is which, and how the agent of Trimtab gets to the experts."""
    notes = []
    for group in (job.cluster,) if isinstance(job.cluster, Cluster) else job.cluster.groups:
        if group.device_order:
            order = " ".join(map(str, group.device_order))
            notes.append(f"Ranks in order are these devices of your graph of links: {order}; start them so.")
    if job.model.moe_layers:
        held = "; ".join(f"stage {stage}: {ranges(layers)}" for stage, layers in enumerate(_moe_layers(job)) if layers)
        notes.append(
            "Experts sit in order on the ranks. To follow their load, attach Trimtab's agent (runtime.Agent) to the "
            f"model in the training script, with moe_layers where there are stages; MoE layers counted from 0, {held}."
        )
    return tuple(notes)


def one_line(text: str) -> str:
    """Text of a user in one line, with nothing that a terminal or a shell would obey."""
    return " ".join("".join(sign if sign.isprintable() else " " for sign in text).split())


def ranges(numbers: Iterable[int]) -> str:
    """`0–7 16–23`: rising numbers, neighbours put together."""
    runs: list[tuple[int, int]] = []
    for number in numbers:
        follows = bool(runs) and runs[-1][1] == number - 1
        runs[-1:] = [(runs[-1][0], number)] if follows else [*runs[-1:], (number, number)]
    return " ".join(str(first) if first == last else f"{first}–{last}" for first, last in runs)


def _moe_layers(job: Job) -> list[list[int]]:
    """Of each stage: its MoE layers among the model's MoE layers."""
    index = {layer: number for number, layer in enumerate(job.model.moe_layers)}
    held: list[list[int]] = [[] for _ in job.plan.stages]
    for piece in job.pieces:
        held[piece.stage] += [index[number] for number in piece.numbers if number in index]
    return held


def _devices(job: Job) -> str:
    groups = (job.cluster,) if isinstance(job.cluster, Cluster) else job.cluster.groups
    return " and ".join(
        f"{group.nodes} node{'s' * (group.nodes > 1)} x {group.devices_per_node} {one_line(group.device.name)}"
        for group in groups
    )


def _list(title: str, items: Iterable[str]) -> list[str]:
    found = [f"- {item}" for item in items]
    return [title, *found] if found else []


def _wrapped(line: str, margin: int) -> list[str]:
    indent = "  " if line.startswith("- ") else ""
    return wrap(line, _WIDTH - margin, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
