"""What a rank holds of a model, under the names and numbers of the whole model.

Without pipeline parallelism that is the model. A stage has some of its layers, in one piece or, with virtual stages, in
several, and a module in a piece may have another name than in the model: `blocks.0` on the second of two stages is
`blocks.12` of 24. Knows neither files nor optimizers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from planner.spec.errors import InputError
from planner.spec.parse import parse
from planner.spec.placement import Placement
from runtime.exchange import Group, gather_json
from runtime.migration import placement_of
from runtime.moe import ExpertParallelMoe
from runtime.shares import Share, check_numbers, share_of, whole_model
from runtime.stages import device_of

WRAPPERS = frozenset({"_orig_mod", "_checkpoint_wrapped_module"})
"""Parts of names that torch.compile and its wrapper for activation checkpointing add."""


@dataclass(frozen=True)
class Part:
    """What this rank holds of a model: `Part(chunks, moe_layers=[2, 3], names=[{"blocks.0": "blocks.2"}])`."""

    chunks: Sequence[nn.Module]
    """In the order of the model; several with virtual stages."""
    moe_layers: Sequence[int] | None = None
    """The numbers of its expert-parallel layers among all of the model, as in `Agent`. None: it has them all."""
    names: Sequence[Mapping[str, str]] = ()
    """For each chunk, modules or parameters whose names are others in the whole model, and these names; the longest
    that a name begins with counts. (): all are called there as they are here. Stages that have equal names by mistake
    are refused, unless neither has a MoE layer and all their names are equal: they look like one stage twice."""

    def __post_init__(self) -> None:
        if not self.chunks:
            raise InputError.at("model", "must have at least one chunk on each rank")
        if len(self.names) not in (0, len(self.chunks)):
            raise InputError.at("names", f"must be for each of the {len(self.chunks)} chunks, not {len(self.names)}")
        for chunk, names in zip(self.chunks, self.names, strict=False):
            known = {_plain(name) for name, _ in chunk.named_modules()} | {_plain(name) for name in chunk.state_dict()}
            if strangers := names.keys() - known:
                raise InputError.at("names", f"no module and no parameter of its chunk is called {min(strangers)!r}")
        if len(self.numbers) != len(self.layers()):
            wrong = f"has {len(self.numbers)} numbers, but this rank has {len(self.layers())} MoE layers"
            raise InputError.at("moe_layers", wrong)
        check_numbers(self.numbers)

    @classmethod
    def of(cls, model: nn.Module | Part) -> Part:
        """A whole model as one."""
        return cls((model,)) if isinstance(model, nn.Module) else model

    @property
    def device(self) -> torch.device:
        """Of the first parameter."""
        return device_of(self.chunks)

    @property
    def numbers(self) -> list[int]:
        """Of its MoE layers in the whole model."""
        return list(range(len(self.layers())) if self.moe_layers is None else self.moe_layers)

    def layers(self) -> list[tuple[str, ExpertParallelMoe]]:
        """Its expert-parallel layers, in order, by name in the whole model."""
        return [
            (self._in_model(number, name), module)
            for number, chunk in enumerate(self.chunks)
            for name, module in chunk.named_modules()
            if isinstance(module, ExpertParallelMoe)
        ]

    def state(self) -> Iterator[tuple[str, Any]]:
        """All that its state dict has, by name in the whole model; raises InputError where one name stands for two."""
        seen = set()
        for number, chunk in enumerate(self.chunks):
            for name, value in chunk.state_dict(keep_vars=True).items():
                whole = self._in_model(number, name)
                if whole in seen:
                    raise InputError.at("names", f"two things on this rank are called {whole!r}")
                seen.add(whole)
                yield whole, value

    def _in_model(self, chunk: int, name: str) -> str:
        parts = _plain(name).split(".")
        names = self.names[chunk] if self.names else {}
        for length in range(len(parts), 0, -1):
            if (begin := ".".join(parts[:length])) in names:
                return ".".join(filter(None, [names[begin], *parts[length:]]))
        return ".".join(parts)


def placement_of_model(part: Part, group: Group | None) -> Placement | None:
    """Where the experts of all MoE layers of the model sit; None if it has none. A collective over all ranks.

    Raises InputError, the same on all ranks, if their parts do not make one model together.
    """
    layers = part.layers()
    inside = tuple(f"{name}." if name else "" for name, _ in layers)
    mine = {
        "share": share_of(layers, part.moe_layers).model_dump(mode="json"),
        "names": sorted(name for name, _ in part.state() if not inside or not name.startswith(inside)),
    }
    everyone = gather_json(mine, group, part.device)
    _check_names(everyone)
    if not any(other["share"]["layers"] for other in everyone):
        return None
    held, _ = whole_model([other["share"] for other in everyone])
    return placement_of([slots for layer in held if (slots := layer.slot_map) is not None])


def _check_names(everyone: Sequence[dict[str, Any]]) -> None:
    """Whether each MoE layer has one name, each name one layer, and stages share no other names."""
    numbers: dict[str, tuple[int, int]] = {}
    names: dict[int, tuple[int, str]] = {}
    for rank, other in enumerate(everyone):
        for layer in parse(Share, other["share"]).layers:
            first, number = numbers.setdefault(layer.name, (rank, layer.number))
            if number != layer.number:
                raise _same_name(first, rank, layer.name)
            first, name = names.setdefault(layer.number, (rank, layer.name))
            if name != layer.name:
                message = f"MoE layer {layer.number} is {name!r} on rank {first} and {layer.name!r} on rank {rank}"
                raise InputError.at("names", message)
    stages: dict[tuple[str, ...], int] = {}
    for rank, other in enumerate(everyone):
        stages.setdefault(tuple(other["names"]), rank)
    holders: dict[str, int] = {}
    for stage, rank in stages.items():
        for name in stage:
            if holders.setdefault(name, rank) != rank:
                raise _same_name(holders[name], rank, name)


def _same_name(first: int, second: int, name: str) -> InputError:
    return InputError.at(
        "names",
        f"ranks {first} and {second} hold different parts of the model, and both have {name!r}: say what it is called "
        "in the whole model, Part(names=[…])",
    )


def join_names(names: Iterable[str]) -> str:
    """One dotted name; the model itself has none."""
    return ".".join(filter(None, names))


def _plain(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)
