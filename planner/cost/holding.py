"""What the devices of a stage hold of a layer: a box, one part of each of three cuts of the state."""

from __future__ import annotations

from math import prod
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from planner.spec.errors import InputError
from planner.spec.strategy import AxisKind, Sharding, Strategy

Devices = NDArray[np.int64]


class Cut(NamedTuple):
    """One axis of the state, cut into `parts` equal parts.

    Device i of a stage has rank d0 d1 … with digits dk = i // stride % degree, the first the most significant one, and
    holds part rank x parts // ranks: fewer parts than ranks are held by several neighbours.
    """

    digits: tuple[tuple[int, int], ...]
    """(stride, degree), most significant first."""
    parts: int

    def number(self, num_devices: int) -> Devices:
        """[devices]: the part that each device of the stage holds."""
        devices = np.arange(num_devices)
        rank = np.zeros_like(devices)
        for stride, degree in self.digits:
            rank = rank * degree + devices // stride % degree
        return rank * self.parts // prod(degree for _, degree in self.digits)


Cuts = tuple[Cut, Cut, Cut]
WHOLE = Cut((), 1)
"""An axis that is not cut."""


def box(strategy: Strategy, part: str, is_weight: bool, num_kv_heads: int = 0) -> Cuts:
    """The cuts of one part of a layer, and of its weights or optimizer state.

    `num_kv_heads`: for the part `keys_values`; fewer heads than tensor-parallel ranks are copied whole.
    """
    sharded = strategy.sharding is Sharding.FULL if is_weight else strategy.sharding is not Sharding.NONE
    if part == "experts":
        experts = strategy.experts
        if experts is None:
            raise InputError.at("plan", "an MoE layer's strategy must say how its experts are spread")
        tensor, parallel = experts.expert_tensor_parallel_size, experts.expert_parallel_size
        groups = experts.expert_data_parallel_size
        return (
            _cut((1, tensor)),
            _cut((tensor, parallel)),
            _cut((tensor * parallel, groups)) if sharded else WHOLE,
        )
    shard = _cut(*_shard(strategy)) if sharded else WHOLE
    if part == "replicated":
        return WHOLE, WHOLE, shard
    tensor_cut = _cut((strategy.stride(AxisKind.TP), strategy.tp))
    if part == "keys_values":
        tensor_cut = tensor_cut._replace(parts=min(strategy.tp, num_kv_heads))
    return tensor_cut, WHOLE, shard


def _cut(*digits: tuple[int, int]) -> Cut:
    return Cut(tuple(digit for digit in digits if digit[1] > 1), prod(degree for _, degree in digits))


def _shard(strategy: Strategy) -> list[tuple[int, int]]:
    """Dense state is sharded over the sdp axis where there is one, else over dp, cp and ulysses."""
    kinds = (AxisKind.SDP,) if strategy.degree(AxisKind.SDP) > 1 else (AxisKind.DP, AxisKind.CP, AxisKind.ULYSSES)
    return [(strategy.stride(kind), strategy.degree(kind)) for kind in kinds]
