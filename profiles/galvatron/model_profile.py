"""Galvatron's model profiles: seconds and bytes of a block, and of embedding and head, in all spellings.

Two forms are read: that of v2.1 (one size of sequence, said by the file's name) and that of 2.4 and later (sizes in the
keys). Blocks of several kinds in one model (T5, Swin) are refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from planner.spec.errors import InputError
from planner.spec.parse import parse
from planner.spec.value import NonNegative, Positive

_WHOLE = re.compile(r"layernum\[(\d+)\]_bsz(\d+)(?:_seq(\d+))?")
_DERIVED = re.compile(r"layertype_(\d+|other)(?:_bsz\d+_seq\d+)?")
_BLOCK = re.compile(r"layertype_(\d+)(_sp)?")
_OTHER = re.compile(r"other_memory_(pp_off|pp_on_first|pp_on_last)(_sp)?")
_RAW = re.compile(r"\d+_\d+_\d+(_c)?(_vtp)?(_sp)?")
_MEBI = 2**20


class Passes(NamedTuple):
    """Forward passes of one batch on one device."""

    samples: int
    sequence_length: int
    block_s: float
    """Of one block, all samples."""
    edges_s: float
    """Of embedding and head, all samples."""


class Kept(NamedTuple):
    """Bytes of a block on each device, for one sample of `sequence_length` tokens."""

    sequence_length: int
    parameter_bytes: float
    """Of its parameters in fp32: a quarter of what its weights, gradients and optimizer state were seen to take."""
    activation_bytes: tuple[tuple[int, float], ...]
    """By tensor-parallel degree."""
    recomputed_bytes: float | None
    """Where the block is recomputed."""
    edges_activation_bytes: tuple[tuple[int, float], ...]
    """Of embedding and head together, by tensor-parallel degree."""
    edges_state_bytes: tuple[float, float]
    """Weights, gradients and optimizer state of embedding and head: on one stage, and on the first and last."""


class ModelProfile(NamedTuple):
    """What was measured of one model in one number format; `since_2_4` tells the form of its files."""

    name: str
    precision: str
    passes: tuple[Passes, ...]
    kept: tuple[Kept, ...]
    sequence_parallel: bool | None
    """Whether memory was measured with Megatron's sequence parallelism; None: it was not measured."""
    since_2_4: bool


def is_since_2_4(content: Mapping[str, object]) -> bool:
    """Whether keys, or what stands under them, say the length of sequences."""
    nested = (key for value in content.values() if isinstance(value, Mapping) for key in value)
    return any("_seq" in key or key.isdecimal() for key in (*content, *nested))


def passes_of(content: Mapping[str, object], sequence_length: int | None, field: str) -> tuple[Passes, ...]:
    """All batches that were measured with two numbers of blocks, whose difference is that of their blocks.

    The derived keys are not read: they follow from the others. `sequence_length` is that of keys without one. Raises
    InputError that names the key under `field`.
    """
    measured: dict[tuple[int, int], dict[int, float]] = {}
    for key, value in content.items():
        match = _WHOLE.fullmatch(key)
        if match is None:
            if (derived := _DERIVED.fullmatch(key)) is None:
                raise InputError.at(f"{field}.{key}", "is not a known field")
            _one_kind(derived[1], f"{field}.{key}")
            continue
        blocks, samples, tokens = match.groups()
        sequence = int(tokens) if tokens else sequence_length
        if sequence is None:
            raise InputError.at(f"{field}.{key}", "says no sequence length, and neither does the file's name")
        seconds = parse(Positive, value, f"{field}.{key}") / 1e3
        measured.setdefault((int(samples), sequence), {})[int(blocks)] = seconds
    found = []
    for (samples, sequence), by_blocks in sorted(measured.items()):
        few, many = min(by_blocks), max(by_blocks)
        if few == many:
            continue
        block_s = (by_blocks[many] - by_blocks[few]) / (many - few)
        edges_s = by_blocks[few] - few * block_s
        if block_s <= 0 or edges_s <= 0:
            raise InputError.at(
                f"{field}.layernum[{many}]_bsz{samples}", f"must take longer than with {few} blocks, in proportion"
            )
        found.append(Passes(samples, sequence, block_s, edges_s))
    return tuple(found)


