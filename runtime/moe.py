"""A Mixture-of-Experts layer whose experts are spread over ranks by a placement.

Every rank routes its own tokens, sends each to a rank that holds the expert (all-to-all), computes its local experts,
and gets the results back. Which logical expert sits in which physical slots is the placement; it changes where work is
done, never what is computed. `runtime.migration` changes it while training runs.

An expert in several slots has replicas, which share its tokens: by the placement's split, or anew in every step.
Lasting replicas have optimizer state and stay equal because they get the same gradients; a shadow expert is filled
from a lasting slot after each step of the optimizer, which knows nothing of it (`runtime.replicas`).

Data parallelism: all ranks hold the router; each expert is held by one expert-parallel group. Gradients become those
of one process on the union of the ranks' batches by `runtime.gradients.average_gradients`.

Not here: shared experts (a dense feed-forward beside this layer does that), expert-tensor parallelism, grouped matrix
products (local experts are computed one after the other).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from math import ceil
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from planner.spec.errors import InputError
from planner.spec.model import MoeFeedForward
from planner.spec.placement import TokenSplit
from runtime.dispatch import through_experts
from runtime.exchange import Group, gathered, num_ranks, rank
from runtime.experts import Expert
from runtime.gates import ExpertRouter, balance_loss, within_capacity
from runtime.replicas import bring_shadows
from runtime.slots import Counts, SlotMap, slots_of_choices, token_shares


class ExpertParallelMoe(nn.Module):
    """The layer. `slots[s]` is the logical expert in physical slot s; slots are numbered rank by rank.

    `experts[i]` is the expert in this rank's i-th slot; `shadows` holds those of its shadow slots, the last. Shadows
    are no submodules: neither `parameters()` nor a state dict has them.
    `balance_loss` holds, after a forward pass with `with_balance_loss`, the auxiliary loss of that pass, to be scaled
    and added to the training loss by the caller; else None. It does not survive activation checkpointing of the layer.
    `rows_of_ranks` [ranks]: of how many tokens each rank's experts made something in the last forward pass.
    """

    balance_loss: Tensor | None = None

    def __init__(
        self,
        hidden_size: int,
        shape: MoeFeedForward,
        group: Group | None = None,
        *,
        slots: Sequence[int] | None = None,
        extra_slots_per_rank: int = 0,
        shadow_slots_per_rank: int = 0,
        token_split: TokenSplit = TokenSplit.WINDOW,
        capacity_factor: float | None = None,
        with_balance_loss: bool = False,
    ) -> None:
        """Make the layer on this rank of `group`, with as many slots as it will ever have.

        `slots`, `shadow_slots_per_rank` of each rank's among them: as in a `Placement`. None: expert e on rank
        e // (experts / ranks), an even share and `extra_slots_per_rank` on each rank, though no more than one for each
        expert; further slots hold replicas of the experts of the next ranks.
        `token_split`: how replicas share tokens: `window`, by the placement's split where it has one, else equally;
        `even`, always equally; `step`, as evenly over the ranks as can be, from the counts of each pass.
        `capacity_factor`: an expert takes at most factor · tokens · top_k / experts of the tokens of each rank, first
        choices first; what exceeds it is dropped (adds nothing to its token). None: no token is dropped.
        Initial weights depend on the random seed and the logical expert only: not on ranks, nor on the placement.
        Raises InputError.
        """
        super().__init__()
        _check(shape, capacity_factor, extra_slots_per_rank, shadow_slots_per_rank)
        self.group = group
        self.num_ranks = num_ranks(group)
        self.num_experts = shape.num_experts
        self.capacity_factor = capacity_factor
        self.with_balance_loss = with_balance_loss
        self.token_split = token_split
        self.rows_of_ranks: Counts = np.zeros(self.num_ranks, dtype=np.int64)
        if slots is None:
            first = SlotMap.first(shape.num_experts, self.num_ranks, extra_slots_per_rank, shadow_slots_per_rank)
        else:
            first = SlotMap(tuple(slots), shape.num_experts, self.num_ranks, shadow_slots_per_rank)
        self.router = ExpertRouter(hidden_size, shape.num_experts, shape.top_k, shape.router_bias)
        self.experts = nn.ModuleList(Expert(hidden_size, shape) for _ in range(first.lasting_per_rank))
        self.shadows = [Expert(hidden_size, shape) for _ in range(first.shadows_per_rank)]
        self.place(first)
        self._draw_experts()

    @property
    def slots(self) -> tuple[int, ...]:
        """The logical expert in each slot of all ranks."""
        return self.slot_map.experts

    @property
    def slots_per_rank(self) -> int:
        """Experts that this rank holds, shadow experts included."""
        return self.slot_map.per_rank

    @property
    def local_slots(self) -> range:
        """Physical slots of this rank: those of `experts`, then those of `shadows`."""
        first = rank(self.group) * self.slots_per_rank
        return range(first, first + self.slots_per_rank)

    def expert_at(self, slot: int) -> Expert:
        """The expert in a slot of this rank."""
        local = slot - self.local_slots.start
        expert = self.experts[local] if local < len(self.experts) else self.shadows[local - len(self.experts)]
        assert isinstance(expert, Expert)
        return expert

    def place(self, slots: SlotMap) -> None:
        """Note that the experts sit in other slots now. Moves no weights: `runtime.migration.migrate` calls this."""
        self.slot_map = slots
        self._shares = token_shares(slots, self.token_split)
        self.weights_changed()

    def weights_changed(self) -> None:
        """Fill the shadow experts anew before they are used again. All ranks of the group call it, or none.

        `average_gradients`, a migration and a state dict do so themselves.
        """
        self._shadows_are_stale = bool(self.shadows)

    def forward(self, hidden: Tensor) -> Tensor:
        """[…, hidden_size] → the same shape: for each token the weighted sum of what its experts make of it."""
        tokens = hidden.reshape(-1, hidden.shape[-1])
        self._prepare_shadows()
        probabilities, weights, experts = self.router(tokens)
        if self.with_balance_loss:
            self.balance_loss = balance_loss(probabilities, experts, self.group)
        if self.capacity_factor is None:
            chosen = torch.arange(experts.numel(), device=experts.device)
        else:
            chosen = within_capacity(experts, self._capacity(len(tokens)), self.num_experts)
        order, slot = self._assign(experts.flatten()[chosen])
        chosen = chosen[order]
        rows = tokens[chosen // experts.shape[1]]
        results = through_experts(rows, slot, [*self.experts, *self.shadows], self.group)
        # Back to one row per choice of each token: the sum below does not depend on the placement.
        by_choice = results.new_zeros((experts.numel(), results.shape[1])).index_copy(0, chosen, results)
        by_choice = by_choice.view(*experts.shape, -1)
        return torch.einsum("tk,tkh->th", weights.to(by_choice.dtype), by_choice).view_as(hidden)

    def _assign(self, experts: Tensor) -> tuple[Tensor, Tensor]:
        """Chosen experts [choices] → their order by slot, and the slots in this order. A collective."""
        counts = torch.bincount(experts, minlength=self.num_experts)
        shares = self._shares(gathered(counts, self.group).cpu().numpy())
        self.rows_of_ranks = shares.sum(axis=0).reshape(self.num_ranks, -1).sum(axis=1)
        return slots_of_choices(experts, self.slot_map, shares[rank(self.group)])

    def _prepare_shadows(self) -> None:
        if self._shadows_are_stale:
            with torch.no_grad():
                bring_shadows([self], self.group, self.shadows[0].up.device)
            self._shadows_are_stale = False
            self._forget_shadow_gradients()
        elif self.shadows and next(self.experts.parameters()).grad is None:
            self._forget_shadow_gradients()  # the optimizer cleared those that it knows

    def _forget_shadow_gradients(self) -> None:
        for shadow in self.shadows:
            shadow.zero_grad(set_to_none=True)

    def _capacity(self, num_tokens: int) -> int:
        assert self.capacity_factor is not None
        return ceil(self.capacity_factor * num_tokens * self.router.top_k / self.num_experts)

    def _draw_experts(self) -> None:
        seed = int(torch.randint(2**31, ()))
        for slot in self.local_slots[: len(self.experts)]:
            expert = self.expert_at(slot)
            expert.reset_parameters(torch.Generator(expert.up.device).manual_seed(seed + self.slots[slot]))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ExpertParallelMoe:
        for shadow in self.shadows:
            shadow._apply(fn, recurse)  # type: ignore[no-untyped-call]
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def get_extra_state(self) -> dict[str, Any]:
        """The placement under which the experts of this rank's part of a state dict are to be read."""
        return {
            "slots": list(self.slots),
            "split": self.slot_map.split,
            "rank": rank(self.group),
            "num_ranks": self.num_ranks,
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take over the placement of a state dict; raises InputError if another rank wrote it, or it does not fit.

        `runtime.checkpoint` resumes on other ranks and in other slots.
        """
        mine = (rank(self.group), self.num_ranks)
        if (state["rank"], state["num_ranks"]) != mine:
            raise InputError.at(
                "state_dict",
                f"was written by rank {state['rank']} of {state['num_ranks']}, this is rank {mine[0]} of {mine[1]}",
            )
        slots = replace(self.slot_map, experts=tuple(state["slots"]), split=state["split"])
        if slots.per_rank != self.slots_per_rank:
            raise InputError.at(
                "state_dict", f"has {slots.per_rank} slots on each rank, the layer has {self.slots_per_rank}"
            )
        self.place(slots)


def moe_layers(model: nn.Module) -> list[ExpertParallelMoe]:
    """The expert-parallel layers of a model, in order."""
    return [module for module in model.modules() if isinstance(module, ExpertParallelMoe)]


def expert_parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    """Parameters that this rank does not share with the ranks of its expert-parallel group."""
    for layer in moe_layers(model):
        yield from layer.experts.parameters()


def _check(shape: MoeFeedForward, capacity_factor: float | None, extra_slots: int, shadow_slots: int) -> None:
    if capacity_factor is not None and not capacity_factor > 0:
        raise InputError.at("capacity_factor", f"must be above 0, got {capacity_factor}")
    if shape.shared_width or shape.shared_gate:
        raise InputError.at("shared_width", "must be 0: add a dense feed-forward beside the expert-parallel layer")
    for name, slots in (("extra_slots_per_rank", extra_slots), ("shadow_slots_per_rank", shadow_slots)):
        if slots < 0:
            raise InputError.at(name, f"must be 0 or more, got {slots}")
