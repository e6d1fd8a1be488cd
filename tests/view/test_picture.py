"""The picture shows every layer once, every byte and second to scale, and is safe whatever users name their models."""

from __future__ import annotations

import re
from collections import Counter
from xml.etree import ElementTree

import pytest
import view_samples as samples
from hypothesis import given
from hypothesis import strategies as st

from planner.spec.errors import InputError
from planner.view import plan_picture
from planner.view.parts import part_name

SVG = "{http://www.w3.org/2000/svg}"
LAYERS = re.compile(r"(?P<row>stages? .*), layers (?P<first>\d+)(–(?P<last>\d+))?: (?P<letter>[A-Z]+), ")


def _parsed(sample):
    return ElementTree.fromstring(plan_picture(*sample))


def _groups(root, pattern):
    """(match of the tooltip, group) of all groups whose tooltip matches."""
    for element in root.iter(f"{SVG}g"):
        match = re.match(pattern, element.findtext(f"{SVG}title") or "")
        if match:
            yield match, element


def _texts(root):
    return [element.text for element in root.iter(f"{SVG}text")]


def _first_box(element):
    rect = element.find(f"{SVG}rect")
    return float(rect.get("x")), float(rect.get("width"))


@pytest.mark.parametrize("sample", samples.ALL)
def test_every_layer_is_drawn_once_at_its_place(sample):
    model, plan, estimate = sample()
    root = _parsed((model, plan, estimate))
    drawn = Counter()
    for match, cell in _groups(root, LAYERS):
        first = int(match["first"])
        end = int(match["last"] or first) + 1
        drawn.update(range(first, end))
        left, width = _first_box(cell)
        assert left == pytest.approx(176 + 500 * first / plan.num_layers, abs=0.1)
        assert width == pytest.approx(500 * (end - first) / plan.num_layers, abs=0.1)
    assert drawn == Counter(range(len(model.layers)))


def test_few_stages_have_a_row_each_and_many_equal_ones_share_one():
    rows = {match["row"] for match, _ in _groups(_parsed(samples.sixteen_stages()), LAYERS)}
    assert rows == {f"stage {number}" for number in range(16)}
    rows = {match["row"] for match, _ in _groups(_parsed(samples.largest()), LAYERS)}
    assert rows == {"stage 0", "stages 1–62 (×62)", "stage 63"}


@pytest.mark.parametrize("sample", samples.ALL)
def test_memory_bars_are_to_scale_with_one_limit_line(sample):
    model, plan, estimate = sample()
    root = _parsed((model, plan, estimate))
    limits = {e.get("d").split(" ")[0] for e in root.iter(f"{SVG}path") if e.get("class") == "limit"}
    (limit_x,) = {float(start.removeprefix("M").split(",")[0]) for start in limits}
    limit_bytes = estimate.stages[0].limit_bytes
    bytes_per_unit = limit_bytes / (limit_x - 716)
    seen = 0
    for match, bar in _groups(root, r"stage (\d+), ([a-z -]+): "):
        stage = estimate.stages[int(match[1])]
        (amount,) = [amount for key, amount in stage.memory.items() if part_name(key) == match[2]]
        assert _first_box(bar)[1] * bytes_per_unit == pytest.approx(amount, abs=0.11 * bytes_per_unit)
        seen += 1
    assert seen >= len(estimate.stages[0].memory)


def test_what_is_beyond_the_limit_is_struck_through_and_named():
    model, plan, estimate = samples.two_strategies_per_stage()
    root = _parsed((model, plan, estimate))
    excesses = list(_groups(root, r"stage \d+ lacks "))
    assert len(excesses) == 2
    assert all(group.find(f"{SVG}rect").get("class") == "excess" for _, group in excesses)
    assert "This plan does not fit: stage 0 lacks 21.0 GiB of 101 GiB on each device." in _texts(root)


def test_a_plan_that_lacks_memory_of_its_host_alone_says_so():
    texts = _texts(_parsed(samples.offloaded()))
    assert "This plan does not fit: stage 1 lacks 44.0 GiB of 300 GiB of its host's memory for each device." in texts
    assert "optimizer states on the host" in " ".join(filter(None, texts))


def test_a_plan_that_fits_carries_no_warning():
    root = _parsed(samples.mixtral())
    assert not any("lacks" in (text or "") for text in root.itertext())
    assert not [rect for rect in root.iter(f"{SVG}rect") if rect.get("class") == "excess"]


def test_the_step_is_a_bar_to_scale_without_empty_parts():
    model, plan, estimate = samples.mixtral()
    root = _parsed((model, plan, estimate))
    shown = {key: part_s for key, part_s in estimate.time.items() if part_s}
    widths = {}
    for key in shown:
        ((_, bar),) = _groups(root, re.escape(part_name(key)) + r": .*%")
        widths[key] = _first_box(bar)[1]
    assert sum(widths.values()) == pytest.approx(1152, abs=1)
    for key, part_s in shown.items():
        assert widths[key] / 1152 == pytest.approx(part_s / estimate.step_time_s, abs=1e-3)
    assert "context-parallel communication" not in _texts(root)


