"""Which choices two plans make differently, in words. Layers that choose differently are counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from planner.spec.explanation import Difference
from planner.spec.model import Block, Model
from planner.spec.plan import Plan, Schedule
from planner.spec.strategy import AxisKind, Strategy
from planner.view import captions
from planner.view.match import check_model

_NOT_CHOSEN = ""
"""The word of a layer for which there is nothing to choose."""
_ORDER = "order of axes"
_Words = Mapping[str, str]


def differences(model: Model, first: Plan, second: Plan) -> tuple[Difference, ...]:
    """One entry for each choice that differs; raises InputError if a plan is for other layers."""
    check_model(model, first)
    check_model(model, second)
    found = [
        *_unlike(_of_plan(first), _of_plan(second)),
        *_schedules(first.schedule, second.schedule),
        *_of_layers(_layer_words(model, first), _layer_words(model, second)),
        *_unlike(_that_follow(first, second), _that_follow(second, first)),
    ]
    return tuple(found)


def change_in_words(model: Model, first: Plan, second: Plan) -> str:
    """`tp 8 → 4, dp 1 → 2`: the choices of the plan and of the layers of which most change, if any do."""
    before, after = _layer_words(model, first), _layer_words(model, second)
    changes = Counter((tuple(one.items()), tuple(other.items())) for one, other in zip(before, after, strict=True))
    found = [*_unlike(_of_plan(first), _of_plan(second)), *_schedules(first.schedule, second.schedule)]
    changed = [pair for pair, _ in changes.most_common() if pair[0] != pair[1]]
    if changed:
        found += [each for each in _unlike(*map(dict, changed[0])) if each.choice != _ORDER]
    words = ", ".join(f"{each.choice} {each.first} → {each.second}" for each in found)
    if not changed or changes.most_common(1)[0][0] == changed[0]:
        return words
    return f"{words} ({sum(changes[pair] for pair in changed)} of {len(before)} layers)"


def _unlike(first: _Words, second: _Words) -> Iterator[Difference]:
    for choice, word in first.items():
        if choice in second and second[choice] != word:
            yield Difference(choice=choice, first=word, second=second[choice])


def _of_plan(plan: Plan) -> _Words:
    return {
        "batch": f"{plan.global_batch_size:,}",
        "sequence length": f"{plan.sequence_length:,}",
        "pp": str(len(plan.stages)),
    }


def _schedules(first: Schedule, second: Schedule) -> Iterator[Difference]:
    """Two interleaved schedules differ in their virtual stages."""
    if first.virtual_stages > 1 and second.virtual_stages > 1:
        yield from _unlike({"vpp": str(first.virtual_stages)}, {"vpp": str(second.virtual_stages)})
    else:
        words = [{"schedule": captions.schedule_short(schedule)} for schedule in (first, second)]
        yield from _unlike(*words)


def _that_follow(plan: Plan, other: Plan) -> _Words:
    """What follows from the rest, or can be compared only where the rest is alike."""
    words = {"micro-batches": f"{plan.num_micro_batches:,}"}
    if len(plan.stages) == len(other.stages):
        words["layers by stage"] = " ".join(str(sum(run.num_layers for run in stage.runs)) for stage in plan.stages)
    return words


def _layer_words(model: Model, plan: Plan) -> list[_Words]:
    """What is chosen for each layer, by the name of the choice; without choices that a layer does not have."""
    by_layer = dict(pair for stage in plan.stages for pair in stage.strategies())
    known: dict[tuple[Strategy, bool], _Words] = {}
    found = []
    for number, layer in enumerate(model.layers):
        key = (by_layer[number], isinstance(layer, Block))
        if key not in known:
            known[key] = {name: word for name, word in _words(plan, *key).items() if word != _NOT_CHOSEN}
        found.append(known[key])
    return found


def _words(plan: Plan, strategy: Strategy, is_block: bool) -> _Words:
    experts = strategy.experts
    return {
        **{kind.value: str(strategy.degree(kind)) for kind in AxisKind},
        "ep": str(experts.expert_parallel_size) if experts else _NOT_CHOSEN,
        "etp": str(experts.expert_tensor_parallel_size) if experts else _NOT_CHOSEN,
        "edp": str(experts.expert_data_parallel_size) if experts else _NOT_CHOSEN,
        "sharding": captions.sharding_short(strategy),
        "sp": _NOT_CHOSEN if strategy.tp == 1 else "on" if strategy.sequence_parallel else "off",
        "recompute": strategy.recompute.value if is_block else _NOT_CHOSEN,
        "mbs": str(plan.samples_per_micro_batch // strategy.data_parallel_size),
        _ORDER: " ".join(axis.kind.value for axis in strategy.axes),
    }


def _of_layers(first: list[_Words], second: list[_Words]) -> Iterator[Difference]:
    """For each choice, the words of each plan; the order of axes only where both cut along the same ones."""
    spread = False
    for choice in dict.fromkeys(choice for words in (*first, *second) for choice in words):
        one, other = (Counter(words[choice] for words in plan if choice in words) for plan in (first, second))
        if one == other or not one or not other or (choice == _ORDER and spread):
            continue
        spread = spread or choice in set(AxisKind)
        said = _counted(one, other)
        yield Difference(choice=choice, first=said[0], second=said[1])


def _counted(first: Counter[str], second: Counter[str]) -> tuple[str, str]:
    """The words of both, the most frequent first; with counts only where words alone do not tell them apart."""
    ranked = [sorted(words, key=lambda word: (-words[word], word)) for words in (first, second)]
    said = ["/".join(words) for words in ranked]
    if said[0] == said[1]:
        both = zip((first, second), ranked, strict=True)
        said = ["/".join(f"{word} ({words[word]} layers)" for word in order) for words, order in both]
    return said[0], said[1]
