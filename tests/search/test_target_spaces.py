"""Narrowing options to a framework's parts loses no plan that it can run: all plans of tiny spaces are looked at."""

from itertools import combinations, pairwise, product

import pytest
from small_questions import MIB, a_cluster, a_model, a_training

from planner.cost.framework import Pipelined, Used, broken_pipeline_rules, broken_strategy_rules, can_shard
from planner.cost.targets import FRAMEWORKS, broken_target_rules
from planner.search.assemble import assemble
from planner.search.families import families
from planner.search.removed import Removed
from planner.search.restricted import for_target
from planner.search.space import Space
from planner.spec.model import Block
from planner.spec.request import Options
from planner.spec.strategy import Recompute, Sharding

WIDE = Options(schedules=("1f1b", "gpipe", "zero_bubble"), max_micro_batch_size=2)


class Tiny:
    """Families, cuts and strategies of a question of three or four layers on two devices."""

    def __init__(self, model, options):
        self.model, self.options = model, options
        self.cluster, self.training = a_cluster(2, 400 * MIB), a_training(2)
        self.families = families(model, self.cluster, self.training, options, Removed())
        self.space = Space(self.cluster, self.training, options, Removed())

    def strategies(self, layer, family):
        found = self.space.grid(layer, self.cluster.num_devices // family.num_stages)
        return [each for each in found if family.samples % each.data_parallel_size == 0]

    def cuts(self, family):
        layers = len(self.model.layers)
        for starts in combinations(range(1, layers), family.num_stages - 1):
            yield tuple(((first, end),) for first, end in pairwise((0, *starts, layers)))

    def plan(self, family, stages, chosen):
        split = [chosen[first:end] for ((first, end),) in stages]
        return assemble(self.cluster, self.training, family, stages, split)


def every_plan_it_can_run(tiny, target):
    """Out of all plans, each layer with a strategy of its own."""
    for family in tiny.families:
        of_layers = [tiny.strategies(layer, family) for layer in tiny.model.layers]
        for stages, chosen in product(tiny.cuts(family), product(*of_layers)):
            plan = tiny.plan(family, stages, chosen)
            if not any(broken_target_rules(target, tiny.model, tiny.training, plan)):
                yield plan.id


def every_plan_of_its_parts(tiny, target):
    """One strategy for all layers, from the framework's own parts alone."""
    framework = FRAMEWORKS[target]
    leader = next(layer for layer in tiny.model.layers if isinstance(layer, Block))
    for family in tiny.families:
        outer = Pipelined(tiny.model, family.num_stages, family.num_micro_batches, family.schedule)
        if any(broken_pipeline_rules(framework, outer)):
            continue
        for strategy in tiny.strategies(leader, family):
            chosen = [_follower(layer, strategy) for layer in tiny.model.layers]
            used = [
                Used(*pair, tiny.training, family.num_stages) for pair in zip(tiny.model.layers, chosen, strict=True)
            ]
            if any(broken for each in used for broken in broken_strategy_rules(framework, each)):
                continue
            for stages in tiny.cuts(family):
                starts = tuple(first for ((first, _),) in stages)
                if framework.cuts is None or starts in framework.cuts(tiny.model, family.num_stages):
                    yield tiny.plan(family, stages, chosen).id


def _follower(layer, strategy):
    """The same strategy for another layer: without what that layer does not have."""
    if isinstance(layer, Block):
        return strategy
    bare = {"recompute": Recompute.NONE, "experts": None, "sharding": Sharding.NONE}
    shards = strategy.data_parallel_size * strategy.cp > 1
    return strategy.model_copy(update=bare | {"sharding": strategy.sharding if shards else Sharding.NONE})


@pytest.mark.parametrize("model", [a_model(blocks=1), a_model(blocks=1, experts=4)], ids=["dense", "moe"])
@pytest.mark.parametrize("target", FRAMEWORKS)
def test_a_framework_s_parts_make_all_plans_that_it_can_run(target, model):
    # Where there is sequence parallelism the tree tries nothing else, and DeepSpeed has none.
    axes = tuple(axis for axis in WIDE.axes if axis != "sp" or "sp" in FRAMEWORKS[target].axes)
    possible = set(every_plan_it_can_run(Tiny(model, WIDE.model_copy(update={"axes": axes})), target))
    made = set(every_plan_of_its_parts(Tiny(model, for_target(WIDE.model_copy(update={"target": target}))), target))
    assert made == possible
    assert made


@pytest.mark.parametrize("target", FRAMEWORKS)
def test_only_megatron_s_plans_may_recompute_some_blocks(target):
    options = Options(axes=("dp", "pp"), sharding=("none",), recompute=("none", "full"), schedules=("1f1b",))
    model = a_model(blocks=2)
    possible = set(every_plan_it_can_run(Tiny(model, options), target))
    made = set(every_plan_of_its_parts(Tiny(model, for_target(options.model_copy(update={"target": target}))), target))
    assert made <= possible
    assert (made < possible) is FRAMEWORKS[target].recomputes_first_blocks


def test_a_strategy_without_copies_has_nothing_to_shard():
    tiny = Tiny(a_model(blocks=1), Options(axes=("tp", "sp")))
    assert not any(can_shard(each) for each in tiny.strategies(tiny.model.layers[1], tiny.families[0]))
