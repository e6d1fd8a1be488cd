"""Checkpoints by logical expert: a job goes on with another placement, other replicas, other ranks, other stages.

    folder/step-00000400/            one checkpoint, complete as soon as it has this name
        trimtab.json                 step, placement with its split, options of the optimizer
        .metadata, __0_0.distcp, …   tensors, each once, in the format of torch.distributed.checkpoint
    folder/step-00000500.partial/    one that was not finished: nobody reads it

The names of tensors say which expert of which layer it is (`runtime.logical`), so each rank reads what its slots need.
Under pipeline parallelism all stages write one checkpoint, under the names of the whole model (`runtime.parts`); so
the model may be cut elsewhere when it is read. A checkpoint is written under a name of its own and then renamed: a rank
that dies on the way leaves the last one as it was. All ranks need the same folder (a file system that they share).
Random numbers and the place in the data are not in it: the step is, from which the caller finds them.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any
from warnings import catch_warnings, filterwarnings

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load as load_tensors
from torch.distributed.checkpoint.state_dict_saver import save as save_tensors

from planner.spec.errors import InputError, MalformedError, NotFoundError, UnavailableError
from planner.spec.parse import parse, read_json
from planner.spec.placement import Placement
from planner.spec.value import Index, Value, content_id
from runtime.agreement import all_or_none
from runtime.exchange import Group, gathered, is_distributed, rank
from runtime.logical import all_names, held_by, one_name_each, optimizer_state, options_of, restore
from runtime.parts import Part, placement_of_model
from runtime.slots import as_slot_maps
from runtime.stages import part_of

HEAD = "trimtab.json"
MODEL, OPTIMIZER = "model", "optimizer"

Shapes = dict[str, TensorStorageMetadata]
"""Number formats and shapes of the tensors in a checkpoint."""


class Checkpoint(Value):
    """What a checkpoint says of itself."""

    format: Annotated[int, Field(ge=1, le=1)] = 1
    step: Index
    placement: Placement | None
    """Where the experts were; None: the model has no expert-parallel layer."""
    optimizer: tuple[dict[str, Any], ...] | None
    """Options of each group of parameters; None: saved without an optimizer."""


def save(
    folder: Path | str,
    step: int,
    model: nn.Module | Part,
    optimizer: torch.optim.Optimizer | None = None,
    group: Group | None = None,
) -> Path:
    """Write `folder`/step-…; every rank of `group` (all that train; None: all ranks) calls it. Between steps.

    `model`: a `Part` on pipeline stages, whose optimizers must have the same groups of parameters, some maybe empty. Of
    replicas one is written. Raises InputError if the state cannot be saved or this step is there already, ConflictError
    if another rank refuses, UnavailableError if it cannot be written; then no checkpoint has come to be.
    """
    final = Path(folder) / f"step-{step:08d}"
    partial = final.with_name(f"{final.name}.partial")
    part = Part.of(model)

    def prepare() -> tuple[str, tuple[list[dict[str, Any]] | None, dict[str, Tensor]]]:
        options = None if optimizer is None else options_of(optimizer)
        return content_id([step, options]), (options, _tensors(part, optimizer))

    def begin() -> tuple[str, None]:
        if rank(group) == 0:
            _make_room(final, partial)
        return "begun", None

    def complete() -> tuple[str, None]:
        if rank(group) == 0:
            _complete(partial, final, head)
        return "complete", None

    options, tensors = all_or_none(prepare, f"the checkpoint {final}", group, part.device)
    placement = placement_of_model(part, group)
    head = parse(Checkpoint, {"step": step, "placement": placement, "optimizer": options}, "checkpoint")
    all_or_none(begin, f"the checkpoint {final}", group, part.device)
    with _as_ours(f"the checkpoint {final} could not be written"):
        writer = FileSystemWriter(partial)
        save_tensors(dict(tensors), storage_writer=writer, process_group=group, no_dist=not is_distributed())
    all_or_none(complete, f"the checkpoint {final}", group, part.device)
    return final


def load(
    path: Path | str,
    model: nn.Module | Part,
    optimizer: torch.optim.Optimizer | None = None,
    group: Group | None = None,
) -> Checkpoint:
    """Read a checkpoint into a model and an optimizer made as they were made for it, on however many ranks and stages.

    The experts take the checkpoint's placement and split if these fit the model's ranks and slots; otherwise they stay
    where they are. An optimizer that was not saved starts afresh. Raises InputError (ConflictError on other ranks)
    before anything has changed if the checkpoint is not for this model and optimizer, NotFoundError if there is none,
    UnavailableError if it cannot be read to its end: then the model is to be thrown away.
    """
    path, part = Path(path), Part.of(model)

    def prepare() -> tuple[str, tuple[Checkpoint, Shapes]]:
        head, shapes = read_head(path), _shapes(path)
        _check(head, shapes, part, optimizer)
        return content_id(head.model_dump(mode="json")), (head, shapes)

    head, shapes = all_or_none(prepare, f"the checkpoint {path}", group, part.device)
    _check_all_wanted(shapes, part, group)
    _adopt(head.placement, part)
    held = held_by(part)
    tensors = {f"{MODEL}/{name}": copies[0].detach() for name, copies in held.items()}
    saved = optimizer if head.optimizer is not None else None
    names = [] if saved is None else one_name_each(part, saved)
    mine = set(names)
    state = {(key, name): f"{OPTIMIZER}/{key}/{name}" for key, name in _optimizer_keys(shapes) if name in mine}
    tensors |= {at: torch.empty(shapes[at].size, dtype=shapes[at].properties.dtype) for at in state.values()}
    _read(path, tensors, group, no_dist=not is_distributed())
    for first, *others in held.values():
        for other in others:
            other.detach().copy_(first.detach())
    if saved is not None and head.optimizer is not None:
        restore(saved, names, head.optimizer, {key: tensors[at] for key, at in state.items()})
    return head


def latest(folder: Path | str) -> Path | None:
    """The complete checkpoint of the highest step in a folder; None if it has none."""
    complete = [path for path in Path(folder).glob("step-*") if re.fullmatch(r"step-\d+", path.name)]
    return max(complete, key=lambda path: int(path.name.removeprefix("step-")), default=None)


def read_head(path: Path | str) -> Checkpoint:
    """What a checkpoint says of itself; raises NotFoundError if it is none, InputError if it cannot be read."""
    try:
        text = (Path(path) / HEAD).read_bytes()
    except OSError as error:
        raise NotFoundError(f"{path} is no checkpoint: {error}") from None
    return parse(Checkpoint, read_json(text, "checkpoint"), "checkpoint")


def read_model(path: Path | str) -> dict[str, Tensor]:
    """All weights of a checkpoint by logical name, on one process: a state dict for experts in order."""
    path = Path(path)
    read_head(path)
    wanted = {key: shape for key, shape in _shapes(path).items() if key.startswith(MODEL)}
    tensors = {key: torch.empty(shape.size, dtype=shape.properties.dtype) for key, shape in wanted.items()}
    _read(path, tensors, None, no_dist=True)
    return {key.removeprefix(f"{MODEL}/"): tensor for key, tensor in tensors.items()}


def _tensors(part: Part, optimizer: torch.optim.Optimizer | None) -> dict[str, Tensor]:
    tensors = {f"{MODEL}/{name}": copies[0].detach() for name, copies in held_by(part).items()}
    if optimizer is not None:
        for (key, name), tensor in optimizer_state(part, optimizer).items():
            tensors[f"{OPTIMIZER}/{key}/{name}"] = tensor
    return tensors


def _make_room(final: Path, partial: Path) -> None:
    if final.exists():
        raise InputError.at("step", f"{final} is there already")
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir(parents=True)


def _complete(partial: Path, final: Path, head: Checkpoint) -> None:
    """Give a checkpoint whose tensors are written its head and its name, so that a crash of the machine keeps both."""
    with (partial / HEAD).open("w") as file:
        file.write(head.model_dump_json(indent=1))
        file.flush()
        os.fsync(file.fileno())
    _keep_names(partial)
    partial.rename(final)
    _keep_names(final.parent)


def _keep_names(folder: Path) -> None:
    """What a folder lists survives a crash of the machine: fsync of a file does not see to that."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _shapes(path: Path) -> Shapes:
    try:
        found = FileSystemReader(path).read_metadata().state_dict_metadata
    except Exception as error:  # torch reads a pickle here, which fails in many ways
        raise MalformedError.at("checkpoint", f"{path} cannot be read: {error}") from error
    return {key: entry for key, entry in found.items() if isinstance(entry, TensorStorageMetadata)}


