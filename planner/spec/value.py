"""What every value is built on: frozen, closed, finite; wrong states cannot be made."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import Self

from planner.spec.errors import NO_NUL

if sys.version_info >= (3, 11):
    from enum import StrEnum as StrEnum  # noqa: PLC0414 - exported from here
else:
    from enum import Enum

    class StrEnum(str, Enum):
        """An enumeration of strings that prints as its value: the standard library's, for Python 3.10."""

        __str__ = str.__str__


GREATEST_INDEX = 2**53 - 1
"""Whole numbers up to here are exact in every reader of JSON."""
Count = Annotated[int, Field(strict=True, ge=1, le=GREATEST_INDEX)]
"""A whole number of at least one that every JSON reader keeps exactly; 8.0, "8" and true are refused."""
Index = Annotated[int, Field(strict=True, ge=0, le=GREATEST_INDEX)]
"""A whole number of at least zero, bounded like `Count`."""
Positive = Annotated[float, Field(gt=0)]
"""A finite number above zero."""
NonNegative = Annotated[float, Field(ge=0)]
"""A finite number of at least zero."""
Ratio = Annotated[float, Field(gt=0, le=1)]
"""A share of something, above zero and at most one."""
LEAST_MEASURE, GREATEST_MEASURE = 1e-30, 1e30
"""Wider than anything that was ever measured in SI units, and narrow enough that no price overflows."""
Measure = Annotated[float, Field(ge=LEAST_MEASURE, le=GREATEST_MEASURE)]
"""What prices are made of: a number above zero."""
MeasureOrZero = Annotated[float, Field(ge=0, le=GREATEST_MEASURE)]
MeasuredRatio = Annotated[float, Field(ge=LEAST_MEASURE, le=1)]
Name = Annotated[str, Field(min_length=1, max_length=200, pattern=NO_NUL)]
"""What people and programs call something; without the character NUL, which not every store can keep."""


class Value(BaseModel):
    """A frozen value: unknown keys, NaN and infinity are refused when it is made."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=(), use_attribute_docstrings=True
    )

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """The value with some fields replaced: checked like any new value, and with nothing cached from the old one."""
        if not update:
            return super().model_copy(deep=deep)
        fields = {name: getattr(self, name) for name in type(self).model_fields}
        return type(self).model_validate({**fields, **update})


def content_id(content: Any) -> str:
    """The identity of JSON content: the first 16 hex digits of SHA-256 over its canonical form."""
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]
