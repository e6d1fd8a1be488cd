"""How pages call things: times, errors, frameworks."""

from __future__ import annotations

from datetime import datetime

from planner.spec.export import ExportTarget

_MINUTE_S, _HOUR_S, _DAY_S = 60, 3600, 86400
_FRAMEWORKS = {
    ExportTarget.MEGATRON: "Megatron-LM",
    ExportTarget.TORCHTITAN: "torchtitan",
    ExportTarget.DEEPSPEED: "DeepSpeed",
    ExportTarget.GALVATRON: "Galvatron",
}


def ago(then: datetime, now: datetime) -> str:
    """`just now`, `5 min ago`, `3 h ago`, `1 day ago`, `12 days ago`."""
    passed_s = int((now - then).total_seconds())
    if passed_s < _MINUTE_S:
        return "just now"
    if passed_s < _HOUR_S:
        return f"{passed_s // _MINUTE_S} min ago"
    if passed_s < _DAY_S:
        return f"{passed_s // _HOUR_S} h ago"
    days = passed_s // _DAY_S
    return f"{days} day{'s' if days > 1 else ''} ago"


def utc(then: datetime) -> str:
    """`2026-11-22 01:15:40 UTC`."""
    return f"{then:%Y-%m-%d %H:%M:%S} UTC"


def sentence(message: str) -> str:
    """An error's message with a capital and a full stop."""
    return f"{message[:1].upper()}{message[1:].rstrip('.')}."


def framework_name(target: ExportTarget) -> str:
    """As its makers write it."""
    return _FRAMEWORKS[target]
