"""What a price counts on being hidden behind compute, as notes that say which option of the framework hides it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from planner.export.header import one_line
from planner.export.job import Job
from planner.spec.stack import Stack

NOTHING = "nothing in these files asks for it"


class Overlap(NamedTuple):
    """For each kind of traffic, what hides it, or why it is not hidden; None: the files ask for it already."""

    tensor: str | None = NOTHING
    expert: str | None = NOTHING
    data: str | None = None


def overlap_notes(job: Job, overlap: Overlap) -> tuple[str, ...]:
    """One note for each kind of traffic of the plan that its price hides in part, and that the files do not."""
    stacks = dict.fromkeys(group.stack for group in job.cluster.groups)
    return tuple(
        f"The price hides {100 * ratio:.0f} % of the {kind} traffic behind compute, as stack {one_line(stack.name)} "
        f"does: {told}."
        for stack in stacks
        for kind, ratio, told in _hidden(job, stack, overlap)
        if told is not None and ratio > 0
    )


def _hidden(job: Job, stack: Stack, overlap: Overlap) -> Iterator[tuple[str, float, str | None]]:
    """(Traffic that the plan has, share that its price hides, what the framework does)."""
    strategies = [strategy for _, strategy in job.strategies]
    if any(strategy.tp > 1 for strategy in strategies):
        yield "tensor-parallel", stack.tensor_overlap_ratio, overlap.tensor
    if any(strategy.experts and strategy.experts.expert_parallel_size > 1 for strategy in strategies):
        yield "all-to-all", stack.expert_overlap_ratio, overlap.expert
    if any(strategy.data_parallel_size * strategy.cp > 1 for strategy in strategies):
        yield "data-parallel", stack.data_overlap_ratio, overlap.data
