"""Why a run cannot be priced: a fact that its row lacks, or a feature that is not modelled."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Skipped:
    """A row without a price, and its reason in words that name the fact or the feature."""

    reason: str
