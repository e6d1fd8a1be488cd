"""The all-to-all under an uneven load takes as long as its busiest rank, message by message."""

import numpy as np
import pytest
from cost_samples import cluster
from hypothesis import given
from hypothesis import strategies as st

from planner.cost.collectives import all_to_all_s, tiers
from planner.cost.load import load_ratios

RANKS, BYTES = 8, 1e9
LEVELS = cluster(2, 4).levels
GROUP = ((RANKS, 1),)


def busiest_s(sent):
    """Over devices, directions and tiers, the longest; `sent` [from, to] in bytes."""
    islands = [np.arange(RANKS) // level.num_devices for level in LEVELS]
    longest, nearer = 0.0, np.eye(RANKS, dtype=bool)
    for tier, island in zip(tiers(LEVELS, GROUP), islands, strict=True):
        together = island[:, None] == island[None, :]
        crossing = np.where(together & ~nearer, sent, 0.0)
        busy = max(crossing.sum(axis=1).max(), crossing.sum(axis=0).max())
        longest, nearer = max(longest, busy / tier.bytes_per_s), together
    return longest


@given(st.lists(st.integers(1, 50), min_size=16, max_size=16), st.permutations(range(16)), st.integers(0, 15))
def test_an_uneven_exchange_takes_as_long_as_an_even_one_of_the_busiest_ranks_size(weights, order, copied):
    shares = np.array(weights) / sum(weights)
    row = [expert for rank in range(RANKS) for expert in (*order[2 * rank : 2 * rank + 2], (copied + rank) % 16)]
    counts = np.bincount(row, minlength=16)
    loads = np.array([sum(shares[e] / counts[e] for e in row[3 * rank : 3 * rank + 3]) for rank in range(RANKS)])
    sent = np.tile(loads * BYTES, (RANKS, 1))
    ratio = float(load_ratios(shares, RANKS, row))
    latency_s = all_to_all_s(LEVELS, GROUP, 1e-9)
    priced_s = all_to_all_s(LEVELS, GROUP, ratio * BYTES) - latency_s
    assert priced_s == pytest.approx(busiest_s(sent), rel=1e-6)
