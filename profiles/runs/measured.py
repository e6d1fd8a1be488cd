"""What a row measured, in seconds per step and bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from planner.cost.flops import model_flops_per_token
from planner.spec.cluster import Device, Precision
from planner.spec.model import Head, Model
from profiles.runs.recipe import precision_of
from profiles.runs.record import RunRecord
from profiles.runs.skipped import Skipped
from profiles.runs.stack import ALPA

_GB, _GIB = 10**9, 2**30
_PLAIN_PEAKS = (Precision.BF16, Precision.FP16)
"""Number formats of which a share of the peak means that of their own peak."""


@dataclass(frozen=True)
class Measure:
    """A step time, and the field of the row that says it."""

    field: str
    seconds: float


def step_time_s(record: RunRecord, model: Model | None, device: Device | None = None) -> float | None:
    """The seconds of `measured_step`, None where there is none."""
    found = measured_step(record, model, device)
    return None if found is None else found.seconds


def measured_step(record: RunRecord, model: Model | None, device: Device | None = None) -> Measure | None:
    """One step: as printed, from tokens or samples per second, else from FLOP/s as the source counts, else from MFU.

    FLOP/s need the model, MFU needs the device too; None where nothing was measured, or no convention is known.
    """
    samples, measured = record.batch.samples, record.measured
    if measured.step_time_s is not None:
        return Measure("measured.step_time_s", measured.step_time_s)
    if samples is None:
        return None
    sequence_length, devices = record.batch.seq or record.model.seq, record.hardware.gpus
    if measured.tokens_per_s_per_gpu is not None and sequence_length is not None:
        seconds = samples * sequence_length / measured.tokens_per_s_per_gpu / devices
        return Measure("measured.tokens_per_s_per_gpu", seconds)
    if measured.samples_per_s is not None:
        return Measure("measured.samples_per_s", samples / measured.samples_per_s)
    if record.derived is not None and record.derived.step_time_s is not None:
        return Measure("derived.step_time_s", record.derived.step_time_s)
    flops = None if model is None or sequence_length is None else source_flops(record, model, sequence_length)
    field, rate = _flops_per_s(record, device)
    return None if flops is None or rate is None else Measure(field, flops / rate / devices)


def why_unmeasured(record: RunRecord) -> str:
    """Why `measured_step` finds nothing in a row that has a price, in words that name the field."""
    convention = "absent" if not record.flops_convention else f"{record.flops_convention!r}, which is not known"
    if record.measured.tflops_per_gpu is not None:
        reason = f"measured.tflops_per_gpu alone is given, and flops_convention is {convention}"
    elif record.measured.mfu is None:
        reason = "none of its fields is given"
    elif precision_of(record) in _PLAIN_PEAKS:
        reason = f"measured.mfu alone is given, and flops_convention is {convention}"
    else:
        reason = f"measured.mfu alone is given, and of which peak is not known for {record.precision}"
    return f"measured: no step time can be derived, {reason}"


def _flops_per_s(record: RunRecord, device: Device | None) -> tuple[str, float | None]:
    """Field and FLOP/s of one device. Sources divide 8-bit rates by one peak or another, 16-bit ones by theirs."""
    measured, precision = record.measured, precision_of(record)
    if measured.tflops_per_gpu is not None:
        return "measured.tflops_per_gpu", measured.tflops_per_gpu * 1e12
    if measured.mfu is None or device is None or isinstance(precision, Skipped) or precision not in _PLAIN_PEAKS:
        return "measured.mfu", None
    peak = device.peak(precision)
    return "measured.mfu", None if peak is None else measured.mfu * peak


def source_flops(record: RunRecord, model: Model, sequence_length: int) -> float | None:
    """FLOPs of one step as `flops_convention` counts them; None where it is not known.

    Model FLOPs leave out recomputation; hardware FLOPs ("HFU", "4x fwd", "eq.3", "remat") count a second forward pass
    of the blocks. Source of eq. 3: arXiv 2104.04473.
    """
    convention = (record.flops_convention or "").lower()
    assert record.batch.samples is not None
    tokens = record.batch.samples * sequence_length
    if any(word in convention for word in ("hfu", "hardware", "4x", "eq.3", "eq. 3", "remat")):
        last = model.layers[-1]
        head = 6.0 * model.hidden_size * last.vocab_size if isinstance(last, Head) else 0.0
        return tokens * (head + (model_flops_per_token(model, sequence_length) - head) * 4 / 3)
    # A rate whose share of the peak is called MFU counts model FLOPs, whatever else is not said.
    if "mfu" in convention or "model flops" in convention or (not convention and record.measured.mfu is not None):
        return tokens * model_flops_per_token(model, sequence_length)
    return None


def counted_bytes(record: RunRecord, stack: str, memory: Mapping[str, int]) -> int:
    """Of the predicted parts of a device's memory, the sum of those that the row's measure counts.

    Allocated tensors (XLA's buffers, which Alpa prints; "allocated" in the notes) are without the reserve; what the
    allocator holds and what the device's driver reports are taken for the same.
    """
    allocated = stack == ALPA or "allocated" in record.words
    return sum(memory.values()) - (memory["reserve"] if allocated else 0)


def peak_memory_bytes(record: RunRecord) -> int | None:
    """The largest memory of a device; `peak_mem_gb` is in GiB where the row says so, else in 10⁹ bytes."""
    peak = record.measured.peak_mem_gb
    if peak is None:
        return None
    return round(peak * (_GIB if record.peak_mem_unit == "GiB" else _GB))
