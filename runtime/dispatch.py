"""The way of tokens to their experts and back: all-to-all, the experts of each rank, all-to-all.

All ranks first know how many rows each of them sends to each slot (`counts` [R, S], by one all-gather: the only time at
which the host waits for the device; nor does it where every slot takes a fixed number of rows). Whatever follows needs
no further word between the ranks.

R ranks, S slots (numbered rank by rank), E experts; T tokens of this rank, k choices of each, of which -1 is not sent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from planner.spec.errors import InputError
from runtime.crossing import there_and_back
from runtime.exchange import gathered
from runtime.rows import pack, reordered, unpack
from runtime.topology import Counts, Topology, swapped
from runtime.upload import uploaded

Split = Callable[[Counts], Counts]
"""Choices of each rank for each expert [R, E] → how many of them go to each slot [R, S]; the same on all ranks."""


def count(choices: Tensor, bins: int) -> Tensor:
    """How often each of 0 … bins - 1 stands in `choices`, of any shape: [bins]; the host does not wait for it."""
    flat = choices.flatten()
    counts = flat.new_zeros(bins + 1).scatter_add_(0, flat.where(flat >= 0, bins), torch.ones_like(flat))
    return counts[:bins]


def gather_counts(counts: Tensor, topology: Topology) -> Counts:
    """`counts` [n] of each rank → [R, n] on the host of all. The host waits for the device."""
    return gathered(counts, topology.group).cpu().numpy()


def share_out(choices: Tensor, slots: Sequence[int], split: Split, topology: Topology) -> tuple[Tensor, Counts]:
    """Experts chosen [T, k] → slots [T, k], and rows from each rank to each slot [R, S].

    `slots` [S]: the expert in each slot. Of the choices of one expert, token by token, the first go to its first slot,
    as many as `split` says, the next to its second, and so on.
    """
    shares = split(gather_counts(count(choices, max(slots) + 1), topology))
    return slots_of(choices, slots, shares[topology.rank]), shares


def slots_of(choices: Tensor, slots: Sequence[int], shares: Counts) -> Tensor:
    """Experts chosen [T, k] → slots [T, k], by this rank's `shares` [S]; see `share_out`."""
    if len(set(slots)) == len(slots):
        slot_of_expert = np.append(np.argsort(slots), -1)  # the last is where -1 finds itself
        return uploaded(slot_of_expert, choices.device)[choices]
    flat = choices.flatten()
    by_expert = flat.where(flat >= 0, len(slots)).argsort(stable=True)
    order = np.argsort(slots, kind="stable")
    table = uploaded(np.stack([order, shares[order]]), flat.device)
    total = int(shares.sum())
    slot = table[0].repeat_interleave(table[1], output_size=total)
    return torch.full_like(flat, -1).index_copy_(0, by_expert[:total], slot).view_as(choices)


def through_experts(
    tokens: Tensor,
    slot: Tensor,
    counts: Counts,
    experts: Sequence[Callable[[Tensor], Tensor]],
    topology: Topology,
    pieces: int = 1,
) -> Tensor:
    """What the experts in the chosen slots, on whatever rank, make of each token: [T, k, hidden_size]; 0 where -1.

    `tokens` [T, hidden_size]; `slot` [T, k]; `experts` are those in this rank's slots, each from [rows, hidden_size] to
    the same shape. `counts` [R, S]: rows that each rank sends to each slot, the same on all ranks, and at least this
    rank's choices of the slot: further rows are padding (zeros), and what experts make of them is thrown away.
    `pieces`: into how many parts the rows of each rank for each slot are cut, so that some travel while others are
    computed; rows are computed alike, up to the rounding of matrix products of another shape. Raises InputError.
    """
    if pieces < 1:
        raise InputError.at("pieces", f"must be at least 1, got {pieces}")
    pieces = pieces if topology.num_ranks > 1 else 1
    sizes = cut(counts, pieces)
    place = _places(slot, counts[topology.rank], sizes[:, topology.rank])
    to_ranks = sizes.reshape(pieces, topology.num_ranks, topology.num_ranks, -1)
    rows = pack(tokens, place, int(counts[topology.rank].sum()))

    def compute(piece: int, arrived: Tensor) -> Tensor:
        return _computed(arrived, to_ranks[piece, :, topology.rank], experts)

    between = to_ranks.sum(axis=3)
    parts = torch.split(rows, between[:, topology.rank].sum(axis=1).tolist())
    return unpack(there_and_back(parts, list(between), compute, topology), place)


def cut(counts: Counts, pieces: int) -> Counts:
    """`counts` [R, S] → [pieces, R, S]: each into parts that differ by one row at most."""
    ends = -(-np.arange(pieces + 1).reshape(-1, 1, 1) * counts // pieces)
    return np.diff(ends, axis=0)


def _places(slot: Tensor, counts: Counts, sizes: Counts) -> Tensor:
    """[T, k]: which of this rank's rows each choice is, counted by piece, then slot; the number of rows: none.

    `counts` [S] and `sizes` [pieces, S] of this rank.
    """
    pieces, num_slots = sizes.shape
    begins = (sizes.ravel().cumsum() - sizes.ravel()).reshape(sizes.shape)
    shifts = np.zeros((pieces, num_slots + 1), dtype=np.int64)
    shifts[:, :-1] = begins - (sizes.cumsum(axis=0) - sizes)
    # A choice that is not sent is one for slot S, of which there can never be too many.
    lengths = np.append(counts, slot.numel() + 1)
    shift, length = (uploaded(table, slot.device) for table in (shifts, lengths))
    flat = slot.flatten()
    flat = flat.where(flat >= 0, num_slots)
    order = flat.argsort(stable=True)
    by_slot = flat[order]
    begins_of_slots = torch.searchsorted(by_slot, torch.arange(num_slots + 1, device=flat.device))
    position = torch.arange(len(flat), device=flat.device) - begins_of_slots[by_slot]
    place = shift[position * pieces // length[by_slot], by_slot] + position
    place = place.where(by_slot < num_slots, int(counts.sum()))
    return torch.empty_like(place).index_copy_(0, order, place).view_as(slot)


def _computed(arrived: Tensor, sizes: Counts, experts: Sequence[Callable[[Tensor], Tensor]]) -> Tensor:
    """Rows by source rank, then slot, `sizes` [R, S / R] → what the experts make of them, in the same order."""
    if 1 in sizes.shape:
        by_slot = arrived
    else:
        to_slots, to_sources = swapped(sizes, arrived.device), swapped(sizes.T, arrived.device)
        by_slot = reordered(arrived, to_slots, to_sources)
    parts = torch.split(by_slot, sizes.sum(axis=0).tolist())
    computed = torch.cat([expert(part) for expert, part in zip(experts, parts, strict=True)])
    return computed if by_slot is arrived else reordered(computed, to_sources, to_slots)
