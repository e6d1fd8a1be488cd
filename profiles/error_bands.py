"""Error bands of the nearest class of published runs, from `profiles/fit/record.json`, which the fit wrote.

Nearest is, of the classes that are there: this device with this stack; for a pair that nobody measured the wider of any
device with this stack and this device with any; any with any. Kinds of models stay apart, but for a kind of which there
are no runs.
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
    return widest_error_bands([(device, stack)])


def widest_error_bands(machines: Sequence[tuple[Device, Stack]]) -> ErrorBands:
    """Bands that hold for devices of all these kinds, each under its stack."""
    names = [(_device_name(device), _stack_name(stack)) for device, stack in machines]
    return ErrorBands(dense=_widest(names, "dense"), moe=_widest(names, "moe"))


def _widest(names: Sequence[tuple[str, str]], kind: Kind) -> ErrorBand:
    found = {each: None for device, stack in names for each in _nearest(device, stack, kind, error_classes())}
    return _band(list(found))


def band_of(device_name: str, stack_name: str, kind: Kind, classes: Sequence[ErrorClass] | None = None) -> ErrorBand:
    """The band of the nearest class; None as classes means those of the record.

    Raises InternalError if there is not even one of all runs.
    """
    return _band(_nearest(device_name, stack_name, kind, error_classes() if classes is None else classes))


def _nearest(device_name: str, stack_name: str, kind: Kind, classes: Sequence[ErrorClass]) -> list[ErrorClass]:
    """The classes that are nearest, one or several."""
    known = {(each.device, each.stack, each.kind): each for each in classes}
    nearest = (
        [(device_name, stack_name, kind)],
        [(ANY, stack_name, kind), (device_name, ANY, kind)],
        [(ANY, ANY, kind)],
        [(ANY, ANY, ANY)],
    )
    for names in nearest:
        found = [known[name] for name in names if name in known]
        if found:
            return found
    raise InternalError("profiles/fit/record.json has no error of all runs (device, stack and kind *)")


def _band(classes: Sequence[ErrorClass]) -> ErrorBand:
    """Of classes that are equally near, from the lowest to the highest."""
    return ErrorBand(
        low_ratio=min(found.low_ratio for found in classes),
        high_ratio=max(found.high_ratio for found in classes),
        rows=sum(found.rows for found in classes),
        basis=" and ".join(_basis(found) for found in classes),
    )


def _basis(found: ErrorClass) -> str:
    device = "any device" if found.device == ANY else found.device
    stack = "any stack" if found.stack == ANY else found.stack
    return f"{found.rows:,} runs of {_KINDS[found.kind]} on {device} with {stack}"


def _device_name(device: Device) -> str:
    known = device.name in catalogue.names("hardware") and device_preset(device.name).device == device
    return device.name if known else ANY


def _stack_name(stack: Stack) -> str:
    known = stack.name in catalogue.names("software") and stack_preset(stack.name).stack == stack
    return stack.name if known else ANY
