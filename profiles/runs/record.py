"""The RUNS format: training runs that somebody measured, one JSON object per run (docs/runs-format.md).

A row may carry keys that are not read here (its own notes on quality, say), but no misspelt ones. Unknown facts are
null or absent. Nothing is derived here: what a row means for a model, a cluster and a plan is in the modules beside.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, model_validator

from planner.spec.model import MAX_LAYERS
from planner.spec.value import Count, Index, Name, Positive, Value

MAX_STEP_TIME_S = 86_400.0
"""A step of more than a day is no step, or is not in seconds."""
MIN_STEP_TIME_S = 1e-5
MAX_FLOPS_PER_S_PER_DEVICE = 1e17
"""More than any accelerator does, in any number format."""
MIN_TFLOPS, MAX_TFLOPS = 0.1, 20_000.0
"""What one accelerator may reach, in 10¹² FLOP/s."""
UNIT_FACTOR = 300.0
"""Two measures of one run that lie further apart are in different units (milliseconds, thousands of tokens)."""


def _in_seconds(value: float) -> float:
    if not MIN_STEP_TIME_S <= value <= MAX_STEP_TIME_S:
        raise ValueError(f"must be in seconds, from {MIN_STEP_TIME_S:g} to {MAX_STEP_TIME_S:g}, got {value:g}")
    return value


def _in_tflops(value: float) -> float:
    if not MIN_TFLOPS <= value <= MAX_TFLOPS:
        raise ValueError(f"must be 10¹² FLOP/s of one device, from {MIN_TFLOPS:g} to {MAX_TFLOPS:g}, got {value:g}")
    return value


StepTime = Annotated[float, AfterValidator(_in_seconds)]
TeraFlops = Annotated[float, AfterValidator(_in_tflops)]
Layers = Annotated[int, Field(strict=True, ge=1, le=MAX_LAYERS - 2)]


class Part(Value):
    """An object of the format: keys that are not known are left alone, but misspelt ones are refused."""

    model_config = ConfigDict(extra="ignore")

    @model_validator(mode="before")
    @classmethod
    def _no_misspelt_keys(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        known = {field.alias or name for name, field in cls.model_fields.items()}
        absent = sorted(known - data.keys())
        for key in data:
            if key not in known and (close := get_close_matches(str(key), absent, n=1, cutoff=0.85)):
                raise ValueError(f"{key}: is not a known field; did you mean {close[0]}?")
        return data


class LatentSizes(Part):
    """Ranks and head sizes of multi-head latent attention."""

    q_lora_rank: Count | None = None
    kv_lora_rank: Count
    qk_nope: Count
    qk_rope: Count
    v: Count


class ModelFacts(Part):
    """What is known of the architecture."""

    name: Name
    family: Name
    layers: Layers | None = None
    hidden: Count | None = None
    ffn_hidden: Count | None = None
    heads: Count | None = None
    kv_heads: Count | None = None
    head_dim: Count | None = None
    vocab: Count | None = None
    seq: Count | None = None
    experts: Index | None = None
    top_k: Index | None = None
    moe_layer_freq: str | Count | tuple[Index, ...] | None = None
    moe_ffn_hidden: Count | None = None
    shared_experts: Index | None = None
    shared_expert_hidden: Index | None = None
    mla: LatentSizes | None = None
    mtp_layers: Index | None = None
    params_b: Positive | None = None
    note: str | None = None


class HardwareFacts(Part):
    """Devices and their links, as the source names them."""

    gpu: Name
    gpus: Annotated[Count, Field(le=2**24)]
    gpus_per_node: Count | None = None
    intra: str | None = None
    inter: str | None = None


class ParallelFacts(Part):
    """Degrees; `dp` is devices / (tp·pp·cp), expert parallelism is carved out of dp·cp·tp."""

    tp: Count | None = None
    pp: Count | None = None
    dp: Count | None = None
    cp: Count | None = None
    vpp: Index | None = None
    ep: Index | None = None
    etp: Index | None = None
    zero: Annotated[int, Field(strict=True, ge=0, le=3)] | None = None
    fsdp: bool | Index | str | None = None
    sp: Annotated[bool, Field(strict=True)] | None = None
    recompute: str | None = None
    offload: Any = None


class BatchFacts(Part):
    """Samples per step, samples per micro-batch and data-parallel rank, tokens per sample."""

    samples: Annotated[Annotated[Count, Field(le=2**24)] | None, Field(alias="global")] = None
    micro: Count | None = None
    seq: Count | None = None


class MeasuredFacts(Part):
    """What was measured; every rate is per device but `samples_per_s`."""

    step_time_s: StepTime | None = None
    tokens_per_s_per_gpu: Positive | None = None
    samples_per_s: Positive | None = None
    tflops_per_gpu: TeraFlops | None = None
    mfu: Annotated[float, Field(gt=0, lt=1.5)] | None = None
    peak_mem_gb: Annotated[float, Field(gt=0, lt=10_000)] | None = None


class DerivedFacts(Part):
    """A step time that whoever collected the row computed by the source's own formula."""

    step_time_s: StepTime | None = None


