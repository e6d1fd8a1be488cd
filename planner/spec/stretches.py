"""How layers are dealt to stages: unbroken stretches, and the cuts that are as even as blocks allow."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from planner.spec.model import Block, Embedding, Head, Model, PatchEmbedding
from planner.spec.plan import StageRun
from planner.spec.strategy import Strategy

Stretches = tuple[tuple[int, int], ...]
"""Unbroken stretches of layers: (first layer, end layer)."""


def equal_pieces(model: Model, num_stages: int, virtual_stages: int) -> tuple[Stretches, ...] | None:
    """Stretches of each stage when the blocks are cut into equal pieces, dealt to the stages in turn.

    The embedding joins the first piece, the head the last. None if the blocks do not divide.
    """
    blocks = [number for number, layer in enumerate(model.layers) if isinstance(layer, Block)]
    size, rest = divmod(len(blocks), num_stages * virtual_stages)
    if rest or not size:
        return None
    starts = [blocks[piece * size] for piece in range(num_stages * virtual_stages)]
    starts[0] = 0
    ends = [*starts[1:], len(model.layers)]
    pieces = list(zip(starts, ends, strict=True))
    return tuple(tuple(pieces[stage::num_stages]) for stage in range(num_stages))


def even_stretches(model: Model, num_stages: int) -> tuple[Stretches, ...] | None:
    """Stages with as equal numbers of blocks as possible, fewer where the embedding and the head are."""
    edges = sum(isinstance(layer, Embedding | PatchEmbedding | Head) for layer in model.layers)
    blocks = len(model.layers) - edges
    size, rest = divmod(blocks, num_stages)
    if not size:
        return None
    # The middle stages first, then the first, then the last.
    order = sorted(range(num_stages), key=lambda stage: (stage == num_stages - 1, stage == 0, stage))
    longer = set(order[:rest])
    ends = [isinstance(model.layers[0], Embedding | PatchEmbedding) + 0]
    for stage in range(num_stages):
        ends.append(ends[-1] + size + (stage in longer))
    ends[0], ends[-1] = 0, len(model.layers)
    return tuple(((first, end),) for first, end in pairwise(ends))


def runs_of(stretches: Stretches, strategies: Sequence[Strategy]) -> tuple[StageRun, ...]:
    """The runs of a stage with these stretches, and one strategy for each of their layers, in order."""
    runs: list[StageRun] = []
    remaining = iter(strategies)
    for first, end in stretches:
        begin = first
        current = next(remaining)
        for layer in range(first + 1, end):
            following = next(remaining)
            if following != current:
                runs.append(StageRun(first_layer=begin, num_layers=layer - begin, strategy=current))
                begin, current = layer, following
        runs.append(StageRun(first_layer=begin, num_layers=end - begin, strategy=current))
    return tuple(runs)
