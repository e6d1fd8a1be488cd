"""Colours and patterns of the pictures, for light and dark pages.

Fills are of middle brightness and the same on both pages: they stand out from either page (contrast at least 3:1,
WCAG 2.2, 1.4.11) and carry dark text (at least 4.5:1, 1.4.3). Only page, lines and text outside the fills change.
Colour never stands alone: every fill has a number or letter in or beside it, and may have a pattern on it.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

INK = "#0b0e14"
"""Text and pattern lines on fills."""
FILLS: Mapping[str, str] = MappingProxyType(
    {
        "blue": "#4790d8",
        "orange": "#c8741d",
        "green": "#349d62",
        "magenta": "#d861aa",
        "violet": "#9477dd",
        "gold": "#9d8519",
        "teal": "#1c989e",
        "grey": "#858d99",
        "warning": "#f0574e",
    }
)


class Page(NamedTuple):
    """Colours that depend on the page."""

    surface: str
    panel: str
    line: str
    text: str
    muted: str
    alarm: str


LIGHT = Page(surface="#ffffff", panel="#f1f3f6", line="#c5cad3", text="#14171c", muted="#565e6b", alarm="#b3261e")
DARK = Page(surface="#15181d", panel="#20252c", line="#454d59", text="#eceff3", muted="#a7b0bd", alarm="#ff8a80")

PATTERNS: Mapping[str, str] = MappingProxyType(
    {
        "slash": "M-2,2 l4,-4 M0,8 l8,-8 M6,10 l4,-4",
        "dots": "M2,2 h1.6 M6,6 h1.6",
        "backslash": "M-2,6 l4,4 M0,0 l8,8 M6,-2 l4,4",
        "bars": "M2,0 v8 M6,0 v8",
        "rules": "M0,2 h8 M0,6 h8",
        "cross": "M0,4 h8 M4,0 v8",
    }
)
"""Paths on a tile of 8 by 8."""


HEAT: tuple[tuple[str, float], ...] = (
    ("blue", 0.7),
    ("blue", 0.45),
    ("blue", 0.22),
    ("grey", 0.2),
    ("orange", 0.3),
    ("orange", 0.5),
    ("orange", 0.75),
    ("orange", 1.0),
    ("warning", 1.0),
    ("magenta", 1.0),
)
"""Fills of a heat map and how much of them covers the page, from cold over even to hot."""
HEAT_STEPS = len(HEAT)


class Look(NamedTuple):
    """A fill, and a pattern on it or none."""

    fill: str
    pattern: str | None = None


PART_LOOKS: Mapping[str, Look] = MappingProxyType(
    {
        "compute": Look("blue"),
        "recompute": Look("blue", "slash"),
        "tensor_parallel_communication": Look("orange"),
        "context_parallel_communication": Look("orange", "slash"),
        "expert_all_to_all": Look("magenta"),
        "expert_imbalance": Look("magenta", "dots"),
        "data_parallel_communication": Look("green"),
        "layout_change": Look("green", "slash"),
        "host": Look("teal", "slash"),
        "pipeline_communication": Look("violet"),
        "pipeline_bubble": Look("violet", "slash"),
        "optimizer": Look("teal"),
        "weights": Look("blue"),
        "gradients": Look("orange"),
        "optimizer_states": Look("teal"),
        "activations": Look("magenta"),
        "logits": Look("magenta", "slash"),
        "workspace": Look("violet"),
        "buffers": Look("green", "slash"),
        "reserve": Look("grey", "dots"),
    }
)
"""A part looks the same in every picture; gold is left for parts that are not listed."""

_ROTATION = ("blue", "orange", "green", "violet", "magenta", "gold", "teal", "grey")
_ROTATED_PATTERNS = (None, *PATTERNS)


def nth_look(number: int) -> Look:
    """Looks for things without a look of their own, such as strategies; neighbours differ in colour and pattern."""
    return Look(
        _ROTATION[number % len(_ROTATION)],
        _ROTATED_PATTERNS[(number + number // len(_ROTATION)) % len(_ROTATED_PATTERNS)],
    )


def part_look(key: str, number: int) -> Look:
    """The look of a named part; `number` is its position among the parts, for parts that have none of their own."""
    return PART_LOOKS.get(key) or Look("gold", _ROTATED_PATTERNS[number % len(_ROTATED_PATTERNS)])


def stylesheet() -> str:
    """The style sheet of a picture; light unless the reader prefers dark."""
    fills = "".join(f".{name}{{fill:{colour}}}" for name, colour in FILLS.items())
    patterns = "".join(f".on-{name}{{fill:url(#trimtab-{name})}}" for name in PATTERNS)
    heat = "".join(
        f".heat-{step}{{fill:none;stroke:{FILLS[name]};stroke-opacity:{opacity:g}}}"
        for step, (name, opacity) in enumerate(HEAT)
    )
    lines = "".join(f".draw-{name}{{fill:none;stroke:{colour};stroke-width:2}}" for name, colour in FILLS.items())
    return (
        "text{font-family:system-ui,-apple-system,'Segoe UI',Roboto,'Liberation Sans',sans-serif;font-size:13px}"
        ".h1{font-size:22px;font-weight:650}.h2{font-size:15px;font-weight:650}.big{font-size:20px;font-weight:650}"
        ".strong{font-weight:650}.small{font-size:11.5px}.tiny{font-size:10px}"
        ".num{font-variant-numeric:tabular-nums}"
        f"text.on{{fill:{INK}}}.clear{{fill:none;pointer-events:all}}.seam{{fill:none;stroke:{INK};stroke-opacity:.55}}"
        f".tile path{{fill:none;stroke:{INK};stroke-opacity:.38;stroke-width:1.3}}"
        f".over path{{fill:none;stroke:{INK};stroke-opacity:.8;stroke-width:2.6}}"
        f".excess{{fill:url(#trimtab-over);stroke:{FILLS['warning']};stroke-width:3}}"
        f"{fills}{patterns}{heat}.thick{{stroke-width:16}}{lines}"
        ".dash{stroke-dasharray:7 4}.dot{stroke-dasharray:2 3}"
        f"{_page_rules(LIGHT)}@media(prefers-color-scheme:dark){{{_page_rules(DARK)}}}"
    )


def _page_rules(page: Page) -> str:
    return (
        f".surface{{fill:{page.surface}}}.panel{{fill:{page.panel}}}.line{{fill:none;stroke:{page.line}}}"
        f".gap{{stroke:{page.surface};stroke-width:1}}.frame{{fill:none;stroke:{page.muted}}}"
        f".tick{{fill:none;stroke:{page.muted}}}"
        f".limit{{fill:none;stroke:{page.alarm};stroke-width:2;stroke-dasharray:5 3}}"
        f"text{{fill:{page.text}}}text.muted{{fill:{page.muted}}}text.alarm{{fill:{page.alarm}}}"
    )
