"""Models, devices and software stacks that are known by name."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path

from api.routes.parameters import problems
from api.values import PresetList
from planner.spec.model import Model
from profiles import (
    HardwarePreset,
    StackPreset,
    device_names,
    device_preset,
    model_names,
    model_preset,
    stack_names,
    stack_preset,
)

ModelName = Annotated[str, Path(examples=["mixtral-8x7b"], max_length=200)]
StackName = Annotated[str, Path(examples=["megatron-core-2026"], max_length=200)]
DeviceName = Annotated[str, Path(examples=["h100-sxm-80g"], max_length=200)]


def preset_router() -> APIRouter:
    """Routes under /models, /devices and /stacks."""
    router = APIRouter(tags=["presets"])
    add, misses = router.add_api_route, problems(404, 422)
    add("/models", _models, methods=["GET"], operation_id="list_models", summary="Names of models")
    add("/models/{name}", _model, methods=["GET"], operation_id="get_model", summary="One model", responses=misses)
    add("/devices", _devices, methods=["GET"], operation_id="list_devices", summary="Names of devices")
    add("/devices/{name}", _device, methods=["GET"], operation_id="get_device", summary="One device", responses=misses)
    add("/stacks", _stacks, methods=["GET"], operation_id="list_stacks", summary="Names of software stacks")
    add("/stacks/{name}", _stack, methods=["GET"], operation_id="get_stack", summary="One stack", responses=misses)
    return router


def _models() -> PresetList:
    """Names that `{"preset": …}` takes; each has aliases besides."""
    return PresetList(items=tuple(model_names()))


def _model(name: ModelName) -> Model:
    """Its layers with their shapes."""
    return model_preset(name)


def _devices() -> PresetList:
    """Names that a cluster's `device` takes; each has aliases besides."""
    return PresetList(items=tuple(device_names()))


def _device(name: DeviceName) -> HardwarePreset:
    """The device with its usual node and network, and the sources of the numbers."""
    return device_preset(name)


def _stacks() -> PresetList:
    """Names that a cluster's `stack` takes; each has aliases besides."""
    return PresetList(items=tuple(stack_names()))


def _stack(name: StackName) -> StackPreset:
    """What the software adds and hides, and the sources of the numbers."""
    return stack_preset(name)
