"""The decision tree: every way to spread one layer over the devices of a stage, and the named rules that prune it.

Below a pipeline cut, a path is an ordered sequence of different axes, outermost (farthest devices) first, each with a
degree of at least 2, whose product is the number of devices (Galvatron, arXiv 2211.13878, section 3.2). With dp, sdp
and tp on 8 devices the tree has 34 strategies over all pipeline degrees, 22 when dp and sdp may not meet.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from math import isqrt
from typing import NamedTuple

from planner.cost.rules import AnyLayer, broken_rules
from planner.spec.cluster import Cluster
from planner.spec.model import Block
from planner.spec.request import Options
from planner.spec.strategy import Axis, AxisKind, ExpertStrategy, Recompute, Sharding, Strategy
from planner.spec.training import Training

Path = tuple[Axis, ...]


def divisors(number: int) -> list[int]:
    """All divisors, ascending."""
    small = [n for n in range(1, isqrt(number) + 1) if number % n == 0]
    return small + [number // n for n in reversed(small) if n * n != number]


def paths(num_devices: int, kinds: Sequence[AxisKind]) -> Iterator[Path]:
    """All ordered sequences of different axes whose degrees multiply to `num_devices`."""
    if num_devices == 1:
        yield ()
        return
    for kind in kinds:
        rest = [other for other in kinds if other is not kind]
        for degree in divisors(num_devices)[1:]:
            for inner in paths(num_devices // degree, rest):
                yield (Axis(kind, degree), *inner)


PathRule = Callable[[Path, Cluster], bool]
"""True if the rule lets the path through."""


def dp_and_sdp_apart(path: Path, cluster: Cluster) -> bool:
    """Sharded data parallelism alone is no worse than mixed with plain (Galvatron, section 3.2)."""
    kinds = {axis.kind for axis in path}
    return not {AxisKind.DP, AxisKind.SDP} <= kinds


def tp_on_nearest_devices(path: Path, cluster: Cluster) -> bool:
    """Tensor parallelism talks in every layer and micro-batch, unhidden: it gets the fastest links."""
    return all(axis.kind is not AxisKind.TP for axis in path[:-1])


def cp_inside_dp(path: Path, cluster: Cluster) -> bool:
    """Ring attention talks in every layer, data parallelism mostly once per step."""
    kinds = [axis.kind for axis in path]
    outer = [kinds.index(kind) for kind in (AxisKind.DP, AxisKind.SDP) if kind in kinds]
    return AxisKind.CP not in kinds or all(position < kinds.index(AxisKind.CP) for position in outer)


def tp_within_node(path: Path, cluster: Cluster) -> bool:
    """Tensor parallelism stays inside the nearest tier of links, and tiles it."""
    return all(_tiles_node(axis.degree, cluster) for axis in path if axis.kind is AxisKind.TP)


def _tiles_node(degree: int, cluster: Cluster) -> bool:
    return cluster.levels[0].num_devices % degree == 0


PATH_RULES: tuple[PathRule, ...] = (dp_and_sdp_apart, tp_on_nearest_devices, cp_inside_dp, tp_within_node)


def rule_name(rule: Callable[..., object]) -> str:
    """How a rule is called in certificates."""
    return rule.__name__.replace("_", "-")


class Space(NamedTuple):
    """The declared space of strategies, and the count of what each rule removed from it."""

    cluster: Cluster
    training: Training
    options: Options
    pruned: Counter[str]

    def kinds(self) -> list[AxisKind]:
        """Axes of the tree that the options allow."""
        return [kind for kind in AxisKind if kind.value in self.options.axes]

    def tree(self, num_devices: int) -> list[Path]:
        """The paths that pass every rule."""
        kept = []
        for path in paths(num_devices, self.kinds()):
            broken = next((rule for rule in PATH_RULES if not rule(path, self.cluster)), None)
            if broken is None:
                kept.append(path)
            else:
                self.pruned[rule_name(broken)] += 1
        return kept

    def strategies(self, layer: AnyLayer, num_devices: int) -> list[Strategy]:
        """All strategies for a layer on the devices of a stage that can be computed and pass every rule."""
        found = []
        for path in self.tree(num_devices):
            for strategy in self._completions(path, layer, num_devices):
                broken = next(broken_rules(layer, strategy, self.training), None)
                if broken is None:
                    found.append(strategy)
                else:
                    self.pruned[broken.rule] += 1
        return found

    def _completions(self, path: Path, layer: AnyLayer, num_devices: int) -> Iterator[Strategy]:
        axes, shardings = written(path, self.options.sharding)
        experts = self._experts(layer, num_devices)
        recompute = self.options.recompute if isinstance(layer, Block) else (Recompute.NONE,)
        tensor = any(axis.kind is AxisKind.TP for axis in axes)
        for sharding, again, spread in product(shardings, recompute, experts):
            if sharding is not Sharding.NONE and not _shardable(axes, spread):
                continue
            yield Strategy(
                axes=axes,
                sharding=sharding,
                sequence_parallel=tensor and self._sequence_parallel(axes),
                recompute=again,
                experts=spread,
            )

    def _sequence_parallel(self, axes: Path) -> bool:
        """Rule `sequence-parallel-where-possible`: the same traffic and less memory, so no other way is tried there."""
        degrees = {axis.kind: axis.degree for axis in axes}
        part = self.training.sequence_length // degrees.get(AxisKind.CP, 1)
        possible = "sp" in self.options.axes and part % degrees.get(AxisKind.TP, 1) == 0
        self.pruned["sequence-parallel-where-possible"] += possible
        return possible

    def _experts(self, layer: AnyLayer, num_devices: int) -> list[ExpertStrategy | None]:
        """Degrees of expert parallelism, on the same devices as the attention but decoupled from its degrees."""
        if not isinstance(layer, Block) or layer.moe is None:
            return [None]
        found: list[ExpertStrategy | None] = []
        for parallel in divisors(num_devices) if "ep" in self.options.axes else [1]:
            for tensor in divisors(num_devices // parallel) if "tp" in self.options.axes else [1]:
                if not _tiles_node(tensor, self.cluster):
                    self.pruned["tp-within-node"] += 1
                    continue
                found.append(
                    ExpertStrategy(
                        expert_parallel_size=parallel,
                        expert_tensor_parallel_size=tensor,
                        expert_data_parallel_size=num_devices // parallel // tensor,
                    )
                )
        return found


def written(path: Path, shardings: Sequence[Sharding]) -> tuple[Path, list[Sharding]]:
    """A path of the tree as a strategy writes it, and the shardings that it may have.

    In the tree, `dp` is data parallelism up to ZeRO-2 and `sdp` is ZeRO-3. A strategy writes ZeRO-3 as dp with full
    sharding, and sdp only beside dp (hybrid sharding).
    """
    kinds = {axis.kind for axis in path}
    if AxisKind.SDP in kinds:
        if AxisKind.DP not in kinds:
            path = tuple(axis if axis.kind is not AxisKind.SDP else Axis(AxisKind.DP, axis.degree) for axis in path)
        return path, [Sharding.FULL] if Sharding.FULL in shardings else []
    return path, [sharding for sharding in shardings if sharding is not Sharding.FULL]


def _shardable(axes: Path, experts: ExpertStrategy | None) -> bool:
    dense = any(axis.kind is not AxisKind.TP for axis in axes)
    return dense or (experts is not None and experts.expert_data_parallel_size > 1)
