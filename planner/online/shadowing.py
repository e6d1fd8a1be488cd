"""What to hold in shadow slots: as much as pays for being fetched and given back in every step.

A filled slot costs seconds in every step, and so does load on the hottest rank; their ratio is the price of a shadow
expert in load, and `Options.choose` takes what is worth it. Then `estimate` prices what was chosen.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from planner.cost import Seats
from planner.cost.balance import Floats
from planner.online.placement.shadows import lasting_slots, left_idle, shadow_options, with_idle_shadows
from planner.online.pricing import Pricing, served
from planner.spec.plan import Plan


def idle_seats(seats: Seats, loads: Floats) -> Seats:
    """The lasting slots of `seats`, idle shadow slots for `loads` [L, E], no split."""
    ranks, shadows = seats.num_ranks, seats.shadow_slots_per_rank
    lasting = lasting_slots(seats.layers, ranks, shadows)
    return seats._replace(layers=with_idle_shadows(lasting, loads, ranks, shadows), split=None)


def shadow_price(pricing: Pricing, plan: Plan, shares: Floats, seats: Seats) -> float:
    """Load on a layer's hottest rank, in shares, that costs as much time as one filled shadow slot; infinite if none.

    `shares` [W, L, E] of some windows, as the gate chose.
    """
    loads, rates = served(shares, pricing.context.training), pricing.rates(plan, seats)
    idle = idle_seats(seats, loads.mean(axis=0))
    steps = pricing.steps(plan, [(each, idle) for each in shares])
    to_gain_s = sum(step.seconds - rates.balanced_s for step in steps)
    hottest = (float(pricing.rank_loads(each, idle).max(axis=1).sum()) for each in loads)
    to_relieve = sum(each - rates.balanced_hottest for each in hottest)
    if to_gain_s <= 0.0 or to_relieve <= 0.0:
        return float("inf")
    return rates.shadow_s * to_relieve / to_gain_s


def shadowed(
    pricing: Pricing, plan: Plan, shares: Floats, seats: Seats, strictness: tuple[float, ...]
) -> Iterator[Seats]:
    """`seats` with other shadow experts for `shares` [L, E], without a split: each is worth that many times its price.

    Slots that are worth filling for none of the layers stay idle. Equal ones come once.
    """
    loads = served(shares, pricing.context.training)
    price = shadow_price(pricing, plan, shares[None], seats)
    found = shadow_options(loads, seats, pricing.context.token_split)
    seen: set[bytes] = set()
    for times in strictness:
        slots = found.slots[0] if np.isinf(price) or np.isinf(times) else found.choose(times * price)
        slots = left_idle(slots, seats.layers, seats.num_ranks, seats.shadow_slots_per_rank)
        if slots.tobytes() not in seen:
            seen.add(slots.tobytes())
            yield seats._replace(layers=slots, split=None)


def shadowed_by_window(pricing: Pricing, shares: Floats, seats: Seats, price: float) -> list[Seats]:
    """`seats` with the shadow experts that are worth it in each window of `shares` [W, L, E], without a split.

    `price` of one: see `shadow_price`. All windows are searched at once, as so many layers.
    """
    windows, layers, experts = shares.shape
    every = seats._replace(layers=np.tile(seats.layers, (windows, 1)), split=None)
    loads = served(shares, pricing.context.training).reshape(windows * layers, experts)
    found = shadow_options(loads, every, pricing.context.token_split)
    slots = found.slots[0] if np.isinf(price) else found.choose(price)
    return [seats._replace(layers=each, split=None) for each in slots.reshape(windows, layers, -1)]
