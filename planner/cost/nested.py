"""State that changes owners between stages whose cuts nest: closed forms, for all devices and kinds of state at once.

Write devices in digits such that every degree, stage and island is a place value (`planner.cost.digits`). Then a device
d of the old stage and a device r of the new one share state exactly if digit a of d equals digit b of r for some pairs
(a, b) of digits, and all that share, share equally much. So whom r receives from depends on which of r's own digits
differ (a from b), and on how far out the farthest of them is: as many holders are in r's island as the digits inside
the island that are in no pair have values, or none. The same holds for whom d sends to. A device's distance is the
number of island sizes, a single device the first, beyond which it has such a difference; what it takes is read from a
table of distances.

Exact but for the order of sums. Where sizes do not nest, `planner.cost.redistribution` has the general case.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from planner.cost.busy import Busy, Floats
from planner.cost.digits import Coded, Digit, Digits, digits_of, mask
from planner.cost.holding import Cuts, Devices
from planner.spec.cluster import Level

Flow = tuple[Cuts, Cuts]
"""One kind of state: its cuts before and after."""
Integers = NDArray[np.int64]
_ALL = (1 << 30) - 1
"""Every bit of every digit."""


class Moves(NamedTuple):
    """What goes over from stages of `old_size` devices to stages of `new_size`."""

    old_size: int
    new_size: int
    old_first: Devices
    """[pairs of stages]: the first device of each."""
    new_first: Devices
    flows: tuple[Flow, ...]
    moved_bytes: Floats
    """[pairs, flows]: whole size of the state."""
    pieces: Floats
    """[pairs, flows]: in how many pieces it is sent, each with messages of its own."""


class _Matched(NamedTuple):
    """The pairs of digits of a flow, and what goes from a holder to a receiver, as a ratio of the state."""

    pairs: tuple[tuple[Digit, Digit], ...]
    other_ratio: float
    """To a receiver that holds none of what it needs."""
    own_ratio: float
    """To one that is a holder itself."""
    old: int
    """Bits of the digits that the pairs have of the old stage's devices."""
    new: int


class _Side(NamedTuple):
    """Who sends, or who receives, with the tables to read for it, by code: distance x flags + flag."""

    first: Devices
    """[pairs of stages]: its stages."""
    size: int
    peer_first: Devices
    peer_bits: int
    """Bits of the digits inside a stage of the others."""
    codes: NDArray[np.uint8]
    """[patterns, devices of the larger kind of stage]: by the digits inside the stages alone."""
    flags: int
    """2: the flag is 1 where one of the bits `flagging` differs; 1: it is 0 always."""
    flagging: NDArray[np.int32]
    """[flows]"""
    byte_s: Floats
    """[tiers, flows, codes]"""
    piece_s: Floats
    """[flows, codes]"""


