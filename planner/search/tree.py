"""The decision tree: every way to cut one layer over the devices of a stage, and the named rules that prune it.

Below a pipeline cut, a path is an ordered sequence of different axes, outermost (farthest devices) first, each with a
degree of at least 2, whose product is the number of devices (Galvatron, arXiv 2211.13878, section 3.2). With dp, sdp
and tp on 8 devices the tree has 34 strategies over all pipeline degrees, 22 when dp and sdp may not meet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from math import isqrt

from planner.search.removed import Removed
from planner.spec.cluster import Cluster
from planner.spec.strategy import Axis, AxisKind

Path = tuple[Axis, ...]
DATA = (AxisKind.DP, AxisKind.SDP)
SEQUENCE = (AxisKind.CP, AxisKind.ULYSSES)


@lru_cache(maxsize=4096)
def divisors(number: int) -> tuple[int, ...]:
    """All divisors, ascending."""
    small = [n for n in range(1, isqrt(number) + 1) if number % n == 0]
    return (*small, *(number // n for n in reversed(small) if n * n != number))


PathRule = Callable[[Path, int, Cluster], bool]
"""Whether a path may begin so: its outermost axes, and the number of devices that axes inside them still cut."""


def dp_and_sdp_apart(path: Path, rest: int, cluster: Cluster) -> bool:
    """Sharded data parallelism alone is seldom worse than mixed with plain (Galvatron, section 3.2)."""
    kinds = {axis.kind for axis in path}
    return not set(DATA) <= kinds


def tp_on_nearest_devices(path: Path, rest: int, cluster: Cluster) -> bool:
    """Tensor parallelism talks in every layer and micro-batch, mostly unhidden: it gets the fastest links."""
    return path[-1].kind is not AxisKind.TP or rest == 1


def cp_inside_dp(path: Path, rest: int, cluster: Cluster) -> bool:
    """Cuts of the sequence talk in every layer, data parallelism mostly once per step."""
    return path[-1].kind not in DATA or all(axis.kind not in SEQUENCE for axis in path[:-1])


def ulysses_inside_cp(path: Path, rest: int, cluster: Cluster) -> bool:
    """Ulysses' all-to-all is unhidden, ring attention hides under the compute."""
    return path[-1].kind is not AxisKind.CP or all(axis.kind is not AxisKind.ULYSSES for axis in path[:-1])


def tp_within_node(path: Path, rest: int, cluster: Cluster) -> bool:
    """Tensor parallelism stays inside the nearest tier of links, and tiles it."""
    return path[-1].kind is not AxisKind.TP or tiles_nearest(path[-1].degree, cluster)


def tiles_nearest(degree: int, cluster: Cluster) -> bool:
    """Whether groups of so many neighbours fill the nearest tier of links evenly."""
    return cluster.levels[0].num_devices % degree == 0


PATH_RULES: tuple[PathRule, ...] = (
    dp_and_sdp_apart,
    tp_on_nearest_devices,
    cp_inside_dp,
    ulysses_inside_cp,
    tp_within_node,
)


def rule_name(rule: Callable[..., object]) -> str:
    """How a rule is called in certificates."""
    return rule.__name__.replace("_", "-")


def paths(
    num_devices: int,
    kinds: Sequence[AxisKind],
    cluster: Cluster,
    rules: Sequence[PathRule] = (),
    removed: Removed | None = None,
    outer: Path = (),
) -> Iterator[Path]:
    """All ordered sequences of different axes whose degrees multiply to `num_devices` and that pass the rules.

    A path that begins as a rule forbids is not followed; all that it would lead to is noted as removed.
    """
    if num_devices == 1:
        yield outer
        return
    for kind in kinds:
        inner = [other for other in kinds if other is not kind]
        for degree in divisors(num_devices)[1:]:
            path, rest = (*outer, Axis(kind, degree)), num_devices // degree
            broken = next((rule for rule in rules if not rule(path, rest, cluster)), None)
            if broken is None:
                yield from paths(rest, inner, cluster, rules, removed, path)
            elif removed is not None:
                removed.note(rule_name(broken), count_paths(rest, len(inner)), _named(path, rest))


@lru_cache(maxsize=65536)
def count_paths(num_devices: int, num_kinds: int) -> int:
    """How many paths of so many kinds of axes there are, without any rule."""
    if num_devices == 1:
        return 1
    if num_kinds == 0:
        return 0
    return num_kinds * sum(count_paths(num_devices // degree, num_kinds - 1) for degree in divisors(num_devices)[1:])


def _named(path: Path, rest: int) -> str:
    text = " ".join(f"{axis.kind.value}{axis.degree}" for axis in path)
    return text if rest == 1 else f"{text} and {rest} inside"
