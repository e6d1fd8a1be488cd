"""Gates against their formulas, and against the routers of transformers where it has the same."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3TopkRouter
from transformers.models.olmoe.modeling_olmoe import OlmoeTopKRouter
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeTopKRouter

from planner.spec.errors import InputError
from runtime.auxiliary import update_biases
from runtime.gates import ExpertRouter, GShardRule, SigmoidRule, SoftmaxRule, gshard_gate, switch_gate
from runtime.hooks import attach
from runtime.launch import launch

HIDDEN, EXPERTS, TOKENS = 16, 12, 50


def as_in(router, gate):
    """Both with the same random weights; what each makes of the same tokens, experts in ascending order."""
    torch.manual_seed(0)
    nn.init.normal_(router.weight)
    gate.projection.weight = router.weight
    tokens = torch.randn(TOKENS, HIDDEN)
    _, weights, experts = router(tokens)
    routing = gate(tokens)
    mine, theirs = routing.experts.sort(), experts.sort()
    assert torch.equal(mine.values, theirs.values)
    torch.testing.assert_close(routing.weights.gather(1, mine.indices), weights.gather(1, theirs.indices))


@pytest.mark.parametrize("renormalise", [True, False])
@pytest.mark.parametrize(
    ("router", "config"),
    [(Qwen3MoeTopKRouter, transformers.Qwen3MoeConfig), (OlmoeTopKRouter, transformers.OlmoeConfig)],
)
def test_softmax_gates_decide_as_those_of_qwen_and_olmoe(router, config, renormalise):
    shape = config(num_experts=EXPERTS, num_experts_per_tok=3, hidden_size=HIDDEN, norm_topk_prob=renormalise)
    as_in(router(shape), ExpertRouter(HIDDEN, EXPERTS, 3, rule=SoftmaxRule(renormalise)))


@pytest.mark.parametrize(("groups", "kept", "renormalise"), [(1, 1, True), (4, 2, True), (6, 3, False), (3, 2, True)])
def test_sigmoid_gates_decide_as_deepseek_v3(groups, kept, renormalise):
    shape = transformers.DeepseekV3Config(
        n_routed_experts=EXPERTS,
        num_experts_per_tok=2 * kept,
        hidden_size=HIDDEN,
        n_group=groups,
        topk_group=kept,
        norm_topk_prob=renormalise,
        routed_scaling_factor=2.5,
    )
    rule = SigmoidRule(EXPERTS, num_groups=groups, groups_kept=kept, renormalise=renormalise, scale=2.5)
    router = DeepseekV3TopkRouter(shape)
    router.e_score_correction_bias.copy_(torch.randn(EXPERTS, generator=torch.Generator().manual_seed(5)))
    rule.bias.copy_(router.e_score_correction_bias)
    as_in(router, ExpertRouter(HIDDEN, EXPERTS, 2 * kept, rule=rule))


def test_the_bias_of_a_sigmoid_gate_chooses_but_does_not_weigh_and_has_no_gradient():
    rule = SigmoidRule(3, renormalise=False)
    rule.bias.copy_(torch.tensor([0.0, 0.0, 9.0]))
    logits = torch.tensor([[2.0, 1.0, -1.0]], requires_grad=True)
    routing = rule(logits, 2, True)
    assert routing.experts.tolist() == [[2, 0]]
    assert routing.weights.tolist()[0] == pytest.approx(torch.tensor([-1.0, 2.0]).sigmoid().tolist())
    assert not rule.bias.requires_grad and routing.weights.requires_grad
    assert routing.probabilities.sum().item() == pytest.approx(1.0)


def test_the_bias_of_a_sigmoid_gate_stays_in_float32_and_is_saved():
    gate = ExpertRouter(HIDDEN, 4, 2, rule=SigmoidRule(4)).bfloat16()
    assert gate.projection.weight.dtype == torch.bfloat16 and gate.rule.bias.dtype == torch.float32
    assert set(gate.state_dict()) == {"projection.weight", "rule.bias"}
    assert gate(torch.randn(3, HIDDEN, dtype=torch.bfloat16)).weights.dtype == torch.float32


def biased_alone(report):
    """Choices of expert 0 on each rank, of others on some: the biases after two updates."""
    model = nn.ModuleList([ExpertRouter(2, 4, 1, rule=SigmoidRule(4)), ExpertRouter(2, 4, 1, rule=SigmoidRule(4))])
    rank = torch.distributed.get_rank()
    for gate in model:
        gate.rule(torch.eye(4)[[0, 0, rank, rank + 1]] * 5, 1, True)
        gate.rule(torch.eye(4)[[3] * 20], 1, False)  # evaluation is not counted
    update_biases(model, 0.25)
    first = [gate.rule.bias.tolist() for gate in model]
    update_biases(model, 0.25)
    return first, [gate.rule.bias.tolist() for gate in model]


def test_biases_rise_for_experts_with_less_than_the_mean_on_all_ranks_and_then_count_anew():
    # Chosen over both ranks: 5, 2, 1, 0 times; the mean is 2.
    biases = [[-0.25, 0.0, 0.25, 0.25]] * 2
    assert launch(biased_alone, 2, timeout_s=60) == [(biases, biases)] * 2


def test_updating_biases_evens_out_the_load():
    torch.manual_seed(0)
    gate = ExpertRouter(HIDDEN, EXPERTS, 2, rule=SigmoidRule(EXPERTS))
    tokens = torch.randn(2000, HIDDEN) + 1.0  # a common part, so that some experts are liked by all

    def worst():
        return (torch.bincount(gate(tokens).experts.flatten(), minlength=EXPERTS).max() / (4000 / EXPERTS)).item()

    before = worst()
    gate.rule.chosen.zero_()
    for _ in range(300):
        gate(tokens)
        update_biases(gate, 0.003)
    assert before > 1.5 and worst() < 1.1


def test_gshard_goes_to_the_second_expert_with_twice_its_weight_as_probability():
    probabilities = torch.tensor([0.6, 0.15, 0.25]).log()
    gate = GShardRule()
    torch.manual_seed(0)
    routing = gate(probabilities.repeat(20_000, 1), 2, True)
    gone = routing.experts[:, 1] == 2
    second = 0.25 / 0.85
    assert gone.float().mean().item() == pytest.approx(2 * second, abs=0.01)
    assert set(routing.experts[~gone, 1].tolist()) == {-1} and set(routing.weights[~gone, 1].tolist()) == {0.0}
    torch.testing.assert_close(routing.weights[gone, 1], torch.full((int(gone.sum()),), second))
    torch.testing.assert_close(routing.weights[:, 0], torch.full((20_000,), 1 - second))
    evaluated = gate(probabilities.repeat(9, 1), 2, False)
    assert evaluated.experts.tolist() == [[0, 2]] * 9


def test_gshard_always_goes_to_a_second_expert_of_equal_weight():
    routing = gshard_gate(HIDDEN, 4).rule(torch.zeros(1000, 4), 2, True)
    assert routing.experts.min() >= 0


@pytest.mark.parametrize(
    "gate", [gshard_gate(HIDDEN, EXPERTS), ExpertRouter(HIDDEN, EXPERTS, 3, rule=SigmoidRule(EXPERTS))]
)
def test_the_agent_counts_the_choices_that_go_somewhere(gate):
    (counter,) = attach(nn.ModuleList([gate]))
    routing = gate(torch.randn(TOKENS, HIDDEN))
    wanted = torch.bincount(routing.experts[routing.experts >= 0], minlength=EXPERTS)
    assert counter.take(torch.device("cpu")).tolist() == wanted.tolist()
    counter.detach()


def test_switch_takes_one_expert_by_its_probability():
    gate = switch_gate(HIDDEN, 5).eval()
    tokens = torch.randn(TOKENS, HIDDEN)
    best = gate.projection(tokens).softmax(dim=1).max(dim=1)
    routing = gate(tokens)
    assert torch.equal(routing.experts[:, 0], best.indices)
    torch.testing.assert_close(routing.weights[:, 0], best.values)


def test_jitter_multiplies_inputs_in_training_alone_and_by_no_more_than_it_says():
    gate = ExpertRouter(1, 1, 1, jitter=0.1)
    ones = torch.ones(500, 1)
    factors = gate(ones).logits / gate.projection.weight
    assert 0.9 <= factors.min() < 0.91 and 1.09 < factors.max() <= 1.1
    assert torch.equal(gate.eval()(ones).logits, gate.projection(ones))


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("gate", [switch_gate(HIDDEN, EXPERTS, jitter=0.3), gshard_gate(HIDDEN, EXPERTS)])
def test_recomputation_draws_the_same_random_numbers_and_a_seed_sets_them(gate, reentrant):
    seen = []

    def choose(tokens):
        routing = gate(tokens)
        seen.append(routing.experts)
        return (routing.weights * torch.arange(1, routing.weights.shape[1] + 1)).sum()

    tokens = torch.randn(TOKENS, HIDDEN, requires_grad=True)
    torch.manual_seed(3)
    checkpoint(choose, tokens, use_reentrant=reentrant).backward()
    torch.manual_seed(3)
    choose(tokens)
    choose(tokens)
    assert torch.equal(seen[0], seen[1]) and torch.equal(seen[0], seen[2]) and not torch.equal(seen[0], seen[3])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ExpertRouter(HIDDEN, 4, 5), "must be 1 … 4, got 5"),
        (lambda: ExpertRouter(HIDDEN, 4, 1, jitter=1.0), "must be at least 0 and below 1, got 1.0"),
        (lambda: SigmoidRule(4, num_groups=3), "must divide the 4 experts, got 3"),
        (lambda: SigmoidRule(4, num_groups=2, groups_kept=3), "must be 1 … 2, got 3"),
        (lambda: SigmoidRule(4, num_groups=2, groups_kept=1)(torch.zeros(1, 4), 3, False), "too few to choose 3 from"),
        (lambda: GShardRule()(torch.zeros(1, 4), 1, False), "must be 2 for GShard's gate, got 1"),
    ],
)
def test_gates_that_cannot_be_are_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()
