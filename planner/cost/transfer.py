"""Seconds to carry state between devices over the tiers of links. Knows devices and bytes, no model and no plan."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from planner.spec.cluster import Level


def transfer_s(levels: tuple[Level, ...], senders: ArrayLike, receivers: ArrayLike, moved_bytes: ArrayLike) -> float:
    """Seconds until all messages are delivered: message i takes `moved_bytes[i]` from one device to another.

    A device sends its messages one after the other and receives them one after the other, both at once:
    time = max over devices and directions of the sum over levels of
    (messages x latency + max(bytes / device's rate, most bytes with one peer / rate of a pair)).
    Which level a message takes is the nearest one whose islands hold both devices. Messages of a device to itself
    are free. Devices are numbered as in the cluster.
    """
    sender, receiver = np.asarray(senders, dtype=np.int64), np.asarray(receivers, dtype=np.int64)
    size = np.broadcast_to(np.asarray(moved_bytes, dtype=np.float64), sender.shape)
    crossing = (sender != receiver) & (size > 0)
    sender, receiver, size = sender[crossing], receiver[crossing], size[crossing]
    if not size.size:
        return 0.0
    level_of = _nearest_level(levels, sender, receiver)
    sending, receiving = np.zeros(levels[-1].num_devices), np.zeros(levels[-1].num_devices)
    for number, level in enumerate(levels):
        used = level_of == number
        sending += _busy_s(level, sender[used], receiver[used], size[used], len(sending))
        receiving += _busy_s(level, receiver[used], sender[used], size[used], len(sending))
    return float(max(sending.max(), receiving.max()))


def _nearest_level(
    levels: tuple[Level, ...], sender: NDArray[np.int64], receiver: NDArray[np.int64]
) -> NDArray[np.int64]:
    together = np.stack([sender // level.num_devices == receiver // level.num_devices for level in levels])
    return np.asarray(together.argmax(axis=0), dtype=np.int64)


def _busy_s(
    level: Level, device: NDArray[np.int64], peer: NDArray[np.int64], size: NDArray[np.float64], num_devices: int
) -> NDArray[np.float64]:
    """[devices]: how long each device is busy in one direction on this level."""
    if not size.size:
        return np.zeros(num_devices)
    link = level.link
    sizes = np.bincount(device, weights=size, minlength=num_devices)
    messages = np.bincount(device, minlength=num_devices)
    streaming = sizes / link.bytes_per_s
    if link.pair_bytes_per_s < link.bytes_per_s:
        largest = _most_with_one_peer(device * num_devices + peer, size, num_devices)
        streaming = np.maximum(streaming, largest / link.pair_bytes_per_s)
    return np.asarray(streaming + messages * link.latency_s, dtype=np.float64)


def _most_with_one_peer(pair: NDArray[np.int64], size: NDArray[np.float64], num_devices: int) -> NDArray[np.float64]:
    """[devices]: most bytes that a device exchanges with one peer; `pair` numbers device and peer."""
    pairs, number = np.unique(pair, return_inverse=True)
    largest = np.zeros(num_devices)
    np.maximum.at(largest, pairs // num_devices, np.bincount(number, weights=size))
    return largest
