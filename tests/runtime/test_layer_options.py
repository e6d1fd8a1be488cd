"""The layer with other gates, in pieces and over nodes: on four ranks what it is in one process on all tokens."""

from __future__ import annotations

import pytest
import torch
from training_samples import RANKS

from planner.spec.model import MoeFeedForward
from runtime.exchange import num_ranks, rank
from runtime.gates import ExpertRouter, SigmoidRule, SoftmaxRule, gshard_gate
from runtime.gradients import average_gradients
from runtime.launch import launch
from runtime.moe import ExpertParallelMoe
from runtime.topology import Topology

HIDDEN, EXPERTS, TOKENS = 12, 8, 6
GATES = {
    "of DeepSeek-V3": lambda: ExpertRouter(
        HIDDEN, EXPERTS, 4, rule=SigmoidRule(EXPERTS, num_groups=4, groups_kept=2, scale=2.5)
    ),
    "of Switch": lambda: ExpertRouter(HIDDEN, EXPERTS, 1, rule=SoftmaxRule(renormalise=False)),
    "of GShard, evaluated": lambda: gshard_gate(HIDDEN, EXPERTS).eval(),
    "to all experts": lambda: ExpertRouter(HIDDEN, EXPERTS, EXPERTS),
}


def trained_once(report, pieces, ranks_per_node):
    """For each gate: this rank's output, and the gradient of the gate."""
    topology, found = Topology.of_nodes(None, ranks_per_node), {}
    for name, gate in GATES.items():
        torch.manual_seed(0)
        router = gate()
        shape = MoeFeedForward(num_experts=EXPERTS, top_k=router.top_k, expert_width=5)
        layer = ExpertParallelMoe(HIDDEN, shape, gate=router, topology=topology, pieces=pieces)
        tokens = torch.randn(RANKS, TOKENS, HIDDEN)
        mine = tokens[rank(None) :: num_ranks(None)]
        output = layer(mine)
        output.square().mean().backward()
        average_gradients(layer)
        found[name] = output.detach(), router.projection.weight.grad
    return found


@pytest.mark.parametrize(("pieces", "ranks_per_node"), [(1, 1), (3, 2)])
def test_ranks_compute_and_learn_as_one_process(pieces, ranks_per_node):
    alone = trained_once(None, 1, 1)
    by_rank = launch(trained_once, RANKS, (pieces, ranks_per_node), timeout_s=60)
    for name, (output, gradient) in alone.items():
        for number, found in enumerate(by_rank):
            torch.testing.assert_close(found[name][0], output[number::RANKS], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(found[name][1], gradient, atol=1e-5, rtol=1e-5)
