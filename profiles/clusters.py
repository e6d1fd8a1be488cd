"""From what a user asks for to a cluster: devices by name, links of the usual node, or tiers of a graph of links."""

from __future__ import annotations

from typing import overload

from planner.spec.cluster import Cluster, Device, Level, Link, Provenance
from planner.spec.errors import InputError, NotFoundError
from planner.spec.mixed_cluster import AnyCluster, MixedCluster
from planner.spec.parse import parse
from planner.spec.request import ClusterRequest, MixedClusterRequest, Target
from planner.spec.stack import Stack
from profiles.devices import HardwarePreset, device_preset
from profiles.error_bands import error_bands, widest_error_bands
from profiles.link_graph import Tiers, group_tiers, link_tiers
from profiles.stacks import USUAL_STACKS, stack_preset


@overload
def resolve_cluster(request: ClusterRequest, target: Target = ...) -> Cluster: ...


@overload
def resolve_cluster(request: MixedClusterRequest, target: Target = ...) -> MixedCluster: ...


def resolve_cluster(request: ClusterRequest | MixedClusterRequest, target: Target = Target.ANY) -> AnyCluster:
    """The cluster that a request describes, where it names no stack with that of the target.

    Raises InputError whose fields are seen from the request (`device`, `intra_node`, `groups[1].device`, …).
    """
    usual = USUAL_STACKS[target]
    return _mixed(request, usual) if isinstance(request, MixedClusterRequest) else _equal(request, usual)


def _mixed(request: MixedClusterRequest, usual_stack: str) -> MixedCluster:
    joined = None
    if request.links is not None:
        sizes = [(group.nodes * group.devices_per_node, group.devices_per_node) for group in request.groups]
        joined = group_tiers(request.links, sizes)
    groups = []
    for number, group in enumerate(request.groups):
        try:
            groups.append(_equal(group, usual_stack, joined.groups[number] if joined else None))
        except InputError as error:
            raise error.under(f"groups[{number}]") from None
    cluster = MixedCluster(groups=tuple(groups), inter_group=_inter_group(request, joined.link if joined else None))
    if cluster.provenance is Provenance.MEASURED:
        return cluster
    machines = [(group.device, group.stack) for group in groups]
    return cluster.model_copy(update={"error_bands": widest_error_bands(machines)})


def _inter_group(request: MixedClusterRequest, found: Link | None) -> Link:
    """The link that is asked for or found, reaching what the groups' networks reach; else the narrowest of these."""
    given = request.inter_group or found
    usual = []
    for number, group in enumerate(request.groups):
        try:
            usual.append(_inter_node(group, None if isinstance(group.device, Device) else _preset(group.device)))
        except InputError:
            if given is None:
                raise InputError.at(
                    "inter_group", f"is required, because groups[{number}] does not say its inter_node"
                ) from None
    narrowest = min(usual, key=lambda link: (link.bytes_per_s, -link.latency_s), default=None)
    if given is not None:
        return _as_usual(given, narrowest)
    assert narrowest is not None, "a request has groups"
    return narrowest


def _equal(request: ClusterRequest, usual_stack: str, found: Tiers | None = None) -> Cluster:
    """The cluster, with the tiers that were `found` in a graph of links around it."""
    preset = None if isinstance(request.device, Device) else _preset(request.device)
    device = request.device if isinstance(request.device, Device) else preset and preset.device
    tiers = _tiers(request, preset, found)
    content = {
        "nodes": request.nodes,
        "devices_per_node": request.devices_per_node,
        "device": device,
        "levels": tiers.levels,
        "device_order": tiers.device_order,
        "stack": _stack(request, preset, usual_stack),
        "memory_limit_bytes": request.memory_limit_bytes,
    }
    cluster = parse(Cluster, content)
    if cluster.device.provenance is Provenance.MEASURED:
        # Published runs say nothing of a machine that was measured itself.
        return cluster
    return cluster.model_copy(update={"error_bands": error_bands(cluster.device, cluster.stack)})


def _preset(name: str) -> HardwarePreset:
    try:
        return device_preset(name)
    except NotFoundError as error:
        raise InputError.at("device", str(error)) from None


