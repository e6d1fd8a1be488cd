"""Which software stack a run used: from the words of its source, else from how it was trained.

The rule, in this order (docs/runs-format.md shows it as a table):
1. the system that stands in parentheses in the source's title ("LiBai v0.2 benchmarks (Megatron-LM)"), else the title;
2. for comparisons of systems (Alpa's), the system that the row's notes name;
3. Megatron-LM is `megatron-core` where the title's last year is 2023 or later, or the device is newer than A100;
4. without any known word: ZeRO-3 or FSDP is `pytorch-fsdp`, fp16 is `megatron-2021`, all else `megatron-core`.
"""

from __future__ import annotations

import re

from profiles.runs.record import RunRecord

MEGATRON_2021 = "megatron-2021"
MEGATRON_CORE = "megatron-core"
MEGATRON_DEEPSPEED = "megatron-deepspeed"
ONEFLOW = "oneflow"
ALPA = "alpa"
PYTORCH_FSDP = "pytorch-fsdp"

WITHOUT_FLASH = frozenset({MEGATRON_2021, MEGATRON_DEEPSPEED, ONEFLOW, ALPA})
"""Stacks whose attention writes its scores to memory."""

_WORDS = (
    ("torchtitan", PYTORCH_FSDP),
    ("llm-foundry", PYTORCH_FSDP),
    ("mosaicml", PYTORCH_FSDP),
    ("megatron-deepspeed", MEGATRON_DEEPSPEED),
    ("bloom", MEGATRON_DEEPSPEED),
    ("bigscience", MEGATRON_DEEPSPEED),
    ("vtrain", MEGATRON_DEEPSPEED),
    ("deepspeed", MEGATRON_DEEPSPEED),
    ("megatron core", MEGATRON_CORE),
    ("megatron-core", MEGATRON_CORE),
    ("mcore", MEGATRON_CORE),
    ("megatron-bridge", MEGATRON_CORE),
    ("nemo", MEGATRON_CORE),
    ("dgxc", MEGATRON_CORE),
    ("primus", MEGATRON_CORE),
    ("nanotron", MEGATRON_CORE),
    ("parallel folding", MEGATRON_CORE),
    ("smartmoe", MEGATRON_2021),
    ("fastmoe", MEGATRON_2021),
    ("fastermoe", MEGATRON_2021),
    ("korthikanti", MEGATRON_2021),
    ("narayanan", MEGATRON_2021),
    ("sc21", MEGATRON_2021),
    ("alpa", ALPA),
    ("libai", ONEFLOW),
    ("oneflow", ONEFLOW),
    ("fsdp", PYTORCH_FSDP),
)
_COMPARED = (("deepspeed", MEGATRON_DEEPSPEED), ("megatron", MEGATRON_2021))
_YEAR = re.compile(r"\b20[12]\d\b")
_NO_LATER_THAN_A100 = re.compile(r"\b(p100|v100|a100|a800|rtx|titan|t4)\b")


def stack_of(record: RunRecord) -> str:
    """The name of the stack of `profiles/software` that a row is priced with."""
    title = record.source.lower()
    for part in (*re.findall(r"\(([^()]*)\)", title), title):
        found = _named(part, record)
        if found == ALPA:
            return next((stack for word, stack in _COMPARED if f"{word}-" in record.words), ALPA)
        if found:
            return found
    if record.parallel.zero == 3 or _sharded(record.parallel.fsdp):
        return PYTORCH_FSDP
    return MEGATRON_2021 if record.precision.lower() == "fp16" else MEGATRON_CORE


def _named(text: str, record: RunRecord) -> str | None:
    found = next((stack for word, stack in _WORDS if word in text), None)
    if found is None and "megatron" in text:
        years = [int(year) for year in _YEAR.findall(record.source)]
        old = _NO_LATER_THAN_A100.search(record.hardware.gpu.lower()) and (not years or max(years) <= 2022)
        # A title such as "2021-2023" dates a page, not a run: fp16 tells the older runs on it.
        old = old or record.precision.lower() == "fp16"
        return MEGATRON_2021 if old else MEGATRON_CORE
    return found


def _sharded(fsdp: int | str | None) -> bool:
    return fsdp not in (None, 0, 1, "0", "off", "none", "NO_SHARD")
