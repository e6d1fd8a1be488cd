"""How long devices are busy sending and receiving, level by level, by the rules of `planner.cost.transfer`.

time = max over devices and directions of the sum over levels of
(messages x latency + max(bytes / device's rate, most bytes with one peer / rate of a pair)).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from planner.cost.holding import Devices
from planner.spec.cluster import Level

Floats = NDArray[np.float64]
_AT_ONCE = 1 << 16
"""Pairs of devices that are looked at together."""


class Sends(Protocol):
    """Something that goes over between devices."""

    def add(self, busy: Busy) -> None:
        """Add the seconds that it takes."""

    def pair_bytes(self, senders: Devices, receivers: Devices) -> Floats:
        """Bytes from each sender to its receiver; arrays of one shape."""


class Busy:
    """Seconds that devices send and receive: two arrays [tiers, devices] to add to.

    A tier streams over levels whose links make no difference between one peer and many: the first over all of them,
    with the latency of the messages on any level; the others over one level each whose pairs are limited.
    """

    def __init__(self, levels: Sequence[Level]) -> None:
        self.levels = levels
        self.num_devices = levels[-1].num_devices
        limited = [number for number, level in enumerate(levels) if _is_limited(level)]
        self._streaming = np.zeros((1 + len(limited), len(levels)))
        for number, level in enumerate(levels):
            tier = 1 + limited.index(number) if number in limited else 0
            self._streaming[tier, number] = 1.0 / level.link.bytes_per_s
        self._latency_s = np.array([level.link.latency_s for level in levels])
        self._limited = limited
        self.sending = np.zeros((1 + len(limited), self.num_devices))
        self.receiving = np.zeros_like(self.sending)

    def seconds(self, sizes: Floats, messages: Floats) -> tuple[Floats, Floats]:
        """([tiers, …, devices], […, devices]): to stream sizes […, levels, devices], and latency of the messages."""
        tiers = self._streaming.reshape(len(self._streaming), *[1] * (sizes.ndim - 2), 1, -1)
        return (tiers @ sizes)[..., 0, :], self._latency_s @ messages

    def longest_s(self, sent: Sequence[Sends]) -> float:
        """Seconds until all is delivered, `sent` being all that was added."""
        sending, receiving = self.sending[0].copy(), self.receiving[0].copy()
        for tier, number in enumerate(self._limited, start=1):
            level, inner = self.levels[number], self.levels[number - 1].num_devices if number else 1
            most_sent, most_received = _most_with_one_peer(sent, len(sending), level.num_devices, inner)
            rate = level.link.pair_bytes_per_s
            sending += np.maximum(self.sending[tier], most_sent / rate)
            receiving += np.maximum(self.receiving[tier], most_received / rate)
        return float(max(sending.max(), receiving.max()))


def _is_limited(level: Level) -> bool:
    return level.link.pair_bytes_per_s < level.link.bytes_per_s


def _most_with_one_peer(sent: Sequence[Sends], num_devices: int, island: int, inner: int) -> tuple[Floats, Floats]:
    """([devices], [devices]): most bytes sent to, and received from, one peer of the island outside the inner one."""
    most_sent, most_received = np.zeros(num_devices), np.zeros(num_devices)
    for senders in _peers(num_devices, island):
        receivers = np.broadcast_to(np.arange(num_devices), senders.shape)
        size = sum((each.pair_bytes(senders, receivers) for each in sent), np.zeros(senders.shape))
        size[senders // inner == receivers // inner] = 0.0
        most_received = np.maximum(most_received, size.max(axis=0))
        for sender, moved in zip(senders, size, strict=True):
            most_sent[sender] = np.maximum(most_sent[sender], moved)
    return most_sent, most_received


def _peers(num_devices: int, island: int) -> Iterator[Devices]:
    """[some shifts, devices]: other devices of each device's island, in every row another one of each device."""
    devices = np.arange(num_devices)
    begin = devices // island * island
    # The last island may be smaller: there, some peers come up again.
    size = np.minimum(island, num_devices - begin)
    step = max(1, _AT_ONCE // num_devices)
    for shift in range(1, island, step):
        shifts = np.arange(shift, min(shift + step, island))[:, None]
        yield begin + (devices - begin + shifts) % size
