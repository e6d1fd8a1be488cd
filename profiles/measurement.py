"""What was measured on a machine: one value for each kind of work, with its shape and its seconds. Knows no torch.

Seconds are the lower quartile of repetitions, of the slowest rank; all ranks work at the same time, as in training.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from planner.spec.cluster import Precision
from planner.spec.value import Count, Name, NonNegative, Positive, StrEnum, Value

MAX_SAMPLES = 2000


class MatmulSample(Value):
    """`groups` products [rows, depth] x [depth, columns], one after the other."""

    kind: Literal["matmul"] = "matmul"
    precision: Precision
    rows: Count
    columns: Count
    depth: Count
    groups: Count = 1
    operands: Literal["forward", "input_gradient", "weight_gradient"]
    """Which operands are transposed, as a linear layer has them."""
    time_s: Positive


class AttentionSample(Value):
    """Fused causal attention."""

    kind: Literal["attention"] = "attention"
    precision: Precision
    samples: Count
    num_heads: Count
    head_dim: Count
    sequence_length: Count
    forward_s: Positive
    backward_s: Positive


ROUTED_EXPERTS, ROUTED_TOP_K = 8, 2
"""Experts, and how many of them each token passes, where routing is measured."""


class ElementwiseWork(StrEnum):
    """Memory-bound work on [rows, columns].

    `stream`: adds one tensor to another in place. `residual`: both norms and both additions of a block.
    `activation`: the gated activation function of a feed-forward network. `loss`: cross-entropy over `columns`
    classes. `routing`: copies of tokens to the experts of a layer and back. `update`: AdamW on rows x columns
    parameters.
    """

    STREAM = "stream"
    RESIDUAL = "residual"
    ACTIVATION = "activation"
    LOSS = "loss"
    ROUTING = "routing"
    UPDATE = "update"


class ElementwiseSample(Value):
    """Memory-bound work."""

    kind: Literal["elementwise"] = "elementwise"
    precision: Precision
    work: ElementwiseWork
    rows: Count
    columns: Count
    forward_s: Positive
    backward_s: Positive | None = None
    """None where the work has no backward pass."""


class LaunchSample(Value):
    """Kernels with nothing to do, one after the other."""

    kind: Literal["launch"] = "launch"
    time_s: Positive
    """Of one."""


class Operation(StrEnum):
    """Collectives, and one message between two devices."""

    ALL_REDUCE = "all_reduce"
    ALL_GATHER = "all_gather"
    REDUCE_SCATTER = "reduce_scatter"
    ALL_TO_ALL = "all_to_all"
    POINT_TO_POINT = "point_to_point"


class CollectiveSample(Value):
    """A collective in all groups of this shape at once."""

    kind: Literal["collective"] = "collective"
    operation: Operation
    degree: Count
    """Members of a group."""
    stride: Count
    """From one member to the next, in device numbers."""
    message_bytes: Count
    """What a member ends up with (all-gather), has (reduce-scatter, all-reduce), or sends (all-to-all, message)."""
    time_s: Positive


class OverlapSample(Value):
    """Matrix products beside an all-reduce."""

    kind: Literal["overlap"] = "overlap"
    compute_s: Positive
    communication_s: Positive
    both_s: Positive


Sample = Annotated[
    MatmulSample | AttentionSample | ElementwiseSample | LaunchSample | CollectiveSample | OverlapSample,
    Field(discriminator="kind"),
]


class Machine(Value):
    """What the machine says of itself."""

    device: Name
    """Product name of the accelerator or processor."""
    backend: Literal["cpu", "cuda"]
    precision: Precision
    """In which most was measured."""
    memory_bytes: Count
    """Of one device; of a processor, the share of one process."""
    compute_units: Count
    reserve_bytes: Annotated[int, Field(ge=0, strict=True)]
    torch_version: Name
    num_devices: Count
    """Devices that worked at the same time."""
    devices_per_node: Count


class FitError(Value):
    """How far the fitted formulas are from what they were fitted to."""

    kind: Name
    num_samples: Count
    mean_error_ratio: NonNegative
    """Of predicted over measured, minus 1, without sign."""
    worst_error_ratio: NonNegative


class Measurement(Value):
    """The evidence behind a measured profile."""

    date: Name
    machine: Machine
    took_s: Positive
    method: tuple[str, ...]
    errors: tuple[FitError, ...]
    samples: Annotated[tuple[Sample, ...], Field(max_length=MAX_SAMPLES)]
