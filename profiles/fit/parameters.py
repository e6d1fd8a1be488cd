"""The constants that are fitted, and presets with other values in their place. Which ones: `parameters.json` beside."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from functools import lru_cache
from importlib.resources import files
from typing import Any, Literal

from planner.spec.cluster import Cluster, Device, Level, Link
from planner.spec.parse import parse, read_json
from planner.spec.stack import Stack
from planner.spec.value import Name, Positive, Value
from profiles import catalogue


class Target(Value):
    """Where a constant stands: a field, by its dotted path, of presets, which hold `scale` times the constant."""

    shelf: Literal["hardware", "software"]
    presets: tuple[Name, ...]
    path: Name
    scale: Positive = 1.0


class Parameter(Value):
    """One constant, with the range that it may take. What the presets hold today plays no part in a fit."""

    name: Name
    start: float
    """From which every fit sets out: a usual value, not fitted."""
    low: float
    high: float
    targets: tuple[Target, ...]

    def presets(self, shelf: str) -> frozenset[str]:
        """Presets of a shelf that this constant stands in."""
        return frozenset(name for target in self.targets if target.shelf == shelf for name in target.presets)

    @property
    def value(self) -> float:
        """What the presets hold today; all its places hold the same."""
        target = self.targets[0]
        found: Any = catalogue.content(target.shelf, target.presets[0])
        for key in target.path.split("."):
            found = found[key]
        return float(found) / target.scale


def read_parameters() -> tuple[Parameter, ...]:
    """All fitted constants."""
    content = read_json((files("profiles.fit") / "parameters.json").read_bytes(), "parameters.json")
    return tuple(parse(Parameter, entry, "parameters") for entry in content)


class Presets:
    """The presets of `profiles`, with fitted constants of other values."""

    def __init__(self, parameters: tuple[Parameter, ...], values: Mapping[str, float]) -> None:
        self._edits: dict[tuple[str, str], list[tuple[str, float]]] = {}
        for parameter in parameters:
            for target in parameter.targets:
                for preset in target.presets:
                    edit = (target.path, values[parameter.name] * target.scale)
                    self._edits.setdefault((target.shelf, preset), []).append(edit)

    def content(self, shelf: Literal["hardware", "software"], name: str) -> dict[str, Any]:
        """The file of a preset, edited."""
        content = deepcopy(_content(shelf, name))
        for path, value in self._edits.get((shelf, name), []):
            *parents, last = path.split(".")
            place = content
            for key in parents:
                place = place[key]
            place[last] = value
        return content

    def applied(self, cluster: Cluster) -> Cluster:
        """A cluster of presets, with this device, links of this efficiency and latency, and this stack."""
        hardware = self.content("hardware", cluster.device.name)
        stack = parse(Stack, self.content("software", cluster.stack.name)["stack"], cluster.stack.name)
        device = parse(Device, hardware["device"], cluster.device.name)
        levels = tuple(_level(level, hardware) for level in cluster.levels)
        return cluster.model_copy(update={"device": device, "stack": stack, "levels": levels})


def _level(level: Level, hardware: dict[str, Any]) -> Level:
    known = {"node": hardware["intra_node"], "cluster": hardware["inter_node"]}
    link = known.get(level.name) or hardware["rack"]["link"]
    update = {key: link[key] for key in ("efficiency_ratio", "latency_s") if key in link}
    return level.model_copy(update={"link": parse(Link, {**level.link.model_dump(), **update}, level.name)})


@lru_cache(maxsize=256)
def _content(shelf: Literal["hardware", "software"], name: str) -> dict[str, Any]:
    return catalogue.content(shelf, name)
