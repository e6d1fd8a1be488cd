"""The links of a cluster from the hardware files of one size, and how well they give the measured times back."""

from __future__ import annotations

from planner.spec.cluster import Level
from profiles.devices import HardwarePreset
from profiles.galvatron.calibration import Comparison
from profiles.galvatron.folder import File, Files, Size
from profiles.galvatron.hardware import (
    BusBandwidth,
    Timed,
    Usual,
    all_reduce_price_s,
    bus_bandwidths,
    cluster_link,
    hop_bandwidths,
    node_link,
    timed_all_reduces,
)


def levels_of(
    files: Files, size: Size, preset: HardwarePreset
) -> tuple[tuple[Level, ...], list[Comparison], list[str]]:
    """(tiers, comparisons, sentences on what was not measured); raises InputError that names file and key."""
    nodes, per_node = size
    usual = Usual(preset.intra_node, preset.inter_node)
    all_reduce = files.hardware["allreduce_bandwidth", size]
    bandwidths = bus_bandwidths(all_reduce.content, nodes * per_node, all_reduce.name)
    times = _times(files.hardware.get(("sp_time", (1, per_node))))
    levels, said = [], []
    if per_node > 1 or nodes == 1:
        hops = _hops(files.hardware.get(("p2p_bandwidth", (1, per_node))))
        link = node_link(per_node, bandwidths, hops, times, usual, all_reduce.name)
        levels.append(Level(name="node", num_devices=per_node, link=link))
        if not times:
            said.append(f"latency inside a node: that of {preset.name}, for there is no sp_time file of 1x{per_node}")
    if nodes > 1:
        hops = _hops(files.hardware.get(("p2p_bandwidth", size)))
        link = cluster_link(per_node, bandwidths, hops, usual, all_reduce.name)
        levels.append(Level(name="cluster", num_devices=nodes * per_node, link=link))
        said.append(f"latency between nodes: that of {preset.name}, for Galvatron measures none")
    return tuple(levels), [*_times_compared(levels[0], times), *_compared(bandwidths, tuple(levels), per_node)], said


def _hops(file: File | None) -> tuple[float, ...]:
    return hop_bandwidths(file.content, file.name) if file else ()


def _times(file: File | None) -> tuple[Timed, ...]:
    return timed_all_reduces(file.content, file.name) if file else ()


def _times_compared(node: Level, times: tuple[Timed, ...]) -> list[Comparison]:
    return [
        Comparison(
            f"seconds of an all-reduce of {each.message_bytes >> 20} MiB on {each.degree} devices",
            each.seconds,
            all_reduce_price_s(node.link, node.num_devices, each),
        )
        for each in times
        if each.degree <= node.num_devices
    ]


def _compared(bandwidths: tuple[BusBandwidth, ...], levels: tuple[Level, ...], per_node: int) -> list[Comparison]:
    """Bus bandwidths, as the narrowest tier allows them."""
    found = []
    for each in bandwidths:
        together = max(1, per_node // each.stride)
        tier, members = (levels[0], 1) if each.degree * each.stride <= per_node else (levels[-1], together)
        name = f"bytes/s of a large all-reduce of {each.degree} devices, {each.stride} apart"
        found.append(Comparison(name, each.bytes_per_s, tier.link.bytes_per_s * members))
    return found
