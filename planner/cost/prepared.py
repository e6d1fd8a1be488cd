"""A plan prepared for its price: what no load changes is priced once, the rest for as many loads as are asked at once.

Knows stages, layers and what crosses between them; what becomes of it, planner.cost.step knows.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

from planner.cost.boundary import Entry, entry_into, tied_gradient_s, transition_s
from planner.cost.check import check_plan, tied_stage
from planner.cost.copies import ExpertBytes
from planner.cost.layer import LayerCost, Unrouted, unrouted, with_experts
from planner.cost.load import ExpertLoads
from planner.cost.part import Conditions, at_entry, conditions, stage_conditions
from planner.cost.state import sent_of_expert
from planner.cost.work import Work, summed, sums_by_stage
from planner.spec.mixed_cluster import AnyCluster
from planner.spec.model import AnyLayer, Block, Model
from planner.spec.plan import Plan, Stage, StageRun
from planner.spec.strategy import Strategy
from planner.spec.training import Training

_Key = tuple[int, int, int]
"""What a layer's price depends on besides loads, told apart by identity: conditions, layer, strategy."""


class _Kind(NamedTuple):
    """MoE layers that differ in nothing but their load."""

    found: Unrouted
    layer: AnyLayer
    strategy: Strategy
    rank_stride: int
    """From one expert-parallel rank to the next, in devices."""
    sent: ExpertBytes
    by_stage: dict[int, list[int]]
    """Of each stage that has such layers, which MoE layers they are."""


class StageParts(NamedTuple):
    """One stage, but for what depends on the load of experts."""

    stage: Stage
    entries: tuple[Entry, ...]
    """Of its pieces."""
    tied_s: float
    """Once per step: gradients of a matrix that embedding and head share."""
    plain: tuple[tuple[LayerCost, int], ...]
    """Layers without experts: cost, how many."""
    moves: tuple[tuple[float, float], ...]
    """Transitions between its layers, forward and backward."""
    same: tuple[object, ...]
    """Equal for stages that differ in their entries and in the loads of their MoE layers only."""