class RunRecord(Part):
    """One row."""

    id: Name
    source: Annotated[str, Field(min_length=1)]
    model: ModelFacts
    hardware: HardwareFacts
    parallel: ParallelFacts
    batch: BatchFacts
    precision: Name
    measured: MeasuredFacts
    precision_class: str | None = None
    notes: str | None = None
    kind: str | None = None
    group: str | None = None
    flops_convention: str | None = None
    peak_mem_unit: Literal["GB", "GiB"] | None = None
    derived: DerivedFacts | None = None
    grad_accum: Count | None = None
    optimizer: str | None = None
    quality: str | None = None
    oom: Annotated[bool, Field(strict=True)] = False
    usable_for_accuracy: Annotated[bool, Field(strict=True)] = True

    @property
    def words(self) -> str:
        """The notes in small letters, to look for words in."""
        return (self.notes or "").lower()

    @model_validator(mode="after")
    def _sizes_agree(self) -> RunRecord:
        _check_devices(self)
        _check_units(self)
        return self


def _check_devices(row: RunRecord) -> None:
    sizes = [("dp", row.parallel.dp), ("tp", row.parallel.tp), ("pp", row.parallel.pp), ("cp", row.parallel.cp or 1)]
    product = 1
    for _, size in sizes:
        if size is None:
            return
        product *= size
    if product != row.hardware.gpus:
        text = " x ".join(f"{name} {size}" for name, size in sizes)
        raise ValueError(f"parallel.dp: {text} must be hardware.gpus {row.hardware.gpus}, is {product}")


def _check_units(row: RunRecord) -> None:
    """Measures of one run must agree within the factor between two units, and no device is faster than any can be."""
    batch, measured = row.batch, row.measured
    if batch.samples is None:
        return
    ways: dict[str, float] = {}
    if measured.step_time_s is not None:
        ways["step_time_s"] = measured.step_time_s
    if measured.samples_per_s is not None:
        ways["samples_per_s"] = batch.samples / measured.samples_per_s
    if measured.tokens_per_s_per_gpu is not None and batch.seq is not None:
        ways["tokens_per_s_per_gpu"] = batch.samples * batch.seq / measured.tokens_per_s_per_gpu / row.hardware.gpus
    names = list(ways)
    for name in names[1:]:
        if max(ways[name], ways[names[0]]) > UNIT_FACTOR * min(ways[name], ways[names[0]]):
            raise ValueError(
                f"measured.{names[0]}: must be in {_UNITS[names[0]]} and measured.{name} in {_UNITS[name]}: they say "
                f"{ways[names[0]]:.4g} s and {ways[name]:.4g} s per step"
            )
    _check_rate(row, ways)


_UNITS = {
    "step_time_s": "seconds",
    "samples_per_s": "samples per second of all devices",
    "tokens_per_s_per_gpu": "tokens per second of one device",
}


def _check_rate(row: RunRecord, ways: Mapping[str, float]) -> None:
    """At least the matrices of the blocks are multiplied: 6 FLOPs for each of 12 h² parameters a block, roughly."""
    facts, batch = row.model, row.batch
    if not ways or batch.samples is None or facts.layers is None or facts.hidden is None or facts.ffn_hidden is None:
        return
    least = 6.0 * facts.layers * 2 * facts.hidden * facts.hidden * batch.samples * (batch.seq or 1)
    name, seconds = next(iter(ways.items()))
    rate = least / seconds / row.hardware.gpus
    if rate > MAX_FLOPS_PER_S_PER_DEVICE:
        raise ValueError(
            f"measured.{name}: must be in {_UNITS[name]}: a step of {seconds:.4g} s would need more than "
            f"{rate:.1e} FLOP/s of each device"
        )
