"""The format of a trace: what a file must hold, and the windows that its samples make."""

import re

import numpy as np
import pytest

from planner.online.recorded.trace import arrays_of, trace_of
from planner.spec.errors import InputError

COUNTS = np.arange(1, 4 * 2 * 8 + 1).reshape(4, 2, 8)


def arrays(**changes):
    return {"tokens": COUNTS, "steps": np.array([1, 11, 31, 36]), "top_k": np.array(2), **changes}


def test_a_sample_stands_for_all_steps_until_the_next_and_the_last_for_as_many_as_the_one_before():
    trace = trace_of(arrays())
    assert trace.lengths.tolist() == [10, 20, 5, 5]
    assert trace.counted.tolist() == [1, 1, 1, 1]
    assert (trace.num_samples, trace.top_k, trace.model) == (4, 2, None)


def test_windows_are_consecutive_samples_and_the_last_may_be_shorter():
    trace = trace_of(arrays())
    windows = trace.windows(3)
    assert windows == (range(3), range(3, 4))
    first, last = (trace.window(index, samples) for index, samples in enumerate(windows))
    assert (first.index, first.first_step, first.num_steps) == (0, 1, 35)
    assert first.tokens == tuple(map(tuple, COUNTS[:3].sum(axis=0).tolist()))
    assert (last.index, last.first_step, last.num_steps) == (1, 36, 5)
    assert last.tokens == tuple(map(tuple, COUNTS[3].tolist()))


def test_a_trace_of_one_sample_lasts_as_long_as_it_was_counted():
    one = trace_of({"tokens": COUNTS[:1], "steps": np.array([0]), "num_steps": np.array([50])})
    assert one.lengths.tolist() == [50]
    assert one.top_k is None


def test_tokens_of_a_step_are_those_counted_over_the_steps_counted():
    trace = trace_of(arrays(tokens=COUNTS * 10, steps=np.arange(4) * 10, num_steps=np.full(4, 10)))
    assert np.array_equal(trace.step_tokens, COUNTS)


def test_a_trace_read_from_its_own_arrays_is_the_same():
    trace = trace_of(arrays(num_steps=np.array([10, 10, 5, 5]), model=np.array("tiny")))
    written = arrays_of(trace)
    assert written["tokens"].dtype == np.uint8
    assert int(written["format_version"]) == 1
    again = trace_of(written)
    for name in ("tokens", "steps", "counted"):
        assert np.array_equal(getattr(again, name), getattr(trace, name))
    assert (again.top_k, again.model) == (2, "tiny")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": np.ones((4, 2, 8))}, "trace.tokens: must be whole numbers [samples, layers, experts], got"),
        ({"tokens": np.ones((4, 8), int)}, "trace.tokens: must be whole numbers [samples, layers, experts], got"),
        (
            {"tokens": np.zeros((4, 2, 8), int)},
            "trace.tokens: must give every layer a token in every sample; sample 0 has none in layer 0",
        ),
        ({"tokens": -COUNTS}, "trace.tokens: must not be negative"),
        ({"tokens": COUNTS * 2**42}, "trace.tokens: must be at most 1099511627776, got"),
        ({"steps": np.arange(4, dtype=np.uint64) + 2**63}, "trace.steps: must be at most 1099511627776, got"),
        ({"steps": np.arange(3)}, "trace.steps: must be 4 whole numbers, one for each sample, got 3"),
        ({"steps": np.array([0, 2, 2, 3])}, "trace.steps: must grow"),
        ({"steps": np.array([-1, 2, 3, 4])}, "trace.steps: must grow"),
        ({"num_steps": np.array([1, 0, 1, 1])}, "trace.num_steps: must be 4 whole numbers from 1 on"),
        ({"num_steps": np.ones(3, int)}, "trace.num_steps: must be 4 whole numbers from 1 on"),
        ({"top_k": np.array(9)}, "trace.top_k: must be from 1 to the 8 experts, is 9"),
        ({"top_k": np.array([2])}, "trace.top_k: must be one whole number, got"),
        ({"format_version": np.array(2)}, "trace.format_version: is 2; this Trimtab reads version 1"),
    ],
)
def test_arrays_that_are_no_trace_are_refused(changes, message):
    with pytest.raises(InputError, match=re.escape(message)):
        trace_of(arrays(**changes))


def test_what_a_trace_lacks_is_named():
    with pytest.raises(InputError, match="trace: must hold tokens and steps; it lacks steps"):
        trace_of({"tokens": COUNTS})


def test_a_window_has_at_least_one_sample():
    with pytest.raises(InputError, match="window: must be at least 1 sample, got 0"):
        trace_of(arrays()).windows(0)
