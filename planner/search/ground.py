"""What all explorations of one question share: its families, its space, and what no workload changes the price of."""

from __future__ import annotations

from collections.abc import Sequence

from planner.cost.part import conditions
from planner.search.families import Family, families
from planner.search.instances import Instances
from planner.search.pricing import Pricing
from planner.search.progress import Tick
from planner.search.question import Question, in_rounds
from planner.search.removed import Removed
from planner.search.space import Space
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
        self.space = Space(cluster, training, options, removed, tick)
        found = families(model, cluster, training, options, removed)
        self.families = [family for family in found if also is None or _cuts(family, also)]
        self._pricing = Pricing(model, conditions(model.hidden_size, cluster, training), BALANCED)

    def instances(self, workload: Workload, families: Sequence[Family] | None = None) -> Instances:
        """The families as numbers under a workload, or some of them."""
        pricing = self._pricing if workload == BALANCED else self._pricing.under(workload)
        return Instances(self.space, pricing, self.families if families is None else families)


def _cuts(family: Family, training: Training) -> bool:
    """Whether the micro-batches of the family come out even in the batch of another recipe."""
    if training.global_batch_size == "max":
        return True
    micro_batches, rest = divmod(training.global_batch_size, family.samples)
    return not rest and in_rounds(micro_batches, family.num_stages, family.schedule.virtual_stages)
