"""Runs with windows and decisions written by hand: one expert gets most, more so in later layers and windows."""

from __future__ import annotations

from datetime import datetime, timezone
from functools import cache

import view_samples as samples

from planner.spec.decision import Action
from planner.spec.run import Run, RunContext
from planner.spec.training import Training
from planner.spec.window import Window
from planner.view import Mark, life_of
from planner.view.run_life import spread
from profiles import cluster_from_shorthand, resolve_cluster

STEPS = 10


@cache
def run(layers=6, experts=8, name="job"):
    model, plan = samples.model(moe=layers), samples.even_plan([layers + 2], samples.strategy(dp=8, ep=4))
    if experts != 8:
        moe = samples.MOE.feed_forward.model_copy(update={"num_experts": experts})
        runs = list(model.runs)
        runs[1] = runs[1].model_copy(
            update={"layer": samples.MOE.model_copy(update={"feed_forward": moe}), "num_layers": layers}
        )
        model = model.model_copy(update={"runs": tuple(runs)})
    context = RunContext(
        model=model,
        cluster=resolve_cluster(cluster_from_shorthand("1x8:a100-sxm-80g")),
        training=Training(global_batch_size=plan.global_batch_size, sequence_length=plan.sequence_length),
        plans=(plan,),
    )
    return Run(
        id="id",
        name=name,
        search_id="search",
        created_at=datetime.now(timezone.utc),
        plan_id=plan.id,
        placement=None,
        context=context,
    )


def window(index, layers=6, experts=8):
    """Expert 0 gets most, more so in later layers and windows."""
    tokens = [[100 + (10 * row + index if expert == 0 else 0) for expert in range(experts)] for row in range(layers)]
    return Window(index=index, first_step=STEPS * index, num_steps=STEPS, tokens=tuple(map(tuple, tokens)))


def mark(index, action=Action.KEEP, gain=0.5, cost=2.0, horizon=30.0, before=1.5, after=1.2, plan_id=None):
    return Mark(index, action, plan_id or run().plan_id, 3, gain, cost, horizon, before, after, 1.05)


def life_with(num_windows, marks, windows, of=None):
    of = of or run()
    return life_of(of.name, of.context, of.plan_id, num_windows, marks, windows)


def life(count=20, acting=(3, 7), layers=6, experts=8, most=96, name="job"):
    plan_id = run(layers, experts).plan_id
    actions = dict.fromkeys(acting, Action.REBALANCE)
    marks = [mark(i, actions.get(i, Action.KEEP), plan_id=plan_id) for i in range(count)]
    windows = [window(i, layers, experts) for i in spread(range(count), most)]
    return life_with(count, marks, windows, run(layers, experts, name))
