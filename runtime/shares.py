"""Which MoE layers of the model each rank holds, and whether they make the whole model together.

Without pipeline parallelism every rank holds all of them. With it, a rank holds those of its stages: of several pieces
with virtual stages, none at all where a stage has an embedding or dense layers only. Layers are numbered from 0, MoE
layers only, through the whole model. All here is plain data and pure; `runtime.joining.agree` carries it around.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import count
from typing import Any

import torch

from planner.spec.errors import InputError
from planner.spec.parse import parse
from planner.spec.placement import TokenSplit
from planner.spec.value import Count, Index, Value
from runtime.arguments import Apply
from runtime.hooks import RouterCounter
from runtime.migration import check_movable
from runtime.moe import ExpertParallelMoe
from runtime.slots import SlotMap


class OwnLayer(Value):
    """An expert-parallel layer of Trimtab, as its ranks have it."""

    slots: tuple[Index, ...]
    split: tuple[float, ...] | None
    num_ranks: Count
    shadow_slots_per_rank: Index
    extra_slots_per_rank: int
    token_split: TokenSplit


class HeldLayer(Value):
    """A MoE layer that a rank holds."""

    number: Index
    name: str
    num_experts: Count
    own: OwnLayer | None
    """None: it has a router of another framework."""

    @property
    def slot_map(self) -> SlotMap | None:
        """Where its experts sit; None if it is not ours."""
        if self.own is None:
            return None
        own = self.own
        return SlotMap(own.slots, self.num_experts, own.num_ranks, own.shadow_slots_per_rank, own.split)


class Share(Value):
    """What one rank holds of the model."""

    layers: tuple[HeldLayer, ...]
    all_layers: bool
    """The rank did not say which: it has to hold all MoE layers of the model."""
    migrates: bool | None
    """Whether experts are to be moved; None: this rank leaves it to the others, as it has none, or nobody asks."""


def my_share(
    counters: Sequence[RouterCounter],
    layers: Sequence[ExpertParallelMoe],
    numbers: Sequence[int] | None,
    apply: Apply | None,
    optimizer: torch.optim.Optimizer | None,
) -> Share:
    """What this rank holds: its routers, the expert-parallel layers around them if they are ours, and their numbers.

    `numbers` None: all from 0 on. Raises InputError if they cannot be, or if experts are to be moved but cannot.
    """
    mine = list(range(len(counters)) if numbers is None else numbers)
    if len(mine) != len(counters):
        names = ", ".join(counter.name for counter in counters) or "none"
        raise InputError.at(
            "moe_layers", f"has {len(mine)} numbers, but this rank has {len(counters)} routers: {names}"
        )
    check_numbers(mine)
    migrates = _migrates(layers, counters, apply, optimizer)
    own = [_own(layer) for layer in layers] if layers else [None] * len(counters)
    held = (
        HeldLayer(number=number, name=counter.name, num_experts=counter.num_experts, own=layer)
        for number, counter, layer in zip(mine, counters, own, strict=True)
    )
    return Share(layers=tuple(held), all_layers=numbers is None, migrates=migrates)


def check_numbers(numbers: Sequence[int]) -> None:
    """Raises InputError if these cannot be numbers of MoE layers of one rank."""
    if len(set(numbers)) != len(numbers) or not all(type(number) is int and number >= 0 for number in numbers):
        raise InputError.at("moe_layers", f"must be different whole numbers from 0 on, got {list(numbers)}")


def share_of(layers: Sequence[tuple[str, ExpertParallelMoe]], numbers: Sequence[int] | None) -> Share:
    """What a rank holds that has these expert-parallel layers of ours, by name; nothing is said of moving experts."""
    held = (
        HeldLayer(number=number, name=name, num_experts=layer.num_experts, own=_own(layer))
        for number, (name, layer) in zip(range(len(layers)) if numbers is None else numbers, layers, strict=True)
    )
    return Share(layers=tuple(held), all_layers=numbers is None, migrates=None)


def whole_model(shares: Sequence[Any]) -> tuple[list[HeldLayer], bool]:
    """All MoE layers of the model, and whether experts are to be moved, from the shares of all ranks as plain data.

    Raises InputError, the same wherever the shares are the same, if a layer is held by nobody, or if ranks contradict
    each other.
    """
    texts = [json.dumps(share) for share in shares]
    known = {text: parse(Share, json.loads(text)) for text in dict.fromkeys(texts)}  # most ranks hold what others do
    by_rank = [known[text] for text in texts]
    found: dict[int, tuple[int, HeldLayer]] = {}
    for rank, share in enumerate(by_rank):
        for layer in share.layers:
            _check_equal(*found.setdefault(layer.number, (rank, layer)), rank, layer)
    _check_complete(by_rank, {number: rank for number, (rank, _) in found.items()})
    layers = [found[number][1] for number in sorted(found)]
    if len({layer.own and (layer.own.num_ranks, layer.own.shadow_slots_per_rank) for layer in layers}) > 1:
        raise InputError.at(
            "model", "has MoE layers over different numbers of ranks or shadow slots, or of Trimtab and others mixed"
        )
    return layers, _agreed_migration(by_rank)


def _own(layer: ExpertParallelMoe) -> OwnLayer:
    return OwnLayer(
        slots=layer.slot_map.experts,
        split=layer.slot_map.split,
        num_ranks=layer.num_ranks,
        shadow_slots_per_rank=layer.slot_map.shadows_per_rank,
        extra_slots_per_rank=layer.extra_slots_per_rank,
        token_split=layer.token_split,
    )


def _check_equal(first_rank: int, first: HeldLayer, rank: int, layer: HeldLayer) -> None:
    where = f"MoE layer {layer.number} must be the same on all ranks that hold it; rank {first_rank} has"
    if layer.num_experts != first.num_experts:
        raise InputError.at("model", f"{where} {first.num_experts} experts, rank {rank} has {layer.num_experts}")
    if layer.own != first.own:
        raise InputError.at("model", f"{where} other slots, split or kind of layer than rank {rank}")


def _check_complete(shares: Sequence[Share], first_holders: dict[int, int]) -> None:
    """Whether layers are numbered without a gap, and ranks that did not say their numbers hold all."""
    total = max(first_holders, default=-1) + 1
    if total == 0:
        raise InputError.at(
            "moe_layers", "no rank holds a MoE layer; the ranks that hold some must be in the group too"
        )
    missing = next(number for number in count() if number not in first_holders)
    if missing < total:
        raise InputError.at(
            "moe_layers",
            f"no rank holds MoE layer {missing}, but rank {first_holders[total - 1]} holds {total - 1}: number the MoE "
            "layers of the whole model from 0 on",
        )
    for rank, share in enumerate(shares):
        if share.all_layers and len(share.layers) != total:
            raise InputError.at(
                "moe_layers",
                f"rank {rank} has {len(share.layers)} of the model's {total} MoE layers; say which on each rank: "
                "moe_layers=[…]",
            )


def _agreed_migration(shares: Sequence[Share]) -> bool:
    said = [(rank, share.migrates) for rank, share in enumerate(shares) if share.migrates is not None]
    if not said:
        return False
    first_rank, migrates = said[0]
    for rank, other in said:
        if other != migrates:
            raise InputError.at(
                "apply",
                f"must be the same on all ranks; rank {first_rank} has {json.dumps(migrates)}, "
                f"rank {rank} has {json.dumps(other)}",
            )
    return migrates


def _migrates(
    layers: Sequence[ExpertParallelMoe],
    counters: Sequence[RouterCounter],
    apply: Apply | None,
    optimizer: torch.optim.Optimizer | None,
) -> bool | None:
    """As `Share.migrates`; raises InputError if experts are to be moved but cannot."""
    if layers and len(layers) != len(counters):
        raise InputError.at("model", "mixes expert-parallel layers of Trimtab with routers of other frameworks")
    if not counters:
        return None if apply is None else apply == "migrate"
    if apply == "advise" or (apply is None and not layers):
        return False
    if not layers:
        raise InputError.at("apply", 'must be "advise": the model has no expert-parallel layer of Trimtab to migrate')
    if optimizer is None:
        raise InputError.at("optimizer", 'is required to move experts with their state; or use apply="advise"')
    check_movable(layers, optimizer)
    return True
