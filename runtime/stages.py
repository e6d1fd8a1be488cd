"""The expert-parallel layers of one rank among those of all pipeline stages: one placement, carried out by all or none.

Each expert-parallel group moves the experts of its own layers, so nothing goes from stage to stage; that all stages are
ready is agreed upon by all ranks before the first expert moves.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from planner.spec.errors import InputError
from planner.spec.placement import Placement
from planner.spec.value import content_id
from runtime.agreement import all_or_none
from runtime.exchange import Group
from runtime.migration import Prepared, placement_of, prepare
from runtime.moe import ExpertParallelMoe
from runtime.shares import HeldLayer
from runtime.slots import SlotMap, as_slot_maps


def as_one_module(model: nn.Module | Sequence[nn.Module]) -> nn.Module:
    """All chunks of a model on this rank, their modules in order."""
    if isinstance(model, nn.Module):
        return model
    return model[0] if len(model) == 1 else nn.ModuleList(model)


def device_of(model: object) -> torch.device:
    """Of the first parameter; the CPU if there is none, or if this is no model."""
    chunks = model if isinstance(model, Sequence) else [model]
    modules = (chunk for chunk in chunks if isinstance(chunk, nn.Module))
    return next((parameter.device for module in modules for parameter in module.parameters()), torch.device("cpu"))


class Stage:
    """This rank's expert-parallel layers (none: not ours, or not here), and where the experts of all layers sit."""

    def __init__(self, model: Sequence[HeldLayer], layers: Sequence[ExpertParallelMoe], numbers: Sequence[int]) -> None:
        """`model`: all MoE layers; `numbers`: which of them are this rank's `layers`."""
        self._experts = [layer.num_experts for layer in model]
        self._maps = [slots for layer in model if (slots := layer.slot_map) is not None]
        self._layers = layers
        self._numbers = numbers[: len(layers)]

    def placement(self) -> Placement | None:
        """Of all layers of the model; None if they are not ours."""
        self.newly_placed()
        return placement_of(self._maps) if self._maps else None

    def newly_placed(self) -> list[ExpertParallelMoe]:
        """This rank's layers whose experts others than `migrate` below have placed anew since the last call."""
        found = []
        for number, layer in zip(self._numbers, self._layers, strict=True):
            if layer.slot_map != self._maps[number]:
                found.append(layer)
            self._maps[number] = layer.slot_map
        return found

    def migrate(
        self, target: Placement, optimizer: torch.optim.Optimizer | None, group: Group | None, device: torch.device
    ) -> int:
        """Bring the experts of all layers of the model to `target`; a collective over `group`, all ranks of all stages.

        Returns the experts that moved in this rank's layers. Raises on all ranks if one refuses, as
        `runtime.migration.migrate` does; then nothing has changed on any.
        """

        def ready() -> tuple[str, tuple[list[SlotMap], Prepared | None]]:
            if len(target.layers) != len(self._experts):  # on all ranks alike: none waits for another
                wrong = f"has {len(target.layers)} layers, the model has {len(self._experts)}"
                raise InputError.at("placement.layers", wrong)
            maps = as_slot_maps(target, self._experts)
            mine = part_of(target, self._numbers) if self._layers else None
            prepared = None if mine is None else prepare(self._layers, mine, optimizer)
            return content_id(target.model_dump(mode="json")), (maps, prepared)

        self._maps, prepared = all_or_none(ready, "the migration", group, device)
        return 0 if prepared is None else prepared.carry_out().moved_experts


def part_of(placement: Placement, layers: Sequence[int]) -> Placement:
    """The placement of some of its layers, in their order."""
    split = placement.split
    return Placement(
        layers=tuple(placement.layers[layer] for layer in layers),
        num_ranks=placement.num_ranks,
        shadow_slots_per_rank=placement.shadow_slots_per_rank,
        split=None if split is None else tuple(split[layer] for layer in layers),
    )
