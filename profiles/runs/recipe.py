"""From a row's number format, batch and notes to a training recipe."""

from __future__ import annotations

import re

from planner.spec.cluster import Precision
from planner.spec.training import AttentionKernel, Optimizer, Training
from profiles.runs.record import RunRecord
from profiles.runs.skipped import Skipped
from profiles.runs.stack import MEGATRON_2021, MEGATRON_DEEPSPEED, ONEFLOW, WITHOUT_FLASH

_CAPACITY = re.compile(r"capacity(?: factor)?[ =:]*(?P<factor>\d+(?:\.\d+)?)")
_TOKEN_DROP = re.compile(r"token-? ?drop")
_BLACKWELL = re.compile(r"\bg?b[23]00\b")
_WITH_DROPOUT = frozenset({MEGATRON_2021, MEGATRON_DEEPSPEED, ONEFLOW})
"""Stacks whose example scripts drop out a tenth (BLOOM's do not)."""


def training_of(record: RunRecord, stack: str) -> Training | Skipped:
    """The recipe of a row; needs `batch.global` and `batch.seq`."""
    batch = record.batch
    sequence_length = batch.seq or record.model.seq
    if batch.samples is None or sequence_length is None:
        lacking = [name for name, value in (("global", batch.samples), ("seq", sequence_length)) if value is None]
        return Skipped(f"{', '.join(f'batch.{name}' for name in lacking)}: not known")
    precision, optimizer = precision_of(record), _optimizer(record.optimizer)
    if isinstance(precision, Skipped):
        return precision
    if isinstance(optimizer, Skipped):
        return optimizer
    return Training(
        global_batch_size=batch.samples,
        sequence_length=sequence_length,
        precision=precision,
        optimizer=optimizer,
        gradient_precision=_gradients(record, precision),
        attention_kernel=AttentionKernel.UNFUSED if _unfused(record, stack) else AttentionKernel.FLASH,
        dropout=stack in _WITH_DROPOUT and _drops_out(record.model.family.lower()),
        capacity_factor=_capacity_factor(record) if record.model.experts else None,
    )


def _capacity_factor(record: RunRecord) -> float | None:
    """As the notes give it; token-drop without a number means 1, and nothing said means dropless."""
    found = _CAPACITY.search(record.words)
    if found and float(found["factor"]) > 0:
        return float(found["factor"])
    return 1.0 if _TOKEN_DROP.search(record.words) else None


def _unfused(record: RunRecord, stack: str) -> bool:
    """Whether scores are written to memory: as the stack did, unless notes or context parallelism tell otherwise."""
    return stack in WITHOUT_FLASH and "flash" not in record.words and (record.parallel.cp or 1) == 1


def precision_of(record: RunRecord) -> Precision | Skipped:
    """`precision` as sources write it: amp_bf16, FP8-CS (a scale per tensor), FP8-MX and MXFP8, NVFP4, …"""
    text = re.sub(r"[^a-z0-9]+", " ", record.precision.lower()).strip()
    blackwell = _BLACKWELL.search(record.hardware.gpu.lower()) is not None
    if "nvfp4" in text or "fp4" in text:
        return Precision.NVFP4
    if "fp8" in text:
        by_blocks = "mx" in text.replace("fp8", " ").split() or "mxfp8" in text
        # "MX on Blackwell / block on Hopper" names both; Hopper has no units for the first.
        return Precision.MXFP8 if by_blocks and blackwell else Precision.FP8
    for name, precision in (("bf16", Precision.BF16), ("fp16", Precision.FP16), ("half", Precision.FP16)):
        if name in text:
            return precision
    if "32" in text and "tf32" not in text:
        return Precision.FP32
    return Skipped(f"precision: {record.precision!r} is not a number format that is known")


def _optimizer(text: str | None) -> Optimizer | Skipped:
    name = (text or "adam").lower()
    if "adam" in name or "lamb" in name:
        return Optimizer.ADAM
    if any(word in name for word in ("sgd", "lion", "momentum", "adafactor")):
        return Optimizer.SGD
    return Skipped(f"optimizer: {text!r} is not modelled")


def _gradients(record: RunRecord, precision: Precision) -> Precision:
    """In 16 bits under fp16 (Megatron's and DeepSpeed's default) and FSDP's PURE mode, else in 32."""
    if precision is Precision.FP16:
        return Precision.FP16
    return Precision.BF16 if "PURE" in str(record.parallel.fsdp).upper() else Precision.FP32


def _drops_out(family: str) -> bool:
    return "bloom" not in family and family.startswith(("gpt", "bert"))
