"""From a folder of Galvatron's files to a model, a cluster and plans of ours, with every choice that was made."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from planner.spec.cluster import Level, Provenance
from planner.spec.errors import InputError, NotFoundError
from planner.spec.model import Model
from planner.spec.parse import parse
from planner.spec.plan import Plan
from planner.spec.request import ClusterRequest
from profiles.devices import HardwarePreset, device_preset
from profiles.galvatron.calibration import Comparison, Machine, calibrate
from profiles.galvatron.folder import Size, read_files
from profiles.galvatron.hardware import overlap_slowdown_ratio
from profiles.galvatron.model_profile import ModelProfile
from profiles.galvatron.network import levels_of
from profiles.galvatron.results import SearchResult, search_result
from profiles.galvatron.selection import (
    Offer,
    offers_of,
    select_profile,
    select_sequence_length,
    select_size,
)
from profiles.galvatron.shapes import shape_of
from profiles.galvatron.translate import Recipe, edge_degree, plan_of

USUAL_DEVICE = "a100-sxm-80g"


class Wishes(NamedTuple):
    """What the user says beside the files; None: the files decide, or the preset."""

    device: str = USUAL_DEVICE
    size: Size | None = None
    profile: str | None = None
    model: Model | None = None
    sequence_length: int | None = None
    reserve_bytes: int | None = None
    reduces_once: bool = True


class Imported(NamedTuple):
    """What the files say, in our terms."""

    model: Model
    cluster: ClusterRequest
    precision: str
    plans: dict[str, Plan]
    """By name of the file that each came from, without its ending."""
    results: tuple[SearchResult, ...]
    """The records of searches whose plans are in `plans`, under the same names."""
    comparisons: tuple[Comparison, ...]
    """What was measured, beside what our formulas make of it."""
    choices: tuple[str, ...]
    """Sentences: what the files left open and how it was decided, and what was left out."""


def import_files(paths: Iterable[Path], wishes: Wishes) -> Imported:
    """Read Galvatron's files; raises InputError that names a file's key, or the option that would decide."""
    files = read_files(paths)
    profile, passed = select_profile(files, wishes.profile)
    shape = shape_of(profile, files.shapes, wishes.model)
    preset = _preset(wishes.device)
    slowdown = overlap_slowdown_ratio(files.overlap.content, files.overlap.name) if files.overlap else None
    machine = calibrate(shape.model, profile, preset.device, slowdown)
    results = tuple(search_result(file.content, Path(file.name).stem) for file in files.results)
    offers, left = offers_of(files, results, shape, profile)
    size, sized = select_size(files, offers, wishes.size)
    levels, links, unmeasured = levels_of(files, size, preset)
    length = select_sequence_length(profile, wishes.sequence_length)
    recipe = Recipe(size[0] * size[1], length, profile.sequence_parallel is not False, wishes.reduces_once)
    here = [offer for offer in offers if offer.num_devices == recipe.num_devices]
    plans = {offer.name: plan_of(offer.plan, recipe, offer.name) for offer in here}
    cluster = _cluster(size, machine, levels, preset, profile, wishes)
    return Imported(
        shape.model,
        cluster,
        profile.precision,
        plans,
        tuple(result for result in results if result.name in plans),
        (*machine.comparisons, *links),
        (
            *(shape.choice, *_device_choices(machine, preset, profile), *sized, *unmeasured),
            *_plan_choices(here, recipe, profile),
            *left,
            *(f"left out: {o.name} is for {o.num_devices} devices" for o in offers if o not in here),
            *passed,
            *(f"left out: {name} is no file of Galvatron's that is read" for name in files.unknown),
        ),
    )


def _preset(name: str) -> HardwarePreset:
    try:
        return device_preset(name)
    except NotFoundError as error:
        raise InputError.at("--device", str(error)) from None


def _cluster(
    size: Size,
    machine: Machine,
    levels: tuple[Level, ...],
    preset: HardwarePreset,
    profile: ModelProfile,
    wishes: Wishes,
) -> ClusterRequest:
    device = machine.device
    reserve = device.reserve_bytes if wishes.reserve_bytes is None else wishes.reserve_bytes
    content = device.model_copy(
        update={
            "name": f"{preset.name}-by-galvatron",
            "reserve_bytes": reserve,
            "sources": _sources(machine, preset, profile),
        }
    )
    request = {
        "nodes": size[0],
        "devices_per_node": size[1],
        "device": content,
        "levels": levels,
        "stack": machine.stack,
    }
    return parse(ClusterRequest, request, "cluster")


def _sources(machine: Machine, preset: HardwarePreset, profile: ModelProfile) -> tuple[str, ...]:
    """What was measured, and where all else is from."""
    device, stack = machine.device, machine.stack
    lines = [f"all that is not named here: preset {preset.name}"]
    if device.provenance is Provenance.MEASURED:
        lines += [
            f"matmul_ratio, and the stack's loss_ratio: fitted to the seconds of Galvatron's computation profile "
            f"{profile.name} ({profile.precision})",
            "levels: Galvatron's all-reduce and point-to-point bandwidths; bandwidths are what was reached",
        ]
    if device.efficiency.overlap_slowdown_ratio != preset.device.efficiency.overlap_slowdown_ratio:
        lines.append("overlap_slowdown_ratio: Galvatron's overlap coefficient")
    if profile.kept:
        flags = [name for name in ("casts_shards", "eager_blocks", "eager_loss") if getattr(stack, name)]
        lines.append(
            f"the stack's flags ({', '.join(flags) or 'none'}) and fragmentation_ratio: nearest to Galvatron's memory "
            f"profile {profile.name}"
        )
    return tuple(lines)


def _device_choices(machine: Machine, preset: HardwarePreset, profile: ModelProfile) -> list[str]:
    said = [
        f"device: {preset.name}, whose datasheet says what Galvatron does not measure (--device chooses another)",
        f"memory that no plan may use: {preset.device.reserve_bytes / 2**30:.3g} GiB of {preset.name}; Galvatron 2.1 "
        "counts 1 GiB, 3.0 none (--reserve says another)",
    ]
    if not profile.passes:
        said.append(f"speed of kernels: that of {preset.name}, for there is no computation profile")
    if not profile.kept:
        said.append("memory of the stack: as fused kernels need it, for there is no memory profile")
    if machine.device.efficiency.overlap_slowdown_ratio == preset.device.efficiency.overlap_slowdown_ratio:
        said.append(f"overlap slowdown: that of {preset.name}")
    return said


def _plan_choices(offers: list[Offer], recipe: Recipe, profile: ModelProfile) -> list[str]:
    if not offers:
        return []
    said = []
    if any(degree > 1 for offer in offers for degree in (*offer.plan.tp_sizes_enc, offer.plan.vtp or 1)):
        way = "with" if recipe.sequence_parallel else "without"
        basis = "no memory profile says" if profile.sequence_parallel is None else "as the memory profile was measured"
        said.append(f"tensor parallelism: {way} sequence parallelism, {basis}; plan files do not say")
    if any(o.plan.chunks > 1 and o.plan.default_dp_type == "zero2" for o in offers) and recipe.reduces_once:
        said.append(
            "zero2 with several micro-batches: ZeRO-1, for gradients are reduced once unless async_grad_reduce is off "
            "(--reduce-each-micro-batch)"
        )
    for offer in offers:
        if offer.plan.vtp is None and (degree := edge_degree(offer.plan, recipe.num_devices)) > 1:
            said.append(f"{offer.name} does not say vtp: {degree}, so that every rank has as many samples")
    if profile.precision != "bf16":
        said.append(f"plans are for {profile.precision}: say --precision {profile.precision} to plan and estimate")
    return said
