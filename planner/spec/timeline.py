"""A step of a plan as events, in the Trace Event Format that Perfetto and chrome://tracing open.

Source: Trace Event Format, JSON object format; what of it Perfetto reads: perfetto.dev, "Visualizing external trace
formats with Perfetto". Names of fields are the format's; `ts` and `dur` are microseconds.
"""

from __future__ import annotations

from typing import Literal

from planner.spec.value import Count, NonNegative, StrEnum, Value

Detail = str | int | float | list[str]


class Phase(StrEnum):
    """What kind of event: something that lasts, a moment, or the name of a process or track."""

    COMPLETE = "X"
    INSTANT = "i"
    METADATA = "M"


class TimelineEvent(Value):
    """One event; `pid` is a stage's number plus two (1: the whole step), `tid` a track of it."""

    name: str
    ph: Phase
    pid: Count
    tid: Count
    cat: str | None = None
    """`forward`, `backward`, `weight gradient`, `part`, `message` or `once`."""
    ts: NonNegative | None = None
    dur: NonNegative | None = None
    s: Literal["g"] | None = None
    """Of moments: they hold for everything."""
    args: dict[str, Detail] | None = None
    """Micro-batch, virtual stage and the like."""


class PlanTimeline(Value):
    """One step of a plan."""

    traceEvents: tuple[TimelineEvent, ...]
    displayTimeUnit: Literal["ms"] = "ms"
    otherData: dict[str, Detail]
    """Of which plan; the step's seconds as estimated and as simulated; what is not drawn."""
