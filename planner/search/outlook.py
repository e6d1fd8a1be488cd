"""What each family takes at least, before any table is made: what its layers compute, and no parameters or memory.

A layer under a strategy takes no less than its computation and traffic of activations alone, which depends on the
innermost axes, the samples of one rank, and the spread of the experts. So a few hundred prices bound every family.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from planner.cost.layer import compose, put_off_s
from planner.cost.part import Part
from planner.cost.pipeline import Beats, Rhythm, beat
from planner.cost.state import State
from planner.search.families import Family
from planner.search.grid import Shape
from planner.search.pricing import Cut, Pricing, cut
from planner.search.rhythm import filling, peaks
from planner.search.space import Space
from planner.spec.strategy import Recompute

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
_NOTHING = State(*(0.0 for _ in State._fields))


class Outlook:
    """Lower bounds for the families of one space."""

    def __init__(self, pricing: Pricing, space: Space, cuts: Iterable[tuple[int, int]]) -> None:
        """`cuts`: (stages, samples of a micro-batch) that will be asked for."""
        self._pricing = pricing
        self._space = space
        self._samples: dict[int, set[int]] = {}
        for stages, samples in cuts:
            self._samples.setdefault(stages, set()).add(samples)
        self._least: dict[tuple[int, int, Beats], list[Floats]] = {}

    def step_s(self, family: Family, made: Rhythm, beats: Beats) -> float:
        """No plan of the family is faster; inf where no strategy cuts its samples."""
        return step_s(self.layers_s(family.num_stages, family.samples, beats), family.num_stages, made)

    def layers_s(self, stages: int, samples: int, beats: Beats) -> Floats:
        """[layers, beats] of what each layer takes at least where the devices are cut into so many stages."""
        if (stages, samples, beats) not in self._least:
            self._compute(stages)
        least: Floats = np.array(self._least[(stages, samples, beats)])[self._pricing.layer_classes[1]]
        return least

    def _compute(self, stages: int) -> None:
        """Bounds for all families with so many stages."""
        devices = self._space.cluster.num_devices // stages
        for number in range(len(self._pricing.layer_classes[0])):
            self._space.tick()
            for samples, found in self._layer_s(number, devices, sorted(self._samples[stages])).items():
                for beats, least in found.items():
                    self._least.setdefault((stages, samples, beats), []).append(least)

    def _layer_s(self, number: int, devices: int, all_samples: Sequence[int]) -> dict[int, dict[Beats, Floats]]:
        """By samples of a micro-batch, [beats] of the least of a layer of this class, each number by itself."""
        pricing, limit = self._pricing, self._space.options.max_micro_batch_size
        layer = pricing.layer_classes[0][number].layer
        grid = self._space.grid(layer, devices)
        # By shape inside the outermost data parallelism: the ranks of that, and all ranks, which may stand inside too.
        inner: dict[Shape, tuple[int, int]] = {}
        for shape in np.flatnonzero(np.bincount(grid.shape)).tolist():
            found = cut(grid.shapes[shape], devices)
            inner[found.shape] = devices // found.samples, int(grid.ranks[shape])
        rows: dict[Cut, int] = {}
        members: dict[int, list[int]] = {samples: [] for samples in all_samples}
        for samples, (inside, (outer, ranks)) in ((samples, each) for samples in all_samples for each in inner.items()):
            if samples % ranks == 0 and samples // ranks <= limit:
                members[samples].append(rows.setdefault(Cut(inside, samples // outer), len(rows)))
        if not rows:
            size = {beats: len(beat(beats, 0.0, 0.0, 0.0)) for beats in Beats}
            return {samples: {beats: np.full(size[beats], np.inf) for beats in Beats} for samples in all_samples}
        # [cuts, spreads of the experts, or 1]
        parts = np.array([pricing.part(number, of) for of in rows])[:, None, :]
        edge_tokens = np.array([pricing.share(number, of).edge_tokens for of in rows])
        if grid.has_experts:
            allowed = np.flatnonzero(np.bincount(grid.spread, minlength=len(grid.spreads)))
            routed = np.stack([pricing.routed(number, tokens, grid.spreads)[allowed] for tokens in edge_tokens])
            parts = parts + routed
        whole = Part(*np.moveaxis(parts, 2, 0))
        cost = compose(pricing.conditions_of(number), Recompute.NONE, edge_tokens[:, None], whole, _NOTHING)
        passes = cost.forward_s, cost.backward_s, put_off_s(layer, cost)
        least = {beats: np.stack([each.min(axis=1) for each in beat(beats, *passes)], axis=1) for beats in Beats}
        return {
            samples: {beats: each[found].min(axis=0, initial=np.inf) for beats, each in least.items()}
            for samples, found in members.items()
        }


def step_s(least: Floats, stages: int, made: Rhythm) -> float:
    """No pipeline is faster whose layers take at least [layers, beats]; inf where a layer has no strategy."""
    if not np.isfinite(least).all():
        return float("inf")
    slowest = peaks(made, least)
    longest = np.maximum(slowest.sum(axis=0) / stages, slowest.max(axis=0))
    return float(longest.sum() + filling(made, least).sum())
