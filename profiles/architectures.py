"""From what a user asks for to a model: presets of `profiles/models/*.json`, config.json, explicit layers, files."""

from __future__ import annotations

from pathlib import Path

from planner.spec.errors import InputError, NotFoundError
from planner.spec.model import Model
from planner.spec.parse import parse
from planner.spec.request import ModelRequest
from profiles import catalogue
from profiles.files import looks_like_file, read_json_file
from profiles.huggingface import model_from_config

_REQUEST_KEYS = frozenset(ModelRequest.model_fields)


def resolve_model(request: ModelRequest) -> Model:
    """The model that a request describes.

    Raises InputError whose fields are seen from the request (`preset`, `hf_config.<key>`).
    """
    if request.spec is not None:
        return request.spec
    if request.hf_config is not None:
        return model_from_config(request.hf_config)
    assert request.preset is not None
    try:
        return model_preset(request.preset)
    except NotFoundError as error:
        raise InputError.at("preset", str(error)) from None


def model_names() -> list[str]:
    """Names of all model presets in alphabetical order, without their aliases."""
    return catalogue.names("models")


def model_preset(name: str) -> Model:
    """The preset of this name or alias; raises NotFoundError with close matches."""
    found = catalogue.find("models", name)
    content = catalogue.content("models", found)
    if "spec" in content:
        return parse(Model, content["spec"], found)
    return model_from_config(content["hf_config"], found)


def model_request_from_file(path: str) -> ModelRequest:
    """A model from what a user types: a file, a directory with a config.json, or, if there is neither, a preset's name.

    A file holds either a config.json or `{"preset": …}`, `{"hf_config": …}`, `{"spec": …}`. Raises InputError under
    `model`.
    """
    if not looks_like_file(path):
        return _preset_request(path)
    file = Path(path)
    data = read_json_file(file / "config.json" if file.is_dir() else file, "model")
    if "model_type" not in data and data.keys() & _REQUEST_KEYS:
        return parse(ModelRequest, data, "model")
    return ModelRequest(hf_config=data)


def _preset_request(name: str) -> ModelRequest:
    try:
        return ModelRequest(preset=catalogue.find("models", name))
    except NotFoundError as error:
        raise InputError.at("model", f"there is no such file, and {error}") from None
