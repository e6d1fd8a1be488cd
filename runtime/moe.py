"""A Mixture-of-Experts layer whose experts are spread over ranks by a placement.

Every rank routes its own tokens, sends each to the rank that holds the expert (all-to-all), computes its local experts,
and gets the results back. Which logical expert sits in which physical slot is the placement; it changes where work is
done, never what is computed. `runtime.migration` changes it while training runs.

Data parallelism: all ranks hold the router; each expert is held once per expert-parallel group. Gradients become those
of one process on the union of the ranks' batches by `runtime.gradients.average_gradients`.

Not here: replicas of experts (refused), shared experts (a dense feed-forward beside this layer does that), biases of
experts, expert-tensor parallelism, grouped matrix products (local experts are computed one after the other).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from planner.spec.errors import InputError
from planner.spec.model import MoeFeedForward
from runtime.auxiliary import balance_loss
from runtime.capacity import Capacity, limited, padded_counts
from runtime.dispatch import share_out, through_experts
from runtime.exchange import Group, num_ranks, rank
from runtime.experts import Expert
from runtime.gates import ExpertRouter
from runtime.topology import Counts, Topology


class ExpertParallelMoe(nn.Module):
    """The layer. `slots[s]` is the logical expert in physical slot s; slots are numbered rank by rank.

    `balance_loss` holds, after a forward pass with `with_balance_loss`, the auxiliary loss of that pass, to be scaled
    and added to the training loss by the caller; else None. It does not survive activation checkpointing of the layer.
    """

    balance_loss: Tensor | None = None

    def __init__(
        self,
        hidden_size: int,
        shape: MoeFeedForward,
        group: Group | None = None,
        *,
        slots: Sequence[int] | None = None,
        gate: ExpertRouter | None = None,
        capacity: Capacity | None = None,
        topology: Topology | None = None,
        pieces: int = 1,
        with_balance_loss: bool = False,
    ) -> None:
        """Make the layer on this rank of `group`; `slots` None places expert e on rank e // (experts / ranks).

        `gate` None: softmax and top-k, by `shape`. `capacity` None: no token is dropped; what is dropped adds
        nothing to its token. `topology` None: straight all-to-all over `group`. `pieces`: see `through_experts`.
        Initial weights depend on the random seed and the logical expert only: not on ranks, nor on the placement.
        Raises InputError.
        """
        super().__init__()
        _check_shape(shape)
        self.group = group
        self.num_ranks = num_ranks(group)
        self.num_experts = shape.num_experts
        self.capacity = capacity
        self.topology = Topology(group) if topology is None else topology
        self.pieces = pieces
        self.with_balance_loss = with_balance_loss
        self.slots = check_slots(
            range(shape.num_experts) if slots is None else slots, shape.num_experts, self.num_ranks
        )
        self.router = gate or ExpertRouter(hidden_size, shape.num_experts, shape.top_k, shape.router_bias)
        self.experts = nn.ModuleList(
            Expert(hidden_size, shape.expert_width, shape.gated) for _ in range(self.slots_per_rank)
        )
        self.register_buffer("slot_of_expert", _inverse(self.slots), persistent=False)
        self.slot_of_expert: Tensor
        self._draw_experts()

    @property
    def slots_per_rank(self) -> int:
        """Experts that this rank holds."""
        return len(self.slots) // self.num_ranks

    @property
    def local_slots(self) -> range:
        """Physical slots of this rank; `experts[i]` sits in the i-th of them."""
        first = rank(self.group) * self.slots_per_rank
        return range(first, first + self.slots_per_rank)

    def place(self, slots: Sequence[int]) -> None:
        """Note that the experts sit in other slots now. Moves no weights: `runtime.migration.migrate` calls this."""
        self.slots = check_slots(slots, self.num_experts, self.num_ranks)
        self.slot_of_expert.copy_(_inverse(self.slots))

    def forward(self, hidden: Tensor) -> Tensor:
        """[…, hidden_size] → the same shape: for each token the weighted sum of what its experts make of it."""
        tokens = hidden.reshape(-1, hidden.shape[-1])
        routing = self.router(tokens)
        if self.with_balance_loss:
            self.balance_loss = balance_loss(routing.probabilities, routing.experts, self.group)
        choices = limited(routing, self.capacity)
        if self.capacity is not None and self.capacity.padded:
            slot = torch.where(choices >= 0, self.slot_of_expert[choices], -1)
            counts = padded_counts(choices, len(self.slots), self.num_experts, self.capacity, self.topology)
        else:
            slot, counts = share_out(choices, self.slots, self._to_slots, self.topology)
        by_choice = through_experts(tokens, slot, counts, list(self.experts), self.topology, self.pieces)
        return torch.einsum("tk,tkh->th", routing.weights.to(by_choice.dtype), by_choice).view_as(hidden)

    def _to_slots(self, counts: Counts) -> Counts:
        return counts[:, self.slots]

    def _draw_experts(self) -> None:
        seed = int(torch.randint(2**31, ()))
        for expert, slot in zip(self.experts, self.local_slots, strict=True):
            assert isinstance(expert, Expert)
            expert.reset_parameters(torch.Generator(expert.up.device).manual_seed(seed + self.slots[slot]))

    def get_extra_state(self) -> dict[str, Any]:
        """The placement under which the experts of this rank's checkpoint are to be read."""
        return {"slots": list(self.slots), "rank": rank(self.group), "num_ranks": self.num_ranks}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take over the placement of a checkpoint; raises InputError if another rank wrote it."""
        mine = (rank(self.group), self.num_ranks)
        if (state["rank"], state["num_ranks"]) != mine:
            raise InputError.at(
                "state_dict",
                f"was written by rank {state['rank']} of {state['num_ranks']}, this is rank {mine[0]} of {mine[1]}",
            )
        self.place(state["slots"])


def check_slots(slots: Sequence[int], num_experts: int, num_ranks: int) -> tuple[int, ...]:
    """The slots, if each expert stands in exactly one and ranks share them evenly; raises InputError."""
    if len(slots) % num_ranks:
        raise InputError.at("placement", f"{len(slots)} slots cannot be shared evenly by {num_ranks} ranks")
    if len(slots) > num_experts and set(slots) == set(range(num_experts)):
        raise InputError.at("placement", "experts have replicas, which the expert-parallel layer cannot hold")
    if sorted(slots) != list(range(num_experts)):
        raise InputError.at("placement", f"each of the experts 0 … {num_experts - 1} must stand in exactly one slot")
    return tuple(slots)


def moe_layers(model: nn.Module) -> list[ExpertParallelMoe]:
    """The expert-parallel layers of a model, in order."""
    return [module for module in model.modules() if isinstance(module, ExpertParallelMoe)]


def expert_parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    """Parameters that this rank does not share with the ranks of its expert-parallel group."""
    for layer in moe_layers(model):
        yield from layer.experts.parameters()


def _check_shape(shape: MoeFeedForward) -> None:
    if shape.bias:
        raise InputError.at("bias", "experts with biases are not supported by the expert-parallel layer")
    if shape.shared_width or shape.shared_gate:
        raise InputError.at("shared_width", "must be 0: add a dense feed-forward beside the expert-parallel layer")


def _inverse(slots: Sequence[int]) -> Tensor:
    return torch.tensor(slots).argsort()
