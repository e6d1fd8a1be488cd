"""The example program, whole: trained by a plan on four processes, with the real policy deciding."""

from __future__ import annotations

import pytest
import torch
from planner_samples import SEARCH, SamplePlanner, real_policy, sample_plan, sample_run
from training_samples import EXPERT_SHAPE, LAYERS, MODEL, RANKS, TOKENS

from planner.spec.decision import Action, Decision
from planner.spec.errors import InputError
from planner.spec.model import Block, GroupedQueryAttention, LayerRun, Model
from planner.spec.placement import Placement, TokenSplit
from planner.spec.strategy import Axis, AxisKind, Sharding
from runtime.comparison import Comparison, Trial, compare_placements, without_replicas
from runtime.example import COMPARED_BATCHES, Job, LanguageModel, Progress, batches, can_run, library_text, train
from runtime.launch import launch


@pytest.mark.parametrize(
    "slots",
    [{}, {"extra_slots_per_rank": 1, "token_split": TokenSplit.STEP}, {"shadow_slots_per_rank": 1}],
    ids=str,
)
def test_the_example_trains_reports_and_compares_placements(slots):
    heard = []
    run = sample_run()
    shadows = {"shadow_slots_per_rank": slots.get("shadow_slots_per_rank", 0)}
    run = run.model_copy(update={"context": run.context.model_copy(update=shadows)})
    with SamplePlanner(decide=real_policy(run)) as planner:
        job = Job(
            model=MODEL,
            plan=sample_plan(RANKS),
            service=planner.url,
            search=SEARCH,
            run="example",
            num_steps=25,  # the last decision is carried out in the step after the last window
            window_steps=6,
            **slots,
        )
        (_, first), *others = launch(train, RANKS, (job,), on_report=lambda *told: heard.append(told), timeout_s=120)
    assert {rank for rank, _ in heard} == {0}
    progress = [message for _, message in heard if isinstance(message, Progress)]
    decisions = [message for _, message in heard if isinstance(message, Decision)]
    assert [entry.step for entry in progress] == [6, 12, 18, 24]
    assert progress[-1].loss < progress[0].loss
    windows = [decision.window for decision in decisions]
    assert windows and windows == sorted(set(windows) & {0, 1, 2}), "an answer may be late on a busy machine, not wrong"
    assert [window.index for window in planner.windows] == [0, 1, 2, 3]
    assert len(first.rounds) == COMPARED_BATCHES - 1
    assert all(len(trial.cpu_s) == RANKS for pair in first.rounds for trial in pair)
    assert all(other == first for _, other in others)
    moved = any(decision.action is Action.REBALANCE for decision in decisions)
    _, at_start, adapted = first.imbalance
    assert moved or at_start == adapted, "what nobody changed is as it was"


def test_ratios_compare_within_rounds_and_speak_for_the_last_placement_above_one():
    def trial(wall_s, *cpu_s):
        return Trial(wall_s=wall_s, cpu_s=cpu_s)

    rounds = ((trial(2, 3, 1), trial(1, 1, 1)), (trial(40, 2, 9), trial(20, 1, 1)), (trial(3, 2, 1), trial(1, 1, 5)))
    comparison = Comparison(rounds=rounds, imbalance=(1.5, 1.0))
    assert comparison.wall_s == (3, 1) and comparison.wall_ratios == (2, 1)
    assert comparison.busiest_cpu_s == (2, 1), "the busiest of the ranks' medians: whoever was disturbed once is not it"
    assert comparison.busiest_cpu_ratios == (2, 1)


def test_experts_in_order_without_replicas_fill_the_same_slots_on_their_own_ranks():
    adapted = Placement(layers=((0, 3, 1, 2, 0, 1), (4, 3, 1, 2, 0, 1)), num_ranks=2)
    found = without_replicas(adapted)
    assert found == Placement(layers=((0, 1, 0, 2, 3, 2), (0, 1, 2, 3, 4, 3)), num_ranks=2)
    shadowed = Placement(layers=((3, 1, 0, 2, 0, 1),), num_ranks=2, shadow_slots_per_rank=1)
    assert without_replicas(shadowed) == shadowed.model_copy(update={"layers": ((0, 1, 0, 2, 3, 2),)})


def test_imbalance_of_the_comparison_is_that_of_the_tokens_under_either_placement():
    torch.manual_seed(0)
    model = LanguageModel(MODEL)
    optimizer = torch.optim.AdamW(model.parameters())
    placement = Placement.contiguous([8] * LAYERS, 1)
    comparison = compare_placements(model, optimizer, (placement, placement), [torch.randint(256, (2, TOKENS + 1))] * 2)
    assert comparison.imbalance == (1.0, 1.0)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    "change",
    [{"sharding": Sharding.OPTIMIZER}, {"offload": True}, {"axes": (Axis(AxisKind.ULYSSES, RANKS),)}],
)
def test_only_plans_that_the_program_understands_are_run(change):
    plan = sample_plan(RANKS)
    assert can_run(plan)
    first, spread = plan.stages[0].runs[:2]
    other = spread.model_copy(update={"strategy": spread.strategy.model_copy(update=change)})
    stage = plan.stages[0].model_copy(update={"runs": (first, other)})
    assert not can_run(plan.model_copy(update={"stages": (stage,)}))


def test_a_plan_for_other_ranks_is_refused():
    plan = sample_plan(RANKS)
    job = Job(model=MODEL, plan=plan, service="http://127.0.0.1:9", search="s", run="r", num_steps=1, window_steps=1)
    with pytest.raises(InputError, match="cannot run"):
        train(lambda message: None, job)


def test_a_model_that_the_example_cannot_build_is_refused():
    windowed = GroupedQueryAttention(num_heads=2, num_kv_heads=2, head_dim=16, window=8)
    odd = LayerRun(layer=Block(attention=windowed, feed_forward=EXPERT_SHAPE))
    with pytest.raises(InputError, match="plain causal attention"):
        LanguageModel(Model(name="odd", hidden_size=32, runs=(MODEL.runs[0], odd, MODEL.runs[2])))


def test_equal_seeds_read_equal_text():
    text = library_text(10_000)
    assert len(text) == 10_000 and text.dtype == torch.uint8
    one, other, third = (next(batches(text, 3, 16, seed)) for seed in (1, 1, 2))
    assert one.shape == (3, 17) and torch.equal(one, other) and not torch.equal(one, third)