class Prepared:
    """The plan's stages, ready for loads."""

    def __init__(self, model: Model, cluster: AnyCluster, training: Training, plan: Plan) -> None:
        """Raises InputError if the values do not match each other."""
        check_plan(model, cluster, training, plan)
        self.model, self.cluster, self.training, self.plan = model, cluster, training, plan
        self._of_groups = tuple(conditions(model.hidden_size, group, training) for group in cluster.groups)
        self._places: dict[tuple[int, int], Conditions] = {}
        self._strategies = _first_of_equal(plan)
        self._entries: dict[tuple[int, ...], Entry] = {}
        self._plain: dict[_Key, LayerCost] = {}
        self._kinds: dict[_Key, _Kind] = {}
        self._moe_numbers = {layer: number for number, layer in enumerate(model.moe_layers)}
        self.sizes: list[tuple[int, int]] = [(0, 0)] * len(model.moe_layers)
        """[MoE layers] of (experts, expert-parallel ranks)."""
        self.stages = [self._stage(number, stage) for number, stage in enumerate(plan.stages)]

    def works(self, loads: ExpertLoads) -> list[Work]:
        """What the layers of each stage take; numbers for one load, arrays for more."""
        experts = self._expert_costs(loads)
        known: dict[tuple[object, ...], Work] = {}
        found = []
        for parts, costs in zip(self.stages, experts, strict=True):
            key = (parts.same, tuple((id(cost), number) for cost, number in costs))
            if key not in known:
                known[key] = summed([*parts.plain, *costs], list(parts.moves))
            found.append(known[key])
        return found

    def _expert_costs(self, loads: ExpertLoads) -> list[list[tuple[LayerCost, int]]]:
        """[stages] of what MoE layers cost: a cost and how many there are, or one that is summed already."""
        found: list[list[tuple[LayerCost, int]]] = [[] for _ in self.stages]
        for kind in self._kinds.values():
            numbers = [number for own in kind.by_stage.values() for number in own]
            copies = loads.copies(numbers, kind.found.conditions.levels, kind.rank_stride, kind.sent)
            cost = with_experts(kind.found, kind.layer, kind.strategy, loads.load(numbers), copies)
            if not loads.differ:
                for stage, own in kind.by_stage.items():
                    found[stage].append((cost, len(own)))
                continue
            counts = [len(own) for own in kind.by_stage.values()]
            for stage, total in zip(kind.by_stage, sums_by_stage(cost, counts), strict=True):
                found[stage].append((total, 1))
        return found

    def _stage(self, number: int, stage: Stage) -> StageParts:
        here = self._conditions(stage)
        plain: dict[_Key, int] = {}
        experts: dict[_Key, int] = {}
        for run in stage.runs:
            strategy = self._strategies[id(run.strategy)]
            for layer, first, end in self.model.stretches(run.first_layer, run.end_layer):
                key = (id(here), id(layer), id(strategy))
                if isinstance(layer, Block) and layer.moe is not None:
                    self._add_moe_layers(key, (here, layer, strategy), number, range(first, end))
                    experts[key] = experts.get(key, 0) + end - first
                else:
                    plain[key] = plain.get(key, 0) + end - first
                    if key not in self._plain:
                        self._plain[key] = with_experts(self._unrouted(here, layer, strategy), layer, strategy)
        pieces = enumerate(stage.pieces)
        return StageParts(
            stage,
            entries=tuple(self._entry(number, piece, runs[0]) for piece, runs in pieces),
            tied_s=self._tied_s(stage),
            plain=tuple((self._plain[key], count) for key, count in plain.items()),
            moves=tuple(self._transitions(stage)),
            same=(tuple(plain.items()), tuple(experts.items()), self._orders(stage)),
        )

    def _unrouted(self, here: Conditions, layer: AnyLayer, strategy: Strategy) -> Unrouted:
        samples, length = self.plan.samples_per_micro_batch, self.plan.sequence_length
        return unrouted(here, layer, strategy, samples, length, not tied_stage(self.model, self.plan))

    def _add_moe_layers(self, key: _Key, kind: tuple[Conditions, Block, Strategy], stage: int, layers: range) -> None:
        here, layer, strategy = kind
        assert strategy.experts is not None and layer.moe is not None, "check_plan has seen to it"
        if key not in self._kinds:
            found, sent = self._unrouted(here, layer, strategy), sent_of_expert(here, layer, strategy)
            stride = strategy.experts.expert_tensor_parallel_size
            self._kinds[key] = _Kind(found, layer, strategy, stride, sent, {})
        numbers = [self._moe_numbers[each] for each in layers]
        self._kinds[key].by_stage.setdefault(stage, []).extend(numbers)
        for number in numbers:
            self.sizes[number] = (layer.moe.num_experts, strategy.experts.expert_parallel_size)

    def _orders(self, stage: Stage) -> tuple[object, ...]:
        """Of pieces whose strategies change, in which order they do."""
        layers, changing = self.model.layers, [runs for runs in stage.pieces if len(runs) > 1]
        return tuple(
            tuple([(id(self._strategies[id(run.strategy)]), id(layers[run.first_layer])) for run in runs])
            for runs in changing
        )

    def _conditions(self, stage: Stage) -> Conditions:
        """Of a stage; the same object for stages of one group that find the same."""
        place = (stage.first_device, stage.num_devices)
        if place not in self._places:
            number = self.cluster.group_number(*place)
            first = stage.first_device - self.cluster.first_devices[number]
            self._places[place] = stage_conditions(self._of_groups[number], first, stage.num_devices)
        return self._places[place]

    def _tied_s(self, stage: Stage) -> float:
        if tied_stage(self.model, self.plan):
            return 0.0
        last = stage.runs[-1]
        link = self.cluster.link_between(0, stage.first_device)
        return tied_gradient_s(self._conditions(stage), self.model.layers[last.end_layer - 1], last.strategy, link)

    def _entry(self, number: int, piece: int, run: StageRun) -> Entry:
        """Nothing enters the first piece of the model; later pieces are entered from the stage before, in a ring."""
        if number == 0 and piece == 0:
            return Entry(0.0, 0)
        stage, before = self.plan.stages[number], self.plan.stages[number - 1]
        here = self._conditions(stage)
        link = self.cluster.link_between(before.first_device, stage.first_device + stage.num_devices - 1)
        layer, strategy = self.model.layers[run.first_layer], run.strategy
        key = (id(here), id(self._strategies[id(strategy)]), before.num_devices, id(link), id(layer))
        if key not in self._entries:
            samples = self.plan.samples_per_micro_batch
            self._entries[key] = entry_into(here, layer, strategy, samples, link, before.num_devices)
        return self._entries[key]

    def _transitions(self, stage: Stage) -> Iterator[tuple[float, float]]:
        here = self._conditions(stage)
        for runs in stage.pieces:
            for before, after in pairwise(runs):
                arriving, tokens = at_entry(here, self.model.layers[after.first_layer], self.plan.sequence_length)
                samples = self.plan.samples_per_micro_batch
                yield transition_s(arriving, before.strategy, after.strategy, samples, tokens)


def _first_of_equal(plan: Plan) -> dict[int, Strategy]:
    """By identity, the first strategy that equals one."""
    first = {strategy: strategy for strategy in plan.distinct_strategies}
    objects = {id(run.strategy): run.strategy for stage in plan.stages for run in stage.runs}
    return {number: first[strategy] for number, strategy in objects.items()}
