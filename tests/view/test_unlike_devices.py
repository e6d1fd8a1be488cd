"""Stages on unlike devices: named, never folded into one, each with its own limit."""

import re
from xml.etree import ElementTree

import pytest
import view_samples as samples

from planner.spec.errors import InputError
from planner.view import plan_picture, stage_table
from planner.view.folds import fold_stages

GIB = 2**30
A, V = "a100-sxm-80g", "v100-sxm2-32g"
LAYERS = [5, 6, 6, 6, 6, 5]


def on(*kinds, limits=(80,) * 6):
    """Six stages, the inner four equal, on devices of these kinds with these limits in GiB."""
    model = samples.model(dense=sum(LAYERS) - 2, name="dense")
    plan = samples.even_plan(LAYERS, samples.strategy(dp=8))
    priced = samples.estimate(plan, peak_gib=10.0)
    stages = tuple(
        stage.model_copy(update={"device": kind, "limit_bytes": limit * GIB})
        for stage, kind, limit in zip(priced.stages, kinds, limits, strict=True)
    )
    return model, plan, priced.model_copy(update={"stages": stages})


def devices(sample):
    return [row[1] for row in stage_table(*sample).rows if row[1]]


def limits(sample):
    texts = [element.text or "" for element in ElementTree.fromstring(plan_picture(*sample)).iter()]
    return [text for text in texts if re.match("limits? [0-9]", text)]


def test_equal_stages_on_unlike_devices_stay_apart():
    assert [list(fold.numbers) for fold in fold_stages(*on(A, A, A, V, V, V))] == [[0], [1, 2], [3, 4], [5]]


def test_equal_stages_with_unlike_limits_stay_apart():
    sample = on(*[A] * 6, limits=(80, 80, 80, 80, 40, 40))
    assert [list(fold.numbers) for fold in fold_stages(*sample)] == [[0], [1, 2, 3], [4], [5]]


def test_devices_are_named_where_they_differ_and_only_there():
    assert devices(on(A, A, A, V, V, V)) == [f"0–7: {A}", f"8–23: {A}", f"24–39: {V}", f"40–47: {V}"]
    assert devices(on(*[A] * 6)) == ["0–7", "8–39", "40–47"]
    assert devices(on(*[None] * 6)) == ["0–7", "8–39", "40–47"]


def test_the_table_refuses_the_estimate_of_another_plan():
    model, plan, _ = on(*[A] * 6)
    with pytest.raises(InputError):
        stage_table(model, plan, samples.mixtral()[2])


def test_the_picture_names_the_devices_of_each_stage():
    picture = plan_picture(*on(A, A, A, V, V, V))
    for name in (f"0–7: {A}", f"32–39: {V}", f"stage 5: devices 40–47: {V}"):
        assert f">{name}<" in picture


@pytest.mark.parametrize(
    ("gib", "words"),
    [
        ((80,) * 6, ["limit 80.0 GiB"]),
        ((80, 80, 80, 32, 32, 32), ["limit 32.0 GiB", "limit 80.0 GiB"]),
        ((80, 80, 80, 78, 78, 78), ["limits 78.0 GiB to 80.0 GiB"]),
        ((80, 80, 80, 78, 20, 20), ["limit 20.0 GiB", "limits 78.0 GiB to 80.0 GiB"]),
    ],
)
def test_each_limit_is_written_where_it_is_drawn(gib, words):
    assert limits(on(A, A, A, V, V, V, limits=gib)) == words
