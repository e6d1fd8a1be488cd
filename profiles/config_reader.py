"""Typed reading of a Hugging Face config.json; each complaint is an InputError at `hf_config.<key>`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

from planner.spec.errors import InputError
from planner.spec.model import MAX_LAYERS

_MAX_COUNT = 2**53 - 1
_MISSING = object()


@dataclass(frozen=True)
class ConfigReader:
    """Keys of one config.json. A default is what the library takes for an absent key; without one it is required."""

    content: Mapping[str, Any]

    def wrong(self, key: str, message: str) -> InputError:
        """The error for a key."""
        return InputError.at(f"hf_config.{key}", message)

    def count(self, key: str, default: int | None = None) -> int:
        """A whole number of at least 1."""
        return self._whole(key, self._value(key, _MISSING if default is None else default), 1)

    def index(self, key: str, default: int) -> int:
        """A whole number of at least 0."""
        return self._whole(key, self._value(key, default), 0)

    def optional_count(self, key: str, default: int | None) -> int | None:
        """A whole number of at least 1, or None where the file says null (or, by default, where the key is absent)."""
        value = self._value(key, default)
        return None if value is None else self._whole(key, value, 1)

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise self.wrong(key, f"must be true or false, got {value!r}")
        return value

    def num_layers(self, key: str) -> int:
        """The number of blocks; embedding and head are two layers more."""
        layers = self.count(key)
        if layers > MAX_LAYERS - 2:
            raise self.wrong(key, f"must be at most {MAX_LAYERS - 2}, got {layers}")
        return layers

    def layer_numbers(self, key: str, num_layers: int) -> frozenset[int]:
        """A list of block numbers from 0 on; absent and null mean none."""
        numbers = self._list(key)
        for number in numbers:
            if self._whole(key, number, 0) >= num_layers:
                raise self.wrong(key, f"names block {number}, but blocks end at {num_layers - 1}")
        return frozenset(numbers)

    def sliding_layers(self, num_layers: int) -> tuple[bool, ...] | None:
        """For each block whether `layer_types` says sliding (rather than full) attention; None: it says nothing."""
        types = self._list("layer_types")
        if not types:
            return None
        if len(types) != num_layers:
            raise self.wrong(
                "layer_types", f"must have one entry for each of the {num_layers} blocks, has {len(types)}"
            )
        for kind in types:
            if kind not in ("full_attention", "sliding_attention"):
                raise self.wrong("layer_types", f"must hold full_attention or sliding_attention, got {kind!r}")
        return tuple(kind == "sliding_attention" for kind in types)

    def counts(self, key: str) -> tuple[int, ...]:
        """A list of whole numbers of at least 1, at least one of them; required."""
        numbers = self._list(key)
        if not numbers:
            raise self.wrong(key, "is required: a list of whole numbers")
        return tuple(self._whole(key, number, 1) for number in numbers)

    def sides(self, key: str, default: int) -> tuple[int, int]:
        """(height, width): a whole number for both, or a list of two."""
        value = self._value(key, default)
        pair = value if isinstance(value, list | tuple) else (value, value)
        if len(pair) != 2:
            raise self.wrong(key, f"must be a whole number, or height and width, got {_shown(value)}")
        return self._whole(key, pair[0], 1), self._whole(key, pair[1], 1)

    def ratio(self, key: str, default: float) -> float:
        """A finite number above 0."""
        value = self._value(key, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < inf:
            raise self.wrong(key, f"must be a number above 0, got {_shown(value)}")
        return float(value)

    def num_labels(self) -> int:
        """Classes of a classifier: `num_labels`, else the entries of `id2label`, else 2."""
        labels = self._value("id2label", None)
        if labels is None or "num_labels" in self.content:
            return self.count("num_labels", 2)
        if not isinstance(labels, Mapping) or not labels:
            raise self.wrong("id2label", f"must name at least one class, got {_shown(labels)}")
        return len(labels)

    def multiple(self, key: str, value: int, divisor_key: str, divisor: int) -> int:
        """`value` over `divisor`; an error at `key` if it does not divide evenly."""
        if value % divisor:
            raise self.wrong(key, f"must be a multiple of {divisor_key} ({divisor}), got {value}")
        return value // divisor

    def refuse(self, key: str, why: str) -> None:
        """An error if a flag that is off by default is on."""
        if self.flag(key, False):
            raise self.wrong(key, f"must be false: {why}")

    def _value(self, key: str, default: object) -> Any:
        value = self.content.get(key, default)
        if value is _MISSING:
            raise self.wrong(key, "is required")
        return value

    def _whole(self, key: str, value: object, least: int) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= _MAX_COUNT:
            raise self.wrong(key, f"must be a whole number of at least {least}, got {_shown(value)}")
        return value

    def _list(self, key: str) -> Sequence[Any]:
        value = self._value(key, None)
        if value is None:
            return ()
        if not isinstance(value, list | tuple):
            raise self.wrong(key, f"must be a list, got {_shown(value)}")
        return value


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
