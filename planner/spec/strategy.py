"""How one layer is spread over the devices of its stage. A strategy knows no pipeline: stages do."""

from __future__ import annotations

from functools import cached_property
from math import prod
from typing import Annotated, NamedTuple

from pydantic import Field, model_validator

from planner.spec.value import Count, StrEnum, Value


class AxisKind(StrEnum):
    """Ways to cut one layer.

    `dp` cuts the samples. `sdp` does too, and is written only beside `dp`: then `full` sharding happens inside the
    sdp axis and the dp axis replicates (hybrid sharding); alone, ZeRO-3 is `dp` with sharding `full`. `tp` cuts the
    matrices. `cp` and `ulysses` cut the sequence: under `cp` keys and values pass around a ring (arXiv 2310.01889),
    under `ulysses` an all-to-all before and after the attention core turns parts of the sequence into parts of the
    heads (arXiv 2309.14509). Both together: a ring of such groups (arXiv 2405.07719).
    """

    DP = "dp"
    SDP = "sdp"
    TP = "tp"
    CP = "cp"
    ULYSSES = "ulysses"


class Axis(NamedTuple):
    """One cut: its kind and its degree, written `["dp", 8]`."""

    kind: AxisKind
    degree: Annotated[int, Field(strict=True, ge=2)]


class Sharding(StrEnum):
    """What data-parallel ranks split among them: nothing, ZeRO-1, ZeRO-2, ZeRO-3 (arXiv 1910.02054)."""

    NONE = "none"
    OPTIMIZER = "optimizer"
    GRADIENTS = "gradients"
    FULL = "full"


class Recompute(StrEnum):
    """Activations made again in the backward pass: none, the attention core (arXiv 2205.05198), the whole layer."""

    NONE = "none"
    SELECTIVE = "selective"
    FULL = "full"


class ExpertStrategy(Value):
    """How the experts of a layer are spread; over the same devices, decoupled from the attention's degrees.

    Ranks run expert-tensor-parallel first (nearest devices), then expert-parallel, then expert-data-parallel.
    """

    expert_parallel_size: Count = 1
    expert_tensor_parallel_size: Count = 1
    expert_data_parallel_size: Count = 1

    @property
    def num_devices(self) -> int:
        """Devices that the experts are spread over."""
        return self.expert_parallel_size * self.expert_tensor_parallel_size * self.expert_data_parallel_size


class Strategy(Value):
    """Axes, outermost (farthest devices) first; each kind at most once."""

    axes: tuple[Axis, ...] = ()
    sharding: Sharding = Sharding.NONE
    sequence_parallel: bool = False
    """The parts between tensor-parallel regions are cut along the sequence (arXiv 2205.05198)."""
    recompute: Recompute = Recompute.NONE
    experts: ExpertStrategy | None = None
    """Set for MoE layers only."""
    offload: bool = False
    """Optimizer state lives in the host's memory, and the host updates the weights (ZeRO-Offload, arXiv 2101.06840)."""

    @model_validator(mode="after")
    def _possible(self) -> Strategy:
        kinds = [axis.kind for axis in self.axes]
        if len(set(kinds)) != len(kinds):
            raise ValueError("axes: each kind may stand once")
        if AxisKind.SDP in kinds and AxisKind.DP not in kinds:
            raise ValueError('axes: sdp without dp is written ["dp", n] with sharding "full"')
        if AxisKind.SDP in kinds and self.sharding is not Sharding.FULL:
            raise ValueError('sharding: must be "full" where axes hold sdp')
        if self.sharding is not Sharding.NONE and self.data_parallel_size * self.sequence_parts == 1:
            if self.experts is None or self.experts.expert_data_parallel_size == 1:
                raise ValueError('sharding: must be "none" without data parallelism (dp, cp or ulysses)')
        if self.sequence_parallel and self.tp == 1:
            raise ValueError("sequence_parallel: needs tp of at least 2")
        if self.experts and self.experts.num_devices != self.num_devices:
            raise ValueError(
                f"experts: expert, expert-tensor and expert-data parallel sizes must multiply to the "
                f"{self.num_devices} devices of the axes, not {self.experts.num_devices}"
            )
        return self

    def degree(self, kind: AxisKind) -> int:
        """Degree of an axis, 1 where it is absent."""
        return next((axis.degree for axis in self.axes if axis.kind is kind), 1)

    @cached_property
    def tp(self) -> int:
        """Tensor-parallel degree."""
        return self.degree(AxisKind.TP)

    @cached_property
    def cp(self) -> int:
        """Context-parallel degree."""
        return self.degree(AxisKind.CP)

    @cached_property
    def ulysses(self) -> int:
        """Degree of Ulysses' sequence parallelism."""
        return self.degree(AxisKind.ULYSSES)

    @cached_property
    def sequence_parts(self) -> int:
        """Parts into which every sample is cut, outside the attention core: cp times ulysses."""
        return self.cp * self.ulysses

    @cached_property
    def data_parallel_size(self) -> int:
        """Parts into which the samples are cut: dp times sdp."""
        return self.degree(AxisKind.DP) * self.degree(AxisKind.SDP)

    @cached_property
    def num_devices(self) -> int:
        """Devices of the stage."""
        return prod(axis.degree for axis in self.axes)

    def stride(self, kind: AxisKind) -> int:
        """Distance between neighbours of an axis: the product of the degrees inside it."""
        stride = 1
        for axis in reversed(self.axes):
            if axis.kind is kind:
                return stride
            stride *= axis.degree
        return 1
