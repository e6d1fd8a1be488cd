"""What a plan is predicted to take: seconds and bytes in named parts."""

from __future__ import annotations

from planner.spec.cluster import Provenance
from planner.spec.error_band import StepTimeBand
from planner.spec.value import Index, Name, NonNegative, Positive, Value


class StageTime(Value):
    """One stage, one micro-batch (forward and backward), and its work once per step."""

    micro_batch_s: NonNegative
    once_per_step_s: NonNegative


class StageEstimate(Value):
    """Predicted bytes on each device of a stage, in named parts that sum to the peak."""

    device: Name | None = None
    """Of which kind the devices of the stage are; None: estimates of earlier versions do not say."""
    memory: dict[str, int]
    peak_memory_bytes: int
    limit_bytes: int
    time: StageTime
    host_bytes: Index = 0
    """What each device of the stage keeps in the memory of its host: offloaded optimizer state."""
    host_limit_bytes: Index = 0
    """A device's share of the host's memory; 0 if nothing is known of the host."""

    @property
    def missing_bytes(self) -> int:
        """What the stage lacks on each device; 0 if it fits."""
        return max(0, self.peak_memory_bytes - self.limit_bytes)

    @property
    def missing_host_bytes(self) -> int:
        """What the stage lacks of the host's memory, for each device; 0 if it fits."""
        return max(0, self.host_bytes - self.host_limit_bytes)


class Estimate(Value):
    """Price of one plan under one workload."""

    plan_id: str
    workload: str
    step_time_s: Positive
    tokens_per_s: Positive
    tokens_per_s_per_device: Positive
    tflops_per_device: Positive
    """Model FLOPs (no recomputation) per second and device, in 10^12."""
    mfu: Positive
    """Model FLOPs over the summed peak of the devices in the training's number format."""
    time: dict[str, float]
    """Named parts in seconds; they sum to `step_time_s`."""
    stages: tuple[StageEstimate, ...]
    fits: bool
    provenance: Provenance
    error_band: StepTimeBand | None = None
    """What comparable runs make of the predicted step time; None: none were looked up for this cluster."""
    assumptions: tuple[str, ...] = ()
    """What the price takes for granted and what it does not model."""
