"""The recorded traces that come with Trimtab: small, readable, described, and as uneven as their record says."""

from pathlib import Path

import numpy as np
import pytest

from planner.online import trace_of

TRACES = Path(__file__).parents[2] / "profiles" / "traces"
RECORD = (TRACES / "README.md").read_text(encoding="utf-8")
FILES = sorted(TRACES.glob("*.npz"))


def test_there_is_a_trace():
    assert FILES


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_trace_is_small_and_stands_in_the_record(path):
    assert path.stat().st_size < 300_000
    assert f"## {path.name}" in RECORD


def test_the_trace_of_our_own_training_is_what_its_record_says():
    with np.load(TRACES / "byte-moe-6x32.npz", allow_pickle=False) as data:
        trace = trace_of(dict(data))
    assert trace.tokens.shape == (400, 6, 32)
    assert (trace.top_k, trace.model) == (2, "byte-moe-6x32")
    assert trace.steps.tolist() == list(range(0, 4000, 10)) and set(trace.counted.tolist()) == {10}
    assert (trace.tokens.sum(axis=2) == 10 * 1024 * 2).all()
    hottest = trace.tokens.reshape(400, 6, 8, 4).sum(axis=3).max(axis=2) / (10 * 1024 * 2 / 8)
    assert hottest.mean() == pytest.approx(3.4, abs=0.05)
    assert 3.5 < (trace.tokens.max(axis=2) * 32 / (10 * 1024 * 2)).min(initial=16) < 16
