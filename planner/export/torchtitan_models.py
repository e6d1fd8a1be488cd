"""Which of torchtitan's models a model is, by its name and sizes.

Source: `models/*/__init__.py` of v0.2.2 (names and flavors), `models/*/config_registry.py` of 0.3.0 (configs).
"""

from __future__ import annotations

from typing import NamedTuple

from planner.spec.model import Block, Model


class Flavor(NamedTuple):
    """One model of torchtitan's."""

    name: str
    flavor: str
    config: str
    """From 0.3 on: the function of its config registry; empty: there is none."""
    num_blocks: int
    hidden_size: int


_FLAVORS = {
    "llama-3.1-8b": Flavor("llama3", "8B", "llama3_8b", 32, 4096),
    "llama-3.1-70b": Flavor("llama3", "70B", "llama3_70b", 80, 8192),
    "llama-3.1-405b": Flavor("llama3", "405B", "llama3_405b", 126, 16384),
    "qwen3-8b": Flavor("qwen3", "8B", "", 36, 4096),
    "qwen3-32b": Flavor("qwen3", "32B", "qwen3_32b", 64, 5120),
    "qwen3-30b-a3b": Flavor("qwen3", "30B-A3B", "qwen3_30b_a3b", 48, 2048),
    "qwen3-235b-a22b": Flavor("qwen3", "235B-A22B", "", 94, 4096),
    "deepseek-v2-lite": Flavor("deepseek_v3", "16B", "deepseek_v3_16b", 27, 2048),
    "deepseek-v3": Flavor("deepseek_v3", "671B", "deepseek_v3_671b", 61, 7168),
    "gpt-oss-20b": Flavor("gpt_oss", "20b", "gpt_oss_20b", 24, 2880),
    "gpt-oss-120b": Flavor("gpt_oss", "120b", "gpt_oss_120b", 36, 2880),
}


def flavor_of(model: Model) -> Flavor | None:
    """The model of torchtitan's with this name and these sizes, None if it is none that is known."""
    found = _FLAVORS.get(model.name)
    blocks = sum(isinstance(layer, Block) for layer in model.layers)
    return found if found and (blocks, model.hidden_size) == (found.num_blocks, found.hidden_size) else None
