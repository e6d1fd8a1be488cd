"""How people call what was asked for: a model and a cluster in a few words, for lists and headings."""

from __future__ import annotations

from planner.spec.cluster import Device
from planner.spec.request import AnyClusterRequest, ClusterRequest, ModelRequest

LONGEST = 200
"""Characters; what is longer ends with an ellipsis."""


def model_name(request: ModelRequest) -> str:
    """The preset, the name of explicit layers, or what a config.json calls its model."""
    if request.preset is not None:
        return request.preset
    if request.spec is not None:
        return request.spec.name
    config = request.hf_config or {}
    named = (config.get(key) for key in ("_name_or_path", "model_type"))
    return _cut(next((name for name in named if isinstance(name, str) and name), "config.json"))


def cluster_name(request: AnyClusterRequest) -> str:
    """`8 × 8 h100-sxm-80g`; groups are joined by +."""
    if isinstance(request, ClusterRequest):
        device = request.device.name if isinstance(request.device, Device) else request.device
        return _cut(f"{request.nodes} × {request.devices_per_node} {device}")
    return _cut(" + ".join(cluster_name(group) for group in request.groups))


def _cut(name: str) -> str:
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"
