"""Galvatron's hardware profiles: all-reduce, point-to-point and overlap, as links and a slowdown. Knows no device."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from math import exp, log
from typing import NamedTuple

from planner.cost.collectives import all_reduce_s
from planner.spec.cluster import Level, Link
from planner.spec.errors import InputError
from planner.spec.parse import parse
from planner.spec.value import Positive
from profiles.pattern_search import fitted

_GROUP = re.compile(r"allreduce_size_(\d+)_consec_([01])")
_TIMED = re.compile(r"(?:allreduce|all2all)_size_(\d+)_(\d+)MB_time")
_STAGES = re.compile(r"pp_size_(\d+)")
_GIGA = 1e9
SMALL_BYTES = 8 * 2**20
"""Up to here the time of an all-reduce is mostly latency."""


class BusBandwidth(NamedTuple):
    """One large all-reduce: of `degree` devices, `stride` apart."""

    degree: int
    stride: int
    bytes_per_s: float


class Timed(NamedTuple):
    """One all-reduce inside a node."""

    degree: int
    message_bytes: int
    seconds: float


class Usual(NamedTuple):
    """Links of the device's usual node and network, for what was not measured."""

    inside: Link
    between: Link


def bus_bandwidths(content: Mapping[str, object], num_devices: int, field: str) -> tuple[BusBandwidth, ...]:
    """What a file of all-reduces says of `num_devices` devices; raises InputError that names the key under `field`."""
    found = []
    for key, (degree, consecutive), value in _rows(content, _GROUP, field):
        if num_devices % degree:
            raise InputError.at(f"{field}.{key}", f"{degree} must divide the {num_devices} devices")
        found.append(BusBandwidth(degree, 1 if consecutive else num_devices // degree, value * _GIGA))
    return tuple(found)


def hop_bandwidths(content: Mapping[str, object], field: str) -> tuple[float, ...]:
    """Bytes per second between neighbouring stages, by their number; raises InputError under `field`."""
    return tuple(value * _GIGA for _, _, value in _rows(content, _STAGES, field))


def timed_all_reduces(content: Mapping[str, object], field: str) -> tuple[Timed, ...]:
    """The all-reduces of a file of times by size, without its all-to-alls; raises InputError under `field`."""
    rows = [row for row in _rows(content, _TIMED, field) if row[0].startswith("allreduce")]
    return tuple(Timed(degree, mebibytes * 2**20, value / 1e3) for _, (degree, mebibytes), value in rows)


def overlap_slowdown_ratio(content: Mapping[str, object], field: str) -> float:
    """How many times longer compute takes beside communication; raises InputError under `field`."""
    return max(1.0, parse(Positive, content.get("overlap_coe"), f"{field}.overlap_coe"))


def node_link(
    per_node: int,
    bandwidths: Iterable[BusBandwidth],
    hops: tuple[float, ...],
    times: tuple[Timed, ...],
    usual: Usual,
    field: str,
) -> Link:
    """The link inside a node. Bandwidth: the mean (of logarithms) of what all-reduces reached, so all of it is reached.

    Latency: that with which small all-reduces take what was measured; without them that of the usual link. Raises
    InputError at `field` if no all-reduce stayed inside a node.
    """
    reached = [each.bytes_per_s for each in bandwidths if each.degree * each.stride <= per_node]
    link = _link(reached, hops, usual.inside.latency_s, field, f"inside a node of {per_node}")
    small = [each for each in times if each.message_bytes <= SMALL_BYTES and each.degree <= per_node]
    if not small:
        return link

    def loss(constants: Mapping[str, float]) -> float:
        guess = link.model_copy(update=constants)
        return sum(log(all_reduce_price_s(guess, per_node, each) / each.seconds) ** 2 for each in small)

    found = fitted({"latency_s": link.latency_s}, loss)
    return link.model_copy(update={"latency_s": rounded(found["latency_s"])})


def cluster_link(
    per_node: int, bandwidths: Iterable[BusBandwidth], hops: tuple[float, ...], usual: Usual, field: str
) -> Link:
    """The link between nodes, as one device sees it: members of a group that share a node use their uplinks together.

    Its latency was not measured: it is that of the usual link. Raises InputError at `field` as `node_link` does.
    """
    reached = []
    for each in bandwidths:
        together = max(1, per_node // each.stride)
        if each.degree > together:
            reached.append(each.bytes_per_s / together)
    return _link(reached, hops, usual.between.latency_s, field, "between nodes")


def all_reduce_price_s(link: Link, per_node: int, each: Timed) -> float:
    """Our price of an all-reduce inside a node."""
    node = Level(name="node", num_devices=per_node, link=link)
    return float(all_reduce_s((node,), ((each.degree, 1),), each.message_bytes))


def _link(reached: list[float], hops: tuple[float, ...], latency_s: float, field: str, where: str) -> Link:
    if not reached:
        raise InputError.at(field, f"has no all-reduce {where}")
    return Link(
        bandwidth_bytes_per_s=rounded(mean(reached)),
        latency_s=latency_s,
        pair_bandwidth_bytes_per_s=rounded(mean(hops)) if hops else None,
    )


def mean(values: Iterable[float]) -> float:
    """The geometric mean of positive numbers: twice is as far as half."""
    logarithms = [log(value) for value in values]
    return exp(sum(logarithms) / len(logarithms))


def rounded(value: float) -> float:
    """What a measurement is good for."""
    return float(f"{value:.4g}")


def _rows(
    content: Mapping[str, object], pattern: re.Pattern[str], field: str
) -> Iterator[tuple[str, tuple[int, ...], float]]:
    """(key, numbers in it, value); raises InputError for a key or value of another form."""
    for key, value in content.items():
        match = pattern.fullmatch(key)
        if match is None:
            raise InputError.at(f"{field}.{key}", "is not a known field")
        numbers = tuple(map(int, match.groups()))
        yield key, numbers, parse(Positive, value, f"{field}.{key}")
