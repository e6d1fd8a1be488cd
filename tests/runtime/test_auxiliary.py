"""Auxiliary losses by their formulas, over any number of ranks, and on their way through recomputation."""

from __future__ import annotations

from math import exp, log

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from runtime.auxiliary import AuxiliaryLoss, balance_loss, carrying, z_loss
from runtime.exchange import rank
from runtime.gates import ExpertRouter, Routing, gshard_gate
from runtime.launch import launch

HIDDEN, EXPERTS = 8, 4
TOKENS = (5, 0, 11, 2)
"""Of each rank."""
LOSSES = [AuxiliaryLoss(balance=0.5), AuxiliaryLoss(first_choices=2.0), AuxiliaryLoss(router_z=0.1)]
ALL = AuxiliaryLoss(balance=0.5, first_choices=2.0, router_z=0.1)


def test_the_balance_loss_is_the_formula_by_hand():
    # Two tokens of two choices; experts 0, 1, 2 got 2, 1, 1 of the 4.
    probabilities = torch.tensor([[0.5, 0.3, 0.2], [0.6, 0.1, 0.3]])
    experts = torch.tensor([[0, 1], [0, 2]])
    by_hand = 3 * (0.5 * 0.55 + 0.25 * 0.2 + 0.25 * 0.25)
    assert balance_loss(probabilities, experts, None).item() == pytest.approx(by_hand)
    # GShard: first choices alone, over experts squared: (1/3) Σ (c_e / S) m_e = (1/3) · 1 · 0.55
    assert balance_loss(probabilities, experts[:, :1], None).item() / 9 == pytest.approx(0.55 / 3)


def test_choices_that_go_nowhere_do_not_count():
    probabilities = torch.tensor([[0.7, 0.3], [0.4, 0.6]])
    loss = balance_loss(probabilities, torch.tensor([[0, -1], [1, 0]]), None)
    assert loss.item() == pytest.approx(2 * (2 / 3 * 0.55 + 1 / 3 * 0.45))


def test_the_z_loss_is_the_formula_by_hand():
    logits = torch.tensor([[0.0, 0.0], [1.0, 2.0]])
    assert z_loss(logits, None).item() == pytest.approx((log(2) ** 2 + log(exp(1) + exp(2)) ** 2) / 2)


def test_factors_add_up_and_nothing_is_nothing():
    torch.manual_seed(0)
    routing = ExpertRouter(HIDDEN, EXPERTS, 2)(torch.randn(9, HIDDEN))
    total = sum(loss(routing, None) for loss in LOSSES)
    torch.testing.assert_close(ALL(routing, None), total)
    assert AuxiliaryLoss()(routing, None).item() == 0.0


def of_part(first, last):
    """Losses of some of all tokens, and the gradient of the gate under their sum."""
    torch.manual_seed(0)
    gate, tokens = ExpertRouter(HIDDEN, EXPERTS, 2), torch.randn(sum(TOKENS), HIDDEN)
    routing = gate(tokens[first:last])
    ALL(routing, None).backward()
    return [loss(routing, None).item() for loss in LOSSES], gate.projection.weight.grad


def of_my_part(report):
    first = sum(TOKENS[: rank(None)])
    return of_part(first, first + TOKENS[rank(None)])


def test_the_mean_over_ranks_is_the_loss_of_one_process_on_all_tokens_and_so_are_gradients():
    parts = launch(of_my_part, len(TOKENS), timeout_s=60)
    losses, gradient = of_part(0, sum(TOKENS))
    for number, loss in enumerate(losses):
        assert sum(part[0][number] for part in parts) / len(parts) == pytest.approx(loss, rel=1e-5)
    torch.testing.assert_close(sum(part[1] for part in parts) / len(parts), gradient)


class Layer(nn.Module):
    """A gate whose loss travels with its output, or is kept."""

    def __init__(self, carries):
        super().__init__()
        torch.manual_seed(1)
        self.gate, self.carries = ExpertRouter(HIDDEN, EXPERTS, 2), carries

    def forward(self, tokens):
        routing = self.gate(tokens)
        self.loss = ALL(routing, None)
        output = tokens * routing.weights[:, :1]
        return carrying(output, self.loss) if self.carries else output


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_loss_that_is_carried_acts_through_recomputation_as_if_added(reentrant):
    tokens = torch.randn(7, HIDDEN, generator=torch.Generator().manual_seed(2))
    plain, carrier = Layer(carries=False), Layer(carries=True)
    given = [tokens.clone().requires_grad_() for _ in range(2)]
    (plain(given[0]).square().sum() + plain.loss).backward()
    checkpoint(carrier, given[1], use_reentrant=reentrant).square().sum().backward()
    torch.testing.assert_close(carrier.gate.projection.weight.grad, plain.gate.projection.weight.grad)
    torch.testing.assert_close(given[1].grad, given[0].grad)


def test_the_loss_of_no_tokens_at_all_is_zero():
    routing = gshard_gate(HIDDEN, EXPERTS)(torch.zeros(0, HIDDEN))
    assert isinstance(routing, Routing) and ALL(routing, None).item() == 0.0
