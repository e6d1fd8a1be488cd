"""The training recipe: what the user wants computed, whatever the plan."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from planner.spec.cluster import Precision
from planner.spec.value import Count, Measure, StrEnum, Value

MAX_BATCH_SIZE = 2**24
"""Samples per step that anybody may ask for."""


class Optimizer(StrEnum):
    """`adam` keeps two moments per parameter, `sgd` with momentum one."""

    ADAM = "adam"
    SGD = "sgd"


class AttentionKernel(StrEnum):
    """`flash` never writes the score matrix to memory; `unfused` does."""

    FLASH = "flash"
    UNFUSED = "unfused"


class Training(Value):
    """One training recipe."""

    global_batch_size: Annotated[Count, Field(le=MAX_BATCH_SIZE)] | Literal["max"]
    """Samples per step; `max`: the batch size of highest throughput, up to `max_global_batch_size`."""
    sequence_length: Count
    """Tokens of a sample; of what the decoder reads, where the model has an encoder."""
    encoder_sequence_length: Count | None = None
    """Tokens of a sample that an encoder reads; None: as many as the decoder."""
    precision: Precision = Precision.BF16
    optimizer: Optimizer = Optimizer.ADAM
    gradient_precision: Literal[Precision.FP32, Precision.BF16, Precision.FP16] = Precision.FP32
    """In which micro-batches are summed and gradients reduced."""
    attention_kernel: AttentionKernel = AttentionKernel.FLASH
    dropout: bool = False
    """Dropout after attention and feed-forward, whose masks are kept."""
    capacity_factor: Measure | None = None
    """Tokens that an expert takes at most, over its even share; None: dropless."""
    max_global_batch_size: Annotated[Count, Field(le=MAX_BATCH_SIZE)] = 4096
    """Upper end for `global_batch_size` = `max`."""

    @property
    def encoder_length(self) -> int:
        """Tokens of a sample that an encoder reads, given or not."""
        return self.encoder_sequence_length or self.sequence_length
