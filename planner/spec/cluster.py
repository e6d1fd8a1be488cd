"""Devices and links. SI units; a link's bandwidth is per device and direction.

Clusters of unlike devices are in `planner.spec.mixed_cluster`.
"""

from __future__ import annotations

from functools import cached_property
from typing import Annotated

from pydantic import Field, model_validator

from planner.spec.error_band import ErrorBands
from planner.spec.stack import Stack
from planner.spec.value import (
    GREATEST_MEASURE,
    Count,
    Index,
    Measure,
    MeasuredRatio,
    MeasureOrZero,
    Name,
    StrEnum,
    Value,
)


class Precision(StrEnum):
    """Number format of the matrix products."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"
    FP8 = "fp8"
    """A scale for each tensor, or for blocks of 128."""
    MXFP8 = "mxfp8"
    """A scale for every 32 numbers, in hardware (Open Compute Project, Microscaling Formats 1.0)."""
    NVFP4 = "nvfp4"
    """Four bits, a scale for every 16 numbers."""

    @property
    def is_quantised(self) -> bool:
        """Whether operands are kept in 16 bits and cast for the products alone."""
        return self in (Precision.FP8, Precision.MXFP8, Precision.NVFP4)


class Provenance(StrEnum):
    """Where a number comes from: a datasheet, a fit on published runs, or a measurement of this machine."""

    DATASHEET = "datasheet"
    FITTED = "fitted"
    MEASURED = "measured"


class PeakFlops(Value):
    """Peak dense rate by number format, FLOP/s; None where the device has no such units."""

    fp32: Measure
    fp16: Measure | None = None
    bf16: Measure | None = None
    fp8: Measure | None = None
    mxfp8: Measure | None = None
    nvfp4: Measure | None = None


class KernelEfficiency(Value):
    """How close kernels come to the peaks of the device; see planner/cost/kernels.py for the formulas."""

    matmul_ratio: MeasuredRatio
    """Of peak FLOP/s, for a large matrix product whose tiles fill all compute units, in 16 or 32 bits."""
    quantised_matmul_ratio: MeasuredRatio | None = None
    """The same for products in 8 or 4 bits; None: as in 16."""
    matmul_tile: tuple[Count, Count] = (128, 256)
    """Rows and columns of the largest part of the result that one compute unit makes at a time."""
    half_tile_ratio: MeasuredRatio = 1.0
    """Of the rate with one tile, what tiles of half the size reach."""
    last_wave_ratio: MeasuredRatio = 1.0
    """Of a whole wave's time beyond its share of the tiles, what a partly filled last wave takes."""
    misaligned_ratio: MeasuredRatio = 1.0
    """Of the rate of a product, what one whose rows are no multiples of 16 bytes reaches."""
    matmul_half_depth: MeasureOrZero = 0.0
    """Inner dimension at which a product reaches half of `matmul_ratio`."""
    attention_forward_ratio: MeasuredRatio
    """Of peak FLOP/s, fused (flash) attention, forward."""
    attention_backward_ratio: MeasuredRatio
    memory_ratio: MeasuredRatio
    """Of memory bandwidth, for element-wise kernels."""
    kernel_launch_s: MeasureOrZero
    """Time between two kernels that no work hides."""
    overlap_slowdown_ratio: Annotated[float, Field(ge=1, le=GREATEST_MEASURE)] = 1.0
    """Compute and communication that overlap take this many times longer each."""


class HostShare(Value):
    """What one device has of the host of its node, when all devices of the node use it at once."""

    link_bytes_per_s: Measure
    """Reached by large copies from and to locked memory, in the slower direction."""
    memory_bytes: Count
    memory_bandwidth_bytes_per_s: Measure
    """Reached by the host's processors, reads and writes together."""


class Device(Value):
    """One accelerator."""

    name: Name
    memory_bytes: Count
    memory_bandwidth_bytes_per_s: Measure
    compute_units: Count
    """Streaming multiprocessors, compute units, or cores."""
    peak_flops_per_s: PeakFlops
    efficiency: KernelEfficiency
    reserve_bytes: Annotated[int, Field(ge=0, strict=True)]
    """Memory that no tensor can have: context, libraries, communicators, fragmentation."""
    provenance: Provenance
    sources: tuple[str, ...] = ()
    host: HostShare | None = None
    """None: nothing is known of it, so that nothing can be offloaded to it."""

    def peak(self, precision: Precision) -> float | None:
        """Peak dense FLOP/s in this number format, None if the device has none."""
        value: float | None = getattr(self.peak_flops_per_s, precision.value)
        return value