def _optimizer_keys(shapes: Shapes) -> Iterator[tuple[str, str]]:
    """(what the optimizer calls it, logical name) of each of its tensors."""
    for at in shapes:
        kind, *rest = at.split("/", 2)
        if kind == OPTIMIZER:
            yield rest[0], rest[1]


def _check(head: Checkpoint, shapes: Shapes, part: Part, optimizer: torch.optim.Optimizer | None) -> None:
    """Whether it has all that this rank needs."""
    if missing := {f"{MODEL}/{name}" for name in all_names(part)} - shapes.keys():
        raise InputError.at("checkpoint", f"lacks {min(missing).removeprefix(f'{MODEL}/')!r}")
    for name, (tensor, *_) in held_by(part).items():
        size = shapes[f"{MODEL}/{name}"].size
        if size != tensor.shape:
            raise InputError.at("checkpoint", f"has {name!r} of shape {list(size)}, the model of {list(tensor.shape)}")
    rows = 0 if head.placement is None else len(head.placement.layers)
    if max(part.numbers, default=-1) >= rows:
        raise InputError.at("moe_layers", f"has {max(part.numbers)}, the checkpoint {rows} MoE layers from 0 on")
    if optimizer is not None:
        one_name_each(part, optimizer)
        if head.optimizer is not None and len(head.optimizer) != len(optimizer.param_groups):
            raise InputError.at(
                "optimizer", f"has {len(optimizer.param_groups)} groups, the checkpoint's had {len(head.optimizer)}"
            )


