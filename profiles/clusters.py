"""From what a user asks for to a cluster: devices by name, links of the usual node, shorthand of the command line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from planner.spec.cluster import Cluster, Device, Level, Link, Provenance
from planner.spec.errors import InputError, NotFoundError
from planner.spec.parse import parse
from planner.spec.request import ClusterRequest
from planner.spec.stack import Stack
from profiles.devices import HardwarePreset, MeasuredProfile, device_preset, profile_from_file
from profiles.error_bands import error_bands
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
        "stack": _stack(request, preset),
        "memory_limit_bytes": request.memory_limit_bytes,
    }
    cluster = parse(Cluster, content)
    if cluster.device.provenance is Provenance.MEASURED:
        # Published runs say nothing of a machine that was measured itself.
        return cluster
    return cluster.model_copy(update={"error_bands": error_bands(cluster.device, cluster.stack)})


def cluster_from_shorthand(text: str) -> ClusterRequest:
    """Read `nodes x devices per node : device`, as `8x8:h100-sxm-80g`, or with a measured profile `1x4:mine.json`.

    Raises InputError under `cluster`.
    """
    match = _SHORTHAND.fullmatch(text.strip())
    if match is None:
        raise InputError.at("cluster", f"must look like 8x8:h100-sxm-80g (nodes x devices: device), got {text!r}")
    content = {
        "nodes": int(match["nodes"]),
        "devices_per_node": int(match["devices_per_node"]),
        "device": match["device"],
    }
    return _request(content, Path())


def cluster_request_from_file(path: str) -> ClusterRequest:
    """A cluster from a JSON file, or from shorthand where no such file is; raises InputError under `cluster`.

    The `device` of the file may be the path of a measured profile, seen from the folder of the file.
    """
    is_shorthand = _SHORTHAND.fullmatch(path.strip()) and not Path(path).exists()
    if is_shorthand or not looks_like_file(path):
        return cluster_from_shorthand(path)
    return _request(read_json_file(Path(path), "cluster"), Path(path).parent)


def _request(content: dict[str, Any], folder: Path) -> ClusterRequest:
    """The request, with what a measured profile knows where its device is the path of one."""
    device = content.get("device")
    if not isinstance(device, str) or not device.endswith(".json"):
        return parse(ClusterRequest, content, "cluster")
    profile = profile_from_file(folder / device, "cluster.device")
    request = parse(ClusterRequest, {**content, "device": profile.device}, "cluster")
    filled: dict[str, Any] = {"stack": request.stack or profile.stack}
    if request.levels is None:
        filled["intra_node"] = request.intra_node or _measured_inside(request, profile)
        filled["inter_node"] = request.inter_node or _measured_between(request, profile)
    return request.model_copy(update=filled)


def _measured_inside(request: ClusterRequest, profile: MeasuredProfile) -> Link | None:
    """The measured link; a device that is alone reaches itself through its memory."""
    if request.devices_per_node == 1:
        alone = Link(bandwidth_bytes_per_s=profile.device.memory_bandwidth_bytes_per_s, latency_s=0.0)
        return profile.intra_node or alone
    if profile.intra_node is None or request.devices_per_node > profile.devices_per_node:
        raise InputError.at(
            "cluster.devices_per_node",
            f"{profile.name} was measured with {profile.devices_per_node} in a node; for {request.devices_per_node} "
            "give intra_node or levels in a cluster file",
        )
    return profile.intra_node


def _measured_between(request: ClusterRequest, profile: MeasuredProfile) -> Link | None:
    if request.nodes > 1 and profile.inter_node is None:
        raise InputError.at(
            "cluster.nodes", f"{profile.name} was measured on one node; for more give inter_node in a cluster file"
        )
    return profile.inter_node


def _preset(name: str) -> HardwarePreset:
    try:
        return device_preset(name)
    except NotFoundError as error:
        raise InputError.at("device", str(error)) from None


def _stack(request: ClusterRequest, preset: HardwarePreset | None) -> Stack:
    """The stack that is asked for, or that the device was measured with, or the usual one."""
    if isinstance(request.stack, Stack):
        return request.stack
    if request.stack is None and preset is not None and preset.stack is not None:
        return preset.stack
    try:
        return stack_preset(request.stack or USUAL_STACK).stack
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
