"""What all explorations of one question share: its families, its space, and what no workload changes the price of."""

from __future__ import annotations

from collections.abc import Sequence

from planner.cost.part import conditions
from planner.search.families import Family, families
from planner.search.instances import Instances
from planner.search.mixed import AnyInstances, MixedInstances, Part
from planner.search.pricing import Pricing
from planner.search.progress import Tick
from planner.search.question import Question, in_rounds
from planner.search.removed import Removed
from planner.search.space import Space
from planner.spec.mixed_cluster import MixedCluster
from planner.spec.request import Options
from planner.spec.training import Training
from planner.spec.workload import BALANCED, Workload


class Ground:
    """The declared space of one question."""

    def __init__(
        self, question: Question, options: Options, removed: Removed, tick: Tick, also: Training | None = None
    ) -> None:
        """`removed` counts what the rules remove. `also`: micro-batches must cut the batch of this recipe too.

        Raises InputError where no strategy can cut the batch of the question.
        """
        model, cluster, training = question
        self.question = question
        self._parts = [
            Part(
                Space(group, training, options, removed, tick),
                Pricing(model, conditions(model.hidden_size, group, training), BALANCED),
            )
            for group in cluster.groups
        ]
        found = families(model, cluster, training, options, removed)
        self.families = [family for family in found if also is None or _cuts(family, also)]

    @property
    def space(self) -> Space:
        """Of the first group of devices; options, listener and what was removed are one for all."""
        return self._parts[0].space

    def instances(self, workload: Workload, families: Sequence[Family] | None = None) -> AnyInstances:
        """The families as numbers under a workload, or some of them."""
        parts = self._parts if workload == BALANCED else [part.under(workload) for part in self._parts]
        asked = self.families if families is None else families
        if isinstance(self.question.cluster, MixedCluster):
            return MixedInstances(self.question.cluster, parts, asked)
        [part] = parts
        return Instances(part.space, part.pricing, asked)


def _cuts(family: Family, training: Training) -> bool:
    """Whether the micro-batches of the family come out even in the batch of another recipe."""
    if training.global_batch_size == "max":
        return True
    micro_batches, rest = divmod(training.global_batch_size, family.samples)
    return not rest and in_rounds(micro_batches, family.num_stages, family.schedule.virtual_stages)
