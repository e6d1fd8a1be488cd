"""Who is in a group of ranks, and what they tell each other.

Without torch.distributed (or before `init_process_group`) every group has one rank and nothing is sent.
"""

from __future__ import annotations

import json
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

Group = dist.ProcessGroup
"""Ranks that talk to each other; None where a `Group | None` is taken means all ranks."""


def is_distributed() -> bool:
    """Whether there are other ranks to talk to."""
    return dist.is_available() and dist.is_initialized()


def num_ranks(group: Group | None) -> int:
    """Ranks of the group; 1 without torch.distributed."""
    return dist.get_world_size(group) if is_distributed() else 1


def rank(group: Group | None) -> int:
    """This process's number in the group; 0 without torch.distributed."""
    return dist.get_rank(group) if is_distributed() else 0


def first_rank(group: Group | None) -> int:
    """Global number of the group's rank 0, as `broadcast` wants it."""
    return dist.get_global_rank(group, 0) if group is not None else 0


def gathered(mine: Tensor, group: Group | None) -> Tensor:
    """[n] of each rank → [ranks, n]."""
    if num_ranks(group) == 1:
        return mine[None]
    everyone = mine.new_empty((num_ranks(group), len(mine)))
    dist.all_gather(list(everyone), mine, group=group)
    return everyone


def broadcast_bytes(message: bytes, length: int, group: Group | None, device: torch.device) -> bytes:
    """Rank 0's message on all ranks of the group; `length` is its length, which all ranks know already."""
    if num_ranks(group) == 1 or length == 0:
        return message
    buffer = torch.empty(length, dtype=torch.uint8, device=device)
    if rank(group) == 0:
        buffer.copy_(torch.frombuffer(bytearray(message), dtype=torch.uint8))
    dist.broadcast(buffer, first_rank(group), group=group)
    return bytes(buffer.tolist())


def broadcast_json(content: Any, group: Group | None, device: torch.device) -> Any:
    """Rank 0's plain data on all ranks of the group."""
    message = json.dumps(content).encode()
    length = torch.tensor(len(message), device=device)
    if num_ranks(group) > 1:
        dist.broadcast(length, first_rank(group), group=group)
    return json.loads(broadcast_bytes(message, int(length), group, device))


def gather_json(content: Any, group: Group | None, device: torch.device) -> list[Any]:
    """The plain data of every rank of the group, in order."""
    if num_ranks(group) == 1:
        return [content]
    message = json.dumps(content).encode()
    lengths = gathered(torch.tensor([len(message)], device=device), group)
    padded = message.ljust(int(lengths.max()))
    received = gathered(torch.frombuffer(bytearray(padded), dtype=torch.uint8).to(device), group)
    return [json.loads(bytes(other.tolist())) for other in received]
