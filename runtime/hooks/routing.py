"""What a router says in one forward pass, in one of three forms, and how many tokens that is for each expert.

Tensors may be DTensors: then this rank's part is counted, and where several ranks hold the same part, only on the
first of them. Nothing here waits for the device: no `bincount`, no boolean indexing, no `item`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from planner.spec.errors import InputError


@dataclass(frozen=True)
class Choices:
    """The experts of each token: `experts` […, top_k] of whole numbers, tokens in the order of the mask.

    Numbers outside of 0 … experts - 1 are not counted: choices that were dropped, experts that do no work.
    """

    experts: Tensor

    def __post_init__(self) -> None:
        """Raises InputError for what cannot be choices."""
        _check_tensor("Choices", self.experts, least_dimensions=1)
        if self.experts.is_floating_point() or self.experts.dtype == torch.bool:
            raise InputError.at("routers", f"Choices must be numbers of experts, whole ones, not {self.experts.dtype}")

    def count(self, num_experts: int, real: Tensor | None) -> Tensor:
        """Tokens [num_experts], of those where `real` is not 0."""
        experts = _my_part(self.experts)
        if experts is None:
            return torch.zeros(num_experts, dtype=torch.int64, device=self.experts.device)
        # Bucket 0 and the last take what is not counted.
        buckets = experts.detach().long().clamp(-1, num_experts).reshape(-1, experts.shape[-1]) + 1
        if real is not None:
            buckets = buckets * _per_token(real, buckets)
        buckets = buckets.flatten()
        counts = torch.zeros(num_experts + 2, dtype=torch.int64, device=buckets.device)
        return counts.scatter_add_(0, buckets, torch.ones_like(buckets))[1:-1]


@dataclass(frozen=True)
class RoutingMap:
    """Whether each token goes to each expert: `chosen` [tokens, experts], of bools."""

    chosen: Tensor

    def __post_init__(self) -> None:
        """Raises InputError for what cannot be a map."""
        _check_tensor("RoutingMap", self.chosen, least_dimensions=1)
        if self.chosen.is_floating_point():
            raise InputError.at("routers", f"RoutingMap must say of each expert whether, not {self.chosen.dtype}")

    def count(self, num_experts: int, real: Tensor | None) -> Tensor:
        """Tokens [num_experts], of those where `real` is not 0; raises InputError if it is for other experts."""
        if self.chosen.shape[-1] != num_experts:
            raise InputError.at(
                "routers", f"RoutingMap must be [tokens, {num_experts} experts], got {list(self.chosen.shape)}"
            )
        chosen = _my_part(self.chosen)
        if chosen is None:
            return torch.zeros(num_experts, dtype=torch.int64, device=self.chosen.device)
        chosen = chosen.detach().reshape(-1, num_experts)
        if real is not None:
            chosen = chosen & _per_token(real, chosen)
        return chosen.sum(dim=0, dtype=torch.int32).long()


@dataclass(frozen=True)
class Counts:
    """Tokens of each expert, summed by the framework: `tokens` [experts]. No token can be left out any more."""

    tokens: Tensor
    why: str = "this router says only how many tokens each expert gets"
    """Why there are no choices of each token, for whoever sets a mask: a clause, with what would help."""

    def __post_init__(self) -> None:
        """Raises InputError for what cannot be counts."""
        _check_tensor("Counts", self.tokens, least_dimensions=0)

    def count(self, num_experts: int, real: Tensor | None) -> Tensor:
        """Tokens [num_experts]; raises InputError if some are to be left out, or if it is for other experts."""
        if real is not None:
            raise InputError.at("mask", f"cannot be applied: {self.why}")
        if self.tokens.numel() != num_experts:
            raise InputError.at(
                "routers", f"Counts must be one for each of {num_experts} experts, got {self.tokens.numel()}"
            )
        return self.tokens.detach().reshape(num_experts).long()


Routing = Choices | RoutingMap | Counts


def _check_tensor(kind: str, given: object, least_dimensions: int) -> None:
    if not isinstance(given, Tensor) or given.dim() < least_dimensions:
        shape = " without dimensions" if isinstance(given, Tensor) else ""
        raise InputError.at("routers", f"{kind} must be made of a tensor, got a {type(given).__name__}{shape}")


def _per_token(real: Tensor, rows: Tensor) -> Tensor:
    """[tokens, 1] of bools for rows [tokens, …]."""
    if real.numel() != len(rows):
        raise InputError.at("mask", f"is for {real.numel()} tokens, but the router saw {len(rows)}")
    if real.device != rows.device:
        raise InputError.at("mask", f"is on {real.device}, but the router on {rows.device}: copying it would wait")
    return real.reshape(-1, 1) != 0


def _my_part(tensor: Any) -> Tensor | None:
    """What this rank holds of a tensor, which is all of it if no DTensor; None if another rank counts the same.

    DTensors are known by their attributes: to import their class takes a second.
    """
    mesh = getattr(tensor, "device_mesh", None)
    if mesh is None:
        return cast(Tensor, tensor)
    same_on_other_ranks = (axis for axis, part in enumerate(tensor.placements) if part.is_replicate())
    if any(mesh.get_local_rank(axis) for axis in same_on_other_ranks):
        return None
    return cast(Tensor, tensor.to_local())
