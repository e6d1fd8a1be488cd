"""Every rule that removes something says why, and rules that prune by experience can be switched off."""

import ast
from pathlib import Path
from typing import get_args

import pytest
from small_questions import MIB, a_cluster, a_model, a_training

import planner.search
from planner.cost.rules import EXPERT_RULES, SHAPE_RULES
from planner.cost.targets import FRAMEWORKS
from planner.search import search
from planner.search.families import families
from planner.search.reasons import REASONS, pruned_rules
from planner.search.removed import DOMINATED, Removed
from planner.search.space import Space
from planner.search.tree import PATH_RULES, count_paths, paths, rule_name
from planner.spec.plan import ScheduleKind
from planner.spec.request import ALL_AXES, Options, RuleName
from planner.spec.shortlist import RuleKind
from planner.spec.strategy import Axis, AxisKind
from planner.spec.training import Training
from profiles import cluster_from_shorthand, model_preset, resolve_cluster

SCHEDULES = tuple(ScheduleKind)
SWITCHABLE = {name for name, reason in REASONS.items() if reason.kind is RuleKind.PRUNED_BY_EXPERIENCE}
CLUSTER = resolve_cluster(cluster_from_shorthand("2x8:h100-sxm-80g"))


def space_of(options: Options, model: str = "mixtral-8x7b") -> tuple[Removed, int, int]:
    """What is removed; how many families are left, and how many strategies of a block on all devices."""
    removed, training = Removed(), Training(global_batch_size=64, sequence_length=4096)
    preset = model_preset(model)
    found = families(preset, CLUSTER, training, options, removed)
    grid = Space(CLUSTER, training, options, removed).grid(preset.layers[1], CLUSTER.num_devices)
    return removed, len(found), len(grid)


def test_the_rules_that_can_be_switched_off_are_those_that_prune_by_experience():
    assert set(get_args(RuleName)) == SWITCHABLE


def test_every_rule_has_a_reason_of_one_sentence_or_more():
    framework_rules = [rule for each in FRAMEWORKS.values() for rule in (*each.strategy_rules, *each.pipeline_rules)]
    names = {rule_name(rule) for rule in (*PATH_RULES, *SHAPE_RULES, *EXPERT_RULES, *framework_rules)}
    assert names <= set(REASONS)
    assert all(reason.why.endswith((".", ")")) and len(reason.why) > 20 for reason in REASONS.values())


def test_every_name_that_is_written_where_candidates_are_removed_has_a_reason():
    written = {
        call.args[0].value
        for file in Path(planner.search.__file__).parent.glob("*.py")
        for call in ast.walk(ast.parse(file.read_text()))
        if isinstance(call, ast.Call) and ast.unparse(call.func).endswith("removed.note")
        if isinstance(call.args[0], ast.Constant)
    }
    assert len(written) >= 4
    assert written | {DOMINATED} <= set(REASONS)


@pytest.mark.parametrize("target", ["any", *FRAMEWORKS])
@pytest.mark.parametrize("model", ["mixtral-8x7b", "llama-3.1-8b"])
def test_what_real_spaces_count_can_all_be_explained(target, model):
    removed, _, _ = space_of(Options(target=target, schedules=SCHEDULES, max_micro_batch_size=2), model)
    explained = pruned_rules(removed)
    assert {each.rule: each.removed for each in explained} == dict(removed.counts)
    assert all(each.examples for each in explained)
    assert (target == "any") is (not any(each.kind is RuleKind.CANNOT_BE_RUN_BY_TARGET for each in explained))


@pytest.mark.parametrize("rule", sorted(set(get_args(RuleName)) - {"interleaving-on-equal-devices"}))
def test_a_rule_that_is_switched_off_removes_nothing_and_leaves_a_larger_space(rule):
    with_it, *before = space_of(Options(axes=ALL_AXES, schedules=SCHEDULES), "llama-3.1-8b")
    without, *after = space_of(Options(axes=ALL_AXES, schedules=SCHEDULES, without_rules=(rule,)), "llama-3.1-8b")
    assert with_it.counts[rule] > 0 and rule not in without.counts
    assert all(fewer <= more for fewer, more in zip(before, after, strict=True))
    assert before != after


def test_the_paths_that_are_listed_break_their_rule_and_are_all_that_it_counts():
    removed = Removed()
    list(paths(CLUSTER.num_devices, list(AxisKind), CLUSTER, PATH_RULES, removed))
    for rule in PATH_RULES:
        counted = 0
        for name in removed.listed(rule_name(rule)):
            axes, _, inside = name.partition(" and ")
            path = tuple(
                Axis(AxisKind(text.rstrip("0123456789")), int(text.lstrip("abcdefghijklmnopqrstuvwxyz")))
                for text in axes.split()
            )
            rest = int(inside.split()[0]) if inside else 1
            assert not rule(path, rest, CLUSTER)
            assert all(earlier(path, rest, CLUSTER) for earlier in PATH_RULES[: PATH_RULES.index(rule)])
            counted += count_paths(rest, len(AxisKind) - len(path))
        assert counted == removed.counts[rule_name(rule)]


def test_a_certificate_explains_its_pruning_where_that_is_asked_for():
    question = (a_model(blocks=2, experts=4), a_cluster(4, 80 * MIB), a_training(8))
    plain, asked = search(*question), search(*question, Options(explain_pruning=True))
    assert plain.certificate.pruned_rules == ()
    assert {each.rule: each.removed for each in asked.certificate.pruned_rules} == asked.certificate.pruned
    assert asked.certificate.pruned == plain.certificate.pruned
    assert asked.plans == plain.plans
    kinds = [list(RuleKind).index(each.kind) for each in asked.certificate.pruned_rules]
    assert kinds == sorted(kinds)


@pytest.mark.parametrize(("blocks", "experts"), [(2, 0), (1, 4)])
def test_switching_rules_off_finds_no_worse_plan(blocks, experts):
    question = (a_model(blocks=blocks, experts=experts), a_cluster(8, 80 * MIB), a_training(8))
    narrow, wide = search(*question), search(*question, Options(without_rules=get_args(RuleName)))
    assert not SWITCHABLE & set(wide.certificate.pruned)
    assert wide.plans[0].estimate.step_time_s <= narrow.plans[0].estimate.step_time_s * (1 + 1e-12)
