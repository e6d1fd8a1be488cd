"""What a user writes for a cluster, as shorthand of the command line or as a JSON file, to a request."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from planner.spec.cluster import Link
from planner.spec.errors import InputError
from planner.spec.parse import parse
from planner.spec.request import ClusterRequest, MixedClusterRequest
from profiles.devices import MeasuredProfile, profile_from_file
from profiles.files import looks_like_file, read_json_file

_SHORTHAND = re.compile(r"(?P<nodes>\d{1,18})x(?P<devices_per_node>\d{1,18}):(?P<device>[^\s+]+)")


def cluster_from_shorthand(text: str) -> ClusterRequest | MixedClusterRequest:
    """Read `nodes x devices per node : device`, as `8x8:h100-sxm-80g`, or with a measured profile `1x4:mine.json`.

    Groups of unlike nodes are joined by +, as `1x8:a100-sxm-80g+2x4:v100-sxm2-32g`. Raises InputError under `cluster`.
    """
    data = cluster_data_from_shorthand(text)
    return _mixed_request(data, Path()) if "groups" in data else _request(data, Path(), "cluster")


def cluster_data_from_shorthand(text: str) -> dict[str, Any]:
    """The same as plain data of a request: opens no file, whatever `text` names. Raises InputError under `cluster`."""
    matches = _shorthand(text)
    if matches is None:
        raise InputError.at(
            "cluster",
            f"must look like 8x8:h100-sxm-80g (nodes x devices: device), or 1x8:a100+1x8:v100 for groups, got {text!r}",
        )
    groups: list[dict[str, Any]] = [
        {
            "nodes": int(match["nodes"]),
            "devices_per_node": int(match["devices_per_node"]),
            "device": match["device"],
        }
        for match in matches
    ]
    return {"groups": groups} if len(groups) > 1 else groups[0]


def _shorthand(text: str) -> list[re.Match[str]] | None:
    """Each group as it is written; None for what is no shorthand."""
    matches = [_SHORTHAND.fullmatch(part) for part in text.strip().split("+")]
    found = [match for match in matches if match is not None]
    return found if len(found) == len(matches) else None


def cluster_request_from_file(path: str) -> ClusterRequest | MixedClusterRequest:
    """A cluster from a JSON file, or from shorthand where no such file is; raises InputError under `cluster`.

    Each `device` of the file may be the path of a measured profile, seen from the folder of the file.
    """
    is_shorthand = _shorthand(path) is not None and not Path(path).exists()
    if is_shorthand or not looks_like_file(path):
        return cluster_from_shorthand(path)
    content, folder = read_json_file(Path(path), "cluster"), Path(path).parent
    return _mixed_request(content, folder) if "groups" in content else _request(content, folder, "cluster")


def _mixed_request(content: dict[str, Any], folder: Path) -> MixedClusterRequest:
    groups = content["groups"]
    if isinstance(groups, list):
        groups = [
            _request(group, folder, f"cluster.groups[{number}]") if isinstance(group, dict) else group
            for number, group in enumerate(groups)
        ]
    return parse(MixedClusterRequest, {**content, "groups": groups}, "cluster")


def _request(content: dict[str, Any], folder: Path, field: str) -> ClusterRequest:
    """The request, with what a measured profile knows where its device is the path of one."""
    device = content.get("device")
    if not isinstance(device, str) or not device.endswith(".json"):
        return parse(ClusterRequest, content, field)
    profile = profile_from_file(folder / device, f"{field}.device")
    request = parse(ClusterRequest, {**content, "device": profile.device}, field)
    try:
        return on_measured_device(request, profile)
    except InputError as error:
        raise error.under(field) from None


def on_measured_device(request: ClusterRequest, profile: MeasuredProfile) -> ClusterRequest:
    """The request on the device that was measured; links and software that it leaves out are the measured ones.

    Raises InputError at its fields where links are needed that were not measured.
    """
    filled: dict[str, Any] = {"device": profile.device, "stack": request.stack or profile.stack}
    if request.levels is None and request.links is None:
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
            "devices_per_node",
            f"{profile.name} was measured with {profile.devices_per_node} in a node; for {request.devices_per_node} "
            "give intra_node or levels",
        )
    return profile.intra_node


def _measured_between(request: ClusterRequest, profile: MeasuredProfile) -> Link | None:
    if request.nodes > 1 and profile.inter_node is None:
        raise InputError.at("nodes", f"{profile.name} was measured on one node; for more give inter_node")
    return profile.inter_node