class Link(Value):
    """What one device sees of a network, per direction."""

    bandwidth_bytes_per_s: Measure
    latency_s: MeasureOrZero
    efficiency_ratio: MeasuredRatio = 1.0
    """Of the bandwidth, what large collectives reach."""
    pair_bandwidth_bytes_per_s: Measure | None = None
    """Between two devices alone, where that is less than to all together (point-to-point meshes)."""

    @property
    def pair_bytes_per_s(self) -> float:
        """What one pair of devices reaches."""
        return self.efficiency_ratio * (self.pair_bandwidth_bytes_per_s or self.bandwidth_bytes_per_s)

    @property
    def bytes_per_s(self) -> float:
        """What a device reaches in large collectives."""
        return self.efficiency_ratio * self.bandwidth_bytes_per_s


class Level(Value):
    """One tier of the network: islands of `num_devices` consecutive devices, joined inside by `link`.

    The last island may be smaller: 19 nodes of four devices fill one rack of 72 and begin another.
    """

    name: Name
    num_devices: Count
    link: Link


def link_between(levels: tuple[Level, ...], one: int, other: int) -> Link:
    """The link of the nearest tier that joins two devices, by their numbers."""
    return next(lv.link for lv in levels if one // lv.num_devices == other // lv.num_devices)


class Cluster(Value):
    """Equal devices, numbered node by node, under tiers of links (nearest first; the last spans all), with software."""

    nodes: Count
    devices_per_node: Count
    device: Device
    levels: Annotated[tuple[Level, ...], Field(min_length=1)]
    stack: Stack = Stack()
    """The software that drives the devices."""
    memory_limit_bytes: Count | None = None
    """What a plan may use of one device; None: all that the device has."""
    error_bands: ErrorBands | None = None
    """How far prices were from measured runs on the nearest devices and stacks; None: not looked up."""
    device_order: tuple[Index, ...] = ()
    """Which device of the request's graph of links each device is; empty: numbered as there, or no graph given."""

    @model_validator(mode="after")
    def _levels_nest(self) -> Cluster:
        size = 1
        for level in self.levels[:-1]:
            if level.num_devices % size:
                raise ValueError(f"levels: {level.name} spans {level.num_devices} devices, no multiple of {size}")
            size = level.num_devices
        last = self.levels[-1].num_devices
        if last != self.num_devices:
            raise ValueError(f"levels: the last must span all {self.num_devices} devices, it spans {last}")
        if size > last:
            raise ValueError(f"levels: an island of {size} devices is larger than the cluster of {last}")
        if self.device_order and sorted(self.device_order) != list(range(self.num_devices)):
            raise ValueError(f"device_order: must name each of {self.num_devices} devices once")
        if self.memory_limit_bytes is not None and self.memory_limit_bytes > self.device.memory_bytes:
            raise ValueError(f"memory_limit_bytes: exceeds the {self.device.memory_bytes} bytes of the device")
        return self

    @cached_property
    def num_devices(self) -> int:
        """All devices."""
        return self.nodes * self.devices_per_node

    @property
    def groups(self) -> tuple[Cluster, ...]:
        """One group: the devices are equal."""
        return (self,)

    @property
    def first_devices(self) -> tuple[int, ...]:
        """Of the one group."""
        return (0,)

    def group_number(self, first_device: int, num_devices: int = 1) -> int:
        """0 for consecutive devices of this cluster; raises ValueError beyond its end."""
        if first_device + num_devices > self.num_devices:
            raise ValueError(f"must be among the {self.num_devices} devices of the cluster")
        return 0

    def group_of(self, first_device: int, num_devices: int = 1) -> Cluster:
        """The equal devices among which a stage is: all; raises ValueError beyond the end."""
        return self.groups[self.group_number(first_device, num_devices)]

    def link_between(self, one: int, other: int) -> Link:
        """The link of the nearest tier that joins two devices, by their numbers."""
        return link_between(self.levels, one, other)

    @cached_property
    def usable_bytes(self) -> int:
        """What a plan may use of one device, reserve included."""
        return self.memory_limit_bytes or self.device.memory_bytes

    @property
    def provenance(self) -> Provenance:
        """Of the numbers that prices are made of: the weaker of the device's and the stack's."""
        measured = self.device.provenance is Provenance.MEASURED
        return Provenance.FITTED if measured and self.stack.fitted else self.device.provenance

    @property
    def reserve_bytes(self) -> int:
        """Of each device, what no plan may use: the device's own reserve, and what the stack's libraries take."""
        return self.device.reserve_bytes + self.stack.library_bytes
