"""FasterMoE's rule for shadow experts: those whose weights are sooner sent to all than their tokens to one.

For each layer and step, from the counts of that very step: experts, the heaviest first, become shadows on all ranks as
long as each makes the layer's estimated latency shorter. That is, with B the tokens of the busiest rank, not counting
those of shadows, and n shadows,

    3 B compute_s + 4 B token_s + 2 n weights_s

(forward and backward products; tokens there and back, twice; weights there, gradients back). Every rank then computes
its own tokens of a shadow. Nothing lasts, nothing moves. With one expert per rank this is the published rule; where a
rank has several its experts add up, own reading.
Source: He et al., FasterMoE, PPoPP 2022, dynamic shadowing; the formula and the stop at the first expert that does not
help as in laekov/fastmoe, fmoe/fastermoe/shadow_policy.py. Arrays as in `planner.online.placement`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from planner.cost import Seats
from planner.cost.balance import Floats, Indices


class ShadowCosts(NamedTuple):
    """What the rule weighs, in seconds."""

    compute_s: float
    """Of one token's forward pass through an expert."""
    token_s: float
    """One token over the link between ranks."""
    weights_s: float
    """One expert's weights over that link."""


def shadowed_experts(tokens: Floats, slots: Indices, num_ranks: int, costs: ShadowCosts) -> NDArray[np.bool_]:
    """[L, E]: which become shadows for `tokens` [L, E] of one step; `slots` [L, S] with one slot per expert.

    Never all: the lightest stays where it is.
    """
    layers, experts = tokens.shape
    every = np.arange(layers)[:, None]
    owner = np.empty((layers, experts), dtype=np.intp)
    owner[every, slots] = np.arange(experts) // (experts // num_ranks)
    order = np.argsort(-tokens, axis=1, kind="stable")
    by_rank = np.zeros((layers, experts, num_ranks))
    by_rank[every, np.arange(experts), owner[every, order]] = tokens[every, order]
    taken = np.concatenate([np.zeros((layers, 1, num_ranks)), by_rank.cumsum(axis=1)[:, :-1]], axis=1)
    busiest = (by_rank.sum(axis=1)[:, None] - taken).max(axis=2)
    latency_s = busiest * (3 * costs.compute_s + 4 * costs.token_s) + 2 * np.arange(experts) * costs.weights_s
    helps = np.logical_and.accumulate(np.diff(latency_s, axis=1) < 0, axis=1)
    shadowed = np.zeros((layers, experts), dtype=bool)
    shadowed[every, order[:, :-1]] = helps
    return shadowed


def on_all_ranks(shadowed: NDArray[np.bool_], slots: Indices, num_ranks: int) -> Seats:
    """`slots` [L, S] with one slot per expert, `shadowed` [L, E] experts on all ranks, each computing its own tokens.

    As many shadow slots as the layer with the most needs; the others are idle, without tokens.
    """
    layers = len(shadowed)
    own = slots.reshape(layers, num_ranks, -1)
    most = int(shadowed.sum(axis=1).max())
    first = np.argsort(~shadowed, axis=1, kind="stable")[:, :most]
    filled = np.take_along_axis(shadowed, first, axis=1)[:, None]
    here = (first[:, None, :, None] == own[:, :, None, :]).any(axis=-1)
    held = np.where(filled, first[:, None], own[:, :, :1])
    own_parts = np.where(shadowed[np.arange(layers)[:, None, None], own], 1.0 / num_ranks, 1.0)
    parts = np.where(filled & ~here, 1.0 / num_ranks, 0.0)
    joined = np.concatenate([own, held], axis=2).reshape(layers, -1)
    return Seats(joined, num_ranks, np.concatenate([own_parts, parts], axis=2).reshape(layers, -1), most)
