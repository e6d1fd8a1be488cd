"""From what a user asks for to a cluster: devices by name, links of the usual node, shorthand of the command line."""

from __future__ import annotations

import re
from pathlib import Path

from planner.spec.cluster import Cluster, Device, Level, Link
from planner.spec.errors import InputError, NotFoundError
from planner.spec.parse import parse
from planner.spec.request import ClusterRequest
from planner.spec.stack import Stack
from profiles.devices import HardwarePreset, device_preset
from profiles.files import looks_like_file, read_json_file
from profiles.stacks import USUAL_STACK, stack_preset

_SHORTHAND = re.compile(r"(?P<nodes>\d{1,9})x(?P<devices_per_node>\d{1,9}):(?P<device>\S+)")


def resolve_cluster(request: ClusterRequest) -> Cluster:
    """The cluster that a request describes.

    Raises InputError whose fields are seen from the request (`device`, `intra_node`, …).
    """
    preset = None if isinstance(request.device, Device) else _preset(request.device)
    device = request.device if isinstance(request.device, Device) else preset and preset.device
    content = {
        "nodes": request.nodes,
        "devices_per_node": request.devices_per_node,
        "device": device,
        "levels": request.levels or _levels(request, preset),
        "stack": request.stack if isinstance(request.stack, Stack) else _stack(request.stack or USUAL_STACK),
        "memory_limit_bytes": request.memory_limit_bytes,
    }
    return parse(Cluster, content)


def cluster_from_shorthand(text: str) -> ClusterRequest:
    """Read `nodes x devices per node : device`, such as `8x8:h100-sxm-80g`; raises InputError at `cluster`."""
    match = _SHORTHAND.fullmatch(text.strip())
    if match is None:
        raise InputError.at("cluster", f"must look like 8x8:h100-sxm-80g (nodes x devices: device), got {text!r}")
    content = {
        "nodes": int(match["nodes"]),
        "devices_per_node": int(match["devices_per_node"]),
        "device": match["device"],
    }
    return parse(ClusterRequest, content, "cluster")


def cluster_request_from_file(path: str) -> ClusterRequest:
    """A cluster from a JSON file, or from shorthand where no such file is; raises InputError under `cluster`."""
    if not looks_like_file(path):
        return cluster_from_shorthand(path)
    return parse(ClusterRequest, read_json_file(Path(path), "cluster"), "cluster")


def _preset(name: str) -> HardwarePreset:
    try:
        return device_preset(name)
    except NotFoundError as error:
        raise InputError.at("device", str(error)) from None


def _stack(name: str) -> Stack:
    try:
        return stack_preset(name).stack
    except NotFoundError as error:
        raise InputError.at("stack", str(error)) from None


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
    """Devices of the cluster in each rack: as many whole nodes as fit and share the cluster evenly."""
    fitting = range(1, max(1, limit // request.devices_per_node) + 1)
    return request.devices_per_node * max(nodes for nodes in fitting if request.nodes % nodes == 0)


def _intra_node(request: ClusterRequest, preset: HardwarePreset | None) -> Link:
    if request.intra_node is not None:
        return request.intra_node
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
        return request.inter_node
    if preset is None:
        raise InputError.at("inter_node", "is required for a device that is given inline, or give levels")
    return preset.inter_node
