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

A swap needs no care: sources were packed before the first slot is overwritten. Call it between optimizer steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from planner.spec.errors import ConflictError, InputError
from planner.spec.placement import Placement
from planner.spec.value import content_id
from runtime.exchange import Group, is_distributed, num_ranks, rank
from runtime.moe import ExpertParallelMoe, check_slots


class Transfer(NamedTuple):
    """One expert that goes from one physical slot of a layer (numbered over all ranks) to another."""

    layer: int
    from_slot: int
    to_slot: int


class Arrival(NamedTuple):
    """One expert on its way to this rank."""

    layer: int
    local_slot: int
    size_bytes: int


@dataclass(frozen=True)
class Shipment:
    """What leaves this rank, packed in the order of destinations, and room for what comes, in the order of sources."""

    moved_experts: int
    sent: Tensor
    send_counts: list[int]
    received: Tensor
    receive_counts: list[int]
    arrivals: list[Arrival]

    def exchange(self, group: Group | None) -> None:
        """Fill `received`. A collective."""
        if is_distributed():
            dist.all_to_all_single(self.received, self.sent, self.receive_counts, self.send_counts, group=group)
        else:
            self.received.copy_(self.sent)


@dataclass(frozen=True)
class Migration:
    """What a migration did, over all ranks of the group."""

    moved_experts: int
    """Experts that changed their slot, over all layers."""
    received_bytes: int
    """Bytes that this rank received, from itself included."""


def current_placement(layers: Sequence[ExpertParallelMoe]) -> Placement:
    """Where the experts of these layers sit now."""
    return Placement(layers=tuple(layer.slots for layer in layers), num_ranks=layers[0].num_ranks)


def migrate(
    layers: Sequence[ExpertParallelMoe], target: Placement, optimizer: torch.optim.Optimizer | None = None
) -> Migration:
    """Bring the experts of all `layers` (one expert-parallel group) to `target`; every rank of the group calls it.

    `optimizer` None: the experts have no optimizer state. Raises InputError if the request cannot be right on this
    rank; ConflictError if this rank cannot prepare for another reason (memory, say: its cause), if another rank
    refuses, or if it wants something else. Then nothing has changed on any rank, and all may go on as they are.
    """
    group = layers[0].group
    refusal: Exception | None = None
    digest = ""
    try:
        shipment = _prepare(layers, target, optimizer)
        digest = content_id([current_placement(layers).layers, target.layers, _layout(layers, optimizer)])
    except Exception as error:  # whatever it is, the other ranks must hear of it before this one raises
        refusal = error
    verdicts = _gather(digest, group, layers[0].slot_of_expert.device)
    if isinstance(refusal, InputError):
        raise refusal
    if "" in verdicts:
        refusing = ", ".join(str(number) for number, verdict in enumerate(verdicts) if not verdict)
        raise ConflictError(f"rank {refusing} of the group cannot prepare the migration") from refusal
    if len(set(verdicts)) > 1:
        raise ConflictError(f"the ranks do not agree on the migration (digests by rank: {verdicts}); nothing was moved")
    shipment.exchange(group)
    _commit(layers, target, optimizer, shipment)
    return Migration(shipment.moved_experts, shipment.received.numel())


def check_movable(layers: Sequence[ExpertParallelMoe], optimizer: torch.optim.Optimizer | None) -> None:
    """Raises InputError if the optimizer does not hold the experts, or not in a way in which they can move."""
    _layout(layers, optimizer)


def _transfers(layers: Sequence[ExpertParallelMoe], target: Placement) -> list[Transfer]:
    """What has to move, in an order that all ranks share; raises InputError where the target does not fit."""
    if len(target.layers) != len(layers):
        raise InputError.at("placement.layers", f"has {len(target.layers)} layers, the model has {len(layers)}")
    if target.num_ranks != layers[0].num_ranks:
        raise InputError.at("placement.num_ranks", f"is {target.num_ranks}, the group has {layers[0].num_ranks} ranks")
    transfers = []
    for number, (layer, slots) in enumerate(zip(layers, target.layers, strict=True)):
        try:
            wanted = check_slots(slots, layer.num_experts, layer.num_ranks)
        except InputError as error:
            raise error.under(f"placement.layers[{number}]") from None
        was = {expert: slot for slot, expert in enumerate(layer.slots)}
        transfers += [Transfer(number, was[e], slot) for slot, e in enumerate(wanted) if was[e] != slot]
    return transfers