def kept_of(
    content: Mapping[str, object], sequence_length: int | None, field: str
) -> tuple[tuple[Kept, ...], bool | None]:
    """Bytes by sequence length, and whether under sequence parallelism; the raw rows are not read.

    Where both are there, the rows with sequence parallelism count. Raises InputError that names the key under `field`.
    """
    known = [key for key in content if not _RAW.fullmatch(key)]
    for key in known:
        if (block := _BLOCK.fullmatch(key)) is None and _OTHER.fullmatch(key) is None:
            raise InputError.at(f"{field}.{key}", "is not a known field")
        if block is not None:
            _one_kind(block[1], f"{field}.{key}")
    if not known:
        return (), None
    suffix = "_sp" if "layertype_0_sp" in content else ""
    blocks = _by_length(content, f"layertype_0{suffix}", sequence_length, field)
    edges = {
        part: _by_length(content, f"other_memory_{part}{suffix}", sequence_length, field)
        for part in ("pp_off", "pp_on_first", "pp_on_last")
    }
    return tuple(
        _kept(sequence, block, {part: found.get(sequence) for part, found in edges.items()}, field)
        for sequence, block in sorted(blocks.items())
    ), bool(suffix)


def _kept(
    sequence: int, block: Mapping[str, object], edges: Mapping[str, Mapping[str, object] | None], field: str
) -> Kept:
    activations = dict(_mapping(block.get("tp_activation_per_bsz_dict"), f"{field}.tp_activation_per_bsz_dict"))
    recomputed = activations.pop("checkpoint", None)
    whole, first, last = (
        _mapping(edges[part], f"{field}.other_memory_{part}") for part in ("pp_off", "pp_on_first", "pp_on_last")
    )
    states = [_by_degree(edge.get("model_states"), f"{field}.model_states") for edge in (whole, first, last)]
    return Kept(
        sequence,
        parse(Positive, block.get("parameter_size"), f"{field}.parameter_size") * _MEBI,
        _by_degree(activations, f"{field}.tp_activation_per_bsz_dict"),
        None if recomputed is None else parse(NonNegative, recomputed, f"{field}.checkpoint") * _MEBI,
        _by_degree(whole.get("activation"), f"{field}.activation"),
        (states[0][0][1], states[1][0][1] + states[2][0][1]),
    )


def _by_length(
    content: Mapping[str, object], key: str, sequence_length: int | None, field: str
) -> dict[int, Mapping[str, object]]:
    """What stands under a key, by sequence length: a value for each, or one of the length that the file's name says."""
    value = _mapping(content.get(key), f"{field}.{key}")
    if value and all(name.isdecimal() for name in value):
        return {int(name): _mapping(each, f"{field}.{key}.{name}") for name, each in value.items()}
    if sequence_length is None:
        raise InputError.at(f"{field}.{key}", "says no sequence length, and neither does the file's name")
    return {sequence_length: value}


def _by_degree(value: object, field: str) -> tuple[tuple[int, float], ...]:
    """Bytes by tensor-parallel degree, from 1 on; a single number is of degree 1."""
    if not isinstance(value, Mapping):
        return ((1, parse(Positive, value, field) * _MEBI),)
    found = tuple(_degrees(value, field))
    if not found or found[0][0] != 1:
        raise InputError.at(f"{field}.1", "is required")
    return found


def _degrees(value: Mapping[str, object], field: str) -> Iterator[tuple[int, float]]:
    for name, each in sorted(value.items(), key=lambda item: (len(item[0]), item[0])):
        if not name.isdecimal():
            raise InputError.at(f"{field}.{name}", "must be a tensor-parallel degree")
        yield int(name), parse(Positive, each, f"{field}.{name}") * _MEBI


def _one_kind(number: str, field: str) -> None:
    if number not in ("0", "other"):
        raise InputError.at(field, "is a second kind of block; only models with one kind of block are read")


def _mapping(value: object, field: str) -> Mapping[str, object]:
    if value is None:
        raise InputError.at(field, "is required")
    if not isinstance(value, Mapping):
        raise InputError.at(field, f"must be an object, got {value!r:.40}")
    return value
