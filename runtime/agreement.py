"""All ranks go on, or none: what every collective that can be refused by one rank asks first."""

from __future__ import annotations

import torch

from planner.spec.errors import ConflictError, InputError
from runtime.exchange import Group, gathered

DIGEST_CHARACTERS = 16


def agree(digest: str, refusal: Exception | None, what: str, group: Group | None, device: torch.device) -> None:
    """Go on if all ranks of the group are ready and mean the same; else all raise, and none has done anything yet.

    `digest`: up to 16 ASCII characters of what this rank is about to do. `refusal`: why it cannot; an InputError is
    raised as it is, all else is the cause of a ConflictError, which the other ranks raise too. A collective.
    """
    verdicts = _gather("" if refusal is not None else digest, group, device)
    if isinstance(refusal, InputError):
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
