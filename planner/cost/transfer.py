"""Seconds to carry state between devices over the tiers of links. Knows devices and bytes, no model and no plan."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from planner.spec.cluster import Level

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]


def transfer_s(levels: tuple[Level, ...], senders: ArrayLike, receivers: ArrayLike, moved_bytes: ArrayLike) -> float:
    """Seconds until all messages are delivered: message i takes `moved_bytes[i]` from one device to another.

    See `transfers_s`.
    """
    return float(transfers_s(levels, np.zeros(np.shape(senders)), senders, receivers, moved_bytes, num_batches=1)[0])


def transfers_s(
    levels: tuple[Level, ...],
    batches: ArrayLike,
    senders: ArrayLike,
    receivers: ArrayLike,
    moved_bytes: ArrayLike,
    num_batches: int,
    parts: ArrayLike = 1,
) -> Floats:
    """[batches] seconds until all messages of a batch are delivered; message i belongs to batch `batches[i]`.

    A device sends its messages one after the other and receives them one after the other, both at once:
    time = max over devices and directions of the sum over levels of
    (messages x latency + max(bytes / device's rate, most bytes with one peer / rate of a pair)).
    A message in several `parts` has the latency of each. Which level a message takes is the nearest one whose islands
    hold both devices. Messages of a device to itself are free. Devices are numbered as in the cluster.
    """
    sender, receiver = np.asarray(senders, dtype=np.int64), np.asarray(receivers, dtype=np.int64)
    given = (np.asarray(batches, dtype=np.int64), np.asarray(moved_bytes, float), np.asarray(parts, float))
    batch, size, count = (np.broadcast_to(each, sender.shape) for each in given)
    crossing = (sender != receiver) & (size > 0)
    if not crossing.any():
        return np.zeros(num_batches)
    if not crossing.all():
        batch, sender, receiver, size, count = (each[crossing] for each in (batch, sender, receiver, size, count))
    level_of = _nearest_level(levels, sender, receiver)
    # Devices of different batches have nothing to do with each other: they get numbers of their own.
    num_devices = int(max(sender.max(), receiver.max())) + 1
    sender, receiver = sender + batch * num_devices, receiver + batch * num_devices
    sending, receiving = np.zeros(num_batches * num_devices), np.zeros(num_batches * num_devices)
    for number, level in enumerate(levels):
        used = level_of == number
        sent = (size[used], count[used], len(sending))
        sending += _busy_s(level, sender[used], receiver[used], *sent)
        receiving += _busy_s(level, receiver[used], sender[used], *sent)
    busy: Floats = np.maximum(sending, receiving).reshape(num_batches, num_devices).max(axis=1)
    return busy


def _nearest_level(levels: tuple[Level, ...], sender: Integers, receiver: Integers) -> Integers:
    together = np.stack([sender // level.num_devices == receiver // level.num_devices for level in levels])
    return np.asarray(together.argmax(axis=0), dtype=np.int64)


def _busy_s(level: Level, device: Integers, peer: Integers, size: Floats, count: Floats, num_devices: int) -> Floats:
    """[devices]: how long each device is busy in one direction on this level."""
    if not size.size:
        return np.zeros(num_devices)
    link = level.link
    sizes = np.bincount(device, weights=size, minlength=num_devices)
    messages = np.bincount(device, weights=count, minlength=num_devices)
    streaming = sizes / link.bytes_per_s
    if link.pair_bytes_per_s < link.bytes_per_s:
        largest = _most_with_one_peer(device * num_devices + peer, size, num_devices)
        streaming = np.maximum(streaming, largest / link.pair_bytes_per_s)
    return np.asarray(streaming + messages * link.latency_s, dtype=np.float64)


def _most_with_one_peer(pair: Integers, size: Floats, num_devices: int) -> Floats:
    """[devices]: most bytes that a device exchanges with one peer; `pair` numbers device and peer."""
    pairs, number = np.unique(pair, return_inverse=True)
    largest = np.zeros(num_devices)
    np.maximum.at(largest, pairs // num_devices, np.bincount(number, weights=size))
    return largest
