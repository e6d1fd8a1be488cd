"""All ranks go on, or none: what every collective that can be refused by one rank asks first."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from planner.spec.errors import ConflictError, TrimtabError
from runtime.exchange import Group, gathered

DIGEST_CHARACTERS = 16


T = TypeVar("T")


def all_or_none(prepare: Callable[[], tuple[str, T]], what: str, group: Group | None, device: torch.device) -> T:
    """Run `prepare` on each rank, and give what it made, if all went well and with the same digest; else all raise.

    `prepare` returns a digest (up to 16 ASCII characters of what this rank is about to do) and what it made. Of what it
    raises, TrimtabErrors are raised as they are here, all else is the cause of a ConflictError, which the other ranks
    raise too. A collective.
    """
    refusal: Exception | None = None
    try:
        digest, made = prepare()
    except Exception as error:  # whatever it is, the other ranks must hear of it before this one raises
        digest, refusal = "", error
    _agree(digest, refusal, what, group, device)
    return made


def _agree(digest: str, refusal: Exception | None, what: str, group: Group | None, device: torch.device) -> None:
    verdicts = _gather("" if refusal is not None else digest, group, device)
    if isinstance(refusal, TrimtabError):
        raise refusal
    if "" in verdicts:
        refusing = ", ".join(str(number) for number, verdict in enumerate(verdicts) if not verdict)
        raise ConflictError(f"rank {refusing} of the group cannot prepare {what}") from refusal
    if len(set(verdicts)) > 1:
        raise ConflictError(f"the ranks do not agree on {what} (digests by rank: {verdicts}); nothing was done")


def _gather(text: str, group: Group | None, device: torch.device) -> list[str]:
    """A short text of every rank of the group, in order."""
    mine = torch.tensor(list(text.ljust(DIGEST_CHARACTERS).encode()), dtype=torch.uint8, device=device)
    return [bytes(other).decode().strip() for other in gathered(mine, group).tolist()]