def _stack(request: ClusterRequest, preset: HardwarePreset | None, usual_stack: str) -> Stack:
    """The stack that is asked for, or that the device was measured with, or the usual one."""
    if isinstance(request.stack, Stack):
        return request.stack
    if request.stack is None and preset is not None and preset.stack is not None:
        return preset.stack
    try:
        return stack_preset(request.stack or usual_stack).stack
    except NotFoundError as error:
        raise InputError.at("stack", str(error)) from None


def _tiers(request: ClusterRequest, preset: HardwarePreset | None, found: Tiers | None) -> Tiers:
    """As they were found, or as they are given, or as they are found in the graph that is given, or as is usual."""
    if found is None and request.links is None:
        return Tiers(tuple(request.levels or _levels(request, preset)), ())
    if found is None:
        assert request.links is not None
        found = link_tiers(request.links, request.nodes * request.devices_per_node, request.devices_per_node)
    return found if preset is None else Tiers(_reached(found.levels, request, preset), found.device_order)


def _levels(request: ClusterRequest, preset: HardwarePreset | None) -> list[Level]:
    """Tiers inside the node, between nodes of a rack, and between all nodes, each only where it joins something."""
    levels = []
    num_devices = request.nodes * request.devices_per_node
    if request.devices_per_node > 1 or request.nodes == 1:
        levels.append(Level(name="node", num_devices=request.devices_per_node, link=_intra_node(request, preset)))
    if preset is not None and preset.rack is not None:
        joined = _devices_of_rack(preset.rack.num_devices, request)
        if joined > request.devices_per_node:
            levels.append(Level(name="rack", num_devices=joined, link=preset.rack.link))
    if not levels or levels[-1].num_devices < num_devices:
        levels.append(Level(name="cluster", num_devices=num_devices, link=_inter_node(request, preset)))
    return levels


def _devices_of_rack(limit: int, request: ClusterRequest) -> int:
    """Devices of the cluster in each rack, in whole nodes.

    Equal shares where they fill half of a rack at least, as schedulers hand them out (18 nodes of a rack, of 32 nodes
    16 in each of two); else full racks, of which the last may be smaller (37 nodes: 18, 18 and 1).
    """
    most = max(1, limit // request.devices_per_node)
    even = max(nodes for nodes in range(1, most + 1) if request.nodes % nodes == 0)
    return request.devices_per_node * (even if 2 * even >= most else min(most, request.nodes))


def _reached(levels: tuple[Level, ...], request: ClusterRequest, preset: HardwarePreset) -> tuple[Level, ...]:
    """Tiers of a graph; what large messages reach of them is as usual inside a node or rack, or between nodes."""
    inside = max(request.devices_per_node, preset.rack.num_devices if preset.rack else 0)
    found = []
    for level in levels:
        usual = preset.intra_node if level.num_devices <= inside else preset.inter_node
        found.append(level.model_copy(update={"link": _as_usual(level.link, usual)}))
    return tuple(found)


def _as_usual(link: Link, usual: Link | None) -> Link:
    """A link that is given without saying what share of its bandwidth is reached reaches that of the usual one."""
    if usual is None or "efficiency_ratio" in link.model_fields_set:
        return link
    return link.model_copy(update={"efficiency_ratio": usual.efficiency_ratio})


def _intra_node(request: ClusterRequest, preset: HardwarePreset | None) -> Link:
    if request.intra_node is not None:
        return _as_usual(request.intra_node, preset.intra_node if preset else None)
    if preset is None:
        raise InputError.at("intra_node", "is required for a device that is given inline, or give levels")
    if request.devices_per_node > preset.devices_per_node:
        raise InputError.at(
            "devices_per_node",
            f"a node of {preset.name} usually has {preset.devices_per_node} devices; for a node of "
            f"{request.devices_per_node} give its links as intra_node or levels",
        )
    return preset.intra_node


def _inter_node(request: ClusterRequest, preset: HardwarePreset | None) -> Link:
    if request.inter_node is not None:
        return _as_usual(request.inter_node, preset.inter_node if preset else None)
    if preset is None:
        raise InputError.at("inter_node", "is required for a device that is given inline, or give levels")
    return preset.inter_node