class Nested:
    """Moves between stages whose cuts nest; made by `nested`."""

    def __init__(self, moves: Moves, levels: Sequence[Level], digits: Digits, matched: Sequence[_Matched]) -> None:
        self._digits, self._num_levels = digits, len(levels)
        # Flows with one set of pairs stand together: they read their tables with the same codes.
        order = sorted(range(len(matched)), key=lambda flow: matched[flow].pairs)
        self._matched = [matched[flow] for flow in order]
        self._moves = moves._replace(moved_bytes=moves.moved_bytes[:, order], pieces=moves.pieces[:, order])
        starts = [n for n in range(len(order)) if not n or self._matched[n].pairs != self._matched[n - 1].pairs]
        self._patterns = np.array(starts)
        self._old, self._new = digits.below(moves.old_size), digits.below(moves.new_size)
        self._islands = [0, *(digits.below(level.num_devices) for level in levels[:-1]), _ALL]
        """Bits inside an island: of a device alone, then level by level."""
        self._differs_after, self._differs_before = self._differences()

    def add(self, busy: Busy) -> None:
        """Add the seconds of these moves."""
        moves = self._moves
        holding = np.array([flow.old | _ALL & ~self._old for flow in self._matched], dtype=np.int32)
        flags = (self._differs_before & holding[self._patterns, None]) != 0
        receivers = _Side(
            *(moves.new_first, moves.new_size, moves.old_first, self._old),
            *(self._distance(self._differs_after), 1, holding),
            *busy.seconds(*self._received()),
        )
        senders = _Side(
            *(moves.old_first, moves.old_size, moves.new_first, self._new),
            *(2 * self._distance(self._differs_before) + flags, 2, holding),
            *busy.seconds(*self._sent()),
        )
        self._add(receivers, busy.receiving)
        self._add(senders, busy.sending)

    def pair_bytes(self, senders: Devices, receivers: Devices) -> Floats:
        """Bytes from each sender to its receiver, another device; arrays of one shape."""
        moves, digits = self._moves, self._digits
        before, at_sender, at_receiver = _stages(moves.old_first, moves.old_size, senders, receivers)
        after, _, to = _stages(moves.new_first, moves.new_size, senders, receivers)
        sizes = np.zeros((len(before) + 1, len(after) + 1, len(self._matched)))
        sizes[np.searchsorted(before, moves.old_first), np.searchsorted(after, moves.new_first)] = moves.moved_bytes
        size = sizes[at_sender, to]
        sender, receiver = digits.coded(senders), digits.coded(receivers)
        larger = max(moves.old_size, moves.new_size)
        holds = (self._differs_after == 0)[:, receivers % larger] & (at_sender == at_receiver)
        moved = np.zeros(senders.shape)
        pattern = -1
        for number, flow in enumerate(self._matched):
            if number in self._patterns:
                pattern += 1
                shared = np.zeros_like(receiver)
                for shift, (old, _) in _shifts(flow.pairs).items():
                    shared |= _shifted(receiver, shift) & old
                meets = ((sender ^ shared) & flow.old) == 0
            moved += size[..., number] * meets * np.where(holds[pattern], flow.own_ratio, flow.other_ratio)
        return moved

    def _differences(self) -> tuple[Coded, Coded]:
        """[patterns, devices of the larger stage], twice: the digits a of receivers, and b of senders, that differ."""
        device = self._digits.coded(np.arange(max(self._moves.old_size, self._moves.new_size)))
        after = np.zeros((len(self._patterns), len(device)), dtype=np.int32)
        before = np.zeros_like(after)
        for row, start in enumerate(self._patterns):
            for shift, (old, new) in _shifts(self._matched[start].pairs).items():
                if shift:
                    after[row] |= (device ^ _shifted(device, shift)) & old
                    before[row] |= (device ^ _shifted(device, -shift)) & new
        return after, before

    def _distance(self, differing: Coded) -> NDArray[np.uint8]:
        distance = np.zeros(differing.shape, dtype=np.uint8)
        for inside in self._islands[:-1]:
            distance += differing > inside
        return distance

    def _received(self) -> tuple[Floats, Floats]:
        """[flows, levels, codes], twice: bytes of one byte of state, and messages of one piece."""
        holders = self._counts([self._old & ~flow.old for flow in self._matched])
        ratio = np.array([[flow.own_ratio, *[flow.other_ratio] * self._num_levels] for flow in self._matched])
        reached = self._reach() * holders[:, :, None]
        sizes, messages = (_by_level(reached * weight[:, None]) for weight in (ratio, ratio > 0))
        return sizes, messages

    def _sent(self) -> tuple[Floats, Floats]:
        """The same for senders; the flag: no receiver that it would send to is a holder."""
        asking = self._counts([self._new & ~flow.new for flow in self._matched])
        holding = self._counts([self._old & self._new & ~(flow.old | flow.new) for flow in self._matched])
        all_of_them = (self._reach() * asking[:, :, None])[..., None].repeat(2, axis=-1)
        holders = (self._reach() * holding[:, :, None])[..., None] * np.array([1.0, 0.0])
        other, own = (np.array([[flow[i]] for flow in self._matched])[..., None, None] for i in (1, 2))
        sizes = other * (all_of_them - holders) + own * holders
        messages = all_of_them - holders + (own > 0) * holders
        shape = (len(self._matched), self._num_levels, -1)
        return _by_level(sizes).reshape(shape), _by_level(messages).reshape(shape)

    def _counts(self, free: list[int]) -> Floats:
        """[flows, islands]: values of the digits among these bits inside an island."""
        count = self._digits.count
        return np.array([[float(count(bits & inside)) for inside in self._islands] for bits in free])

    def _reach(self) -> Floats:
        """[islands, distances]: 1 where a difference at such a distance is inside."""
        islands = np.arange(len(self._islands))
        return (islands <= islands[:, None]).astype(np.float64)

    def _add(self, side: _Side, seconds: Floats) -> None:
        """Add to [tiers, devices], cell by cell: a cell is as many devices as a stage of the smaller kind has."""
        size = min(self._moves.old_size, self._moves.new_size)
        cells = side.first[:, None] // size + np.arange(side.size // size)
        far = self._digits.coded(cells * size) ^ self._digits.coded(side.peer_first)[:, None]
        table = self._tables(side, far & (_ALL & ~side.peer_bits))
        order = np.argsort(cells, axis=None, kind="stable")
        cells = cells.ravel()[order]
        begins = np.append(0, 1 + np.flatnonzero(cells[1:] != cells[:-1]))
        table = np.add.reduceat(table[:, :, order], begins, axis=2)
        table = np.add.reduceat(table, self._patterns, axis=1)
        whole = seconds.shape[1] // size
        for codes, entries in _joined(side.codes, table, size):
            place = codes.reshape(-1, size)[cells[begins] % (len(codes) // size)]
            place = place + np.arange(0, len(begins) * entries.shape[-1], entries.shape[-1])[:, None]
            for tier, entry in zip(seconds, entries, strict=True):
                tier[: whole * size].reshape(whole, size)[cells[begins]] += entry.ravel()[place]

    def _tables(self, side: _Side, far: Coded) -> Floats:
        """[tiers, flows, pairs of stages x cells, codes]: seconds, where such digits outside the stage differ too."""
        code = np.maximum(np.arange(self._num_levels + 1), self._distance(far).reshape(-1, 1)) * side.flags
        if side.flags > 1:
            flag = (far.ravel() & side.flagging[:, None]) != 0
            code = (code[..., None] + (flag[:, :, None, None] | np.array([False, True]))).reshape(*flag.shape, -1)
        flows = np.arange(len(side.flagging))[:, None, None]
        moved, pieces = (np.repeat(each.T, far.shape[1], axis=1)[..., None] for each in self._moves[-2:])
        table: Floats = side.byte_s[:, flows, code] * moved
        table[0] += side.piece_s[flows, code] * pieces
        return table


def _joined(codes: NDArray[np.uint8], table: Floats, size: int) -> Iterator[tuple[Coded, Floats]]:
    """Patterns with their tables, as many at once as have fewer codes together than a cell has devices.

    [devices], and [tiers, cells, codes].
    """
    joined, entries = codes[0].astype(np.int32), table[:, 0]
    for code, more in zip(codes[1:], table.swapaxes(0, 1)[1:], strict=True):
        if 2 * entries.shape[-1] * more.shape[-1] > size:
            yield joined, entries
            joined, entries = code.astype(np.int32), more
        else:
            joined = joined * more.shape[-1] + code
            entries = (entries[..., None] + more[..., None, :]).reshape(*more.shape[:2], -1)
    yield joined, entries


def _by_level(within: Floats) -> Floats:
    """[flows, levels, …] from [flows, islands, …]: what an island has less what the next smaller one has."""
    return within[:, 1:] - within[:, :-1]


def nested(moves: Moves, levels: Sequence[Level]) -> Nested | None:
    """The closed form of these moves; None where sizes, or stages, or cuts do not nest."""
    if (moves.old_first % moves.old_size).any() or (moves.new_first % moves.new_size).any():
        return None
    sizes = {moves.old_size, moves.new_size, *(level.num_devices for level in levels[:-1])}
    for stride, degree in {digit for flow in moves.flows for cuts in flow for cut in cuts for digit in cut.digits}:
        sizes |= {stride, stride * degree}
    digits = digits_of(sizes, levels[-1].num_devices)
    if digits is None:
        return None
    matched = [_matched(digits, flow, digits.below(moves.old_size)) for flow in moves.flows]
    known = [flow for flow in matched if flow is not None]
    return Nested(moves, levels, digits, known) if len(known) == len(matched) else None


def _matched(digits: Digits, flow: Flow, stage_bits: int) -> _Matched | None:
    pairs: list[tuple[Digit, Digit]] = []
    finest = 1
    for before, after in zip(*flow, strict=True):
        old, new = digits.of(before), digits.of(after)
        if old is None or new is None:
            return None
        both = list(zip(old, new, strict=False))
        if any(one[0] != other[0] for one, other in both):
            return None
        pairs += both
        finest *= max(before.parts, after.parts)
    old_bits, new_bits = (sum(mask(pair[i]) for pair in pairs) for i in (0, 1))
    holders = digits.count(stage_bits & ~old_bits)
    parts = prod(cut.parts for cut in flow[1])
    lacks = holders > 1 and finest > parts
    own_ratio = (1 / parts - 1 / finest) / (holders - 1) if lacks else 0.0
    return _Matched(tuple(pairs), 1 / parts / holders, own_ratio, old_bits, new_bits)


def _shifts(pairs: Sequence[tuple[Digit, Digit]]) -> dict[int, tuple[int, int]]:
    """By how far up a new digit moves to the old one's place, the bits of the old and of the new digits."""
    shifts: dict[int, tuple[int, int]] = {}
    for old, new in pairs:
        bits = shifts.get(old[1] - new[1], (0, 0))
        shifts[old[1] - new[1]] = (bits[0] | mask(old), bits[1] | mask(new))
    return shifts


def _shifted(code: Coded, shift: int) -> Coded:
    return code << shift if shift >= 0 else code >> -shift


def _stages(first: Devices, size: int, *devices: Devices) -> tuple[Devices, ...]:
    """The stages in order, and for each array of devices the number of its stage; one beyond the last for none."""
    stages = np.unique(first)
    found = [stages]
    for each in devices:
        number = np.searchsorted(stages, each, side="right") - 1
        inside = (number >= 0) & (each < stages[number] + size)
        found.append(np.where(inside, number, len(stages)))
    return tuple(found)
