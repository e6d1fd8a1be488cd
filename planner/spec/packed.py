"""Arrays of numbers inside values: their bytes, checked by shape, not number by number."""

from __future__ import annotations

from math import prod
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import ConfigDict, model_validator

from planner.spec.value import Index, Value

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
