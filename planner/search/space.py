"""The declared space of strategies: the tree's paths with sharding, recomputation and experts, under named rules."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from planner.cost.framework import Framework, Used, broken_strategy_rules
from planner.cost.rules import EXPERT_RULES, SHAPE_RULES, Rule, broken_rules, offload_needs_host
from planner.cost.targets import FRAMEWORKS
from planner.search.grid import RECOMPUTE, SHARDING, Grid, Shape
from planner.search.progress import Tick, nothing
from planner.search.removed import Removed
from planner.search.tree import PATH_RULES, Path, divisors, paths, rule_name, tiles_nearest
from planner.spec.cluster import Cluster
from planner.spec.model import AnyLayer, Block
from planner.spec.request import Options
from planner.spec.strategy import Axis, AxisKind, ExpertStrategy, Recompute, Sharding, Strategy
from planner.spec.training import Training

SEQUENCE_PARALLEL = "sequence-parallel-where-possible"
EXPERTS_WITHIN_NODE = "tp-within-node"


class Space:
    """What the options allow on one kind of device, and what each rule removed from it."""

    def __init__(
        self, cluster: Cluster, training: Training, options: Options, removed: Removed, tick: Tick = nothing
    ) -> None:
        self.cluster = cluster
        self.training = training
        self.options = options
        self.removed = removed
        self.tick = tick
        self._shapes: dict[int, dict[Shape, frozenset[Sharding]]] = {}
        self._spreads: dict[int, tuple[ExpertStrategy, ...]] = {}
        self._grids: dict[tuple[int, int], Grid] = {}

    @property
    def framework(self) -> Framework | None:
        """The framework that must be able to run the plans, if any."""
        return FRAMEWORKS.get(self.options.target)

    @cached_property
    def kinds(self) -> list[AxisKind]:
        """Axes of the tree that the options allow."""
        return [kind for kind in AxisKind if kind.value in self.options.axes]

    def holds(self, rule: str) -> bool:
        """Whether a pruning rule is switched on."""
        return rule not in self.options.without_rules

    def grid(self, layer: AnyLayer, num_devices: int) -> Grid:
        """All strategies for a layer on the devices of a stage that can be computed and pass every rule."""
        key = (id(layer), num_devices)
        if key not in self._grids:
            self._grids[key] = self._made(layer, num_devices)
        return self._grids[key]

    def _made(self, layer: AnyLayer, num_devices: int) -> Grid:
        shapes = self._shapes_on(num_devices)
        moe = isinstance(layer, Block) and layer.moe is not None
        spreads: tuple[ExpertStrategy | None, ...] = self._spreads_on(num_devices) if moe else (None,)
        again = self.options.recompute if isinstance(layer, Block) else (Recompute.NONE,)
        # [recompute, offload, sharding, shape, spread]
        possible = np.zeros((len(RECOMPUTE), 2, len(SHARDING), len(shapes), len(spreads)), dtype=bool)
        for offload in (False, True) if self._offloads else (False,):
            possible[[RECOMPUTE.index(kind) for kind in again], int(offload)] = self._shardable(shapes, spreads)
        possible &= self._spreadable(layer, spreads, possible)
        possible &= self._shapeable(layer, list(shapes), possible)
        grid = Grid(tuple(shapes), spreads, *(part.astype(np.int64) for part in np.nonzero(possible)))
        return grid if self.framework is None else self._run_by(self.framework, layer, grid, num_devices)

    @cached_property
    def _offloads(self) -> bool:
        """Whether optimizer state may go to the host, and something is known of it."""
        if not self.options.offload:
            return False
        broken = next(offload_needs_host(Strategy(offload=True), self.cluster.device), None)
        if broken is not None:
            self.removed.note(broken.rule, 1, broken.message)
        return broken is None

    def _run_by(self, framework: Framework, layer: AnyLayer, grid: Grid, num_devices: int) -> Grid:
        """The strategies that the framework can run."""
        stages, kept = self.cluster.num_devices // num_devices, []
        for row, strategy in enumerate(grid):
            self.tick()
            broken = next(broken_strategy_rules(framework, Used(layer, strategy, self.training, stages)), None)
            if broken is None:
                kept.append(row)
            else:
                self.removed.note(broken.rule, 1, broken.message)
        return grid.rows(np.array(kept, dtype=np.int64))

    def _shapes_on(self, num_devices: int) -> dict[Shape, frozenset[Sharding]]:
        """Shapes on so many devices, with the shardings that the tree's paths to them mean."""
        if num_devices not in self._shapes:
            rules = [rule for rule in PATH_RULES if self.holds(rule_name(rule))]
            found: dict[Shape, frozenset[Sharding]] = {}
            for path in paths(num_devices, self.kinds, self.cluster, rules, self.removed):
                self.tick()
                axes, shardings = written(path, self.options)
                tensor = any(axis.kind is AxisKind.TP for axis in axes)
                for sequence_parallel in (True, False) if tensor and "sp" in self.options.axes else (False,):
                    shape = Shape(axes, sequence_parallel)
                    found[shape] = found.get(shape, frozenset()) | shardings
            self._shapes[num_devices] = found
        return self._shapes[num_devices]

    def _spreads_on(self, num_devices: int) -> tuple[ExpertStrategy, ...]:
        """Degrees of expert parallelism, on the same devices as the attention but decoupled from its degrees."""
        if num_devices not in self._spreads:
            found = []
            for parallel in divisors(num_devices) if "ep" in self.options.axes else (1,):
                for tensor in divisors(num_devices // parallel) if "tp" in self.options.axes else (1,):
                    if self.holds(EXPERTS_WITHIN_NODE) and not tiles_nearest(tensor, self.cluster):
                        self.removed.note(EXPERTS_WITHIN_NODE, 1, f"ep{parallel} etp{tensor}")
                        continue
                    found.append(
                        ExpertStrategy(
                            expert_parallel_size=parallel,
                            expert_tensor_parallel_size=tensor,
                            expert_data_parallel_size=num_devices // parallel // tensor,
                        )
                    )
            self._spreads[num_devices] = tuple(found)
        return self._spreads[num_devices]

    def _shardable(
        self, shapes: dict[Shape, frozenset[Sharding]], spreads: Sequence[ExpertStrategy | None]
    ) -> NDArray[np.bool_]:
        """[shardings, shapes, spreads]: where some replicas are left to shard over, and the path means it."""
        dense = np.array([any(axis.kind is not AxisKind.TP for axis in shape.axes) for shape in shapes], dtype=bool)
        copies = np.array([spread is not None and spread.expert_data_parallel_size > 1 for spread in spreads])
        allowed = np.array([[sharding in meant for meant in shapes.values()] for sharding in SHARDING], dtype=bool)
        replicas = dense[:, None] | copies[None, :]
        sharded = np.array([sharding is not Sharding.NONE for sharding in SHARDING])
        possible: NDArray[np.bool_] = allowed[:, :, None] & (replicas[None] | ~sharded[:, None, None])
        return possible

    def _spreadable(
        self, layer: AnyLayer, spreads: Sequence[ExpertStrategy | None], possible: NDArray[np.bool_]
    ) -> NDArray[np.bool_]:
        """[spreads] that the layer's experts allow."""
        kept = np.ones(len(spreads), dtype=bool)
        for number, spread in enumerate(spreads):
            axes = () if spread is None or spread.num_devices == 1 else (Axis(AxisKind.DP, spread.num_devices),)
            strategy = Strategy(axes=axes, experts=spread)
            kept[number] = self._computable(layer, strategy, EXPERT_RULES, int(possible[..., number].sum()))
        return kept

    def _shapeable(self, layer: AnyLayer, shapes: Sequence[Shape], possible: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """[shapes, 1] that the layer allows."""
        kept = np.ones((len(shapes), 1), dtype=bool)
        passed = set()
        for number, shape in enumerate(shapes):
            self.tick()
            lost = int(possible[:, :, :, number].sum())
            if not shape.sequence_parallel and (*shape.axes, True) in passed and self.holds(SEQUENCE_PARALLEL):
                self.removed.note(SEQUENCE_PARALLEL, lost, f"{_shape_name(shape)} without sp")
                kept[number] = False
                continue
            kept[number] = self._computable(layer, shape.strategy(), SHAPE_RULES, lost)
            if kept[number] and shape.sequence_parallel:
                passed.add((*shape.axes, True))
        return kept

    def _computable(self, layer: AnyLayer, strategy: Strategy, rules: tuple[Rule, ...], count: int) -> bool:
        broken = next(broken_rules(layer, strategy, self.training, rules), None)
        if broken is not None:
            self.removed.note(broken.rule, count, broken.message)
        return broken is None


def written(path: Path, options: Options) -> tuple[Path, frozenset[Sharding]]:
    """A path of the tree as a strategy writes it, and the shardings that it may have.

    In the tree, `dp` is data parallelism up to ZeRO-2 and `sdp` is ZeRO-3. A strategy writes ZeRO-3 as dp with full
    sharding, and sdp only beside dp (hybrid sharding). Without either, experts or parts of the sequence may have
    replicas, which any sharding spreads.
    """
    kinds = {axis.kind for axis in path}
    full = frozenset((Sharding.FULL,)) & frozenset(options.sharding)
    partial = frozenset(options.sharding) - full
    if AxisKind.SDP in kinds:
        if AxisKind.DP not in kinds:
            path = tuple(axis if axis.kind is not AxisKind.SDP else Axis(AxisKind.DP, axis.degree) for axis in path)
        return path, full
    copies_only = AxisKind.DP not in kinds and AxisKind.SDP.value in options.axes
    return path, partial | full if copies_only else partial


def _shape_name(shape: Shape) -> str:
    return " ".join(f"{axis.kind.value}{axis.degree}" for axis in shape.axes)
