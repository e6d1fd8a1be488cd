"""What a row measured, in seconds per step and bytes."""

from __future__ import annotations

from collections.abc import Mapping

from planner.cost.flops import model_flops_per_token
from planner.spec.model import Head, Model
from profiles.runs.record import RunRecord
from profiles.runs.stack import ALPA

_GB, _GIB = 10**9, 2**30


def step_time_s(record: RunRecord, model: Model | None) -> float | None:
    """Seconds of one step: as printed, from tokens or samples per second, else from FLOP/s as the source counts.

    Rates in FLOP/s need the model; None where nothing was measured, or no convention is known.
    """
    samples, measured = record.batch.samples, record.measured
    if measured.step_time_s is not None or samples is None:
        return measured.step_time_s
    sequence_length = record.batch.seq or record.model.seq
    if measured.tokens_per_s_per_gpu is not None and sequence_length is not None:
        return samples * sequence_length / measured.tokens_per_s_per_gpu / record.hardware.gpus
    if measured.samples_per_s is not None:
        return samples / measured.samples_per_s
    if record.derived is not None and record.derived.step_time_s is not None:
        return record.derived.step_time_s
    flops = None if model is None or sequence_length is None else source_flops(record, model, sequence_length)
    if flops is None or measured.tflops_per_gpu is None:
        return None
    return flops / (measured.tflops_per_gpu * 1e12) / record.hardware.gpus


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
