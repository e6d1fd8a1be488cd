"""All plans of small declared spaces, built without the search's tables and solvers, and priced by estimate()."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, combinations, pairwise, product
from math import comb, prod

from random_questions import Question

from planner.cost import estimate
from planner.search.assemble import assemble
from planner.search.families import Family, families
from planner.search.removed import Removed
from planner.search.space import Space
from planner.spec.cluster import Cluster
from planner.spec.errors import InputError
from planner.spec.model import Block, Model
from planner.spec.plan import Plan
from planner.spec.request import Options
from planner.spec.strategy import AxisKind, Recompute, Sharding, Strategy
from planner.spec.training import Training

Stretches = tuple[tuple[int, int], ...]


class Plans:
    """The plans of one question under options."""

    def __init__(self, question: Question, options: Options) -> None:
        self.question, self.options = question, options
        self.model, self.cluster, self.training = question
        self.space = Space(self.cluster, self.training, options, Removed())
        self.families = families(*question, options, Removed())

    def strategies(self, layer: int, family: Family) -> list[Strategy]:
        """Of a layer, those that cut the micro-batch evenly and finely enough."""
        grid = self.space.grid(self.model.layers[layer], self.cluster.num_devices // family.num_stages)
        limit = self.options.max_micro_batch_size
        return [
            each
            for each in grid
            if family.samples % each.data_parallel_size == 0 and family.samples // each.data_parallel_size <= limit
        ]

    def every(self) -> Iterator[Plan]:
        """Each layer with a strategy of its own."""
        return chain.from_iterable(map(self._every, self.families))

    def uniform(self) -> Iterator[Plan]:
        """One strategy for all blocks, which the other layers follow in all that they have."""
        return chain.from_iterable(map(self._uniform, self.families))

    def _every(self, family: Family) -> Iterator[Plan]:
        allowed = [self.strategies(layer, family) for layer in range(len(self.model.layers))]
        for stages, chosen in product(cuts(self.model, family), product(*allowed)):
            yield self.plan(family, stages, chosen)

    def _uniform(self, family: Family) -> Iterator[Plan]:
        moe = self.model.moe_layers
        leader = moe[0] if moe else next(n for n, layer in enumerate(self.model.layers) if isinstance(layer, Block))
        layers = range(len(self.model.layers))
        allowed = [self.strategies(layer, family) for layer in layers]
        for lead in allowed[leader]:
            chosen = []
            for layer in layers:
                wanted = _following(self.model, layer, lead)
                chosen += [wanted] if wanted in allowed[layer] else []
            if len(chosen) == len(layers):
                for stages in cuts(self.model, family):
                    yield self.plan(family, stages, chosen)

    def plan(self, family: Family, stages: tuple[Stretches, ...], chosen) -> Plan:
        """The plan with a strategy for each layer."""
        split = [[chosen[n] for first, end in each for n in range(first, end)] for each in stages]
        return assemble(self.cluster, self.training, family, stages, split)

    def count(self) -> int:
        """How many plans all families have."""
        layers = range(len(self.model.layers))
        return sum(
            prod(len(self.strategies(layer, family)) for layer in layers)
            * (1 if family.schedule.virtual_stages > 1 else comb(len(layers) - 1, family.num_stages - 1))
            for family in self.families
        )

    def fastest_s(self, plans: Iterator[Plan]) -> float | None:
        """Step of the fastest of the plans, as estimate() says; inf if none fits, None if none can be computed."""
        return min((time_s for time_s in map(self._step_s, plans) if time_s is not None), default=None)

    def _step_s(self, plan: Plan) -> float | None:
        try:
            price = estimate(self.model, self.cluster, self.training, plan)
        except InputError as error:
            if "share one matrix" not in str(error):
                raise
            return None
        return price.step_time_s if price.fits else float("inf")


def fastest(model: Model, cluster: Cluster, training: Training, options: Options) -> float | None:
    """Step of the fastest plan of the space; None where none fits."""
    plans = Plans(Question(model, cluster, training), options)
    found = plans.fastest_s(plans.every())
    return None if found == float("inf") else found


def cuts(model: Model, family: Family) -> Iterator[tuple[Stretches, ...]]:
    """All unbroken stretches; with virtual stages, equal numbers of blocks dealt in turn."""
    layers, stages, virtual = len(model.layers), family.num_stages, family.schedule.virtual_stages
    if virtual == 1:
        for starts in combinations(range(1, layers), stages - 1):
            yield tuple(((first, end),) for first, end in pairwise((0, *starts, layers)))
        return
    # Other layers may stand between the blocks; they go with the block before them.
    blocks = [number for number, layer in enumerate(model.layers) if isinstance(layer, Block)]
    size = len(blocks) // (stages * virtual)
    inner = [blocks[size * piece] for piece in range(1, stages * virtual)]
    pieces = list(pairwise((0, *inner, layers)))
    yield tuple(tuple(pieces[stage::stages]) for stage in range(stages))


def _following(model: Model, number: int, lead: Strategy) -> Strategy:
    """The leader's strategy for a layer: without what that layer does not have."""
    layer = model.layers[number]
    changes: dict[str, object] = {}
    if not isinstance(layer, Block):
        changes["recompute"] = Recompute.NONE
    if number not in model.moe_layers:
        changes["experts"] = None
        if all(axis.kind is AxisKind.TP for axis in lead.axes):
            changes["sharding"] = Sharding.NONE
    return lead.model_copy(update=changes)


def narrowed(question: Question, options: Options, most: int) -> Plans:
    """The plans of the options, of which the last kinds are left out until there are at most so many plans."""
    plans = Plans(question, options)
    while plans.count() > most:
        options = _less(options)
        plans = Plans(question, options)
    return plans


def _less(options: Options) -> Options:
    if options.max_micro_batch_size > 1:
        return options.model_copy(update={"max_micro_batch_size": options.max_micro_batch_size // 2})
    field = max(("recompute", "sharding", "axes"), key=lambda name: len(getattr(options, name)) - (name == "axes"))
    return options.model_copy(update={field: getattr(options, field)[:-1]})
