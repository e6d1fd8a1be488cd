"""The form that begins a search: its text as a request, and what is wrong with it beside the field that is wrong."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ConfigDict

from api.bodies import read_body
from api.problems import FieldProblem
from planner.spec.errors import InputError
from planner.spec.parse import parse
from planner.spec.request import SearchRequest
from profiles import cluster_data_from_shorthand

_DIGITS = 18
"""More are no number that anybody means; they stay text, and are refused as such."""
_MAX_CHARACTERS = 2**18
_MAX_DEPTH = 32
"""Of a pasted config.json. What is stored is written as JSON again, which ends at some hundred levels."""
_PLACES = (
    ("model.hf_config", "config"),
    ("model.preset", "model"),
    ("model", "model"),
    ("cluster.nodes", "nodes"),
    ("cluster.devices_per_node", "devices_per_node"),
    ("cluster.device", "device"),
    ("cluster", "nodes"),
    ("training.global_batch_size", "batch"),
    ("training.sequence_length", "length"),
    ("training.precision", "precision"),
    ("options.target", "target"),
)
"""Fields of a request, the nearest first, and where the form shows what is wrong with them."""


LABELS = {
    "model": "Model",
    "nodes": "Nodes",
    "devices_per_node": "Devices per node",
    "device": "Device",
    "batch": "Samples per step",
    "length": "Tokens per sample",
    "precision": "Precision",
    "target": "Framework that is to run it",
    "config": "config.json of a Hugging Face model",
    "cluster": "Cluster in short",
}
"""What stands above each input, and where errors name it."""


class SearchForm(BaseModel):
    """What was typed, as it was typed."""

    model_config = ConfigDict(frozen=True)

    model: str = ""
    config: str = ""
    """A config.json; goes before the model's name."""
    nodes: str = ""
    devices_per_node: str = ""
    device: str = ""
    cluster: str = ""
    """Shorthand; goes before nodes and devices."""
    batch: str = ""
    length: str = ""
    precision: str = ""
    target: str = ""

    def request(self) -> SearchRequest:
        """What it asks for; raises InputError that names all fields of a request that are wrong."""
        training = {
            "global_batch_size": _number(self.batch),
            "sequence_length": _number(self.length),
            "precision": self.precision.strip(),
        }
        data = {"training": _given(training), "options": _given({"target": self.target.strip()})}
        unread = dict[str, InputError]()
        for name, read in (("model", self._model), ("cluster", self._cluster)):
            try:
                data[name] = read()
            except InputError as error:
                unread[name] = error
        try:
            return parse(SearchRequest, data)
        except InputError as error:
            others = [problem for problem in error.problems if problem.field not in unread]
            problems = [problem for each in unread.values() for problem in each.problems]
            raise InputError(*problems, *others, num_more=error.num_more) from None

    def _model(self) -> dict[str, Any]:
        if self.config.strip():
            return {"hf_config": _read_config(self.config)}
        return {"preset": self.model.strip()}

    def _cluster(self) -> dict[str, Any]:
        if self.cluster.strip():
            return cluster_data_from_shorthand(self.cluster)
        typed = {name: _number(getattr(self, name)) for name in ("nodes", "devices_per_node", "device")}
        return _given(typed)

    def place(self, field: str) -> tuple[str, str]:
        """(The input of the form that a field of the request was typed into, the way to the field from there on.)

        Both empty where there is none.
        """
        above = ((path, name) for path, name in _PLACES if field == path or field.startswith((f"{path}.", f"{path}[")))
        path, place = next(above, (field, ""))
        if field.startswith("cluster") and self.cluster.strip():
            path, place = "cluster", "cluster"
        if place == "model" and self.config.strip():
            place = "config"
        return place, field.removeprefix(path).removeprefix(".")


FIRST_FORM = SearchForm(
    model="mixtral-8x7b",
    nodes="8",
    devices_per_node="8",
    device="h100-sxm-80g",
    batch="1024",
    length="4096",
    precision="bf16",
    target="any",
)
"""What stands there at first: it can be sent as it is."""


def by_place(form: SearchForm, problems: Iterable[FieldProblem]) -> dict[str, list[str]]:
    """Messages by the input that they belong to, under "" those that belong to none, which then name their field."""
    found: dict[str, list[str]] = {}
    for problem in problems:
        place, inside = form.place(problem.field)
        where = f"at {inside}: " if inside else "" if place else f"{problem.field} "
        found.setdefault(place, []).append(f"{where}{problem.message}")
    return found


def _read_config(text: str) -> Any:
    """A form hides its JSON from whatever looks at bodies, so its size is looked at here; raises InputError."""
    field = "model.hf_config"
    if len(text) > _MAX_CHARACTERS:
        raise InputError.at(field, f"is longer than {_MAX_CHARACTERS:,} characters; a config.json has some thousands")
    config = read_body(text.encode(), field)
    if _is_deeper(config, _MAX_DEPTH):
        raise InputError.at(field, f"is nested more than {_MAX_DEPTH} deep, which no config.json is")
    return config


def _is_deeper(data: object, depth: int) -> bool:
    """Whether arrays and objects stand in more than `depth` others."""
    inner = data.values() if isinstance(data, dict) else data if isinstance(data, list) else None
    return inner is not None and (depth == 0 or any(_is_deeper(each, depth - 1) for each in inner))


def _number(text: str) -> int | str:
    text = text.strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) <= _DIGITS else text


def _given(typed: dict[str, Any]) -> dict[str, Any]:
    """Without what was left empty."""
    return {name: value for name, value in typed.items() if value != ""}