def _layout(layers: Sequence[ExpertParallelMoe], optimizer: torch.optim.Optimizer | None) -> list[Any]:
    """Number formats and shapes of what belongs to an expert, by layer; equal for all experts of a layer."""
    layouts = []
    for number, layer in enumerate(layers):
        kinds = {content_id(_describe(layer, local, optimizer)) for local in range(layer.slots_per_rank)}
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
        yield name, parameter.detach()
        if parameter.grad is not None:
            yield f"{name}.grad", parameter.grad
        state = {} if optimizer is None else optimizer.state.get(parameter, {})
        for key in sorted(state):
            value = state[key]
            if not isinstance(value, Tensor):
                raise InputError.at("optimizer", f"keeps {key!r} as {type(value).__name__}; only tensors can move")
            yield f"{name}.{key}", value


def _prepare(
    layers: Sequence[ExpertParallelMoe], target: Placement, optimizer: torch.optim.Optimizer | None
) -> Shipment:
    """Pack what leaves this rank, by destination, and make room for what comes, by source."""
    device = layers[0].slot_of_expert.device
    me, ranks = rank(layers[0].group), layers[0].num_ranks
    transfers = _transfers(layers, target)
    outgoing: list[list[Tensor]] = [[] for _ in range(ranks)]
    incoming: list[list[Arrival]] = [[] for _ in range(ranks)]
    for number, from_slot, to_slot in transfers:
        layer = layers[number]
        source, from_local = divmod(from_slot, layer.slots_per_rank)
        destination, to_local = divmod(to_slot, layer.slots_per_rank)
        if source == me:
            outgoing[destination] += [_bytes(part, device) for _, part in _parts(layer, from_local, optimizer)]
        if destination == me:
            size = sum(part.numel() * part.element_size() for _, part in _parts(layer, to_local, optimizer))
            incoming[source].append(Arrival(number, to_local, size))
    receive_counts = [sum(arrival.size_bytes for arrival in source) for source in incoming]
    return Shipment(
        moved_experts=len(transfers),
        sent=torch.cat([torch.empty(0, dtype=torch.uint8, device=device), *(part for to in outgoing for part in to)]),
        send_counts=[sum(part.numel() for part in to) for to in outgoing],
        received=torch.empty(sum(receive_counts), dtype=torch.uint8, device=device),
        receive_counts=receive_counts,
        arrivals=[arrival for source in incoming for arrival in source],
    )


def _commit(
    layers: Sequence[ExpertParallelMoe],
    target: Placement,
    optimizer: torch.optim.Optimizer | None,
    shipment: Shipment,
) -> None:
    offset = 0
    for arrival in shipment.arrivals:
        for _, part in _parts(layers[arrival.layer], arrival.local_slot, optimizer):
            size = part.numel() * part.element_size()
            # A copy of the piece starts where every number format is aligned.
            piece = shipment.received[offset : offset + size].clone()
            part.copy_(piece.view(part.dtype).view(part.shape))
            offset += size
    for layer, slots in zip(layers, target.layers, strict=True):
        layer.place(slots)


def _bytes(part: Tensor, device: torch.device) -> Tensor:
    return part.detach().contiguous().reshape(-1).to(device).view(torch.uint8)


def _gather(text: str, group: Group | None, device: torch.device) -> list[str]:
    """A short text (up to 16 ASCII characters) of every rank of the group, in order."""
    if not is_distributed():
        return [text]
    mine = torch.tensor(list(text.ljust(16).encode()), dtype=torch.uint8, device=device)
    everyone = [torch.empty_like(mine) for _ in range(num_ranks(group))]
    dist.all_gather(everyone, mine, group=group)
    return [bytes(other.tolist()).decode().strip() for other in everyone]
