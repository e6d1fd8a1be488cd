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
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from planner.spec.errors import InputError
from planner.spec.model import MoeFeedForward
from planner.spec.placement import TokenSplit
from runtime.arguments import LayerArguments, check
from runtime.auxiliary import AuxiliaryLoss, carrying
from runtime.capacity import Capacity, limited, padded_counts
from runtime.dispatch import share_out, through_experts
from runtime.exchange import Group, num_ranks, rank
from runtime.experts import Expert
from runtime.gates import ExpertRouter
from runtime.replicas import bring_shadows
from runtime.slots import SlotMap, token_shares
from runtime.topology import Counts, Topology
from runtime.upload import uploaded


class ExpertParallelMoe(nn.Module):
    """The layer. `slots[s]` is the logical expert in physical slot s; slots are numbered rank by rank.

    `experts[i]` is the expert in this rank's i-th slot; `shadows` holds those of its shadow slots, the last. Shadows
    are no submodules: neither `parameters()` nor a state dict has them.
    `auxiliary_loss` holds, after a forward pass of a layer with an auxiliary loss, that of the pass, for the caller to
    add to the training loss; it does not survive activation checkpointing of the layer. If the layer carries it
    (`runtime.auxiliary.carrying`), it is there to be shown only.
    `rows_of_ranks` [ranks]: of how many rows each rank's experts made something in the last forward pass.
    `trained_where_placed`: whether a pass in training has come since the experts were placed where they are.
    """

    auxiliary_loss: Tensor | None = None

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
        gate: ExpertRouter | None = None,
        capacity: Capacity | None = None,
        topology: Topology | None = None,
        pieces: int = 1,
        auxiliary: AuxiliaryLoss | None = None,
        carry_auxiliary_loss: bool = False,
    ) -> None:
        """Make the layer on this rank of `group`, with as many slots as it will ever have.

        `slots`, `shadow_slots_per_rank` of each rank's among them: as in a `Placement`. None: expert e on rank
        e // (experts / ranks), an even share and `extra_slots_per_rank` on each rank, though no more than one for each
        expert; further slots hold replicas of the experts of the next ranks.
        `token_split`: how replicas share tokens: `window`, by the placement's split where it has one, else equally;
        `even`, always equally; `step`, as evenly over the ranks as can be, from the counts of each pass.
        `gate` None: softmax and top-k, by `shape`. `capacity` None: no token is dropped; what is dropped adds
        nothing to its token. `topology` None: straight all-to-all over `group`. `pieces`: see `through_experts`.
        Initial weights depend on the random seed and the logical expert only: not on ranks, nor on the placement.
        Raises InputError.
        """
        super().__init__()
        counts = {"extra_slots_per_rank": extra_slots_per_rank, "shadow_slots_per_rank": shadow_slots_per_rank}
        parts = {"gate": gate, "capacity": capacity, "topology": topology, "auxiliary": auxiliary, "pieces": pieces}
        check(
            LayerArguments,
            hidden_size=hidden_size,
            shape=shape,
            group=group,
            slots=slots,
            token_split=token_split,
            **counts,
            **parts,
        )
        topology = Topology(group) if topology is None else topology
        gate = gate or ExpertRouter(hidden_size, shape.num_experts, shape.top_k, shape.router_bias)
        _check(shape, gate, topology.group is group, shadow_slots_per_rank)
        if slots is not None and extra_slots_per_rank:
            raise InputError.at("extra_slots_per_rank", "must be left out with slots, which say how many there are")
        self.group = group
        self.num_ranks = num_ranks(group)
        self.num_experts = shape.num_experts
        self.capacity = capacity
        self.topology = topology
        self.pieces = pieces
        self.auxiliary = auxiliary
        self.carry_auxiliary_loss = carry_auxiliary_loss
        self.token_split = TokenSplit(token_split)
        self.rows_of_ranks: Counts = np.zeros(self.num_ranks, dtype=np.int64)
        if slots is None:
            first = SlotMap.first(shape.num_experts, self.num_ranks, extra_slots_per_rank, shadow_slots_per_rank)
        else:
            first = SlotMap(tuple(slots), shape.num_experts, self.num_ranks, shadow_slots_per_rank)
        self.router = gate
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
    def extra_slots_per_rank(self) -> int:
        """Slots of each rank beyond an even share that are no shadow slots: as a run of the planner counts them."""
        return self.slot_map.lasting_per_rank - -(-self.num_experts // self.num_ranks)

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
        self.trained_where_placed = False
        self._shares = token_shares(slots, self.token_split, self.topology.ranks_per_node)
        self.weights_changed()

    def weights_changed(self) -> None:
        """Fill the shadow experts anew before they are used again. All ranks of the group call it, or none.

        `average_gradients`, a migration and a state dict do so themselves.
        """
        self._shadows_are_stale = bool(self.shadows)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def forward(self, hidden: Tensor) -> Tensor:
        """[…, hidden_size] → the same shape: for each token the weighted sum of what its experts make of it.

        torch.compile leaves it as it is: how many rows go where is known on the host only, and anew in each pass.
        """
        tokens = hidden.reshape(-1, hidden.shape[-1])
        self._prepare_shadows()
        self.trained_where_placed = self.trained_where_placed or self.training
        routing = self.router(tokens)
        if self.auxiliary is not None:
            self.auxiliary_loss = self.auxiliary(routing, self.group)
        choices = limited(routing, self.capacity)
        slot, counts = self._assign(choices)
        self.rows_of_ranks = counts.sum(axis=0).reshape(self.num_ranks, -1).sum(axis=1)
        experts = [*self.experts, *self.shadows]
        by_choice = through_experts(tokens, slot, counts, experts, self.topology, self.pieces)
        output = torch.einsum("tk,tkh->th", routing.weights.to(by_choice.dtype), by_choice).view_as(hidden)
        if self.auxiliary_loss is None or not self.carry_auxiliary_loss:
            return output
        output = carrying(output, self.auxiliary_loss)
        self.auxiliary_loss = self.auxiliary_loss.detach()
        return output

    def _assign(self, choices: Tensor) -> tuple[Tensor, Counts]:
        """Experts chosen [tokens, top_k] → slots [tokens, top_k], and rows of each rank for each slot [R, S]."""
        if self.capacity is None or not self.capacity.padded:
            return share_out(choices, self.slots, self._shares, self.topology)
        counts = padded_counts(choices, len(self.slots), self.num_experts, self.capacity, self.topology)
        if self.slot_map.has_replicas:
            return share_out(choices, self.slots, self._shares, self.topology)[0], counts
        slot_of_expert = uploaded(np.argsort(self.slots), choices.device)
        return torch.where(choices >= 0, slot_of_expert[choices], -1), counts

    def _prepare_shadows(self) -> None:
        if not self.shadows:
            return
        lasting = list(self.experts[0].parameters())
        for shadow in self.shadows:
            for parameter, trained in zip(shadow.parameters(), lasting, strict=True):
                parameter.requires_grad_(trained.requires_grad)
        if self._shadows_are_stale:
            with torch.no_grad():
                bring_shadows([self], self.group, lasting[0].device)
            self._shadows_are_stale = False
            self._forget_shadow_gradients()
        elif all(parameter.grad is None for parameter in lasting):
            self._forget_shadow_gradients()  # the optimizer cleared those that it knows

    def _forget_shadow_gradients(self) -> None:
        for shadow in self.shadows:
            shadow.zero_grad(set_to_none=True)

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


def _check(shape: MoeFeedForward, gate: ExpertRouter, same_group: bool, shadow_slots: int) -> None:
    """What arguments must be beside each other; alone: `runtime.arguments`."""
    if shape.shared_width or shape.shared_gate:
        raise InputError.at("shared_width", "must be 0: add a dense feed-forward beside the expert-parallel layer")
    if (gate.num_experts, gate.top_k) != (shape.num_experts, shape.top_k):
        raise InputError.at(
            "gate", f"chooses {gate.top_k} of {gate.num_experts}, not {shape.top_k} of {shape.num_experts}"
        )
    if not same_group:
        raise InputError.at("topology", "must be of the group that is given")
    if shadow_slots > shape.num_experts:
        raise InputError.at(
            "shadow_slots_per_rank", f"must be at most the {shape.num_experts} experts, got {shadow_slots}"
        )