def test_parts_that_nobody_foresaw_are_drawn_and_named():
    model, plan, estimate = samples.one_device()
    time = {**estimate.time, "checkpoint_writing": 0.001}
    texts = _texts(_parsed((model, plan, estimate.model_copy(update={"time": time}))))
    assert "checkpoint writing" in texts


@pytest.mark.parametrize("sample", samples.ALL)
def test_no_strategy_is_told_by_colour_alone(sample):
    model, plan, estimate = sample()
    root = _parsed((model, plan, estimate))
    letters = {match["letter"] for match, _ in _groups(root, LAYERS)}
    assert letters <= set(_texts(root))
    assert len(letters) == len({run.strategy for stage in plan.stages for run in stage.runs})


def test_every_device_of_a_small_stage_stands_in_each_grid_once():
    model, _, _ = samples.mixtral()
    plan = samples.even_plan([17, 17], samples.strategy(tp=2, dp=4, ep=4))
    root = ElementTree.fromstring(plan_picture(model, plan, samples.estimate(plan)))
    rows = [g for g in root.iter(f"{SVG}g") if any(r.get("class") == "frame" for r in g.findall(f"{SVG}rect"))]
    cells = [e.text for row in rows for e in row.findall(f"{SVG}text") if e.get("class") == "on tiny num"]
    assert Counter(cells) == Counter([str(n) for n in range(8)] * 3)
    assert "a row is a tp2 group, a column dp4" in _texts(root)
    assert "a row is an ep4 group, a column edp2" in _texts(root)


@pytest.mark.parametrize("sample", samples.ALL)
def test_a_picture_stays_small(sample):
    assert len(plan_picture(*sample()).encode()) < 300_000


def test_the_largest_plan_is_folded_to_the_size_of_a_small_one():
    assert len(plan_picture(*samples.largest())) < 2 * len(plan_picture(*samples.mixtral()))


@pytest.mark.parametrize("sample", samples.ALL)
def test_a_picture_needs_nothing_from_outside_and_runs_nothing(sample):
    text = plan_picture(*sample())
    root = ElementTree.fromstring(text)
    assert not list(root.iter(f"{SVG}script"))
    names = {name for element in root.iter() for name in element.attrib}
    assert not [name for name in names if name.startswith("on") or name.endswith("href")]
    style = root.findtext(f"{SVG}style")
    assert "@import" not in style
    references = set(re.findall(r"url\(([^)]*)\)", text))
    assert references <= {f"#{element.get('id')}" for element in root.iter(f"{SVG}pattern")}


def test_screen_readers_get_a_title_and_the_numbers_in_sentences():
    model, plan, estimate = samples.mixtral()
    root = _parsed((model, plan, estimate))
    assert root.get("role") == "img"
    ids = {element.get("id") for element in root}
    assert set(root.get("aria-labelledby").split()) <= ids
    assert root.findtext(f"{SVG}title") == f"Plan {plan.summary} for {model.name}"
    description = root.findtext(f"{SVG}desc")
    assert "34 layers in 4 stages on 64 devices" in description
    assert "A step takes 11.8 s" in description


@given(name=st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=80))
def test_any_model_name_gives_a_well_formed_picture(name):
    _, plan, estimate = samples.one_device()
    model = samples.model(dense=4, name=name)
    root = _parsed((model, plan, estimate))
    assert root.findtext(f"{SVG}title").startswith(f"Plan {plan.summary} for ")


def test_markup_in_a_model_name_stays_text():
    name = '<script>alert("1")</script> & <b>'
    _, plan, estimate = samples.one_device()
    root = _parsed((samples.model(dense=4, name=name), plan, estimate))
    assert name in _texts(root)
    assert not list(root.iter(f"{SVG}script"))


def test_equal_input_gives_the_same_picture():
    assert plan_picture(*samples.mixtral()) == plan_picture(*samples.mixtral())


def test_what_does_not_belong_together_is_refused():
    model, plan, estimate = samples.mixtral()
    with pytest.raises(InputError, match=r"plan\.stages: must hold the model's 6 layers, hold 34"):
        plan_picture(samples.model(dense=4), plan, estimate)
    with pytest.raises(InputError, match=r"estimate\.stages: must describe the plan's 4 stages, describes 3"):
        plan_picture(model, plan, estimate.model_copy(update={"stages": estimate.stages[1:]}))
    with pytest.raises(InputError, match=r"estimate\.plan_id: must be that of the plan"):
        plan_picture(model, plan, estimate.model_copy(update={"plan_id": "another"}))


def test_the_error_band_stands_under_the_picture_where_there_is_one():
    model, plan, estimate = samples.mixtral()
    alone = plan_picture(model, plan, estimate)
    known = plan_picture(model, plan, estimate.model_copy(update={"error_band": samples.BAND}))
    assert "error band" not in alone
    (line,) = [text for text in _texts(ElementTree.fromstring(known)) if "error band" in (text or "")]
    assert "10.9 s to 13.4 s" in line and samples.BAND.basis in line
    assert f"Error band: 10.9 s to 13.4 s (10–90 % of comparable runs: {samples.BAND.basis})" in known
