"""The way of tokens to their experts and back: all-to-all, the experts of each rank, all-to-all."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from runtime.exchange import Group, all_to_all, num_ranks


def through_experts(
    rows: Tensor, slot: Tensor, experts: Sequence[Callable[[Tensor], Tensor]], group: Group | None
) -> Tensor:
    """Rows sorted by slot → what the experts in these slots, on whatever rank, make of them, in the same order.

    `rows` [rows, hidden_size], `slot` [rows]; slots are numbered rank by rank, `experts` are those of this rank.
    """
    ranks, slots_per_rank = num_ranks(group), len(experts)
    sent = torch.bincount(slot, minlength=ranks * slots_per_rank).view(ranks, -1)
    ones = [1] * ranks
    received = all_to_all(sent, ones, ones, group)
    send_counts, receive_counts = torch.stack([sent.sum(1), received.sum(1)]).tolist()
    arrived = all_to_all(rows, send_counts, receive_counts, group)
    # They arrive by source rank, then by slot; experts want them by slot, then by source rank.
    local_slot = torch.arange(slots_per_rank, device=rows.device).repeat(ranks)
    order = local_slot.repeat_interleave(received.flatten()).argsort(stable=True)
    pieces = torch.split(arrived[order], received.sum(0).tolist())
    computed = torch.cat([expert(piece) for expert, piece in zip(experts, pieces, strict=True)])
    back = torch.empty_like(computed).index_copy(0, order, computed)
    return all_to_all(back, receive_counts, send_counts, group)
