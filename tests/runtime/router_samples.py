"""One MoE layer or router per framework, as a module from hidden states [tokens, HIDDEN] to the same shape.

Real ones where the framework runs on CPU, doubles of `doubles_routers` elsewhere; all choose for each token by itself.
"""

from __future__ import annotations

import warnings
from contextlib import contextmanager

import doubles_routers as doubles
import torch
import transformers
from torch import nn

from planner.spec.model import MoeFeedForward
from runtime.moe import ExpertParallelMoe

HIDDEN, EXPERTS, TOP_K = 16, 8, 2


@contextmanager
def quietly():
    """Imports of frameworks warn of what they lack here, and of their own future."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class Sample(nn.Module):
    """A layer that wants its tokens in another shape, or returns more than its result."""

    def __init__(self, layer, shape=(-1, HIDDEN), result=None):
        super().__init__()
        self.layer, self.shape, self.result = layer, shape, result or (lambda output: output)

    def forward(self, hidden):
        """The layer's result plus the input, so that a router alone passes gradients on too."""
        result = self.result(self.layer(hidden.view(self.shape)))
        return hidden + result.reshape(len(hidden), -1).mean(dim=1, keepdim=True)


def first_floats(output):
    """Of a router's outputs, one that has a gradient."""
    return next(part for part in output if torch.is_tensor(part) and part.requires_grad | part.is_floating_point())


def ours():
    return Sample(ExpertParallelMoe(HIDDEN, MoeFeedForward(num_experts=EXPERTS, top_k=TOP_K, expert_width=8)))


def hugging_face():
    config = transformers.MixtralConfig(
        hidden_size=HIDDEN, intermediate_size=8, num_local_experts=EXPERTS, num_experts_per_tok=TOP_K
    )
    config._experts_implementation = "eager"
    block = transformers.models.mixtral.modeling_mixtral.MixtralSparseMoeBlock(config)
    for parameter in block.parameters():
        nn.init.normal_(parameter)
    return Sample(block, (1, -1, HIDDEN))


def megatron_router(**changes):
    """megatron-core's own router; where it runs, `torch.cuda.current_device` must say the CPU."""
    with quietly():
        from megatron.core.process_groups_config import ProcessGroupCollection  # noqa: PLC0415
        from megatron.core.transformer.moe.router import TopKRouter  # noqa: PLC0415
        from megatron.core.transformer.transformer_config import TransformerConfig  # noqa: PLC0415

        config = TransformerConfig(
            num_layers=1,
            hidden_size=HIDDEN,
            num_attention_heads=2,
            num_moe_experts=EXPERTS,
            moe_ffn_hidden_size=8,
            moe_router_topk=TOP_K,
            moe_router_load_balancing_type="none",
            **changes,
        )
    groups = ProcessGroupCollection(tp=None, cp=None, tp_cp=None, tp_dp_cp=None)
    return TopKRouter(config, groups)


def megatron():
    return Sample(megatron_router(), (-1, 1, HIDDEN), first_floats)


def deepspeed_layer(**changes):
    """DeepSpeed's own MoE layer, without expert parallelism."""
    with quietly():
        from deepspeed.moe.experts import Experts  # noqa: PLC0415
        from deepspeed.moe.sharded_moe import MOELayer, TopKGate  # noqa: PLC0415
    gate = TopKGate(HIDDEN, EXPERTS, min_capacity=0, **{"k": TOP_K, "top2_2nd_expert_sampling": False} | changes)
    return MOELayer(gate, Experts(nn.Linear(HIDDEN, HIDDEN), EXPERTS), "ep_size_1", 1, EXPERTS)


class WithoutUsedTokens(nn.Module):
    """DeepSpeed's layer takes a second argument, which may be None."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, hidden):
        return self.layer(hidden, None)


def deepspeed():
    return Sample(WithoutUsedTokens(deepspeed_layer(drop_tokens=False)))


def autoep_layer():
    """DeepSpeed's own AutoEP layer, in the place of a Hugging Face block; without expert parallelism."""
    with quietly():
        from deepspeed.module_inject.auto_ep import AutoEP  # noqa: PLC0415
        from deepspeed.module_inject.auto_ep_config import parse_autoep_config  # noqa: PLC0415
        from deepspeed.module_inject.auto_ep_layer import AutoEPMoELayer  # noqa: PLC0415
    config = transformers.MixtralConfig(
        vocab_size=32,
        hidden_size=HIDDEN,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=EXPERTS,
        num_experts_per_tok=TOP_K,
    )
    model = transformers.AutoModelForCausalLM.from_config(config)
    options = parse_autoep_config({"enabled": True, "autoep_size": 1})
    [spec] = AutoEP(model, options).ep_parser()
    return AutoEPMoELayer(spec, model.get_submodule(spec.moe_module_name), 1, 0, options)


def autoep():
    return Sample(autoep_layer(), (1, -1, HIDDEN), lambda output: output[0] if isinstance(output, tuple) else output)


SAMPLES = {
    "ours": ours,
    "hugging_face": hugging_face,
    "megatron": megatron,
    "deepspeed": deepspeed,
    "deepspeed_autoep": autoep,
    "double_of_hugging_face_4_block": lambda: Sample(
        doubles.MixtralSparseMoeBlock(HIDDEN, EXPERTS, TOP_K), result=lambda output: output[0]
    ),
    "double_of_hugging_face_4_router": lambda: Sample(
        doubles.DeepseekV3TopkRouter(HIDDEN, EXPERTS, TOP_K), result=first_floats
    ),
    "double_of_torchtitan": lambda: Sample(doubles.MoE(HIDDEN, EXPERTS, TOP_K), (1, -1, HIDDEN)),
    "double_of_tutel": lambda: Sample(doubles.MOELayer(HIDDEN, EXPERTS, TOP_K)),
    "double_of_fastmoe": lambda: Sample(doubles.NaiveGate(HIDDEN, EXPERTS // 2, 2, TOP_K), result=first_floats),
    "double_of_old_fastmoe": lambda: Sample(
        doubles.NaiveGate(HIDDEN, EXPERTS // 2, 2, TOP_K, flat=True), result=first_floats
    ),
}
