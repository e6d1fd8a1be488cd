"""Live migration of experts, with everything that belongs to them, from one placement to another.

With an expert travel its weights, its gradients and its optimizer state (for Adam: both moments, the step count, and
master weights if the optimizer keeps them with the parameter). Parameter objects stay where they are: a physical slot
keeps its parameters, and gets other content; so the optimizer goes on as if nothing had happened.

All or nothing, in four phases on all ranks of the expert-parallel group:

1. prepare: each rank checks the request against its layers and its optimizer, packs what it has to send (only what
   moves), and allocates what it will receive: all that can fail on one rank alone;
2. agree: ranks exchange a digest of what they have prepared. If one refuses, or two differ, all raise, and nothing has
   moved;
3. exchange: one all-to-all, into the new buffers;
4. commit: every rank unpacks its buffers into its slots and notes the placement.

Where several groups are to move together (pipeline stages: `runtime.stages`), they agree between 2 and 3.

A swap needs no care: sources were packed before the first slot is overwritten. Call it between optimizer steps: then
replicas are equal, and any of them can be the source. Shadow slots are filled by the layer, before its next forward
pass; a new split moves nothing.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from planner.spec.errors import InputError
from planner.spec.placement import Placement
from planner.spec.value import content_id
from runtime.agreement import all_or_none
from runtime.exchange import rank
from runtime.moe import ExpertParallelMoe
from runtime.shipment import Parcel, Shipment
from runtime.slots import SlotMap, as_slot_maps


class Transfer(NamedTuple):
    """One expert that goes from one physical slot of a layer (numbered over all ranks) to another."""

    layer: int
    from_slot: int
    to_slot: int


@dataclass(frozen=True)
class Prepared:
    """What a rank is ready to do; dropping it leaves all as it is."""

    layers: Sequence[ExpertParallelMoe]
    maps: list[SlotMap]
    """The target, layer by layer."""
    transfers: list[Transfer]
    shipment: Shipment
    began_s: float
    """`time.perf_counter()` when it began."""

    def carry_out(self) -> Migration:
        """Exchange and commit; a collective over the expert-parallel group."""
        if self.transfers:
            self.shipment.exchange()
            self.shipment.unpack()
        for layer, slots in zip(self.layers, self.maps, strict=True):
            layer.place(slots)
        if self.shipment.received.device.type == "cuda":
            torch.cuda.synchronize(self.shipment.received.device)
        return Migration(len(self.transfers), self.shipment.received.numel(), time.perf_counter() - self.began_s)


@dataclass(frozen=True)
class Migration:
    """What a migration did, over all ranks of the group."""

    moved_experts: int
    """Slots that got another expert, over all layers; shadow slots are not counted, they are filled in every step."""
    received_bytes: int
    """Bytes that this rank received, from itself included."""
    pause_s: float
    """How long it kept this rank from training, waiting for the others included."""


def current_placement(layers: Sequence[ExpertParallelMoe]) -> Placement:
    """Where the experts of these layers sit now."""
    return placement_of([layer.slot_map for layer in layers])


def placement_of(maps: Sequence[SlotMap]) -> Placement:
    """The slots of all layers as one placement."""
    even = all(slots.split is None for slots in maps)
    return Placement(
        layers=tuple(slots.experts for slots in maps),
        num_ranks=maps[0].num_ranks,
        shadow_slots_per_rank=maps[0].shadows_per_rank,
        split=None if even else tuple(slots.parts() for slots in maps),
    )


def migrate(
    layers: Sequence[ExpertParallelMoe], target: Placement, optimizer: torch.optim.Optimizer | None = None
) -> Migration:
    """Bring the experts of all `layers` (one expert-parallel group) to `target`; every rank of the group calls it.

    `optimizer` None: the experts have no optimizer state. Raises InputError if the request cannot be right on this
    rank; ConflictError if this rank cannot prepare for another reason (memory, say: its cause), if another rank
    refuses, or if it wants something else. Then nothing has changed on any rank, and all may go on as they are.
    """
    return prepare(layers, target, optimizer).carry_out()


def prepare(
    layers: Sequence[ExpertParallelMoe], target: Placement, optimizer: torch.optim.Optimizer | None = None
) -> Prepared:
    """The first half of `migrate`, which can be refused, and raises as it does: its phases 1 and 2."""
    began_s = time.perf_counter()
    group = layers[0].group
    device = next(layers[0].experts.parameters()).device

    def ready() -> tuple[str, Prepared]:
        prepared = _prepare(layers, target, optimizer, began_s)
        placements = [placement.model_dump(mode="json") for placement in (current_placement(layers), target)]
        return content_id([placements, _layout(layers, optimizer)]), prepared

    return all_or_none(ready, "the migration", group, device)


def check_movable(layers: Sequence[ExpertParallelMoe], optimizer: torch.optim.Optimizer | None) -> None:
    """Raises InputError if the optimizer does not hold the experts, or not in a way in which they can move."""
    _layout(layers, optimizer)


def _prepare(
    layers: Sequence[ExpertParallelMoe], target: Placement, optimizer: torch.optim.Optimizer | None, began_s: float
) -> Prepared:
    """All that can fail on this rank alone."""
    maps = _maps(layers, target)
    transfers = list(_transfers(layers, maps))
    device = next(layers[0].experts.parameters()).device
    shipment = Shipment.pack(_parcels(layers, transfers, optimizer), layers[0].group, device)
    return Prepared(layers, maps, transfers, shipment, began_s)


def _maps(layers: Sequence[ExpertParallelMoe], target: Placement) -> list[SlotMap]:
    """The target, layer by layer; raises InputError where it does not fit."""
    if len(target.layers) != len(layers):
        raise InputError.at("placement.layers", f"has {len(target.layers)} layers, the model has {len(layers)}")
    if target.num_ranks != layers[0].num_ranks:
        raise InputError.at("placement.num_ranks", f"is {target.num_ranks}, the group has {layers[0].num_ranks} ranks")
    maps = as_slot_maps(target, [layer.num_experts for layer in layers])
    for number, (layer, slots) in enumerate(zip(layers, maps, strict=True)):
        if slots.shadows_per_rank != layer.slot_map.shadows_per_rank:
            raise InputError.at(
                "placement.shadow_slots_per_rank",
                f"is {slots.shadows_per_rank}, the layer was made with {layer.slot_map.shadows_per_rank}",
            )
        if slots.per_rank != layer.slots_per_rank:
            raise InputError.at(
                f"placement.layers[{number}]",
                f"has {slots.per_rank} slots on each rank, the layer was made with {layer.slots_per_rank}",
            )
    return maps


def _transfers(layers: Sequence[ExpertParallelMoe], maps: Sequence[SlotMap]) -> Iterator[Transfer]:
    """What has to move, in an order that all ranks share: into each lasting slot that gets another expert.

    From the nearest slot that has the expert. Replicas are equal, so it does not matter which; those that no slot of
    the target wants vanish.
    """
    for number, (layer, target) in enumerate(zip(layers, maps, strict=True)):
        now = layer.slot_map
        for slot, (before, after) in enumerate(zip(now.experts, target.experts, strict=True)):
            if before != after and not target.is_shadow(slot):
                yield Transfer(number, now.nearest(after, target.rank_of(slot)), slot)


def _layout(layers: Sequence[ExpertParallelMoe], optimizer: torch.optim.Optimizer | None) -> list[Any]:
    """Number formats and shapes of what belongs to an expert, by layer; equal for all experts of a layer."""
    layouts = []
    for number, layer in enumerate(layers):
        kinds = {content_id(_describe(layer, local, optimizer)) for local in range(len(layer.experts))}
        if len(kinds) > 1:
            raise InputError.at(f"layers[{number}]", "its experts differ in gradients, optimizer state or options")
        layouts.append(kinds.pop())
    return layouts


def _describe(layer: ExpertParallelMoe, local: int, optimizer: torch.optim.Optimizer | None) -> list[Any]:
    parameters = list(layer.experts[local].parameters())
    groups = [] if optimizer is None else [_group_of(optimizer, parameter) for parameter in parameters]
    return [groups, [[name, list(part.shape), str(part.dtype)] for name, part in _parts(layer, local, optimizer)]]


def _group_of(optimizer: torch.optim.Optimizer, parameter: Tensor) -> int | None:
    for number, group in enumerate(optimizer.param_groups):
        if any(parameter is other for other in group["params"]):
            return number
    if parameter.requires_grad:
        raise InputError.at("optimizer", "does not hold the experts of the model: give the one that trains them")
    return None


def _parts(
    layer: ExpertParallelMoe, local: int, optimizer: torch.optim.Optimizer | None
) -> Iterator[tuple[str, Tensor]]:
    """Every tensor that belongs to the expert in the layer's slot `local` of this rank, with a name, in fixed order."""
    for name, parameter in layer.experts[local].named_parameters():
        if hasattr(parameter, "device_mesh"):  # a DTensor: to import its class takes a second
            raise InputError.at(
                "model", f"has experts of which each rank holds a part ({name}): leave them out of FSDP"
            )
        yield name, parameter.detach()
        if parameter.grad is not None:
            yield f"{name}.grad", parameter.grad
        state = {} if optimizer is None else optimizer.state.get(parameter, {})
        for key in sorted(state):
            value = state[key]
            if not isinstance(value, Tensor):
                raise InputError.at("optimizer", f"keeps {key!r} as {type(value).__name__}; only tensors can move")
            yield f"{name}.{key}", value


def _parcels(
    layers: Sequence[ExpertParallelMoe], transfers: Sequence[Transfer], optimizer: torch.optim.Optimizer | None
) -> Iterator[Parcel]:
    for number, from_slot, to_slot in transfers:
        layer = layers[number]
        from_rank, to_rank = layer.slot_map.rank_of(from_slot), layer.slot_map.rank_of(to_slot)
        me = rank(layer.group)
        contents, into = (
            [part for _, part in _parts(layer, slot - layer.local_slots.start, optimizer)] if there == me else []
            for there, slot in ((from_rank, from_slot), (to_rank, to_slot))
        )
        yield Parcel(from_rank, to_rank, contents, into)
