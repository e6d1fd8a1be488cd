"""Measures that no run of the row's model on the row's devices can have: they are in another unit than they should be.

What is compared needs the model and the device; where one is not known, nothing is said. The bounds leave room for all
published runs (MFU from 0.8 % to 68 %, peaks up to all of the memory, parameters within a third of what is stated).
"""

from __future__ import annotations

from planner.cost.flops import model_flops_per_token
from planner.cost.parameters import total_parameters
from planner.spec.cluster import Device
from planner.spec.errors import Problem
from planner.spec.model import Model
from profiles.runs.architecture import lacking_facts, model_of
from profiles.runs.machine import find_preset
from profiles.runs.measured import Measure, measured_step, peak_memory_bytes
from profiles.runs.recipe import precision_of
from profiles.runs.record import RunRecord
from profiles.runs.skipped import Skipped

LEAST_MFU_RATIO, MOST_MFU_RATIO = 0.002, 1.3
"""Model FLOPs over the peak of the row's number format. Some sources overlap, or count a little otherwise."""
MOST_MEMORY_RATIO = 1.3
"""Of the device's memory; names of devices are loose about it."""
MOST_SIZE_FACTOR = 3.0
"""Between the stated parameters and those of the architecture, either way."""
_EXPECTED = {
    "measured.step_time_s": ("s", "seconds are expected"),
    "measured.tokens_per_s_per_gpu": ("tokens/s", "tokens per second of one device are expected"),
    "measured.samples_per_s": ("samples/s", "samples per second of all devices are expected"),
    "derived.step_time_s": ("s", "seconds are expected"),
    "measured.tflops_per_gpu": ("TFLOP/s", "10¹² FLOP/s of one device are expected"),
    "measured.mfu": ("of the peak", "a share of the peak is expected"),
}


def implausible(record: RunRecord) -> list[Problem]:
    """What is wrong with the units of a row, by field."""
    model = model_of(record.model, record.batch.seq or record.model.seq or 1)
    preset = find_preset(record.hardware)
    problems = []
    if not isinstance(preset, Skipped):
        problems.append(_memory(record, preset.device))
    if not isinstance(model, Skipped):
        problems.append(_size(record, model))
        if not isinstance(preset, Skipped):
            problems.append(_speed(record, model, preset.device))
    return [problem for problem in problems if problem is not None]


def _speed(record: RunRecord, model: Model, device: Device) -> Problem | None:
    found, precision = measured_step(record, model, device), precision_of(record)
    samples, sequence_length = record.batch.samples, record.batch.seq or record.model.seq
    peak = None if isinstance(precision, Skipped) else device.peak(precision)
    if found is None or peak is None or samples is None or sequence_length is None:
        return None
    flops = samples * sequence_length * model_flops_per_token(model, sequence_length)
    mfu = flops / found.seconds / record.hardware.gpus / peak
    if LEAST_MFU_RATIO <= mfu <= MOST_MFU_RATIO:
        return None
    unit, expected = _EXPECTED[found.field]
    devices = f"{record.hardware.gpus} {device.name}"
    return Problem(
        found.field,
        f"is {_value(record, found):.6g} {unit}, which is {_percent(mfu)} of the peak of {devices} with this model and "
        f"batch; {expected}",
    )


def _value(record: RunRecord, found: Measure) -> float:
    """What stands in the field."""
    part, name = found.field.split(".")
    value: float = getattr(getattr(record, part), name)
    return value


def _memory(record: RunRecord, device: Device) -> Problem | None:
    peak = peak_memory_bytes(record)
    if peak is None or peak <= MOST_MEMORY_RATIO * device.memory_bytes:
        return None
    unit, bytes_ = ("GiB", 2**30) if record.peak_mem_unit == "GiB" else ("GB", 10**9)
    return Problem(
        "measured.peak_mem_gb",
        f"is {record.measured.peak_mem_gb:g} {unit}, but {device.name} has {device.memory_bytes / bytes_:.3g} {unit}; "
        f"{unit} of one device are expected",
    )


def _size(record: RunRecord, model: Model) -> Problem | None:
    stated = record.model.params_b
    if stated is None or lacking_facts(record.model):
        return None
    counted = total_parameters(model) / 1e9
    if max(stated, counted) <= MOST_SIZE_FACTOR * min(stated, counted):
        return None
    return Problem(
        "model.params_b", f"is {stated:g}, but layers and sizes make {counted:.3g}; 10⁹ parameters are expected"
    )


def _percent(ratio: float) -> str:
    return f"{100 * ratio:.2g} %" if ratio < 1 else f"{100 * ratio:,.0f} %"
