"""From the content of a Hugging Face config.json to a model.

Parameter counts equal those of the library's models exactly (tests/profiles). Not part of the model: multi-token
prediction modules, buffers such as DeepSeek-V3's router correction, rotary tables, quantization.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from planner.cost.parameters import total_parameters
from planner.spec.errors import InputError
from planner.spec.model import Model
from profiles.config_reader import ConfigReader
from profiles.families import FAMILIES


def model_from_config(content: Mapping[str, Any], name: str | None = None) -> Model:
    """The model that a config.json describes; raises InputError at `hf_config.<key>`.

    Without `name` the model is called by the config's `_name_or_path`, else by its type and size.
    """
    config = ConfigReader(content)
    model_type = content.get("model_type")
    if model_type is None:
        raise config.wrong("model_type", f"is required; known are {', '.join(model_types())}")
    build = FAMILIES.get(model_type) if isinstance(model_type, str) else None
    if build is None:
        raise config.wrong("model_type", f"{model_type!r:.60} is not known; known are {', '.join(model_types())}")
    try:
        model = build(config)
    except ValidationError as error:
        raise InputError.from_validation(error, "hf_config") from None
    return model.model_copy(update={"name": name or _own_name(content, model)})


def model_types() -> list[str]:
    """All values of `model_type` that can be read."""
    return sorted(FAMILIES)


def _own_name(content: Mapping[str, Any], model: Model) -> str:
    path = content.get("_name_or_path")
    last = path.rstrip("/").rpartition("/")[2] if isinstance(path, str) else ""
    return last[:200] or f"{model.name}-{total_parameters(model) / 1e9:.3g}b"
