"""From a row's names of devices and links to a cluster of presets.

A device is found by its chip, memory and form ("A100-SXM4-80GB"). Links are those of the preset unless the row states
their rate ("8x400Gb/s NDR IB per node", "1600 Gbps/node", "600 GB/s bidir").
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from planner.spec.cluster import Cluster, Link
from planner.spec.errors import InputError
from planner.spec.request import ClusterRequest
from profiles.clusters import resolve_cluster
from profiles.devices import HardwarePreset, device_names, device_preset
from profiles.runs.record import HardwareFacts
from profiles.runs.skipped import Skipped

_CHIP = re.compile(r"\b(gb|gh|rtx[ -]?|mi|[abhvplt])(\d{2,4}x?)\b")
_MEMORY = re.compile(r"\b(?P<gb>\d{2,3}) ?g(?:i?b)?\b")
_FORM = re.compile(r"\b(sxm\d|pcie|nvl)\b")
_MEMORY_SLACK = 1.1
"""Marketing counts one memory as 180, 186 or 192 GB."""
_PER_ADAPTER = re.compile(r"(?P<count>\d+) ?x ?(?P<rate>\d+) ?gb(?:ps|/s|it/s)")
_RATE = re.compile(r"(?P<rate>\d+(?:\.\d+)?) ?(?P<unit>gb|tb)(?:ps|/s|it/s) ?(?:/|per )(?P<share>node|gpu|device)")
_BIDIRECTIONAL = re.compile(r"(?P<rate>\d+(?:\.\d+)?) ?gb/s (?:aggregate )?bidir")
_LINKS = re.compile(r"\b(?P<count>\d+) ?nvlinks? inter-gpu")
_NVLINK_BYTES_PER_S = 25e9
"""Of one NVLink of any generation but the first, per direction (NVIDIA's data sheets of V100 to H100)."""
_SAME_LINK = 0.05
"""Relative difference up to which a stated rate is the preset's, rounded."""


@dataclass(frozen=True)
class _Name:
    chip: str
    memory_gb: int | None
    form: str | None


def cluster_of(facts: HardwareFacts, stack: str) -> Cluster | Skipped:
    """The cluster that a row ran on, with the stack of this name."""
    preset = find_preset(facts)
    if isinstance(preset, Skipped):
        return preset
    whole_node = facts.gpus_per_node or preset.devices_per_node
    per_node = min(whole_node, facts.gpus)
    if facts.gpus % per_node:
        return Skipped(f"hardware.gpus: {facts.gpus} do not fill nodes of {whole_node} evenly")
    request = ClusterRequest(
        nodes=facts.gpus // per_node,
        devices_per_node=per_node,
        device=preset.name,
        intra_node=_intra_node(facts, preset),
        inter_node=_inter_node(facts, preset, whole_node),
        stack=stack,
    )
    try:
        return resolve_cluster(request)
    except InputError as error:
        return Skipped(f"hardware: {error}")


def find_preset(facts: HardwareFacts) -> HardwarePreset | Skipped:
    """The preset that a device's name means; of several, the one whose alias is the bare chip, else the largest."""
    wanted = _read(facts.gpu)
    if wanted is None:
        return Skipped(f"hardware.gpu: no device preset for {facts.gpu!r}")
    fitting = [preset for preset in map(device_preset, device_names()) if _fits(wanted, preset)]
    if not fitting:
        return Skipped(f"hardware.gpu: no device preset for {facts.gpu!r}")
    whole_nodes = [preset for preset in fitting if preset.devices_per_node >= (facts.gpus_per_node or 1)]
    return max(whole_nodes or fitting, key=lambda preset: _rank(wanted, preset))


def _read(text: str) -> _Name | None:
    plain = re.sub(r"\([^()]*\)", " ", text.lower()).replace("-", " ").replace("_", " ")
    chip = _CHIP.search(plain)
    if chip is None:
        return None
    memory, form = _MEMORY.search(plain), _FORM.search(plain)
    return _Name(
        chip=(chip[1].strip() + chip[2]),
        memory_gb=int(memory["gb"]) if memory else None,
        form=form[0] if form else None,
    )


def _fits(wanted: _Name, preset: HardwarePreset) -> bool:
    name = _read(preset.name)
    if name is None or name.chip != wanted.chip:
        return False
    if wanted.form == "pcie" and "pcie" not in preset.name:
        return False
    if wanted.memory_gb is None or name.memory_gb is None:
        return True
    smaller, larger = sorted((wanted.memory_gb, name.memory_gb))
    return larger <= _MEMORY_SLACK * smaller


def _rank(wanted: _Name, preset: HardwarePreset) -> tuple[bool, bool, int, str]:
    same_form = wanted.form is not None and wanted.form in preset.name
    return same_form, wanted.chip in preset.aliases, preset.device.memory_bytes, preset.name


def _intra_node(facts: HardwareFacts, preset: HardwarePreset) -> Link:
    """The preset's link, at the rate that the row states: as a number of NVLinks, or for both directions together."""
    links = _LINKS.search((facts.intra or "").lower())
    if links:
        return _at(preset.intra_node, int(links["count"]) * _NVLINK_BYTES_PER_S)
    found = _BIDIRECTIONAL.search((facts.intra or "").lower())
    return _at(preset.intra_node, float(found["rate"]) / 2 * 1e9) if found else preset.intra_node


def _inter_node(facts: HardwareFacts, preset: HardwarePreset, per_node: int) -> Link:
    """The preset's network, at the rate that the row states for a node or a device."""
    text = (facts.inter or "").lower()
    adapters, plain = _PER_ADAPTER.search(text), _RATE.search(text)
    if adapters:
        bits_per_s = int(adapters["count"]) * float(adapters["rate"]) * 1e9
        return _at(preset.inter_node, bits_per_s / 8 / per_node)
    if plain:
        bits_per_s = float(plain["rate"]) * (1e12 if plain["unit"] == "tb" else 1e9)
        return _at(preset.inter_node, bits_per_s / 8 / (per_node if plain["share"] == "node" else 1))
    return preset.inter_node


def _at(link: Link, bytes_per_s: float) -> Link:
    if abs(bytes_per_s - link.bandwidth_bytes_per_s) <= _SAME_LINK * link.bandwidth_bytes_per_s:
        return link
    pair = link.pair_bandwidth_bytes_per_s
    return link.model_copy(
        update={
            "bandwidth_bytes_per_s": bytes_per_s,
            "pair_bandwidth_bytes_per_s": min(pair, bytes_per_s) if pair else None,
        }
    )
