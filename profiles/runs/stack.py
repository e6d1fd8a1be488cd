"""Which software stack a run used: from the words of its source, else from how it was trained.

The rule, in this order (docs/runs-format.md shows it as a table):
1. the system that stands in parentheses in the source's title ("LiBai v0.2 benchmarks (Megatron-LM)"), else the title;
2. for comparisons of systems (Alpa's), the system that the row's notes name;
3. Megatron-LM is Megatron-Core where the title's last year is 2023 or later, or the device is newer than A100;
4. without any known word: ZeRO-3 or FSDP is `pytorch-fsdp`, fp16 is `megatron-2021`, all else Megatron-Core;
5. Megatron-Core is one of three stacks, by the release (25.04) or arXiv number (2504) in notes or title.
"""

from __future__ import annotations

import re

from planner.spec.strategy import Sharding
from profiles.runs.fsdp import fsdp_of
from profiles.runs.record import RunRecord

MEGATRON_2021 = "megatron-2021"
MEGATRON_CORE_2024 = "megatron-core-2024"
MEGATRON_CORE_2025 = "megatron-core-2025"
MEGATRON_CORE_2026 = "megatron-core-2026"
MEGATRON_DEEPSPEED = "megatron-deepspeed"
ONEFLOW = "oneflow"
ALPA = "alpa"
PYTORCH_FSDP = "pytorch-fsdp"
TORCHTITAN = "torchtitan"

MEGATRON_CORE = frozenset({MEGATRON_CORE_2024, MEGATRON_CORE_2025, MEGATRON_CORE_2026})
WITHOUT_FLASH = frozenset({MEGATRON_2021, MEGATRON_DEEPSPEED, ONEFLOW, ALPA})
"""Stacks whose attention writes its scores to memory."""

_MEGATRON_CORE = "megatron-core of some release"
_FIRST_OF_2025, _FIRST_OF_2026 = (25, 5), (26, 5)
"""Releases (year, month) from which NVIDIA's own rows take less time for the same plans: those of the next stack."""
_RELEASE = re.compile(r"(?:container |\(|\bv|arxiv:? ?)(?P<year>2[3-9])\.?(?P<month>0[1-9]|1[0-2])(?!\d)")

_WORDS = (
    ("torchtitan", TORCHTITAN),
    ("llm-foundry", PYTORCH_FSDP),
    ("mosaicml", PYTORCH_FSDP),
    ("megatron-deepspeed", MEGATRON_DEEPSPEED),
    ("bloom", MEGATRON_DEEPSPEED),
    ("bigscience", MEGATRON_DEEPSPEED),
    ("vtrain", MEGATRON_DEEPSPEED),
    ("deepspeed", MEGATRON_DEEPSPEED),
    ("megatron core", _MEGATRON_CORE),
    ("megatron-core", _MEGATRON_CORE),
    ("mcore", _MEGATRON_CORE),
    ("megatron-bridge", _MEGATRON_CORE),
    ("nemo", _MEGATRON_CORE),
    ("dgxc", _MEGATRON_CORE),
    ("primus", _MEGATRON_CORE),
    ("nanotron", _MEGATRON_CORE),
    ("parallel folding", _MEGATRON_CORE),
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
    found = _family(record)
    return _of_release(record) if found == _MEGATRON_CORE else found


def _family(record: RunRecord) -> str:
    title = record.source.lower()
    for part in (*re.findall(r"\(([^()]*)\)", title), title):
        found = _named(part, record)
        if found == ALPA:
            return next((stack for word, stack in _COMPARED if f"{word}-" in record.words), ALPA)
        if found:
            return found
    if record.parallel.zero == 3 or fsdp_of(record.parallel.fsdp) in (Sharding.GRADIENTS, Sharding.FULL):
        return PYTORCH_FSDP
    return MEGATRON_2021 if record.precision.lower() == "fp16" else _MEGATRON_CORE


def _of_release(record: RunRecord) -> str:
    """By the release (25.04) or the arXiv number (2504) in notes or title; without any, the middle one."""
    dates = [
        (int(found["year"]), int(found["month"]))
        for text in (record.words, record.source.lower())
        for found in _RELEASE.finditer(text)
    ]
    if not dates:
        return MEGATRON_CORE_2025
    if dates[0] < _FIRST_OF_2025:
        return MEGATRON_CORE_2024
    return MEGATRON_CORE_2025 if dates[0] < _FIRST_OF_2026 else MEGATRON_CORE_2026


def _named(text: str, record: RunRecord) -> str | None:
    found = next((stack for word, stack in _WORDS if word in text), None)
    if found is None and "megatron" in text:
        years = [int(year) for year in _YEAR.findall(record.source)]
        old = _NO_LATER_THAN_A100.search(record.hardware.gpu.lower()) and (not years or max(years) <= 2022)
        # A title such as "2021-2023" dates a page, not a run: fp16 tells the older runs on it.
        old = old or record.precision.lower() == "fp16"
        return MEGATRON_2021 if old else _MEGATRON_CORE
    return found
