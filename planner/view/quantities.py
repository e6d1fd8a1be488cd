"""How quantities are written for people: three significant digits and a unit. Machines get the SI values themselves."""

from __future__ import annotations

_GIB = 2**30
_MIB = 2**20


def significant(value: float) -> str:
    """Three significant digits without an exponent, thousands separated: 0.0123, 4.57, 12.3, 812,345."""
    if value == 0:
        return "0"
    magnitude = abs(value)
    if magnitude >= 99.95:
        return f"{value:,.0f}"
    if magnitude >= 9.995:
        return f"{value:.1f}"
    if magnitude >= 0.9995:
        return f"{value:.2f}"
    return f"{value:.3g}" if magnitude >= 1e-4 else f"{value:.2e}"


def seconds(value_s: float) -> str:
    """A time in s, ms or µs, whichever leaves a number of at least one."""
    if value_s == 0:
        return "0 s"
    if abs(value_s) >= 0.9995:
        return f"{significant(value_s)} s"
    if abs(value_s) >= 0.9995e-3:
        return f"{significant(value_s * 1e3)} ms"
    return f"{significant(value_s * 1e6)} µs"


def memory(value_bytes: float) -> str:
    """Bytes in GiB; in MiB below a tenth of a GiB."""
    if value_bytes == 0:
        return "0 GiB"
    if abs(value_bytes) >= 0.1 * _GIB:
        return f"{significant(value_bytes / _GIB)} GiB"
    return f"{significant(value_bytes / _MIB)} MiB"


def gibibytes(value_bytes: float) -> str:
    """Bytes in GiB with one digit behind the point and no unit, for columns that name it."""
    return f"{value_bytes / _GIB:,.1f}"


def percent(ratio: float) -> str:
    """A ratio as percent: 41.3 %; what is above zero never reads as zero."""
    if 0 < abs(ratio) < 0.0005:
        return "< 0.1 %"
    return f"{100 * ratio:.1f} %"


def span(first: int, last: int) -> str:
    """Whole numbers from first to last: 7, or 8–15."""
    return str(first) if first == last else f"{first}–{last}"
