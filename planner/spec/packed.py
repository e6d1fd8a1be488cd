"""Arrays of numbers inside values: their bytes, checked by shape, not number by number.

For what Trimtab keeps for itself and reads again often. What others write or read keeps its plain numbers.
"""

from __future__ import annotations

from math import prod
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import ConfigDict, PlainSerializer, ValidatorFunctionWrapHandler, WrapValidator, model_validator

from planner.spec.placement import Placement
from planner.spec.value import Count, Index, Value

Kind = Literal["<f4", "<f8", "<u2", "<i4"]
"""Little-endian floats of 4 and 8 bytes, whole numbers of 2 and 4."""


class Packed(Value):
    """An array; in JSON its bytes in URL-safe base64."""

    model_config = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")

    kind: Kind
    shape: tuple[Index, ...]
    data: bytes

    @model_validator(mode="after")
    def _whole(self) -> Packed:
        expected = prod(self.shape) * np.dtype(self.kind).itemsize
        if len(self.data) != expected:
            raise ValueError(f"data: must have {expected} bytes for shape {self.shape}, has {len(self.data)}")
        if self.kind.startswith("<f") and not np.isfinite(self.array).all():
            raise ValueError("data: must be finite numbers")
        return self

    @classmethod
    def of(cls, array: ArrayLike, kind: Kind) -> Packed:
        """The array as `kind`, rounded to it; a kind that is too narrow for whole numbers must not be asked for."""
        rows = np.ascontiguousarray(array, dtype=np.dtype(kind))
        return cls(kind=kind, shape=rows.shape, data=rows.tobytes())

    @property
    def array(self) -> NDArray[np.generic]:
        """The numbers, not to be written to."""
        return np.frombuffer(self.data, dtype=np.dtype(self.kind)).reshape(self.shape)


class PackedPlacement(Value):
    """A placement with the same number of slots in every layer, for keeping."""

    slots: Packed
    """[layers, slots]"""
    num_ranks: Count
    shadow_slots_per_rank: Index = 0
    split: Packed | None = None
    """[layers, slots]"""

    @classmethod
    def of(cls, placement: Placement) -> PackedPlacement:
        """The same, packed."""
        return cls(
            slots=Packed.of(placement.layers, "<i4"),
            num_ranks=placement.num_ranks,
            shadow_slots_per_rank=placement.shadow_slots_per_rank,
            split=None if placement.split is None else Packed.of(placement.split, "<f8"),
        )

    @property
    def placement(self) -> Placement:
        """The same, unpacked and checked."""
        return Placement(
            layers=tuple(map(tuple, self.slots.array.tolist())),
            num_ranks=self.num_ranks,
            shadow_slots_per_rank=self.shadow_slots_per_rank,
            split=None if self.split is None else tuple(map(tuple, self.split.array.tolist())),
        )


def _unpacked(given: Any, check: ValidatorFunctionWrapHandler) -> Placement:
    """A placement was checked when it was made; what is packed, or plain, is checked now."""
    if isinstance(given, Placement):
        return given
    if isinstance(given, dict) and "slots" in given:
        return PackedPlacement.model_validate(given).placement
    placement: Placement = check(given)
    return placement


def _packed(placement: Placement) -> Any:
    return PackedPlacement.of(placement).model_dump(mode="json")


KeptPlacement = Annotated[Placement, WrapValidator(_unpacked), PlainSerializer(_packed, when_used="json")]
"""A placement that JSON has packed; its plain form is read too."""