def _check_all_wanted(shapes: Shapes, part: Part, group: Group | None) -> None:
    """Whether some rank holds each of its tensors; raises InputError on all ranks."""
    found, mine = sorted(at for at in shapes if at.startswith(MODEL)), all_names(part)
    held = torch.tensor([at.removeprefix(f"{MODEL}/") in mine for at in found], dtype=torch.uint8, device=part.device)
    for at, somewhere in zip(found, gathered(held, group).amax(dim=0).tolist(), strict=True):
        if not somewhere:
            raise InputError.at("checkpoint", f"has, unlike the model, {at.removeprefix(f'{MODEL}/')!r}")


def _adopt(placement: Placement | None, part: Part) -> None:
    """Take over a placement, if there is one that fits."""
    layers = [layer for _, layer in part.layers()]
    maps = [layer.slot_map for layer in layers]
    if placement is not None and layers and placement.num_ranks == layers[0].num_ranks:
        wanted = as_slot_maps(part_of(placement, part.numbers), [layer.num_experts for layer in layers])
        if [(m.per_rank, m.shadows_per_rank) for m in wanted] == [(m.per_rank, m.shadows_per_rank) for m in maps]:
            maps = wanted
    for layer, slots in zip(layers, maps, strict=True):
        layer.place(slots)


def _read(path: Path, tensors: dict[str, Tensor], group: Group | None, no_dist: bool) -> None:
    with _as_ours(f"the checkpoint {path} could not be read"):
        load_tensors(dict(tensors), storage_reader=FileSystemReader(path), process_group=group, no_dist=no_dist)


@contextmanager
def _as_ours(what: str) -> Iterator[None]:
    """torch's complaint about a checkpoint, which is no Exception, as ours; that there is one process is no news."""
    try:
        with catch_warnings():
            filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
            yield
    except CheckpointException as error:
        raise UnavailableError(f"{what}: {error}") from error
