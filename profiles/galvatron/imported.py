"""From a folder of Galvatron's files to a model, a cluster and plans of ours, with every choice that was made."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from planner.spec.cluster import Level
from planner.spec.errors import InputError, NotFoundError
from planner.spec.model import Model
from planner.spec.plan import Plan
from planner.spec.request import ClusterRequest
from profiles.devices import HardwarePreset, device_preset
from profiles.galvatron.calibration import Machine, calibrate
from profiles.galvatron.comparison import Comparison
from profiles.galvatron.folder import Files, Size, read_files
from profiles.galvatron.hardware import overlap_slowdown_ratio
from profiles.galvatron.model_profile import ModelProfile
from profiles.galvatron.network import levels_of
from profiles.galvatron.results import SearchResult, search_result
from profiles.galvatron.selection import offers_of, select_profile, select_sequence_length, select_size
from profiles.galvatron.sentences import about_device, about_plans, sources
from profiles.galvatron.shapes import Shape, shape_of
from profiles.galvatron.translate import Recipe, plan_of

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
    found = _plans(files, shape, profile, wishes)
    levels, links, about_links = levels_of(files, found.size, preset)
    of_device = sources(machine, preset, profile, slowdown is not None)
    return Imported(
        model=shape.model,
        cluster=_cluster(found.size, _named(machine, preset, of_device, wishes.reserve_bytes), levels),
        precision=profile.precision,
        plans=found.plans,
        results=found.results,
        comparisons=(*machine.comparisons, *links),
        choices=(
            shape.choice,
            *about_device(preset, profile, slowdown is not None, wishes.reserve_bytes),
            *about_links,
            *found.said,
            *passed,
            *(f"left out: {name} is no file of Galvatron's that is read" for name in files.unknown),
        ),
    )


class _Found(NamedTuple):
    """The plans of one model on one size of cluster."""

    size: Size
    plans: dict[str, Plan]
    results: tuple[SearchResult, ...]
    said: list[str]


def _plans(files: Files, shape: Shape, profile: ModelProfile, wishes: Wishes) -> _Found:
    results = tuple(search_result(file.content, Path(file.name).stem) for file in files.results)
    offers, about_offers = offers_of(files, results, shape, profile)
    size, about_size = select_size(files, offers, wishes.size)
    length = select_sequence_length(profile, wishes.sequence_length)
    recipe = Recipe(size[0] * size[1], length, profile.sequence_parallel is not False, wishes.reduces_once)
    here = [offer for offer in offers if offer.num_devices == recipe.num_devices]
    plans = {offer.name: plan_of(offer.plan, recipe, offer.name) for offer in here}
    left = [f"left out: {offer.name} is for {offer.num_devices} devices" for offer in offers if offer not in here]
    said = [*about_size, *about_plans(here, recipe, profile), *about_offers, *left]
    return _Found(size, plans, tuple(result for result in results if result.name in plans), said)


def _preset(name: str) -> HardwarePreset:
    try:
        return device_preset(name)
    except NotFoundError as error:
        raise InputError.at("--device", str(error)) from None


def _named(machine: Machine, preset: HardwarePreset, of_device: tuple[str, ...], reserve: int | None) -> Machine:
    """The machine under a name of its own, that says where its numbers are from."""
    update: dict[str, object] = {"name": f"{preset.name}-by-galvatron", "sources": of_device}
    if reserve is not None:
        update["reserve_bytes"] = reserve
    return machine._replace(device=machine.device.model_copy(update=update))


def _cluster(size: Size, machine: Machine, levels: tuple[Level, ...]) -> ClusterRequest:
    return ClusterRequest(
        nodes=size[0], devices_per_node=size[1], device=machine.device, levels=levels, stack=machine.stack
    )
