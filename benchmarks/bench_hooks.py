"""What counting costs: CPU time of the hook on a router, as a share of the router's own forward pass.

Run: OMP_NUM_THREADS=1 .venv/bin/python benchmarks/bench_hooks.py. T = 8192 tokens, k = 8 of E = 256 experts.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from runtime.gates import ExpertRouter
from runtime.hooks import ROUTERS, RouterKind, RoutingMap, TokenMask, attach

TOKENS, TOP_K, EXPERTS = 8192, 8, 256
CPU = torch.device("cpu")


class MapRouter(nn.Module):
    """Returns a routing map, as Megatron-Core does."""

    num_experts = EXPERTS

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.router = ExpertRouter(hidden_size, EXPERTS, TOP_K)

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        probabilities, _, experts = self.router(hidden)[:3]
        return probabilities, torch.zeros_like(probabilities, dtype=torch.bool).scatter_(1, experts, True)


def milliseconds(work: Callable[[], object], times: int = 5) -> float:
    """Median CPU time."""
    taken = []
    for _ in range(times + 1):
        begun = time.process_time()
        work()
        taken.append(time.process_time() - begun)
    return 1e3 * sorted(taken[1:])[times // 2]


def row(name: str, router: nn.Module, kind: RouterKind, hidden: Tensor, mask: TokenMask) -> None:
    output = router(hidden)
    own = milliseconds(lambda: router(hidden))
    [counter] = attach(router, [kind], mask=mask)
    hook = milliseconds(lambda: counter._hook(router, (), output), times=50)
    counter.detach()
    print(f"{name:42} router {own:8.2f} ms   hook {hook:6.3f} ms   {hook / own:6.2%}")


def main() -> None:
    of_map = RouterKind("__main__", ("MapRouter",), lambda _, output: RoutingMap(output[1]))
    padded = torch.rand(TOKENS) < 0.9
    for hidden_size in (2048, 7168):
        hidden = torch.randn(TOKENS, hidden_size)
        for kind, router in ((ROUTERS[0], ExpertRouter(hidden_size, EXPERTS, TOP_K)), (of_map, MapRouter(hidden_size))):
            for real, with_mask in ((None, ""), (padded, ", masked")):
                name = f"{type(router).__name__}, hidden {hidden_size}{with_mask}"
                row(name, router, kind, hidden, TokenMask(real))


if __name__ == "__main__":
    main()
