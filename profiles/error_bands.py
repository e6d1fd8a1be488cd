"""Error bands of the nearest class of published runs, from `profiles/fit/record.json`, which the fit wrote.

Nearest is, of the classes that are there: this device with this stack, any device with this stack, this device with any
stack, any with any; kinds of models stay apart, but for a kind of which there are no runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Literal

from planner.spec.cluster import Device
from planner.spec.error_band import ErrorBand, ErrorBands
from planner.spec.errors import InternalError
from planner.spec.parse import parse, read_json
from planner.spec.stack import Stack
from planner.spec.value import Count, Name, Positive, Value
from profiles import catalogue
from profiles.devices import device_preset
from profiles.stacks import stack_preset

Kind = Literal["dense", "moe"]
ANY = "*"
_KINDS = {"dense": "dense models", "moe": "MoE models", ANY: "all models"}


class ErrorClass(Value):
    """Runs of one kind on one device with one stack, `*` for any; what was measured over what was predicted."""

    device: Name
    stack: Name
    kind: Literal["dense", "moe", "*"]
    rows: Count
    low_ratio: Positive
    """10th percentile."""
    high_ratio: Positive
    """90th percentile."""


@cache
def error_classes() -> tuple[ErrorClass, ...]:
    """All classes of the record; the file does not change while a program runs."""
    content = read_json((files("profiles.fit") / "record.json").read_bytes(), "record.json")
    return parse(tuple[ErrorClass, ...], content["errors"], "record.json.errors")


def error_bands(device: Device, stack: Stack) -> ErrorBands:
    """Bands of both kinds of models; a device or stack of other numbers than its preset's is not the preset."""
    names = (_device_name(device), _stack_name(stack))
    return ErrorBands(dense=band_of(*names, "dense"), moe=band_of(*names, "moe"))


def band_of(device_name: str, stack_name: str, kind: Kind, classes: Sequence[ErrorClass] | None = None) -> ErrorBand:
    """The band of the nearest class; None as classes means those of the record.

    Raises InternalError if there is not even one of all runs.
    """
    known = {(each.device, each.stack, each.kind): each for each in (error_classes() if classes is None else classes)}
    for wanted in (
        (device_name, stack_name, kind),
        (ANY, stack_name, kind),
        (device_name, ANY, kind),
        (ANY, ANY, kind),
        (ANY, ANY, ANY),
    ):
        if wanted in known:
            return _band(known[wanted])
    raise InternalError("profiles/fit/record.json has no error of all runs (device, stack and kind *)")


def _band(found: ErrorClass) -> ErrorBand:
    device = "any device" if found.device == ANY else found.device
    stack = "any stack" if found.stack == ANY else found.stack
    basis = f"{found.rows:,} runs of {_KINDS[found.kind]} on {device} with {stack}"
    return ErrorBand(low_ratio=found.low_ratio, high_ratio=found.high_ratio, rows=found.rows, basis=basis)


def _device_name(device: Device) -> str:
    known = device.name in catalogue.names("hardware") and device_preset(device.name).device == device
    return device.name if known else ANY


def _stack_name(stack: Stack) -> str:
    known = stack.name in catalogue.names("software") and stack_preset(stack.name).stack == stack
    return stack.name if known else ANY
