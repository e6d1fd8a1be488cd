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
from math import ceil
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from planner.spec.errors import InputError
from planner.spec.model import MoeFeedForward
from runtime.exchange import Group, all_to_all, num_ranks, rank


class ExpertRouter(nn.Module):
    """Softmax over the experts, then the `top_k` largest, their weights scaled to sum to 1 (as Mixtral does)."""

    def __init__(self, hidden_size: int, num_experts: int, top_k: int, bias: bool = False) -> None:
        super().__init__()
        self.num_experts = num_experts
        self.top_k = top_k
        self.projection = nn.Linear(hidden_size, num_experts, bias=bias)

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`hidden` [tokens, hidden_size] → probabilities [tokens, experts], weights and experts [tokens, top_k]."""
        probabilities = self.projection(hidden).float().softmax(dim=-1)
        weights, experts = probabilities.topk(self.top_k, dim=-1)
        return probabilities, weights / weights.sum(dim=-1, keepdim=True), experts


class Expert(nn.Module):
    """One feed-forward network: SwiGLU if gated, else GELU between two matrices."""

    def __init__(self, hidden_size: int, width: int, gated: bool) -> None:
        super().__init__()
        self.gated = gated
        self.up = nn.Parameter(torch.empty((2 if gated else 1) * width, hidden_size))
        self.down = nn.Parameter(torch.empty(hidden_size, width))

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Draw new weights, uniform with variance 1 / (3 · inputs), as nn.Linear does."""
        for weight in (self.up, self.down):
            bound = weight.shape[1] ** -0.5
            nn.init.uniform_(weight, -bound, bound, generator=generator)

    def forward(self, hidden: Tensor) -> Tensor:
        """[tokens, hidden_size] → [tokens, hidden_size]; no token at all is fine and gives zero gradients."""
        inner = F.linear(hidden, self.up)
        if self.gated:
            gate, value = inner.chunk(2, dim=-1)
            return F.linear(F.silu(gate) * value, self.down)
        return F.linear(F.gelu(inner), self.down)


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
        capacity_factor: float | None = None,
        with_balance_loss: bool = False,
    ) -> None:
        """Make the layer on this rank of `group`; `slots` None places expert e on rank e // (experts / ranks).

        `capacity_factor`: an expert takes at most factor · tokens · top_k / experts of the tokens of each rank, first
        choices first; what exceeds it is dropped (adds nothing to its token). None: no token is dropped.
        Initial weights depend on the random seed and the logical expert only: not on ranks, nor on the placement.
        Raises InputError.
        """
        super().__init__()
        _check_shape(shape)
        if capacity_factor is not None and not capacity_factor > 0:
            raise InputError.at("capacity_factor", f"must be above 0, got {capacity_factor}")
        self.group = group
        self.num_ranks = num_ranks(group)
        self.num_experts = shape.num_experts
        self.capacity_factor = capacity_factor
        self.with_balance_loss = with_balance_loss
        self.slots = check_slots(
            range(shape.num_experts) if slots is None else slots, shape.num_experts, self.num_ranks
        )
        self.router = ExpertRouter(hidden_size, shape.num_experts, shape.top_k, shape.router_bias)
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
        probabilities, weights, experts = self.router(tokens)
        if self.with_balance_loss:
            self.balance_loss = balance_loss(probabilities, experts, self.group)
        if self.capacity_factor is None:
            chosen = torch.arange(experts.numel(), device=experts.device)
        else:
            chosen = within_capacity(experts, self._capacity(len(tokens)), self.num_experts)
        slot = self.slot_of_expert[experts.flatten()[chosen]]
        order = slot.argsort(stable=True)
        chosen, slot = chosen[order], slot[order]
        results = self._compute(tokens[chosen // experts.shape[1]], slot)
        # Back to one row per choice of each token: the sum below does not depend on the placement.
        by_choice = results.new_zeros((experts.numel(), results.shape[1])).index_copy(0, chosen, results)
        by_choice = by_choice.view(*experts.shape, -1)
        return torch.einsum("tk,tkh->th", weights.to(by_choice.dtype), by_choice).view_as(hidden)

    def _capacity(self, num_tokens: int) -> int:
        assert self.capacity_factor is not None
        return ceil(self.capacity_factor * num_tokens * self.router.top_k / self.num_experts)

    def _compute(self, rows: Tensor, slot: Tensor) -> Tensor:
        """Rows sorted by slot → what the experts in these slots, on whatever rank, make of them, in the same order."""
        sent = torch.bincount(slot, minlength=len(self.slots)).view(self.num_ranks, -1)
        ones = [1] * self.num_ranks
        received = all_to_all(sent, ones, ones, self.group)
        send_counts, receive_counts = torch.stack([sent.sum(1), received.sum(1)]).tolist()
        arrived = all_to_all(rows, send_counts, receive_counts, self.group)
        # They arrive by source rank, then by slot; experts want them by slot, then by source rank.
        local_slot = torch.arange(self.slots_per_rank, device=rows.device).repeat(self.num_ranks)
        order = local_slot.repeat_interleave(received.flatten()).argsort(stable=True)
        pieces = torch.split(arrived[order], received.sum(0).tolist())
        computed = torch.cat([expert(piece) for expert, piece in zip(self.experts, pieces, strict=True)])
        back = torch.empty_like(computed).index_copy(0, order, computed)
        return all_to_all(back, receive_counts, send_counts, self.group)

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


def within_capacity(experts: Tensor, capacity: int, num_experts: int) -> Tensor:
    """Which of the flattened choices [tokens · top_k] are kept if each expert takes `capacity`: ascending indices.

    First choices of all tokens go before second choices, earlier tokens before later ones (GShard, arXiv 2006.16668,
    algorithm 1).
    """
    num_tokens, top_k = experts.shape
    by_choice = experts.t().flatten()
    order = by_choice.argsort(stable=True)
    counts = torch.bincount(by_choice, minlength=num_experts)
    starts = counts.cumsum(0) - counts
    position = torch.arange(len(order), device=order.device) - starts[by_choice[order]]
    kept = order[position < capacity]
    return (kept % num_tokens * top_k + kept // num_tokens).sort().values


def balance_loss(probabilities: Tensor, experts: Tensor, group: Group | None) -> Tensor:
    """experts · Σ_e (share of choices of e) · (mean probability of e): 1 when balanced, up to `experts` when not.

    The shares are those of all ranks of the group, so that the mean of this loss over ranks is the loss of one process
    on the union of their tokens. Source: Switch Transformers, arXiv 2101.03961, equations 4 to 6.
    """
    num_experts = probabilities.shape[1]
    counts = torch.bincount(experts.flatten(), minlength=num_experts)
    if num_ranks(group) > 1:
        torch.distributed.all_reduce(counts, group=group)
    shares = counts.to(probabilities.dtype) / counts.sum()
    return num_experts * (shares * probabilities.mean(dim=0)).sum()


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
