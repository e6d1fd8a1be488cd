"""The picture of a run shows its loads, decisions and gains in the numbers of its windows and decisions."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from run_samples import life, life_with, mark, window

from planner.spec.decision import Action, Decision
from planner.spec.errors import InputError
from planner.spec.placement import Move, Placement
from planner.view import Mark, mark_of, run_picture
from planner.view.heat import LIMITS, step_of
from planner.view.quantities import seconds
from planner.view.run_life import end_steps, ledger, spread
from planner.view.theme import DARK, FILLS, HEAT, HEAT_STEPS, INK, LIGHT

SVG = "{http://www.w3.org/2000/svg}"


def parsed(what):
    return ElementTree.fromstring(run_picture(what))


def texts(root):
    return [element.text for element in root.iter(f"{SVG}text")]


def titles(root):
    return [
        element.findtext(f"{SVG}title") for element in root.iter(f"{SVG}g") if element.find(f"{SVG}title") is not None
    ]


# What moves gain.


def test_a_move_gains_until_its_horizon_and_costs_once():
    made = life(acting=(3,))
    found = ledger(made, np.array([0.0, 39.0, 40.0, 50.0, 70.0, 200.0]))
    assert found.gained_s.tolist() == [0.0, 0.0, 0.0, 5.0, 15.0, 15.0]
    assert found.cost_s.tolist() == [0.0, 0.0, 2.0, 2.0, 2.0, 2.0]
    assert found.net_s.tolist() == [0.0, 0.0, -2.0, 3.0, 13.0, 13.0]


def test_what_is_turned_down_gains_nothing():
    assert ledger(life(acting=()), np.arange(0.0, 200.0, 10.0)).net_s.tolist() == [0.0] * 20


@given(acting=st.sets(st.integers(0, 19)))
@settings(max_examples=40, deadline=None)
def test_gains_add_up(acting):
    steps = np.array([50.0, 120.0, 200.0])
    whole = ledger(life(acting=acting), steps).net_s
    alone = [ledger(life(acting=(one,)), steps).net_s for one in acting]
    assert whole.tolist() == pytest.approx(sum(alone, np.zeros(3)).tolist())


def test_steps_between_drawn_windows_are_those_of_equal_windows():
    made = life(count=101, most=3)
    assert end_steps(made, [0, 25, 50, 99, 100]).tolist() == [10.0, 260.0, 510.0, 1000.0, 1010.0]


@given(count=st.integers(1, 500), most=st.integers(2, 100))
def test_what_is_spread_has_both_ends_and_no_number_twice(count, most):
    found = spread(range(count), most)
    assert len(found) == min(count, most) == len(set(found)) and found == sorted(found)
    assert found[0] == 0 and found[-1] == count - 1


def test_a_mark_is_a_decision_without_its_placement():
    placement = Placement.contiguous([8] * 6, 4)
    move = Move(layer=0, expert=1, from_rank=0, to_rank=1, to_slot=2)
    decision = Decision(
        window=4,
        action=Action.REBALANCE,
        plan_id="plan",
        placement=placement,
        moves=(move,) * 5,
        gain_s_per_step=0.25,
        cost_s=1.5,
        horizon_steps=100.0,
        imbalance_before=1.5,
        imbalance_after=1.1,
        imbalance_bound=1.0,
        reason="because",
    )
    assert mark_of(decision) == Mark(4, Action.REBALANCE, "plan", 5, 0.25, 1.5, 100.0, 1.5, 1.1, 1.0)


# What is drawn.


def test_every_number_is_that_of_the_windows_and_decisions():
    made = life()
    root = parsed(made)
    shown = texts(root)
    final = ledger(made, np.array([200.0]))
    for value in ("20", "2", "0", "60", seconds(float(final.net_s[0]))):
        assert value in shown
    assert f"gained {seconds(float(final.gained_s[0]))}" in shown and f"moves cost {seconds(4.0)}" in shown
    assert {"1.500 now", "1.200 now", "1.050 now"} <= set(shown)
    # In window 19, expert 0 of layer 6 (the last) has 169 where the seven others have 100.
    assert f"{169 / (869 / 8):.2f} × (expert 0)" in shown
    acts = [title for title in titles(root) if title.startswith("window ")]
    assert acts == [
        f"window {index}, rebalance: 3 moves, imbalance 1.500 to 1.200, 500 ms less a step for 2.00 s once"
        for index in (3, 7)
    ]


def test_decisions_that_only_split_tokens_are_told_apart_from_moves():
    marks = [mark(0, Action.REBALANCE), mark(1, Action.REBALANCE)._replace(num_moves=0), mark(2)]
    root = parsed(life_with(3, marks, [window(i) for i in range(3)]))
    assert "times experts were moved: 1; splits of tokens alone: 1; " in root.findtext(f"{SVG}desc")
    drawn = {path.get("class"): path.get("d") for path in root.iter(f"{SVG}path")}
    places = [float(re.match(r"M([\d.]+)", drawn[style])[1]) for style in ("blue", "teal", "tick")]
    assert places == sorted(places) and len(set(places)) == 3


def test_each_layer_of_a_map_tells_its_hottest_and_coldest_expert():
    told = [title for title in titles(parsed(life())) if title.startswith("layer ")]
    assert len(told) == 3 * 6
    assert told[-1] == ("layer 6: most on expert 0, 1.56 times the mean; least on expert 1, 0.92 times")


def test_cells_of_a_map_have_the_steps_of_their_loads():
    root = parsed(life(count=1, acting=()))
    scaled = [group for group in root.iter(f"{SVG}g") if "scale" in (group.get("transform") or "")]
    map_of_experts = scaled[-1]
    covered = {}
    for path in map_of_experts.findall(f"{SVG}path"):
        step = int(path.get("class").removeprefix("heat-"))
        for begin, row, end in re.findall(r"M([\d.]+) ([\d.]+)H([\d.]+)", path.get("d")):
            for column in range(int(begin), int(end)):
                assert covered.setdefault((int(float(row)), column), step) == step
    tokens = np.array(window(0).tokens)
    ratios = tokens / tokens.mean(axis=1, keepdims=True)
    assert covered == {(row, column): step_of(ratios[row, column]) for row in range(6) for column in range(8)}


@pytest.mark.parametrize(("ratio", "step"), [(0.0, 0), (0.25, 1), (1.0, 3), (1.25, 4), (9.99, 8), (10.0, 9), (1e6, 9)])
def test_steps_begin_at_their_limits(ratio, step):
    assert step_of(ratio) == step and len(LIMITS) + 1 == HEAT_STEPS


def test_a_run_without_windows_says_so():
    made = life_with(0, [], [])
    root = parsed(made)
    assert "No window has come in yet" in texts(root)
    assert "No window has come in yet" in root.findtext(f"{SVG}desc")


def test_a_long_run_says_what_is_not_drawn():
    marks = [mark(i) for i in range(5000, 6000)]
    windows = [window(i) for i in spread(range(5000, 6000), 96)]
    root = parsed(life_with(6000, marks, windows))
    shown = texts(root)
    assert "Windows 5,000 to 5,999, steps 50,000 to 59,999; 5,000 earlier windows are not drawn nor counted" in shown
    assert any(text.startswith("96 of 1,000 windows, evenly spread") for text in shown)
    assert "Imbalance and decisions, means of 2 windows" in shown


def test_missing_windows_leave_a_gap():
    indices = [0, 1, 2, 6, 7]
    made = life_with(5, [mark(i) for i in indices], [window(i) for i in indices])
    rows = next(group for group in parsed(made).iter(f"{SVG}g") if "scale" in (group.get("transform") or ""))
    columns = set()
    for path in rows.findall(f"{SVG}path"):
        for begin, row, end in re.findall(r"M([\d.]+) ([\d.]+)H([\d.]+)", path.get("d")):
            columns |= {int(c) for c in range(int(begin), int(end))} if float(row) == 0.5 else set()
    assert columns == set(indices)


def test_large_models_stay_small_and_every_row_is_there():
    made = life(count=30, layers=58, experts=256)
    text = run_picture(made)
    assert len(text) < 800_000
    told = [title for title in titles(ElementTree.fromstring(text)) if title.startswith("layer ")]
    assert len(told) == 3 * 58


def test_screen_readers_hear_the_numbers():
    root = parsed(life())
    assert root.get("role") == "img"
    assert root.findtext(f"{SVG}title") == "Run job of mixtral-8x7b"
    told = root.findtext(f"{SVG}desc")
    assert "windows: 20; times experts were moved: 2; splits of tokens alone: 0; plans changed: 0; " in told
    assert "moves of experts: 60; predicted gain, moves paid: " in told
    assert "In the last window imbalance was 1.500, 1.200 after the decision; no placement has less than 1.050." in told


def test_a_run_whose_windows_are_all_gone_is_no_run_without_windows():
    root = parsed(life_with(14, [], []))
    shown, told = texts(root), root.findtext(f"{SVG}desc")
    assert "14" in shown and shown.count("–") == 5 and "0" not in shown and "mixtral-8x7b" in shown
    assert "No window is kept any more, so nothing is drawn or counted; the decisions are kept" in shown
    assert "times experts were moved: –; " in told and "yet" not in told
    root = parsed(life_with(0, [], []))
    assert "No window has come in yet" in texts(root) and texts(root).count("0") == 5


def test_markup_in_a_run_s_name_stays_text():
    name = '<script>alert("1")</script>'
    root = parsed(life(name=name))
    assert name in texts(root) and not list(root.iter(f"{SVG}script"))


def test_windows_without_decision_or_of_another_model_are_refused():
    with pytest.raises(InputError, match="window 9 has none"):
        life_with(2, [mark(0), mark(1)], [window(0), window(9)])
    with pytest.raises(InputError, match="must count the experts"):
        life_with(1, [mark(0)], [window(0, layers=5)])
    with pytest.raises(InputError, match="must be of the run's plans"):
        life_with(1, [mark(0, plan_id="none")], [window(0)])
    with pytest.raises(InputError, match="at least the first and the last"):
        life_with(1, [mark(0)], [])


@pytest.mark.parametrize("page", [LIGHT, DARK])
@pytest.mark.parametrize("step", range(HEAT_STEPS))
def test_words_on_a_heat_map_contrast_with_their_cells(page, step):
    """At least 4.5:1, as WCAG 2.2, 1.4.3 asks."""
    name, covers = HEAT[step]
    channels = [
        (covers * int(FILLS[name][at : at + 2], 16) + (1 - covers) * int(page.surface[at : at + 2], 16)) / 255
        for at in (1, 3, 5)
    ]
    words = INK if covers == 1.0 else page.text
    ink = [int(words[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    dark, light = sorted(_luminance(each) for each in (channels, ink))
    assert (light + 0.05) / (dark + 0.05) >= 4.5


def _luminance(channels):
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
