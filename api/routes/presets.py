"""Models, devices and software stacks that are known by name."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path

from api.answers import StrictRoute
from api.profile_store import ProfileStore
from api.routes.parameters import problems
from api.values import PresetList
from planner.spec.model import Model
from profiles import (
    HardwarePreset,
    MeasuredProfile,
    StackPreset,
    device_names,
    device_preset,
    model_names,
    model_preset,
    stack_names,
    stack_preset,
)

ModelName = Annotated[str, Path(description="Name or alias of a model", examples=["mixtral-8x7b"], max_length=200)]
StackName = Annotated[
    str, Path(description="Name or alias of a software stack", examples=["megatron-core-2026"], max_length=200)
]
DeviceName = Annotated[
    str,
    Path(
        description="Name or alias of a device, or name of a measured profile",
        examples=["h100-sxm-80g"],
        max_length=200,
    ),
]


class PresetRoutes:
    """Routes under /models, /devices and /stacks."""

    def __init__(self, profiles: ProfileStore) -> None:
        self._profiles = profiles

    def router(self) -> APIRouter:
        """All routes."""
        router = APIRouter(tags=["presets"], route_class=StrictRoute)
        add, misses = router.add_api_route, problems(404, 422)
        for kind, ofs, one, lists, gets in (
            ("models", "Names of models", "One model", self.models, self.model),
            ("devices", "Names of devices", "One device", self.devices, self.device),
            ("stacks", "Names of software stacks", "One stack", self.stacks, self.stack),
        ):
            all_of = f"list_{kind}"
            add(f"/{kind}", lists, methods=["GET"], operation_id=all_of, summary=ofs, responses=problems(422))
            get = f"get_{kind.removesuffix('s')}"
            add(f"/{kind}/{{name}}", gets, methods=["GET"], operation_id=get, summary=one, responses=misses)
        return router

    def models(self) -> PresetList:
        """Names that `{"preset": …}` takes; each has aliases besides."""
        return PresetList(items=tuple(model_names()))

    def model(self, name: ModelName) -> Model:
        """Its layers with their shapes."""
        return model_preset(name)

    def devices(self) -> PresetList:
        """Names that a cluster's `device` takes: presets, which have aliases besides, and measured profiles."""
        return PresetList(items=tuple(sorted({*device_names(), *self._profiles.names()})))

    def device(self, name: DeviceName) -> MeasuredProfile | HardwarePreset:
        """A preset with its usual node and network and the sources of its numbers, or a measured profile."""
        return self._profiles.find(name) or device_preset(name)

    def stacks(self) -> PresetList:
        """Names that a cluster's `stack` takes; each has aliases besides."""
        return PresetList(items=tuple(stack_names()))

    def stack(self, name: StackName) -> StackPreset:
        """What the software adds and hides, and the sources of the numbers."""
        return stack_preset(name)
