"""Sizes of the model that a profile is of: its name, a file of sizes beside it, or the user says them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from planner.spec.errors import InputError, NotFoundError
from planner.spec.model import Model
from profiles.architectures import model_preset
from profiles.galvatron.folder import File
from profiles.galvatron.model_profile import ModelProfile
from profiles.huggingface import model_from_config

_SIZES = re.compile(r"hidden(\d+)_head(\d+)_seqlen(\d+)")
_TIED_RATIO = 0.75
"""State of embedding and head on one stage, over that on two, below which they share a matrix: 1/2, or 1 if not."""


class Shape(NamedTuple):
    """The model, how it was found, and the other names that Galvatron may give it."""

    model: Model
    choice: str
    names: frozenset[str]


def shape_of(profile: ModelProfile, shapes: Sequence[File], given: Model | None) -> Shape:
    """The user's model, else that of a file of sizes that the profile's name matches, else the preset of its name.

    Raises InputError at `--model` that says what is missing.
    """
    matching = [file for file in shapes if _matches(file, profile.name)]
    names = frozenset({profile.name, *(_name(file) for file in matching)})
    if given is not None:
        return Shape(given, f"model: {given.name}, as --model says", names | {given.name})
    if len(matching) > 1:
        raise InputError.at(
            "--model", f"must say which: {' and '.join(file.name for file in matching)} both fit {profile.name}"
        )
    if matching:
        return _from_sizes(matching[0], profile, names)
    try:
        model = model_preset(profile.name)
    except NotFoundError:
        raise InputError.at(
            "--model",
            f"is required: {profile.name} does not say the model's layers and vocabulary, no file of sizes (n_layer, "
            "n_embd, n_head, vocab_size, n_positions) fits it, and no preset has its name",
        ) from None
    return Shape(model, f"model: the preset {model.name}, by the profile's name {profile.name}", names | {model.name})


def _from_sizes(file: File, profile: ModelProfile, names: frozenset[str]) -> Shape:
    tied = any(one < _TIED_RATIO * two for kept in profile.kept for one, two in [kept.edges_state_bytes])
    content = {
        "model_type": "gpt2",
        "tie_word_embeddings": tied,
        **{key: value for key, value in file.content.items() if key != "head_dim"},
    }
    model = model_from_config(content, _name(file))
    how = "share their matrix" if tied else "have a matrix each"
    source = ", as its memory profile shows" if profile.kept else ", which no memory profile shows"
    return Shape(model, f"model: {file.name}, as GPT-2; embedding and head {how}{source}", names | {model.name})


def _matches(file: File, name: str) -> bool:
    """Whether a file of sizes is of the model that a profile's name describes."""
    sizes = _SIZES.fullmatch(name)
    if sizes is None:
        return _name(file) == name
    wanted = tuple(map(int, sizes.groups()))
    return wanted == tuple(file.content.get(key) for key in ("n_embd", "n_head", "n_positions"))


def _name(file: File) -> str:
    return file.name.removesuffix(".json")
