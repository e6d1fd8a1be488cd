"""Collectives by size and group, and how much they and matrix products slow each other down."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.distributed as dist

from profiles.measure.stopwatch import Backend, Stopwatch, Team, Work
from profiles.measurement import CollectiveSample, Operation, OverlapSample, Sample

BATCH = 8
"""Calls that are timed as one piece, lest the clock or the wait for the others count."""
_ELEMENT_BYTES = 4
# Newer versions of torch renamed them, and warn.
_ALL_GATHER = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)
_REDUCE_SCATTER = getattr(dist, "reduce_scatter_single", dist.reduce_scatter_tensor)


class Seat(NamedTuple):
    """This rank's group of one shape."""

    degree: int
    stride: int
    group: dist.ProcessGroup
    ranks: tuple[int, ...]


def group_shapes(team: Team) -> list[tuple[int, int]]:
    """(degree, stride): neighbours in a node by powers of two up to all of them, and across nodes."""
    local, total = team.ranks_per_node, team.num_ranks
    degrees = {1 << power for power in range(1, local.bit_length()) if local % (1 << power) == 0}
    shapes = [(degree, 1) for degree in sorted(degrees | {local}) if degree > 1]
    return shapes if total == local else [*shapes, (total // local, local)]


def seats(team: Team) -> list[Seat]:
    """This rank's groups. All ranks must call this together."""
    found = []
    for degree, stride in group_shapes(team):
        for ranks in groups_of(team.num_ranks, degree, stride):
            group = dist.new_group(list(ranks))
            if team.rank in ranks:
                found.append(Seat(degree, stride, group, ranks))
    return found


def message_sizes(backend: Backend, limit_bytes: int) -> list[int]:
    """Bytes, from what only latency matters for to what only bandwidth does."""
    largest = 2**24 if backend is Backend.CPU else 2**28
    return [
        size for size in (2**12, 2**16, 2**20, 2**22, 2**24, 2**26, 2**28) if size <= min(largest, limit_bytes // 4)
    ]


def collectives(watch: Stopwatch, places: list[Seat], sizes: list[int], allowance_s: float) -> Iterator[Sample | None]:
    """Every operation in every group, each rank in its own group at the same time."""
    for seat in places:
        for operation in Operation:
            for size in sizes:
                work = _work(watch.team, seat, operation, size)
                calls = BATCH if size <= 2**20 else 1
                seconds = watch.seconds(_repeated(work, calls), allowance_s, _barrier_of(watch.team))
                yield (
                    None
                    if seconds is None
                    else CollectiveSample(
                        operation=operation,
                        degree=seat.degree,
                        stride=seat.stride,
                        message_bytes=size,
                        time_s=seconds / calls,
                    )
                )


def overlap(watch: Stopwatch, size: int, allowance_s: float) -> Sample | None:
    """An all-reduce of all ranks beside products that take about as long, each alone and both at once."""
    message = torch.ones(size // _ELEMENT_BYTES, device=watch.team.device)
    side = 512 if watch.team.backend is Backend.CPU else 4096
    a, b = (torch.randn(side, side, device=watch.team.device) for _ in range(2))
    barrier = _barrier_of(watch.team)
    communication_s = watch.seconds(lambda: dist.all_reduce(message), allowance_s / 3, barrier)
    product_s = watch.seconds(lambda: a @ b, allowance_s / 12)
    if communication_s is None or product_s is None:
        return None
    products = _repeated(lambda: a @ b, max(1, round(communication_s / product_s)))

    def both() -> None:
        running = dist.all_reduce(message, async_op=True)
        products()
        running.wait()

    compute_s = watch.seconds(products, allowance_s / 3, barrier)
    both_s = watch.seconds(both, allowance_s / 3, barrier)
    if compute_s is None or both_s is None:
        return None
    return OverlapSample(compute_s=compute_s, communication_s=communication_s, both_s=both_s)


def groups_of(total: int, degree: int, stride: int) -> list[tuple[int, ...]]:
    """All groups of a shape: blocks of degree x stride devices, in each the groups that are shifted by one."""
    block = degree * stride
    return [
        tuple(range(start + shift, start + block, stride))
        for start in range(0, total, block)
        for shift in range(stride)
    ]


def _work(team: Team, seat: Seat, operation: Operation, size: int) -> Work:
    group, degree = seat.group, seat.degree
    elements = max(degree, size // _ELEMENT_BYTES // degree * degree)
    whole = torch.ones(elements, device=team.device)
    if operation is Operation.ALL_REDUCE:
        return lambda: dist.all_reduce(whole, group=group)
    if operation is Operation.POINT_TO_POINT:
        return _exchange(team, seat, whole)
    part, other = whole[: elements // degree].clone(), torch.empty_like(whole)
    if operation is Operation.ALL_GATHER:
        return lambda: _ALL_GATHER(whole, part, group=group)
    if operation is Operation.REDUCE_SCATTER:
        return lambda: _REDUCE_SCATTER(part, whole, group=group)
    return lambda: dist.all_to_all_single(other, whole, group=group)


def _exchange(team: Team, seat: Seat, message: torch.Tensor) -> Work:
    """Members 0 and 1 of the group: one sends, the other receives."""
    sender, receiver = seat.ranks[0], seat.ranks[1]
    if team.rank == sender:
        return lambda: dist.send(message, receiver, group=seat.group)
    if team.rank == receiver:
        return lambda: dist.recv(message, sender, group=seat.group)
    return lambda: None


def _repeated(work: Work, times: int) -> Work:
    def repeated() -> None:
        for _ in range(times):
            work()

    return repeated


def _barrier_of(team: Team) -> Work:
    """All ranks begin together."""
    one = torch.zeros(1, device=team.device)
    return lambda: dist.all_reduce(one)
