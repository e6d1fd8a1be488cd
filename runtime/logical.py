"""The state of a model and its optimizer by logical expert: names that no rank, slot or replica changes.

`blocks.0.experts.experts.7.up` is a weight of expert 7 of that layer, wherever it sits; all other names are torch's. On
one process with experts in order, these are the names of `model.state_dict()`. A pipeline stage uses the names of the
whole model (`runtime.parts`). The optimizer's tensors stand under the names of their parameters. Shadow experts have no
state of their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from planner.spec.errors import InputError
from runtime.parts import Part, join_names

Held = dict[str, list[Tensor]]
"""What this rank holds under each name: more than one tensor if it has replicas of an expert, all of the same bits."""


def held_by(part: Part) -> Held:
    """Parameters and persistent buffers of this rank, by logical name; raises InputError for other kinds of state."""
    experts = dict(_expert_names(part))
    own_states = {join_names([prefix, "_extra_state"]) for prefix, _ in part.layers()}
    held: Held = {}
    for name, value in part.state():
        if name in own_states:
            continue
        if not isinstance(value, Tensor):
            raise InputError.at("model", f"has {name!r} in its state, which is no tensor")
        held.setdefault(experts.get(name, name), []).append(value)
    return held


def all_names(part: Part) -> set[str]:
    """Names of `held_by` on all ranks of a stage: every expert has the weights that the experts of this rank have."""
    names = held_by(part).keys() - {logical for _, logical in _expert_names(part)}
    for prefix, layer in part.layers():
        for weight, _ in layer.experts[0].named_parameters():
            names |= {join_names([prefix, f"experts.{expert}.{weight}"]) for expert in range(layer.num_experts)}
    return names


def one_name_each(part: Part, optimizer: torch.optim.Optimizer) -> list[str]:
    """The logical name of each parameter of the optimizer, in its order; raises InputError for a stranger."""
    names: dict[int, str] = {}
    for name, tensors in held_by(part).items():
        for tensor in tensors:
            names.setdefault(id(tensor), name)
    parameters = parameters_of(optimizer)
    if strangers := [tuple(p.shape) for p in parameters if id(p) not in names]:
        raise InputError.at("optimizer", f"holds a parameter of shape {strangers[0]} that the model does not have")
    return [names[id(parameter)] for parameter in parameters]


def parameters_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """All parameters, in the order in which `Optimizer.state_dict` numbers them."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def optimizer_state(part: Part, optimizer: torch.optim.Optimizer) -> dict[tuple[str, str], Tensor]:
    """The optimizer's tensors by (what it calls them, logical name); raises InputError for other kinds of state."""
    found = {}
    for name, parameter in zip(one_name_each(part, optimizer), parameters_of(optimizer), strict=True):
        for key, value in optimizer.state.get(parameter, {}).items():
            if not isinstance(value, Tensor):
                raise InputError.at("optimizer", f"keeps {key!r} as {type(value).__name__}; only tensors can be saved")
            found[key, name] = value
    return found


def options_of(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """The options of each group of parameters: learning rate and the like, as plain data."""
    return [
        {key: _plain(key, value) for key, value in group.items() if key != "params"} for group in optimizer.param_groups
    ]


def restore(
    optimizer: torch.optim.Optimizer,
    names: Sequence[str],
    options: Sequence[dict[str, Any]],
    state: dict[tuple[str, str], Tensor],
) -> None:
    """Give each parameter (`names` in the optimizer's order) its tensors, and each group its options."""
    by_name: dict[str, dict[str, Tensor]] = {}
    for (key, name), tensor in state.items():
        by_name.setdefault(name, {})[key] = tensor
    numbers = iter(range(len(names)))
    groups = [
        {**_with_tuples(found), "params": [next(numbers) for _ in group["params"]]}
        for found, group in zip(options, optimizer.param_groups, strict=True)
    ]
    tensors = {
        number: {key: tensor.clone() for key, tensor in by_name[name].items()}
        for number, name in enumerate(names)
        if name in by_name
    }
    optimizer.load_state_dict({"state": tensors, "param_groups": groups})
    for number, parameter in enumerate(parameters_of(optimizer)):
        # It has cast them to the number format of the parameter: of master weights that would be a loss.
        for key, tensor in tensors.get(number, {}).items():
            if (cast := optimizer.state[parameter][key]).dtype != tensor.dtype:
                optimizer.state[parameter][key] = tensor.to(cast.device)


def _plain(key: str, value: object) -> object:
    if isinstance(value, Tensor) and value.numel() == 1:
        return value.item()
    if isinstance(value, list | tuple):
        return [_plain(key, part) for part in value]
    if value is not None and not isinstance(value, bool | int | float | str):
        raise InputError.at("optimizer", f"has the option {key!r} as {type(value).__name__}, which cannot be saved")
    return value


def _with_tuples(options: dict[str, Any]) -> dict[str, Any]:
    """JSON has no tuples, torch's optimizers no lists."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}


def _expert_names(part: Part) -> Iterator[tuple[str, str]]:
    """From torch's names, which number the slots of this rank, to logical names."""
    for prefix, layer in part.layers():
        for local, (slot, expert) in enumerate(zip(layer.local_slots, layer.experts, strict=False)):
            for weight, _ in expert.named_parameters():
                logical = join_names([prefix, f"experts.{layer.slots[slot]}.{weight}"])
                yield join_names([prefix, f"experts.{local}.{weight}"]), logical
