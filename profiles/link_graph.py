"""From a graph of links between devices and switches to tiers of nested islands.

Rounds, from fast to slow. At first every device is an island. In each round, of all links that lead out of an island,
those of the highest rate join what they connect: other islands, and switches, which then belong to the island. The rate
of a link is its bandwidth over the devices of the smaller island at its ends; links between the same two ends add up.
Where devices met, the new islands are a tier. What a device reaches on it is, of the islands that met there, the least
bandwidth of all links into the new island over the old one's devices, and never more than on the tier below: eight
devices under an uplink of 200e9 bytes/s get 25e9 each. A switch passes on all that its links carry. Devices without
switches between them (a mesh) reach one peer alone at the bandwidth of the fastest link.

It knows neither devices' names nor the shares of bandwidth that messages reach.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from planner.spec.cluster import Level, Link
from planner.spec.errors import InputError
from planner.spec.request import Connection

if TYPE_CHECKING:  # it takes a tenth of a second to load, and few clusters are graphs
    import networkx as nx

End = int | str
"""A device by number, a switch by name."""
Graph: TypeAlias = "nx.Graph[End]"
MAX_WORK = 2**18
"""Devices and links, times rounds: some seconds. A regular cluster needs few rounds for each tier, however large; a
graph in which no two links are equal needs one for each device."""
_SHOWN = 4
"""Islands in a message."""


class Tiers(NamedTuple):
    """What a graph says, with devices numbered so that islands are consecutive."""

    levels: tuple[Level, ...]
    device_order: tuple[int, ...]
    """Which device of the graph each device is; empty if the graph numbers them so."""


class _Island(NamedTuple):
    """Devices that met, with the switches between them, and what one device reaches of the others."""

    devices: tuple[int, ...]
    ends: frozenset[End]
    rate: Fraction | None
    """Bytes/s; None: a device alone."""


class _Meeting(NamedTuple):
    """A round in which devices met."""

    before: tuple[_Island, ...]
    after: tuple[_Island, ...]


class _Tier(NamedTuple):
    islands: tuple[tuple[int, ...], ...]
    """Devices of each."""
    link: Link


class Joined(NamedTuple):
    """What a graph says of several groups of devices."""

    groups: tuple[Tiers, ...]
    """Devices are counted from the first of each group."""
    link: Link
    """Of the widest tier, which joins the groups."""


def link_tiers(links: Sequence[Connection], num_devices: int, devices_per_node: int) -> Tiers:
    """The tiers of a graph, nearest first, the last around all devices.

    Raises InputError at `links` if islands of a tier are of unequal sizes (but for one smaller, which becomes the
    last), or if not all devices are joined.
    """
    return group_tiers(links, [(num_devices, devices_per_node)]).groups[0]


def group_tiers(links: Sequence[Connection], groups: Sequence[tuple[int, int]]) -> Joined:
    """The tiers of each group, of (devices, devices of a node), numbered group after group; and what joins the groups.

    Raises InputError as `link_tiers` does; islands are equal if they have equally many devices of the group.
    """
    num_devices = sum(size for size, _ in groups)
    graph = _graph(links, num_devices)
    meetings = list(_meetings(graph, num_devices))
    last = meetings[-1]
    joining = _link(graph, last.before, last.after, range(num_devices))
    found, first = [], 0
    for size, devices_per_node in groups:
        alone = Tiers((Level(name="node", num_devices=1, link=joining),), ())
        group = range(first, first + size)
        found.append(_tiers_of(graph, meetings, group, devices_per_node) if size > 1 else alone)
        first += size
    return Joined(tuple(found), joining)


def _meetings(graph: Graph, num_devices: int) -> Iterator[_Meeting]:
    islands = tuple(_Island((device,), frozenset((device,)), None) for device in range(num_devices))
    max_rounds = MAX_WORK // (num_devices + graph.number_of_edges())
    for _ in range(max_rounds):
        if len(islands) == 1:
            return
        joined = _joined(graph, islands)
        if len(joined) < len(islands):
            yield _Meeting(islands, joined)
        islands = joined
    if len(islands) > 1:
        raise InputError.at(
            "links",
            f"must join so many devices in at most {max_rounds} rounds, each of links of one rate; give equal links "
            "the same bandwidth, or write levels",
        )


def _tiers_of(graph: Graph, meetings: Iterable[_Meeting], group: range, devices_per_node: int) -> Tiers:
    tiers = []
    count = len(group)
    for before, after in meetings:
        islands = tuple(part for island in after if (part := _part(island, group)))
        if len(islands) < count:
            tiers.append(_Tier(islands, _link(graph, before, after, group)))
            count = len(islands)
    order = _order(tiers) or list(group)
    for tier in tiers:
        _check_sizes(tier, order)
    levels = tuple(
        Level(name=_name(size, len(group), devices_per_node), num_devices=size, link=tier.link)
        for tier in tiers
        for size in (max(map(len, tier.islands)),)
    )
    return Tiers(levels, () if order == sorted(order) else tuple(device - group.start for device in order))


def _part(island: _Island, group: range) -> tuple[int, ...]:
    """Devices of the island that are of the group."""
    return tuple(device for device in island.devices if device in group)


def _graph(links: Sequence[Connection], num_devices: int) -> Graph:
    """Ends with the summed exact `rate` and the least `latency_s` of the links between them."""
    if num_devices == 1:
        raise InputError.at("links", "join nothing: the cluster has one device")
    if num_devices + len(links) > MAX_WORK:
        raise InputError.at("links", f"may join at most {MAX_WORK} devices and links together; write levels")
    import networkx as nx  # noqa: PLC0415

    graph: Graph = nx.Graph()
    graph.add_nodes_from(range(num_devices))
    for number, link in enumerate(links):
        for name, end in (("a", link.a), ("b", link.b)):
            if isinstance(end, int) and end >= num_devices:
                raise InputError.at(f"links[{number}].{name}", f"must be below the {num_devices} devices, is {end}")
        known = graph.get_edge_data(link.a, link.b, {"rate": Fraction(0), "latency_s": link.latency_s})
        rate = known["rate"] + Fraction(link.bandwidth_bytes_per_s)
        graph.add_edge(link.a, link.b, rate=rate, latency_s=min(known["latency_s"], link.latency_s))
    return graph


def _outgoing(graph: Graph, islands: Sequence[_Island]) -> dict[frozenset[End], Fraction]:
    """Summed bandwidth of links out of islands, by ends; an island counts as its first device."""
    home = {end: island.devices[0] for island in islands for end in island.ends}
    found: dict[frozenset[End], Fraction] = defaultdict(Fraction)
    edges: Iterable[tuple[End, End, Fraction]] = graph.edges(data="rate")
    for one, other, rate in edges:
        here, there = home.get(one, one), home.get(other, other)
        if here != there and (one in home or other in home):
            found[frozenset((here, there))] += rate
    return found


def _joined(graph: Graph, islands: Sequence[_Island]) -> tuple[_Island, ...]:
    """The islands after the fastest links that lead out of any of them."""
    outgoing = _outgoing(graph, islands)
    if not outgoing:
        first, second = (_span(island.devices) for island in islands[:2])
        raise InputError.at("links", f"must join all devices; nothing leads from {first} to {second}")
    of = {island.devices[0]: island for island in islands}
    rates = {
        ends: rate / min(len(of[end].devices) for end in ends if isinstance(end, int))
        for ends, rate in outgoing.items()
    }
    fastest = max(rates.values())
    import networkx as nx  # noqa: PLC0415

    meeting: Graph = nx.Graph()
    meeting.add_nodes_from(of)
    for one, other in (ends for ends, rate in rates.items() if rate == fastest):
        meeting.add_edge(one, other)
    components = list(nx.connected_components(meeting))
    into = _into(components, outgoing)
    return tuple(sorted((_met(component, of, into) for component in components), key=lambda island: island.devices))


def _into(components: Sequence[set[End]], outgoing: Mapping[frozenset[End], Fraction]) -> dict[End, Fraction]:
    """Bandwidth of all links between an end and the others of its component."""
    home = {end: number for number, component in enumerate(components) for end in component}
    found: dict[End, Fraction] = defaultdict(Fraction)
    for (one, other), rate in outgoing.items():
        if one in home and home[one] == home.get(other):
            found[one] += rate
            found[other] += rate
    return found


def _met(ends: set[End], of: Mapping[int, _Island], into: Mapping[End, Fraction]) -> _Island:
    """One island of islands and switches."""
    members = [of[end] for end in ends if isinstance(end, int)]
    if len(ends) == 1:
        return members[0]
    limits = [into[member.devices[0]] / len(member.devices) for member in members]
    limits += [member.rate for member in members if member.rate is not None]
    switches = frozenset(end for end in ends if isinstance(end, str))
    devices = tuple(sorted(device for member in members for device in member.devices))
    return _Island(devices, switches.union(*(member.ends for member in members)), min(limits))


def _link(graph: Graph, before: Sequence[_Island], after: Sequence[_Island], group: range) -> Link:
    """What holds where devices of the group met: the least rate, the longest quickest way between two that met."""
    old = {device: island for island in before for device in island.devices}
    new = [island for island in after if len({old[device].devices[0] for device in _part(island, group)}) > 1]
    rate = min(island.rate for island in new if island.rate is not None)
    latency_s = max(_latency_s(graph, old, island, group) for island in new)
    were_alone = all(len(old[device].devices) == 1 for island in new for device in island.devices)
    pair = max(_fastest_of_mesh(graph, island) or rate for island in new) if were_alone else rate
    return Link(
        bandwidth_bytes_per_s=float(rate),
        latency_s=latency_s,
        pair_bandwidth_bytes_per_s=float(pair) if pair < rate else None,
    )


def _latency_s(graph: Graph, old: Mapping[int, _Island], island: _Island, group: range) -> float:
    first, *others = _part(island, group)
    inside = graph.subgraph(island.ends)
    import networkx as nx  # noqa: PLC0415

    found = nx.single_source_dijkstra_path_length(inside, first, weight="latency_s")
    return max(float(found[device]) for device in others if old[device] is not old[first])


def _fastest_of_mesh(graph: Graph, island: _Island) -> Fraction | None:
    """The fastest link between two devices, None where there are switches."""
    if len(island.ends) > len(island.devices):
        return None
    edges: Iterable[tuple[End, End, Fraction]] = graph.subgraph(island.ends).edges(data="rate")
    return max(rate for _, _, rate in edges)


def _order(tiers: Sequence[_Tier]) -> list[int]:
    """Devices by the islands that they are in, from the widest tier down; smaller islands last."""
    places: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for tier in reversed(tiers):
        for island in tier.islands:
            for device in island:
                places[device].append((-len(island), island[0]))
    return sorted(places, key=lambda device: (places[device], device))


def _check_sizes(tier: _Tier, order: Sequence[int]) -> None:
    """Islands begin at multiples of the tier's size; raises InputError that shows those that differ."""
    place = {device: number for number, device in enumerate(order)}
    size = max(map(len, tier.islands))
    if any(min(place[device] for device in island) % size for island in tier.islands):
        by_size = sorted(tier.islands, key=lambda island: (len(island), island))
        shown = [*by_size[:_SHOWN], *(by_size[-1:] if len(by_size) > _SHOWN else ())]
        listed = "; ".join(f"{_span(island)}: {len(island)}" for island in shown)
        raise InputError.at(
            "links",
            f"the islands joined at {tier.link.bandwidth_bytes_per_s:.4g} bytes/s and device must be of equal sizes, "
            f"but for one smaller; they are not ({listed}); write unequal nodes as groups of a cluster",
        )


def _name(size: int, num_devices: int, devices_per_node: int) -> str:
    if size == devices_per_node:
        return "node"
    return "cluster" if size == num_devices else f"island of {size}"


def _span(devices: Sequence[int]) -> str:
    """`devices 0–3, 8–11 and more`, or `device 3`."""
    runs: list[list[int]] = []
    for device in devices:
        if runs and runs[-1][1] == device - 1:
            runs[-1][1] = device
        else:
            runs.append([device, device])
    listed = [str(first) if first == last else f"{first}–{last}" for first, last in runs]
    more = " and more" if len(listed) > _SHOWN else ""
    return f"device{'s' if len(devices) > 1 else ''} {', '.join(listed[:_SHOWN])}{more}"
