"""Seconds of collectives over groups of devices under tiers of links. Knows bytes and groups, no model.

A group is a grid: dimensions of (degree, stride) in device numbers. On a tier, the members inside one island of the
tier below share its uplinks. Bandwidth follows the ring algorithm, latency a ring among few and a tree among many,
as NCCL picks the better of both by size.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import ceil, gcd, log2, prod
from typing import NamedTuple

from planner.cost.numbers import Numbers, largest
from planner.spec.cluster import Level, Link, link_between

Group = tuple[tuple[int, int], ...]
"""Dimensions (degree, stride), any order."""


class Tier(NamedTuple):
    """What a group sees of one level of links: in one island, `members` of the group, `below` in each sub-island."""

    members: int
    below: int
    bytes_per_s: float
    pair_bytes_per_s: float
    latency_s: float


@lru_cache(maxsize=65536)
def tiers(levels: tuple[Level, ...], group: Group) -> tuple[Tier, ...]:
    """The levels that a group crosses, nearest first; empty for a group of one."""
    found = []
    below = 1
    for level in levels:
        # The last tier joins all devices, also those of a group whose blocks do not fill it evenly.
        inside = [_members(degree, stride, level.num_devices) for degree, stride in group]
        members = size(group) if level is levels[-1] else prod(inside)
        if members > below:
            link = level.link
            found.append(Tier(members, below, link.bytes_per_s, link.pair_bytes_per_s, link.latency_s))
            below = members
    return tuple(found)


def size(group: Group) -> int:
    """Number of devices of a group."""
    return prod(degree for degree, _ in group)


def all_gather_s(levels: tuple[Level, ...], group: Group, total_bytes: Numbers) -> Numbers:
    """Every member ends up with `total_bytes`, of which it had 1/n: (n-1)/n bytes through the narrowest tier.

    Reduce-scatter takes the same. Source: Thakur et al. 2005 (ring); NCCL's bus-bandwidth convention.
    """
    crossed = tiers(levels, group)
    if not crossed:
        return 0.0
    members = crossed[-1].members
    narrowest = min(tier.bytes_per_s * tier.below for tier in crossed)
    return (members - 1) / members * total_bytes / narrowest + _latency_s(crossed)


def reduce_scatter_s(levels: tuple[Level, ...], group: Group, total_bytes: Numbers) -> Numbers:
    """Every member ends up with 1/n of the sum of `total_bytes`."""
    return all_gather_s(levels, group, total_bytes)


def all_reduce_s(levels: tuple[Level, ...], group: Group, total_bytes: Numbers) -> Numbers:
    """Reduce-scatter, then all-gather."""
    return 2.0 * all_gather_s(levels, group, total_bytes)


def all_to_all_s(levels: tuple[Level, ...], group: Group, bytes_per_member: Numbers) -> Numbers:
    """Every member sends (or gets) `bytes_per_member`, spread evenly over the members.

    The share for members of the same sub-island stays on nearer links; a device sends the rest through its own
    uplink; tiers work at the same time. Measured: Megatron Core MoE report (arXiv 2603.07685), table 7.
    """
    crossed = tiers(levels, group)
    if not crossed:
        return 0.0
    members = crossed[-1].members
    busy_s = largest(
        bytes_per_member * (tier.members - tier.below) / members / _fan_out_bytes_per_s(tier) for tier in crossed
    )
    return busy_s + _latency_s(crossed)


def send_receive_s(levels: tuple[Level, ...], group: Group, moved_bytes: Numbers) -> Numbers:
    """Every member passes `moved_bytes` on to its neighbour in a ring; the pair on the widest tier is the slowest."""
    crossed = tiers(levels, group)
    if not crossed:
        return 0.0
    return moved_bytes / crossed[-1].pair_bytes_per_s + crossed[-1].latency_s


def point_to_point_s(levels: tuple[Level, ...], sender: int, receiver: int, moved_bytes: float) -> float:
    """One device to another, by their numbers."""
    if sender == receiver:
        return 0.0
    return pair_s(link_between(levels, sender, receiver), moved_bytes)


def pair_s(link: Link, moved_bytes: float) -> float:
    """One device to another over the link that joins them."""
    return moved_bytes / link.pair_bytes_per_s + link.latency_s


def levels_from(levels: tuple[Level, ...], first_device: int, num_devices: int) -> tuple[Level, ...]:
    """The tiers as blocks of consecutive devices find them that begin at `first_device`, of which there are so many.

    Blocks that begin at a multiple of their size find the tiers as they are. Others begin anywhere in an island of i
    devices; from there gcd(i, first_device) devices at a time surely share one, so islands count as that large.
    """
    if first_device % num_devices == 0:
        return levels
    found = [lv.model_copy(update={"num_devices": gcd(lv.num_devices, first_device)}) for lv in levels[:-1]]
    return (*found, levels[-1])


def narrowest_bytes_per_s(levels: tuple[Level, ...], num_devices: int) -> tuple[float, float]:
    """(bytes/s, latency) of the widest level that blocks of `num_devices` consecutive devices need."""
    level = next((lv for lv in levels if lv.num_devices % num_devices == 0), levels[-1])
    return level.link.bytes_per_s, level.link.latency_s


def _fan_out_bytes_per_s(tier: Tier) -> float:
    # On a mesh of pairwise links, sending to p peers at once uses p links, up to what the device has in all.
    peers = tier.members - tier.below
    return min(tier.bytes_per_s, peers * tier.pair_bytes_per_s)


def _latency_s(crossed: Sequence[Tier]) -> float:
    return sum(tier.latency_s * _hops(tier.members // tier.below) for tier in crossed)


def _hops(members: int) -> float:
    """One after the other around a ring of up to eight, the usual node; a tree over such rings above."""
    return members - 1.0 if members <= 8 else 7.0 + ceil(log2(members / 8))


def _members(degree: int, stride: int, island: int) -> int:
    """The fewest members of a group that share an island, of all groups that tile the devices; all of them if aligned.

    Groups that do not tile an island evenly straddle its edge somewhere, and the slowest group sets the pace.
    """
    return gcd(degree, island // stride) if island % stride == 0 else 1
