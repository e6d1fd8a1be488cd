"""What a row says of FSDP: a mode as PyTorch or MosaicML names it, a number of ranks, or on and off."""

from __future__ import annotations

from planner.spec.strategy import Sharding
from profiles.runs.skipped import Skipped

_OFF = ("off", "no", "none", "false", "no_shard", "0", "1")
_FULL = ("on", "yes", "true", "fsdp", "fsdp1", "fsdp2", "full", "full_shard")
_GRADIENTS = ("shard_grad_op",)
_NUMBER_FORMATS = ("", "default", "pure", "full")
"""MosaicML's mixed precision, after a slash."""


def fsdp_of(given: bool | int | str | None) -> Sharding | Skipped | None:
    """What FSDP shards; None where nothing is said, NONE where FSDP is off or has one rank."""
    if given is None or given == "":
        return None
    if not isinstance(given, str):
        return Sharding.FULL if given is True or given > 1 else Sharding.NONE
    mode, _, number_format = (part.strip() for part in given.lower().partition("/"))
    if number_format in _NUMBER_FORMATS:
        for modes, sharding in ((_OFF, Sharding.NONE), (_FULL, Sharding.FULL), (_GRADIENTS, Sharding.GRADIENTS)):
            if mode in modes:
                return sharding
    return Skipped(f"parallel.fsdp: {given!r} is not known")
