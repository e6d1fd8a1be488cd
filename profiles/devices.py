"""Accelerators with their usual node and network: presets from `profiles/hardware/*.json`, and measured profiles."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from planner.spec.cluster import Device, Link
from planner.spec.parse import parse
from planner.spec.stack import Stack
from planner.spec.value import Count, Name, Value
from profiles import catalogue
from profiles.files import read_json_file
from profiles.measurement import Measurement


class Rack(Value):
    """Nodes that share one fast network, such as the 72 GPUs of an NVL72 rack."""

    num_devices: Count
    link: Link


class HardwarePreset(Value):
    """A device, and the node and network in which it usually stands."""

    name: Name
    aliases: tuple[Name, ...] = ()
    device: Device
    devices_per_node: Count
    """Devices of the usual node: `intra_node` is known for as many, not for more."""
    intra_node: Link
    rack: Rack | None = None
    """Between nodes of one rack; None: as between any nodes."""
    inter_node: Link
    stack: Stack | None = None
    """The software with which the device was measured; None: the numbers are of the hardware alone."""
    measurement: Measurement | None = None
    """Where the numbers come from, if they were measured by `trimtab profile`."""


class MeasuredProfile(Value):
    """What `trimtab profile` found on a machine; a file, not a preset."""

    name: Name
    device: Device
    devices_per_node: Count
    intra_node: Link | None = None
    """None: not measured, there was one device."""
    inter_node: Link | None = None
    """None: not measured, there was one node."""
    stack: Stack
    measurement: Measurement


def device_names() -> list[str]:
    """Names of all device presets in alphabetical order, without their aliases."""
    return catalogue.names("hardware")


@cache
def device_preset(name: str) -> HardwarePreset:
    """The preset of this name or alias; raises NotFoundError with close matches."""
    found = catalogue.find("hardware", name)
    return parse(HardwarePreset, {"name": found, **catalogue.content("hardware", found)}, found)


def profile_from_file(path: Path, field: str) -> MeasuredProfile:
    """What `trimtab profile` wrote; raises InputError under `field`."""
    return parse(MeasuredProfile, read_json_file(path, field), field)
