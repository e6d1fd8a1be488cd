"""Local search on many ranks at once: the hottest rank trades with the coldest, the next with the next, in all layers.

A step costs a few array operations, however many ranks there are. Arrays as in the package's docstring: L layers,
E experts, R ranks, S slots, s = S / R; K pairs. A change of a pair is numbered by a slot of its hot rank and a
slot of its cold one, [L, K, s, s]: a swap, or one more replica of the hot rank's expert in place of a spare one.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from planner.cost.balance import Floats, Indices, replica_counts

PAIRS = 16
"""Most pairs of a step. A choice: with more, a step costs more than the coolest of the hot ranks gain."""

Flags = NDArray[np.bool_]


class _Pairs(NamedTuple):
    """Layers as they stand, hot ranks beside cold ones."""

    loads: Floats
    """[L, E]."""
    counts: Indices
    """[L, E]: replicas."""
    carried: Floats
    """[L, R]."""
    slots: Indices
    """[L, 2, K, s]: numbers of the slots of the hot ranks, and of the cold ones."""
    experts: Indices
    """[L, 2, K, s]."""
    parts: Floats
    """[L, 2, K, s]: load of each slot."""
    peaks: Floats
    """[L, 2, K]: load of each rank."""
    known: Flags
    """[L, 2, K, s]: whether the other rank has the expert too."""


def paired_step(loads: Floats, num_ranks: int, slots: Indices, level: Floats, turn: int, replicate: bool) -> Indices:
    """[L, S]: `slots` after each pair whose hot rank is above its layer's `level` [L] made its best change.

    Best is what lowers the hotter of the two most per moved expert; a change that lowers nothing is not made. Each
    `turn` pairs the hot ranks with other cold ones. Replicas are added and taken only if `replicate`.
    """
    now = _pairs(loads, num_ranks, slots, turn)
    layers, _, pairs, each = now.slots.shape
    gains = _swap_gains(now) / 2
    if replicate:
        gains = np.concatenate([gains, _replica_gains(now)], axis=-1)
    gains = gains.reshape(layers, pairs, -1)
    best = gains.argmax(axis=-1)
    gain = np.take_along_axis(gains, best[..., None], axis=-1)[..., 0]
    mine, theirs = best // (gains.shape[-1] // each), best % (gains.shape[-1] // each)
    replicates = theirs >= each
    theirs = np.where(replicates, theirs - each, theirs)
    made = (gain > 0) & (now.peaks[:, 0] > level[:, None])
    return _applied(now, slots, made, replicates, mine, theirs)


def _pairs(loads: Floats, num_ranks: int, flat: Indices, turn: int) -> _Pairs:
    layers, total = flat.shape
    each = total // num_ranks
    counts = replica_counts(flat, loads.shape[1])
    slot_parts = np.take_along_axis(loads / counts, flat, axis=1)
    carried = slot_parts.reshape(layers, num_ranks, each).sum(axis=-1)
    order = np.argsort(-carried, axis=1, kind="stable")
    pairs = min(num_ranks // 2, PAIRS)
    cold = np.roll(order[:, ::-1][:, :pairs], -turn, axis=1)
    ranks = np.stack([order[:, :pairs], cold], axis=1)
    slots = ranks[..., None] * each + np.arange(each)
    at = np.arange(layers)[:, None, None, None]
    experts = flat[at, slots]
    same = experts[:, 0, :, :, None] == experts[:, 1, :, None, :]
    known = np.stack([same.any(axis=-1), same.any(axis=-2)], axis=1)
    peaks = carried[at[..., 0], ranks]
    return _Pairs(loads, counts, carried, slots, experts, slot_parts[at, slots], peaks, known)


def _swap_gains(now: _Pairs) -> Floats:
    """[L, K, s, s]: by how much the hotter of the two gets less load."""
    passed = now.parts[:, 0, :, :, None] - now.parts[:, 1, :, None, :]
    spread = (now.peaks[:, 0] - now.peaks[:, 1])[:, :, None, None]
    barred = now.known[:, 0, :, :, None] | now.known[:, 1, :, None, :]
    gains: Floats = np.where(barred, -np.inf, np.minimum(passed, spread - passed))
    return gains


def _replica_gains(now: _Pairs) -> Floats:
    """[L, K, s, s]: by how much the hottest of all ranks touched has less load than the hot one had.

    With x the load and c the replicas of an expert, one more replica takes x/c - x/(c+1) from each rank that has it;
    the replaced expert's other ranks get x/(c-1) - x/c more.
    """
    layers = np.arange(len(now.loads))[:, None, None]
    mean = now.loads / now.counts
    added = now.loads / (now.counts + 1)
    burden = np.where(now.counts > 1, now.loads / np.maximum(now.counts - 1, 1) - mean, np.inf)
    hosts = np.zeros_like(now.loads)
    each = now.slots.shape[-1]
    everyone = np.broadcast_to(layers, now.experts[:, 0].shape)
    for side in (0, 1):
        peaks = np.repeat(now.peaks[:, side], each, axis=-1).ravel()
        np.maximum.at(hosts, (everyone.ravel(), now.experts[:, side].ravel()), peaks)
    arriving, replaced = now.experts[:, 0], now.experts[:, 1]
    hot = now.peaks[:, 0, :, None]
    relief = (mean - added)[layers, arriving]
    elsewhere = hot - (hosts + burden)[layers, replaced]
    cold = hot - now.peaks[:, 1, :, None] + now.parts[:, 1]
    there = cold[:, :, None, :] - added[layers, arriving][..., None]
    gains = np.minimum(np.minimum(relief[..., None], there), elsewhere[:, :, None, :])
    result: Floats = np.where(now.known[:, 0, :, :, None], -np.inf, gains)
    return result


def _applied(now: _Pairs, slots: Indices, made: Flags, replicates: Flags, mine: Indices, theirs: Indices) -> Indices:
    """The slots after the changes; of replicas, one added and one taken of each expert, by the hottest pair."""
    layers, pairs = np.nonzero(made)
    mine, theirs, replicates = mine[layers, pairs], theirs[layers, pairs], replicates[layers, pairs]
    hot, cold = now.slots[layers, 0, pairs, mine], now.slots[layers, 1, pairs, theirs]
    # An expert that loses its replica to two pairs could stand nowhere.
    kept = ~replicates
    kept[replicates] = _first(layers[replicates], slots[layers[replicates], cold[replicates]], now.loads.shape)
    added = replicates & kept
    kept[added] = _first(layers[added], slots[layers[added], hot[added]], now.loads.shape)
    changed = slots.copy()
    changed[layers[kept], cold[kept]] = slots[layers[kept], hot[kept]]
    swapped = ~replicates
    changed[layers[swapped], hot[swapped]] = slots[layers[swapped], cold[swapped]]
    return changed


def _first(layers: Indices, experts: Indices, shape: tuple[int, ...]) -> Flags:
    """Whether no earlier entry names the same expert of the same layer."""
    seen = np.full(shape, -1)
    seen[layers[::-1], experts[::-1]] = np.arange(len(layers))[::-1]
    return np.asarray(seen[layers, experts] == np.arange(len(layers)))
