"""A trace: recorded expert loads of a training job, and the windows that they make. The format: docs/trace-format.md.

Knows arrays only; `runtime.record` writes files of them, `trimtab replay` reads them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.spec.errors import InputError
from planner.spec.window import Window

Integers = NDArray[np.int64]

FORMAT_VERSION = 1
REQUIRED = ("tokens", "steps")
ARRAYS = (*REQUIRED, "top_k", "num_steps", "model", "format_version")
MAX_NUMBER = 2**40
"""Of tokens and steps: far more than any job has, and few enough for sums to stay exact."""
_SHAPES = {"tokens": "[samples, layers, experts]", "steps": "[samples]", "num_steps": "[samples]"}
_DIMENSIONS = {"tokens": 3, "steps": 1, "num_steps": 1, "top_k": 0, "format_version": 0}


@dataclass(frozen=True)
class Trace:
    """Samples of one job, in the order of its steps."""

    tokens: Integers
    """[samples, layers, experts]: tokens that each expert of each MoE layer got; every layer has at least one."""
    steps: Integers
    """[samples]: the first step of each sample; they grow."""
    counted: Integers
    """[samples]: steps whose tokens each sample counted, from its first on."""
    top_k: int | None = None
    """Experts that the gate picks for each token; None: not recorded."""
    model: str | None = None
    """The model's name; None: not recorded."""

    @property
    def num_samples(self) -> int:
        """How many times the loads were recorded."""
        return len(self.tokens)

    @property
    def lengths(self) -> Integers:
        """[samples]: steps that each sample stands for: all until the next; the last, as many as the one before."""
        gaps = np.diff(self.steps)
        return np.append(gaps, gaps[-1] if len(gaps) else self.counted[-1])

    @property
    def step_tokens(self) -> Integers:
        """[samples, layers, experts]: tokens of one step, on average over what each sample counted."""
        return np.rint(self.tokens / self.counted[:, None, None]).astype(np.int64)

    def windows(self, samples: int) -> tuple[range, ...]:
        """The trace cut into windows of so many consecutive samples; the last may have fewer. Raises InputError."""
        if samples < 1:
            raise InputError.at("window", f"must be at least 1 sample, got {samples}")
        starts = range(0, self.num_samples, samples)
        return tuple(range(start, min(start + samples, self.num_samples)) for start in starts)

    def window(self, index: int, samples: range) -> Window:
        """Consecutive samples as one window: their counts summed."""
        counts = self.tokens[samples.start : samples.stop].sum(axis=0)
        return Window(
            index=index,
            first_step=int(self.steps[samples.start]),
            num_steps=int(self.lengths[samples.start : samples.stop].sum()),
            tokens=tuple(map(tuple, counts.tolist())),
        )


def trace_of(arrays: Mapping[str, NDArray[Any]]) -> Trace:
    """The trace in the arrays of a file; raises InputError at the array that is missing or cannot be."""
    missing = [name for name in REQUIRED if name not in arrays]
    if missing:
        raise InputError.at("trace", f"must hold {' and '.join(REQUIRED)}; it lacks {' and '.join(missing)}")
    numbers = {name: _whole(name, arrays[name]) for name in _DIMENSIONS if name in arrays}
    version = int(numbers.get("format_version", FORMAT_VERSION))
    if version != FORMAT_VERSION:
        raise InputError.at("trace.format_version", f"is {version}; this Trimtab reads version {FORMAT_VERSION}")
    tokens, steps = numbers["tokens"], numbers["steps"]
    if (tokens < 0).any():
        raise InputError.at("trace.tokens", f"must not be negative, got {tokens.min()}")
    silent = np.argwhere(tokens.sum(axis=2) == 0)
    if len(silent):
        sample, layer = silent[0]
        raise InputError.at(
            "trace.tokens", f"must give every layer a token in every sample; sample {sample} has none in layer {layer}"
        )
    top_k = int(numbers["top_k"]) if "top_k" in numbers else None
    if top_k is not None and not 1 <= top_k <= tokens.shape[2]:
        raise InputError.at("trace.top_k", f"must be from 1 to the {tokens.shape[2]} experts, is {top_k}")
    model = str(arrays["model"]) if "model" in arrays else None
    counted = numbers.get("num_steps", np.ones(len(tokens), dtype=np.int64))
    _check_steps(len(tokens), steps, counted)
    return Trace(tokens, steps, counted, top_k, model)


def arrays_of(trace: Trace) -> dict[str, NDArray[Any]]:
    """What a file of the trace holds: `trace_of` read backwards. Counts are as narrow as they can be."""
    arrays: dict[str, NDArray[Any]] = {
        "format_version": np.array(FORMAT_VERSION),
        "tokens": trace.tokens.astype(np.min_scalar_type(int(trace.tokens.max(initial=0)))),
        "steps": trace.steps,
        "num_steps": trace.counted,
    }
    if trace.top_k is not None:
        arrays["top_k"] = np.array(trace.top_k)
    if trace.model is not None:
        arrays["model"] = np.array(trace.model)
    return arrays


def _whole(name: str, given: NDArray[Any]) -> Integers:
    array = np.asarray(given)
    dimensions = _DIMENSIONS[name]
    if array.ndim != dimensions or array.dtype.kind not in "iu":
        wanted = f"whole numbers {_SHAPES[name]}" if dimensions else "one whole number"
        raise InputError.at(f"trace.{name}", f"must be {wanted}, got {array.dtype} of shape {list(array.shape)}")
    if not array.size:
        raise InputError.at(f"trace.{name}", f"must not be empty, got shape {list(array.shape)}")
    if int(array.max()) > MAX_NUMBER:
        raise InputError.at(f"trace.{name}", f"must be at most {MAX_NUMBER}, got {array.max()}")
    return array.astype(np.int64)


def _check_steps(samples: int, steps: Integers, counted: Integers) -> None:
    if len(steps) != samples:
        raise InputError.at("trace.steps", f"must be {samples} whole numbers, one for each sample, got {len(steps)}")
    if steps[0] < 0 or (np.diff(steps) <= 0).any():
        raise InputError.at("trace.steps", "must grow from sample to sample, from 0 on")
    if len(counted) != samples or (counted < 1).any():
        raise InputError.at("trace.num_steps", f"must be {samples} whole numbers from 1 on, one for each sample")
    late = np.flatnonzero(counted[:-1] > np.diff(steps))
    if len(late):
        first = int(late[0])
        raise InputError.at(
            "trace.num_steps",
            f"must not count a step twice; sample {first} counts {counted[first]} steps from {steps[first]} on, the "
            f"next begins at {steps[first + 1]}",
        )
