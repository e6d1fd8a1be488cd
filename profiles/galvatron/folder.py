"""Which of the user's files is what: Galvatron's names say most of it. Reads files, understands no numbers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from planner.spec.errors import InputError
from profiles.files import read_json_file
from profiles.galvatron.results import is_search_result

_SIZE = r"(?P<nodes>\d+)nodes_(?P<per_node>\d+)gpus_per_node"
_HARDWARE = re.compile(rf"(?P<kind>allreduce_bandwidth|p2p_bandwidth|sp_time)_{_SIZE}")
_MODEL = re.compile(r"(?P<kind>computation|memory)_profiling_(?P<precision>fp32|fp16|bf16)_(?P<model>.+?)(_all)?")
_PLAN = re.compile(rf"galvatron_config_(?P<model>.+?)_{_SIZE}.*")
_SHAPE_KEYS = {"n_layer", "n_embd", "n_head", "vocab_size"}

Size = tuple[int, int]
"""Nodes, and devices of each."""
Content = dict[str, Any]


class File(NamedTuple):
    """One file and what stands in it."""

    name: str
    """As errors call it: without folders."""
    content: Content


class PlanContent(NamedTuple):
    """A plan file, and what its name says."""

    file: File
    model: str
    size: Size


class Files(NamedTuple):
    """All files, by what they are."""

    hardware: dict[tuple[str, Size], File]
    """By kind (`allreduce_bandwidth`, `p2p_bandwidth`, `sp_time`) and size of the cluster."""
    overlap: File | None
    models: dict[tuple[str, str], dict[str, File]]
    """By name of the model and number format: by kind (`computation`, `memory`)."""
    shapes: tuple[File, ...]
    plans: tuple[PlanContent, ...]
    results: tuple[File, ...]
    unknown: tuple[str, ...]
    """Names of files that are none of these."""


def read_files(paths: Iterable[Path]) -> Files:
    """The JSON files among `paths` and below them; raises InputError under `DIR`, also if one is there twice."""
    found = Files({}, None, {}, (), (), (), ())
    for path in _json_files(paths):
        found = _with(found, path.stem, File(path.name, read_json_file(path, path.name)))
    return found


def _json_files(paths: Iterable[Path]) -> Iterator[Path]:
    for path in paths:
        if path.is_file():
            yield path
        elif path.is_dir():
            yield from sorted(path.rglob("*.json"))
        else:
            raise InputError.at("DIR", f"there is no file or folder {path}")


def _with(found: Files, stem: str, file: File) -> Files:
    """The files with one more."""
    if match := _HARDWARE.fullmatch(stem):
        _put(found.hardware, (match["kind"], _size(match)), file)
    elif match := _MODEL.fullmatch(stem):
        _put(found.models.setdefault((match["model"], match["precision"]), {}), match["kind"], file)
    elif match := _PLAN.fullmatch(stem):
        if _is_new(file, [plan.file for plan in found.plans]):
            return found._replace(plans=(*found.plans, PlanContent(file, match["model"], _size(match))))
    elif stem == "overlap_coefficient":
        if found.overlap is not None and found.overlap.content != file.content:
            raise _twice(file)
        return found._replace(overlap=file)
    elif is_search_result(file.content):
        if _is_new(file, found.results):
            return found._replace(results=(*found.results, file))
    elif file.content.keys() >= _SHAPE_KEYS:
        if _is_new(file, found.shapes):
            return found._replace(shapes=(*found.shapes, file))
    else:
        return found._replace(unknown=(*found.unknown, file.name))
    return found


def _is_new(file: File, others: Iterable[File]) -> bool:
    """Whether no file of this name is there; raises InputError if one is that differs."""
    same = [other for other in others if other.name == file.name]
    if any(other.content != file.content for other in same):
        raise _twice(file)
    return not same


def _put(files: dict[Any, File], key: object, file: File) -> None:
    if files.setdefault(key, file).content != file.content:
        raise _twice(file)


def _twice(file: File) -> InputError:
    return InputError.at("DIR", f"has two files {file.name} that differ; give the folder of one")


def _size(match: re.Match[str]) -> Size:
    return int(match["nodes"]), int(match["per_node"])
