"""A plan as files of a training framework: what exporting gives back."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from planner.spec.value import Name, StrEnum, Value


class ExportTarget(StrEnum):
    """The frameworks that plans are written for."""

    MEGATRON = "megatron"
    TORCHTITAN = "torchtitan"
    DEEPSPEED = "deepspeed"
    GALVATRON = "galvatron"


class ExportedFile(Value):
    """One file, to be written as it is."""

    name: Name
    """Without a folder."""
    text: str


class Export(Value):
    """Files to start a training job from, and what they do not hold."""

    target: ExportTarget
    plan_id: Name
    plan_summary: str
    versions: str
    """Of the framework: in which its options and rules were read."""
    files: Annotated[tuple[ExportedFile, ...], Field(min_length=1)]
    left_to_user: tuple[str, ...]
    """What a plan does not say and the job needs; the header of each file that can have one says it too."""
    notes: tuple[str, ...] = ()
    """What the files assume, and where the framework does otherwise than the plan's price."""
