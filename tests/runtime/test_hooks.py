"""Counting hooks on real routers: ours, and those of tiny Hugging Face models. Each training forward counts once."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch import nn
from torch.utils.checkpoint import checkpoint
from training_samples import EXPERTS, LAYERS, TOKENS, make_job, my_batches

from planner.spec.errors import InputError
from planner.spec.model import MoeFeedForward
from runtime.hooks import ROUTERS, attach
from runtime.moe import ExpertParallelMoe

CPU = torch.device("cpu")
SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "num_experts_per_tok": 2,
}


def tiny(config, **changes):
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config(**SMALL | changes))


FAMILIES = {
    "mixtral": lambda: tiny(transformers.MixtralConfig, num_local_experts=8),
    "qwen3_moe": lambda: tiny(transformers.Qwen3MoeConfig, num_experts=8, moe_intermediate_size=16, head_dim=8),
    "olmoe": lambda: tiny(transformers.OlmoeConfig, num_experts=8),
    "gpt_oss": lambda: tiny(transformers.GptOssConfig, num_local_experts=8, head_dim=8),
    "deepseek_v3": lambda: tiny(
        transformers.DeepseekV3Config,
        n_routed_experts=8,
        n_group=2,
        topk_group=1,
        moe_intermediate_size=16,
        first_k_dense_replace=1,
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=8,
        num_key_value_heads=4,
    ),
}


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param, FAMILIES[request.param]().train()


def chosen_experts(model):
    """What the experts themselves are told to do, taken from the inputs of each layer's experts: a second source."""
    seen = []
    for name, module in model.named_modules():
        if name.endswith("mlp.experts") or name.endswith("mlp.experts."):
            row = []
            seen.append(row)
            module.register_forward_pre_hook(lambda _, inputs, row=row: row.append(inputs[1].flatten()))
    return seen


def test_counts_on_hugging_face_models_are_what_their_experts_got(family):
    name, model = family
    seen, counters = chosen_experts(model), attach(model)
    assert len(counters) == len(seen) == (2 if name == "deepseek_v3" else 3)
    assert {counter.num_experts for counter in counters} == {8}
    for _ in range(2):  # two micro-batches of one step
        model(input_ids=torch.randint(64, (2, 10))).logits.sum().backward()
    for counter, rows in zip(counters, seen, strict=True):
        counts = counter.take(CPU)
        assert counts.tolist() == torch.bincount(torch.cat(rows), minlength=8).tolist()
        assert counts.sum() == 2 * 2 * 10 * 2
        assert counter.take(CPU).tolist() == [0] * 8


def test_hooks_change_no_output_and_leave_no_trace(family):
    _, model = family
    tokens = torch.randint(64, (2, 10))
    with_hooks = attach(model)
    seen = model(input_ids=tokens).logits
    for counter in with_hooks:
        counter.detach()
    assert torch.equal(model(input_ids=tokens).logits, seen)
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.filterwarnings("ignore:.*use_cache.*")
def test_gradient_checkpointing_of_hugging_face_counts_once(reentrant):
    model = FAMILIES["mixtral"]().train()
    name = "activation_checkpointing_enable"  # the name since transformers 5.23
    getattr(model, name, model.gradient_checkpointing_enable)({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    counters = attach(model)
    for _ in range(3):
        model(input_ids=torch.randint(64, (2, 10)), use_cache=False).logits.sum().backward()
    assert [int(counter.take(CPU).sum()) for counter in counters] == [3 * 2 * 10 * 2] * 3


class Checkpointed(nn.Module):
    """One expert layer of ours, recomputed in the backward pass."""

    def __init__(self, reentrant):
        super().__init__()
        self.reentrant = reentrant
        self.layer = ExpertParallelMoe(8, MoeFeedForward(num_experts=4, top_k=2, expert_width=8))

    def forward(self, hidden):
        return hidden if self.reentrant is None else checkpoint(self.layer, hidden, use_reentrant=self.reentrant)


@pytest.mark.parametrize("reentrant", [True, False])
def test_recomputation_counts_once_also_over_windows_and_after_evaluation(reentrant):
    model = Checkpointed(reentrant)
    [counter] = attach(model)
    for _ in range(3):
        for _ in range(2):
            model(torch.randn(5, 8, requires_grad=True)).sum().backward()
        with torch.no_grad():
            model.layer(torch.randn(7, 8))
        assert counter.take(CPU).sum() == 2 * 5 * 2


def test_recomputation_counts_once_with_several_micro_batches_in_flight():
    for reentrant in (True, False):
        model = Checkpointed(reentrant)
        [counter] = attach(model)
        losses = [model(torch.randn(5, 8, requires_grad=True)).sum() for _ in range(4)]
        for loss in losses:
            loss.backward()
        assert counter.take(CPU).sum() == 4 * 5 * 2


def test_evaluation_is_not_counted():
    model, _ = make_job()
    counters = attach(model)
    batch = next(my_batches())
    with torch.no_grad():
        model(batch)
    model.eval()
    model(batch)
    assert [int(counter.take(CPU).sum()) for counter in counters] == [0] * LAYERS


def test_our_own_routers_are_counted_in_the_order_of_layers():
    model, _ = make_job()
    counters = attach(model)
    assert [counter.name for counter in counters] == [f"blocks.{n}.experts.router" for n in range(LAYERS)]
    model(next(my_batches())).backward()
    assert [int(counter.take(CPU).sum()) for counter in counters] == [4 * 2 * TOKENS * 2] * LAYERS
    assert counters[0].num_experts == EXPERTS


def test_a_model_without_a_known_router_is_refused():
    with pytest.raises(InputError, match=r"no router that is known. .*: runtime \(ExpertRouter\); transf.*RouterKind"):
        attach(nn.Linear(2, 2))


def test_a_router_with_an_unexpected_output_is_refused_at_its_first_forward():
    class OddTopKRouter(nn.Linear):
        num_experts = 4

    OddTopKRouter.__module__ = "transformers.models.odd"
    model = OddTopKRouter(2, 4)
    attach(model, ROUTERS)
    with pytest.raises(InputError, match="OddTopKRouter"):
        model(torch.randn(3, 2))


def test_a_router_that_does_not_say_its_number_of_experts_is_refused():
    class MuteTopKRouter(nn.Linear):
        pass

    MuteTopKRouter.__module__ = "transformers.models.mute"
    with pytest.raises(InputError, match="does not say its num_experts"):
        attach(MuteTopKRouter(2, 4))


def test_the_same_class_name_in_another_package_is_not_taken_for_a_known_router():
    class StrangeTopKRouter(nn.Linear):
        num_experts = 4

    with pytest.raises(InputError, match="no router that is known"):
        attach(StrangeTopKRouter(2, 4))
