"""Options with less in them: what a smaller space, or one framework, has."""

from __future__ import annotations

from collections.abc import Mapping

from planner.cost.targets import FRAMEWORKS
from planner.spec.errors import InputError
from planner.spec.request import Options, Target


def restricted(options: Options, limits: Mapping[str, object]) -> Options:
    """The options with no more than `limits` allow: of tuples what both have, of anything else what the limits say.

    Raises InputError where nothing is left, or where the options ask for another framework.
    """
    changes: dict[str, object] = {}
    for field, limit in limits.items():
        given = getattr(options, field)
        if isinstance(limit, tuple):
            changes[field] = tuple(value for value in given if value in limit)
            if not changes[field]:
                raise InputError.at(f"options.{field}", f"must hold one of {_listed(limit)}, not only {_listed(given)}")
        elif field == "target" and given not in (Target.ANY, limit):
            raise InputError.at("options.target", f"must be any or {limit}, not {given}")
        else:
            changes[field] = limit
    return options.model_copy(update=changes)


def for_target(options: Options) -> Options:
    """The options with no more than the parts that their target has; raises InputError where nothing is left.

    Plans that are made of these parts may still break its rules, for which broken_strategy_rules() and
    broken_pipeline_rules() are asked; uniform ones that pass these break none of broken_target_rules().
    """
    if options.target is Target.ANY:
        return options
    framework = FRAMEWORKS[options.target]
    if options.offload:
        message = f"must be left out for {options.target}: what it offloads is not described here"
        raise InputError.at("options.offload", message)
    sharding = dict.fromkeys((*framework.shardings, *framework.pipelined_shardings))
    parts = {
        "axes": framework.axes,
        "sharding": tuple(sharding),
        "recompute": framework.recompute,
        "schedules": framework.schedules,
        "uniform": True,
    }
    return restricted(options, parts)


def _listed(values: tuple[object, ...]) -> str:
    return " ".join(map(str, values)) or "nothing"
