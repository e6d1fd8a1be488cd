"""A measured profile: from samples to a file that `plan` and `estimate` take as a device. Knows no torch."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from profiles.devices import MeasuredProfile
from profiles.fitting import fit
from profiles.measurement import Machine, Measurement, Sample

METHOD = (
    "all devices worked at the same time; seconds are the lower quartile of repetitions, of the slowest device",
    "cpu: kernels by the processor time of one thread, collectives by the clock on the wall (the lowest twentieth); "
    "cuda: by events, with caches flushed before each repetition",
    "constants: least mean square of log(predicted / measured) under the formulas of planner.cost",
)


def measured_profile(
    name: str | None, machine: Machine, samples: Sequence[Sample], date: str, took_s: float
) -> MeasuredProfile:
    """The profile of a machine; without a name it is called by its device. Raises InputError at `samples`."""
    name = name or re.sub(r"[^a-z0-9]+", "-", machine.device.lower()).strip("-")
    found = fit(name, machine, samples, _sources(machine, date))
    return MeasuredProfile(
        name=name,
        device=found.device,
        devices_per_node=machine.devices_per_node,
        intra_node=found.intra_node,
        inter_node=found.inter_node,
        stack=found.stack,
        measurement=Measurement(
            date=date,
            machine=machine,
            took_s=round(took_s, 1),
            method=METHOD,
            errors=found.errors,
            samples=tuple(samples),
        ),
    )


def profile_text(profile: MeasuredProfile) -> str:
    """The content of its file; one line for each sample."""
    content = profile.model_dump(mode="json", exclude_none=True)
    samples = [json.dumps(sample) for sample in content["measurement"].pop("samples")]
    text = json.dumps(content, indent=2)
    end, lines = "\n  }\n}", ",\n      ".join(samples)
    return text.removesuffix(end) + f',\n    "samples": [\n      {lines}\n    ]{end}\n'


def _sources(machine: Machine, date: str) -> tuple[str, ...]:
    nodes = machine.num_devices // machine.devices_per_node
    return (
        f"measured {date} by `trimtab profile`: {machine.device}, {nodes} x {machine.devices_per_node} devices, torch "
        f"{machine.torch_version}, {machine.backend}, mostly {machine.precision}; rows and errors under measurement",
        "peaks and memory bandwidth: the best product and stream that were measured, no datasheet; matmul_ratio, "
        "attention ratios and memory_ratio are shares of them",
        "memory-bound work, grouped products and update are those of torch without compilation: that is in the stack; "
        "what the host takes to submit work is not",
        "overlap_slowdown_ratio: an all-reduce beside products; 1 where there was one device",
        _memory_source(machine),
    )


def _memory_source(machine: Machine) -> str:
    if machine.backend == "cpu":
        return (
            "memory_bytes: assumption, an even share of the machine's for each process; reserve_bytes: resident size "
            "of a process with torch; a device is one thread"
        )
    return "memory_bytes: what the driver reports; reserve_bytes: what is not free before there are tensors"
