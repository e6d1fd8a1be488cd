"""The routers that are known: one row per framework, with the version in which it was read.

Routers' outputs are counted, never the frameworks' own counters: those also grow in evaluation and recomputation
(`AutoEPMoELayer.tokens_per_expert`, torchtitan's `tokens_per_expert_E`), or are not there in every configuration
(Megatron's `local_tokens_per_expert`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from runtime.hooks.kinds import RouterKind
from runtime.hooks.routing import Choices, Counts, Routing, RoutingMap


def _first(*names: str) -> Any:
    """The first of these attributes that a router has."""
    return lambda router: next((getattr(router, name) for name in names if hasattr(router, name)), None)


def _second(_router: object, output: Any) -> Routing:
    return Choices(output[1])


def _top_k_of_logits(block: Any, output: object) -> Routing | None:
    """transformers 4: the block chooses itself, and returns (hidden states, router logits [tokens, experts])."""
    if not (isinstance(output, tuple) and len(output) == 2):
        return None
    return Choices(output[1].detach().float().softmax(dim=-1).topk(block.top_k, dim=-1).indices)


def _megatron(_router: object, output: Any) -> Routing:
    """(probabilities, routing map), both [tokens, experts]; after dropping, if there is a capacity."""
    return RoutingMap(output[1])


def _deepspeed_gate(gate: Any, output: Any) -> Routing:
    """(loss, capacity, experts, chosen [top_k, tokens], …, counts before dropping [experts]); older ones: (…, counts).

    Choices that a capacity drops are -1 in `chosen`, so that counts the demand only without dropping.
    """
    if len(output) == 7 and not gate.drop_tokens:
        return Choices(output[3].t())
    return Counts(output[-1], "DeepSpeed's TopKGate tells the choices of each token only with drop_tokens=False")


def _tutel(layer: Any, _output: object) -> Routing | None:
    """After a forward pass, `dispatch_count` [experts] carries the choices `topk_ids` [tokens, top_k]; older: it alone.

    Alone and with batch-prioritised routing, it is no count.
    """
    counts = getattr(layer, "dispatch_count", None)
    choices = getattr(counts, "topk_ids", None)
    if isinstance(choices, Tensor):
        return Choices(choices)
    if counts is None or layer.batch_prioritized_routing:
        return None
    return Counts(counts, "this version of Tutel does not keep the choices of each token (topk_ids)")


def _fastmoe(gate: Any, output: Any) -> Routing:
    """(chosen [tokens, top_k] or flat, -1 where dropped, scores)."""
    return Choices(output[0].reshape(-1, gate.top_k))


def _paddle(gate: Any, output: Any) -> Routing:
    """(values, chosen [tokens, top_k], -1 where dropped), as Paddle's tensors: taken over without a copy."""
    return Choices(torch.from_dlpack(output[1]).reshape(-1, gate.top_k))  # type: ignore[attr-defined]


HUGGING_FACE = ("*TopKRouter", "*TopkRouter", "*TokenChoiceRouter", "*HashRouter", "*Gemma*TextRouter")
HUGGING_FACE_4_BLOCKS = tuple(
    f"{family}SparseMoeBlock"
    for family in ("Mixtral", "Qwen2Moe", "Qwen3Moe", "Qwen3Next", "Olmoe", "FlexOlmo", "MiniMax", "Jamba")
)

ROUTERS = (
    RouterKind("runtime", ("ExpertRouter",)),
    # transformers 5.23.0: (logits [tokens, experts], weights [tokens, top_k], indices [tokens, top_k]);
    # 4.57.6: (indices, weights), and (scores [tokens, experts], indices) of GptOssTopKRouter.
    RouterKind("transformers", HUGGING_FACE, num_experts=_first("num_experts", "n_routed_experts")),
    RouterKind("transformers_modules", HUGGING_FACE, num_experts=_first("num_experts", "n_routed_experts")),
    RouterKind("transformers", HUGGING_FACE_4_BLOCKS, _top_k_of_logits),  # 4.57.6
    RouterKind("megatron", ("TopKRouter",), _megatron),  # megatron-core 0.16.1, and Megatron-LM of August 2026
    RouterKind("deepspeed", ("TopKGate",), _deepspeed_gate, lambda gate: gate.wg.out_features),  # 0.19.8
    # DeepSpeed 0.19.8, AutoEP: (scores, chosen [tokens, top_k], counts [experts])
    RouterKind("deepspeed", ("TokenChoiceTopKRouter",), _second),
    # torchtitan 0.3.0: (scores, chosen [batch, length, top_k], scores of all); also DTensors
    RouterKind("torchtitan", ("TokenChoiceTopKRouter",), _second),
    RouterKind("tutel", ("MOELayer",), _tutel, _first("num_global_experts")),  # main, read in November 2026
    RouterKind("fmoe", ("BaseGate",), _fastmoe, _first("tot_expert")),  # main, read in November 2026
    # Paddle develop, read in November 2026; without gradients, its outputs say stop_gradient
    RouterKind("paddle", ("BaseGate",), _paddle, _first("tot_expert"), lambda output: not output[0].stop_gradient),
)
"""All routers that are known; a framework is added by a row."""
