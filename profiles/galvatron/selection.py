"""Of several profiles, sizes and plans in a folder, those that belong together; and sentences on what was decided."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from planner.spec.errors import InputError
from planner.spec.model import Block
from profiles.galvatron.folder import File, Files, Size
from profiles.galvatron.model_profile import ModelProfile, is_since_2_4, kept_of, passes_of
from profiles.galvatron.plan_file import PlanFile, plan_file
from profiles.galvatron.results import SearchResult
from profiles.galvatron.shapes import Shape

_LENGTH = re.compile(r"seqlen(\d+)")


class Offer(NamedTuple):
    """A plan of the files, before it is known whether it is of this model and size."""

    name: str
    """Of its file, without the ending."""
    plan: PlanFile
    model: str | None
    """None: not said."""
    num_devices: int
    since_2_4: bool | None = None
    """Which versions write such a record; None: any."""


def select_profile(files: Files, wanted: str | None) -> tuple[ModelProfile, list[str]]:
    """The profile of the model, and what was passed over; raises InputError at `--profile` if there are several.

    `wanted` is a profile's name, or its number format and name as in a file's name. A profile without seconds of a
    block is passed over where another has them.
    """
    profiles = [_profile(name, precision, kinds) for (name, precision), kinds in sorted(files.models.items())]
    if wanted is not None:
        profiles = [profile for profile in profiles if wanted in (profile.name, _label(profile))]
    timed = [profile for profile in profiles if profile.passes]
    candidates = timed or profiles
    if not files.models:
        raise InputError.at("DIR", "has no computation_profiling or memory_profiling file")
    if not candidates:
        known = sorted({name for name, _ in files.models})
        raise InputError.at("--profile", f"must be one of {', '.join(known)}, got {wanted!r:.80}")
    if len(candidates) > 1:
        raise InputError.at("--profile", f"must say which: {', '.join(map(_label, candidates))}")
    passed = [f"left out: profile {p.name} has no seconds of a block" for p in profiles if p not in candidates]
    return candidates[0], passed


def _label(profile: ModelProfile) -> str:
    return f"{profile.precision}_{profile.name}"


def _profile(name: str, precision: str, kinds: dict[str, File]) -> ModelProfile:
    length = _LENGTH.search(name)
    tokens = int(length[1]) if length else None
    computation, memory = kinds.get("computation"), kinds.get("memory")
    passes = passes_of(computation.content, tokens, computation.name) if computation else ()
    kept, sequence_parallel = kept_of(memory.content, tokens, memory.name) if memory else ((), None)
    since_2_4 = any(is_since_2_4(file.content) for file in kinds.values())
    return ModelProfile(name, precision, passes, kept, sequence_parallel, since_2_4)


def select_sequence_length(profile: ModelProfile, wanted: int | None) -> int:
    """The length that plans are for; raises InputError at `--sequence-length` if the profile has several."""
    known = sorted(
        {*(each.sequence_length for each in profile.passes), *(each.sequence_length for each in profile.kept)}
    )
    if wanted is not None:
        return wanted
    if len(known) != 1:
        raise InputError.at("--sequence-length", f"must say which of {', '.join(map(str, known)) or 'any'}")
    return known[0]


def offers_of(
    files: Files, results: Sequence[SearchResult], shape: Shape, profile: ModelProfile
) -> tuple[list[Offer], list[str]]:
    """The plans that are of this model, and sentences about the others."""
    blocks = sum(isinstance(layer, Block) for layer in shape.model.layers)
    fitting, left = [], []
    for offer in _offers(files, results):
        if offer.model is not None and offer.model not in shape.names:
            left.append(f"left out: {offer.name} is for {offer.model}")
        elif offer.plan.num_blocks != blocks:
            left.append(
                f"left out: {offer.name} is for {offer.plan.num_blocks} blocks, {shape.model.name} has {blocks}"
            )
        elif offer.since_2_4 not in (None, profile.since_2_4):
            left.append(f"left out: {offer.name} is of another version of Galvatron than the profile {profile.name}")
        else:
            fitting.append(offer)
            if offer.model is None:
                left.append(f"{offer.name} does not say its model; its {blocks} blocks fit")
    return fitting, left


def _offers(files: Files, results: Sequence[SearchResult]) -> Iterator[Offer]:
    for each in files.plans:
        name = Path(each.file.name).stem
        yield Offer(name, plan_file(each.file.content, name), each.model, each.size[0] * each.size[1])
    for result in results:
        yield Offer(result.name, result.plan, result.model, result.num_devices, result.since_2_4)


def select_size(files: Files, offers: Sequence[Offer], wanted: Size | None) -> tuple[Size, list[str]]:
    """Nodes and devices: what is asked for, else what most plans are for, else the smallest that was measured.

    Raises InputError at `--cluster` if all-reduces were not measured on that size.
    """
    measured = sorted(size for kind, size in files.hardware if kind == "allreduce_bandwidth")
    if not measured:
        raise InputError.at("DIR", "has no allreduce_bandwidth_…nodes_…gpus_per_node.json: links are unknown")
    shown = ", ".join(f"{nodes}x{devices}" for nodes, devices in measured)
    if wanted is not None:
        if wanted not in measured:
            raise InputError.at("--cluster", f"must be one of what was measured: {shown}")
        return wanted, []
    plans = Counter(offer.num_devices for offer in offers)
    chosen = max(measured, key=lambda size: (plans[size[0] * size[1]], -size[0] * size[1]))
    return chosen, [f"cluster: {chosen[0]}x{chosen[1]}, of {shown} (--cluster chooses)"] if len(measured) > 1 else []
