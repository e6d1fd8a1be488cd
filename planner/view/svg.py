"""Elements of a picture: the few shapes of SVG that the panels draw with. Text is escaped when the tree is written."""

from __future__ import annotations

import re
import unicodedata
from typing import NamedTuple
from xml.etree.ElementTree import Element, SubElement, tostring

from planner.view.theme import PATTERNS, Look, stylesheet

WIDTH = 1200.0
"""Width of every picture; its height follows from the content."""
MARGIN = 24.0

# What XML 1.0, production 2, does not allow as a character, even escaped.
_ILLEGAL = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class Area(NamedTuple):
    """A rectangle's place: its upper left corner and its size."""

    x: float
    y: float
    width: float
    height: float


class Panel(NamedTuple):
    """A part of the picture that was drawn with its upper edge at 0, and how high it is."""

    element: Element
    height: float


def number(value: float) -> str:
    """A coordinate with one digit behind the point at most."""
    return f"{value:.1f}".removesuffix(".0")


def legal(text: str) -> str:
    """The text with every character that XML forbids replaced by U+FFFD."""
    return _ILLEGAL.sub("\ufffd", text)


def text_width(text: str, font_size: float = 13) -> float:
    """How wide a line of text is, with the fonts of the style sheet; an estimate from above for usual text."""
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    return 0.56 * font_size * (len(text) + 0.8 * wide)


def fitted(text: str, width: float, font_size: float = 13) -> str:
    """The text, or as much of its beginning as fits into `width` with an ellipsis behind it."""
    if text_width(text, font_size) <= width:
        return text
    used = 0.0
    for position, character in enumerate(text):
        used += text_width(character, font_size)
        if used > width:
            return text[: max(0, position - 1)] + "…"
    return text


def wrapped(text: str, width: float, font_size: float = 13) -> list[str]:
    """The text in lines that fit into `width`, broken between words; a longer word has a line of its own, cut."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and fitted(longer, width, font_size) == longer:
            lines[-1] = longer
        else:
            lines.append(fitted(word, width, font_size))
    return lines


def group(parent: Element | None = None, x: float = 0, y: float = 0) -> Element:
    """A group whose origin lies at (x, y) of its parent."""
    attributes = {"transform": f"translate({number(x)},{number(y)})"} if x or y else {}
    return Element("g", attributes) if parent is None else SubElement(parent, "g", attributes)


def label(parent: Element, x: float, y: float, text: str, style: str = "", *, anchor: str = "start") -> None:
    """A line of text whose baseline begins (or has its middle or its end) at (x, y)."""
    attributes = {"x": number(x), "y": number(y)}
    if style:
        attributes["class"] = style
    if anchor != "start":
        attributes["text-anchor"] = anchor
    SubElement(parent, "text", attributes).text = legal(text)


def rectangle(parent: Element, area: Area, style: str, radius: float = 0) -> None:
    """A rectangle, with round corners if it has a radius."""
    attributes = {"class": style, **{name: number(value) for name, value in area._asdict().items()}}
    if radius:
        attributes["rx"] = number(radius)
    SubElement(parent, "rect", attributes)


def box(parent: Element, area: Area, look: Look) -> None:
    """A rectangle with a look, and a thin gap around it so that neighbours stay apart."""
    rectangle(parent, area, f"{look.fill} gap")
    if look.pattern:
        rectangle(parent, area, f"on-{look.pattern}")


def upright(parent: Element, x: float, top: float, bottom: float, style: str = "line") -> None:
    """A vertical line."""
    path(parent, f"M{number(x)},{number(top)} V{number(bottom)}", style)


def path(parent: Element, data: str, style: str) -> None:
    """A path."""
    SubElement(parent, "path", {"class": style, "d": data})


def tooltip(parent: Element, text: str) -> None:
    """What a pointer that rests on the group shows."""
    SubElement(parent, "title").text = legal(text)


def document(title: str, description: str, panels: list[Panel], gap: float = 26) -> str:
    """The whole picture: panels below each other on one page; title and description are for screen readers too."""
    height = 2 * MARGIN + sum(panel.height for panel in panels) + gap * (len(panels) - 1)
    root = Element(
        "svg",
        {
            "xmlns": "http://www.w3.org/2000/svg",
            "viewBox": f"0 0 {number(WIDTH)} {number(height)}",
            "width": number(WIDTH),
            "height": number(height),
            "role": "img",
            "aria-labelledby": "trimtab-title trimtab-description",
        },
    )
    SubElement(root, "title", {"id": "trimtab-title"}).text = legal(title)
    SubElement(root, "desc", {"id": "trimtab-description"}).text = legal(description)
    SubElement(root, "style").text = stylesheet()
    _patterns(SubElement(root, "defs"))
    rectangle(root, Area(0, 0, WIDTH, height), "surface")
    top = MARGIN
    for panel in panels:
        group(root, MARGIN, top).append(panel.element)
        top += panel.height + gap
    return tostring(root, encoding="unicode")


def _patterns(parent: Element) -> None:
    for name, data in PATTERNS.items():
        _tile(parent, name, data, "tile")
    _tile(parent, "over", PATTERNS["backslash"], "over")


def _tile(parent: Element, name: str, data: str, style: str) -> None:
    size = {"width": "8", "height": "8", "patternUnits": "userSpaceOnUse"}
    tile = SubElement(parent, "pattern", {"id": f"trimtab-{name}", "class": style, **size})
    SubElement(tile, "path", {"d": data})
