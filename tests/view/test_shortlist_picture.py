"""The picture of a shortlist shows each plan's time, regret and memory to scale, in the numbers of its estimate."""

from __future__ import annotations

import re
from collections import defaultdict
from xml.etree import ElementTree

import pytest
import view_samples as samples

from planner.spec.errors import InputError
from planner.view import shortlist_picture
from planner.view.parts import part_name, time_parts
from planner.view.quantities import memory, percent, seconds
from planner.view.svg import wrapped

SVG = "{http://www.w3.org/2000/svg}"
MODEL = samples.model(moe=32)


def parsed(shortlist, model=MODEL):
    return ElementTree.fromstring(shortlist_picture(model, shortlist))


def texts(root):
    return [element.text for element in root.iter(f"{SVG}text")]


def titled(root, pattern):
    """(match of the tooltip, width of the last box but patterns) of each group that has such a tooltip."""
    for element in root.iter(f"{SVG}g"):
        if match := re.match(pattern, element.findtext(f"{SVG}title") or ""):
            yield match, element


def test_the_parts_of_every_plan_stand_in_one_scale():
    shortlist = samples.shortlist()
    widths = defaultdict(dict)
    for match, element in titled(parsed(shortlist), r"plan (\d+), ([a-z -]+): .* %$"):
        if match[2] != "memory":
            widths[int(match[1])][match[2]] = float(element.find(f"{SVG}rect").get("width"))
    longest_s = max(entry.estimate.step_time_s for entry in shortlist.plans)
    for entry in shortlist.plans:
        expected = {part_name(key): part_s for key, part_s in time_parts(entry.estimate).items()}
        found = {name: width for name, width in widths[entry.rank].items() if name in expected}
        assert found.keys() == expected.keys()
        for name, part_s in expected.items():
            assert found[name] * longest_s / 480 == pytest.approx(part_s, abs=0.1 * longest_s / 480)


def test_every_number_is_the_estimate_s():
    shortlist = samples.shortlist()
    shown = texts(parsed(shortlist))
    for entry in shortlist.plans:
        fullest = max(entry.estimate.stages, key=lambda stage: stage.peak_memory_bytes)
        assert seconds(entry.estimate.step_time_s) in shown
        assert f"expected {percent(entry.regret_ratio)}" in shown
        assert f"worst {percent(entry.worst_regret_ratio)}" in shown
        assert memory(fullest.peak_memory_bytes) in shown and f"of {memory(fullest.limit_bytes)}" in shown
        assert entry.plan.summary in shown
    assert "+9.3 %" in shown and "+12.7 %" in shown
    assert "For balanced load nothing in the declared space is faster than 11.0 s; plan 1 is 7.0 % above that" in shown


def test_memory_stands_against_its_limit_and_what_is_beyond_is_struck_through():
    plans = [samples.even_plan([17, 17], samples.strategy(dp=8, ep=4))]
    root = parsed(samples.shortlist(samples.estimate(plans[0], peak_gib=101), plans=plans, scenarios=1))
    [(_, bar)] = titled(root, r"plan 1, memory: 101 GiB of 80.0 GiB")
    boxes = {rect.get("class"): rect for rect in bar.findall(f"{SVG}rect")}
    limit = float(bar.find(f"{SVG}path").get("d").split(",")[0].removeprefix("M"))
    end = float(boxes["excess"].get("x")) + float(boxes["excess"].get("width"))
    assert float(boxes["excess"].get("x")) == pytest.approx(limit, abs=0.1)
    assert (end - 860) / (limit - 860) == pytest.approx(101 / 80, rel=1e-3)
    assert "lacks 21.0 GiB" in texts(root)


def test_each_scenario_has_a_column_with_each_plan_s_loss_or_why_there_is_none():
    shortlist = samples.shortlist()
    cells = {(match[1], match[2]): match[3] for match, _ in titled(parsed(shortlist), r"plan (\d), (\S+): (.*)$")}
    for entry in shortlist.plans:
        for scenario in shortlist.scenarios:
            ratio = entry.scenario_regret_ratio.get(scenario.name)
            cell = cells[str(entry.rank), scenario.name]
            assert cell.startswith("out of memory" if ratio is None else percent(ratio))
    assert "out of memory in zipf-0.4" in texts(parsed(shortlist))


def test_of_very_many_scenarios_some_are_shown_and_the_rest_counted():
    shown = texts(parsed(samples.shortlist(scenarios=12)))
    assert "Regret in each scenario (★: none of these is faster); 4 less probable scenarios are not shown" in shown


def test_one_scenario_needs_no_table_of_regrets():
    assert not [text for text in texts(parsed(samples.shortlist(scenarios=1))) if text.startswith("Regret in each")]


def test_plans_of_unlike_batches_are_compared_by_the_sample():
    choice = samples.strategy(dp=8, ep=4)
    plans = [samples.even_plan([17, 17], choice, num_micro_batches=count) for count in (64, 32)]
    prices = [samples.estimate(plan, step_time_s=time) for plan, time in zip(plans, (10.24, 6.4), strict=True)]
    shown = texts(parsed(samples.shortlist(*prices, plans=plans, scenarios=1)))
    assert "Time of a sample, balanced load" in shown
    assert "20.0 ms" in shown and "25.0 ms" in shown and "+25.0 %" in shown
    assert any(text.startswith("batch 256 · ") for text in shown)


def test_screen_readers_hear_every_plan():
    shortlist = samples.shortlist()
    root = parsed(shortlist)
    assert root.get("role") == "img"
    assert root.findtext(f"{SVG}title") == "Shortlist of 3 plans for mixtral-8x7b"
    told = root.findtext(f"{SVG}desc")
    for entry in shortlist.plans:
        assert f"Plan {entry.rank}, {entry.plan.summary}: {seconds(entry.estimate.step_time_s)} a step" in told
    assert "out of memory in zipf-0.4" in told


def test_plans_of_another_model_are_refused():
    with pytest.raises(InputError, match=r"plan\.stages: must hold the model's 6 layers"):
        shortlist_picture(samples.model(dense=4), samples.shortlist())


def test_markup_in_a_name_stays_text():
    name = '<script>alert("1")</script>'
    root = parsed(samples.shortlist(), samples.model(moe=32, name=name))
    assert name in texts(root) and not list(root.iter(f"{SVG}script"))


def test_long_lines_break_between_words():
    text = "prices of " + "many words " * 30
    lines = wrapped(text, 400)
    assert " ".join(lines) == text.strip() and len(lines) > 3
    assert wrapped("", 400) == []
    [cut] = wrapped("x" * 300, 400)
    assert cut.endswith("…")
