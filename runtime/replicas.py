"""Replicas of experts: one gradient for all slots of an expert, and the weights of shadow experts.

Which slots hold the same expert changes with every placement; so there are no process groups for them, but two
all-to-all over the expert-parallel group, with all layers in one message: replicas send what they have to the first
slot of their expert, which adds it up in the order of slots and sends the sum to the others. Each of n slots sends and
receives one gradient, the first n - 1 of both; all slots end with the same bits.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from runtime.exchange import Group, rank
from runtime.experts import Expert
from runtime.shipment import Parcel, ship
from runtime.slots import SlotMap


class Replicated(Protocol):
    """A layer as this module sees it."""

    group: Group | None
    slot_map: SlotMap

    def expert_at(self, slot: int) -> Expert:
        """The expert in a slot of this rank."""


class Share(NamedTuple):
    """A further slot of an expert, beside its first."""

    layer: Replicated
    owner: int
    """The expert's first lasting slot."""
    slot: int


def sum_replicas(layers: Sequence[Replicated], group: Group | None, device: torch.device) -> None:
    """Give every lasting slot the sum of the gradients in all slots of its expert. A collective over the layers' group.

    Shadow experts keep what they had: it is of no further use.
    """
    shares = list(_shares(layers))
    room = [[torch.empty_like(gradient) for gradient in _gradients(share.layer, share.owner)] for share in shares]
    ship(
        [_parcel(share, share.slot, share.owner, into) for share, into in zip(shares, room, strict=True)], group, device
    )
    for share, parts in zip(shares, room, strict=True):
        for gradient, part in zip(_gradients(share.layer, share.owner), parts, strict=True):
            gradient.add_(part)
    lasting = [share for share in shares if not share.layer.slot_map.is_shadow(share.slot)]
    ship(
        [_parcel(share, share.owner, share.slot, _gradients(share.layer, share.slot)) for share in lasting],
        group,
        device,
    )


def _shares(layers: Sequence[Replicated]) -> Iterator[Share]:
    for layer in layers:
        if not layer.slot_map.has_replicas:
            continue
        for slot, expert in enumerate(layer.slot_map.experts):
            owner = layer.slot_map.holders[expert][0]
            if slot != owner:
                yield Share(layer, owner, slot)


def _parcel(share: Share, from_slot: int, to_slot: int, into: Sequence[Tensor]) -> Parcel:
    slots = share.layer.slot_map
    return Parcel(slots.rank_of(from_slot), slots.rank_of(to_slot), _gradients(share.layer, from_slot), into)


def _gradients(layer: Replicated, slot: int) -> list[Tensor]:
    """Of the expert in a slot; nothing if another rank has the slot."""
    if layer.slot_map.rank_of(slot) != rank(layer.group):
        return []
    return gradients_of(layer.expert_at(slot).parameters())


def bring_shadows(layers: Sequence[Replicated], group: Group | None, device: torch.device) -> None:
    """Copy the weights of shadow experts from the nearest slot that holds them for good. A collective."""
    parcels = []
    for layer in layers:
        slots = layer.slot_map
        for slot in filter(slots.is_shadow, range(len(slots.experts))):
            to_rank = slots.rank_of(slot)
            from_slot = slots.nearest(slots.experts[slot], to_rank)
            parcels.append(Parcel(slots.rank_of(from_slot), to_rank, _weights(layer, from_slot), _weights(layer, slot)))
    ship(parcels, group, device)


def _weights(layer: Replicated, slot: int) -> list[Tensor]:
    if layer.slot_map.rank_of(slot) != rank(layer.group):
        return []
    return [parameter.detach() for parameter in layer.expert_at(slot).parameters()]


def gradients_of(parameters: Iterable[nn.Parameter]) -> list[Tensor]:
    """The gradients of those that are trained; zeros take the place of one that is not there."""
    found = []
    for parameter in parameters:
        if not parameter.requires_grad:
            continue
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        found.append(parameter.grad)
    return found
