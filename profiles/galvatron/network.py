"""The links of a cluster from the hardware files of one size, and how well they give the measured times back."""

from __future__ import annotations

from planner.spec.cluster import Level
from profiles.devices import HardwarePreset
from profiles.galvatron.comparison import Comparison
from profiles.galvatron.folder import File, Files, Size
from profiles.galvatron.hardware import (
    BusBandwidth,
    Timed,
    Usual,
    all_reduce_price_s,
    bus_bandwidths,
    cluster_link,
    hop_bandwidths,
    mean,
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
    timed = _times(files.hardware.get(("sp_time", (1, per_node))))
    times = tuple(each for each in timed if each.degree <= per_node)
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
    compared = _times_compared(levels[0], times)
    if times:
        said.append(_disagreement(times, compared))
    return tuple(levels), [*compared, *_compared(bandwidths, tuple(levels), per_node)], said


def _disagreement(times: tuple[Timed, ...], compared: list[Comparison]) -> str:
    """Galvatron measures large all-reduces twice; one link has one bandwidth."""
    largest = max(each.message_bytes for each in times)
    ratio = mean(c.measured / c.predicted for c, t in zip(compared, times, strict=True) if t.message_bytes == largest)
    return (
        f"bandwidth inside a node: that of the allreduce_bandwidth file; in the sp_time file all-reduces of "
        f"{largest >> 20} MiB take {ratio:.2f} of the time that follows from it"
    )


def _hops(file: File | None) -> tuple[float, ...]:
    return hop_bandwidths(file.content, file.name) if file else ()


def _times(file: File | None) -> tuple[Timed, ...]:
    return timed_all_reduces(file.content, file.name) if file else ()


def _times_compared(node: Level, times: tuple[Timed, ...]) -> list[Comparison]:
    return [
        Comparison(
            "seconds of an all-reduce in a node",
            f"{each.message_bytes >> 20} MiB on {each.degree} devices",
            each.seconds,
            all_reduce_price_s(node.link, node.num_devices, each),
        )
        for each in times
    ]


def _compared(bandwidths: tuple[BusBandwidth, ...], levels: tuple[Level, ...], per_node: int) -> list[Comparison]:
    """Bus bandwidths, as the narrowest tier allows them."""
    found = []
    for each in bandwidths:
        together = max(1, per_node // each.stride)
        tier, members = (levels[0], 1) if each.degree * each.stride <= per_node else (levels[-1], together)
        case = f"{each.degree} devices, {each.stride} apart"
        predicted = tier.link.bytes_per_s * members
        found.append(Comparison("bytes/s of a large all-reduce", case, each.bytes_per_s, predicted))
    return found
