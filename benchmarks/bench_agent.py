"""What an agent costs a training job. By hand: `python benchmarks/bench_agent.py [RANKS] [PAIRS] [--thread]`.

A Hugging Face Mixtral trains on CPU (gloo where RANKS is 2) twice over in one process: one copy of the model with an
agent, one without. Blocks of one window each alternate, in an order drawn anew for each pair; a boundary lies in the
middle of a block, so what the agent does in the background falls into its own block. The real service runs beside it
as a process, and is stopped half-way: from then on the local policy decides and each window is tried in vain.

Two ways to measure. Attributed: CPU seconds in the hooks, in `step()`, in the agent's background threads (which are
seconds that these can keep from the training) and in the process of the local policy, over the CPU seconds of the rest,
in the blocks with an agent. Paired: blocks with an agent over those without, in CPU (the policy's process counts) and
wall seconds, median of the pairs with its 95 % interval; that holds all there is, and the noise of the machine. The aim
is met if the whole interval keeps it, missed if none of it does; else it cannot be told. No step is slower beyond noise
if the most that is attributed to one is less than the slowest step without an agent is above their median. `--thread`
lets the local policy think in a thread of the training process instead of a process of its own.
"""

from __future__ import annotations

import copy
import random
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import httpx
import torch
import torch.distributed as dist
import transformers
from table import Row, show, surely

from api.demo import answer, running_service
from planner.online import begin, decide
from planner.spec.decision import Decision
from planner.spec.request import ClusterRequest, ModelRequest, Options, SearchRequest
from planner.spec.run import Run
from planner.spec.strategy import Recompute, Sharding
from planner.spec.training import Training
from planner.spec.window import Window
from runtime.agent import Agent
from runtime.launch import Report, launch
from runtime.policy import LocalPolicy

WINDOW_STEPS = 20
SAMPLES, TOKENS = 2, 128
AIM_RATIO = 0.01
RESAMPLES = 2000
WARM_UP = -1
"""Steps that are in no pair are not measured."""
CONFIG = {
    "vocab_size": 512,
    "hidden_size": 256,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_local_experts": 16,
    "num_experts_per_tok": 2,
    "max_position_embeddings": TOKENS,
    "sliding_window": None,
    "tie_word_embeddings": False,
}


class Step(NamedTuple):
    """One training step of a rank; `boundary`: the agent had more to do than to count."""

    pair: int
    with_agent: bool
    boundary: bool
    cpu_s: float
    """Of the process that trains."""
    wall_s: float
    agent_s: float
    """CPU time of the hooks, of `step()` and of background threads."""
    policy_s: float
    """CPU time of the local policy, in a process of its own."""

    @property
    def all_cpu_s(self) -> float:
        """Of the job and of the process beside it."""
        return self.cpu_s + self.policy_s


class ThreadPolicy:
    """The local policy as a thread of the training process would run it."""

    def __init__(self, run: Run) -> None:
        self._run, self._state = run, begin(run.context, run.plan_id)

    def __call__(self, window: Window) -> Decision:
        """Decide."""
        decision, self._state = decide(window, self._state, self._run.context)
        return decision

    def close(self) -> None:
        """Nothing to close."""


def train(report: Report, url: str, search: str, pairs: int, in_thread: bool) -> list[Step]:
    """The training of one rank; returns all steps."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(transformers.MixtralConfig(**CONFIG))
    jobs = {with_agent: _Job(copy.deepcopy(model)) for with_agent in (True, False)}
    hooks = _HookTime(jobs[True].model)
    agents: list[Agent] = []
    steps: list[Step] = []
    numbers = count(1)

    def run(pair: int, with_agent: bool, num_steps: int) -> None:
        for _ in range(num_steps):
            number = next(numbers) if with_agent else 0
            policy_s, behind_s = _beside_s(), _background_s()
            cpu_s, wall_s = time.process_time(), time.perf_counter()
            hooks.spent_s = own_s = 0.0
            jobs[with_agent].step()
            if with_agent:
                own_s = time.thread_time()
                agents[0].step()
                own_s = time.thread_time() - own_s
            cpu_s, wall_s = time.process_time() - cpu_s, time.perf_counter() - wall_s
            own_s += hooks.spent_s + _background_s() - behind_s
            boundary = with_agent and number % WINDOW_STEPS < 2
            steps.append(Step(pair, with_agent, boundary, cpu_s, wall_s, own_s, _beside_s() - policy_s))

    agent = Agent(
        service=url,
        run="bench",
        search=search,
        model=jobs[True].model,
        window_steps=WINDOW_STEPS,
        policy=ThreadPolicy if in_thread else LocalPolicy,
    )
    agents.append(agent)
    hooks.end()
    for with_agent in (True, False):
        run(WARM_UP, with_agent, WINDOW_STEPS // 2)
    order = random.Random(0)
    for pair in range(pairs):
        report(pair)
        for with_agent in order.sample((True, False), 2):
            run(pair, with_agent, WINDOW_STEPS)
    agent.close(0.5)
    return [step for step in steps if step.pair != WARM_UP]


def _background_s() -> float:
    """CPU seconds of the agent's threads until now."""
    threads = [thread.ident for thread in threading.enumerate() if thread.name.startswith("trimtab-")]
    return sum(time.clock_gettime(time.pthread_getcpuclockid(ident)) for ident in threads if ident is not None)


def _beside_s() -> float:
    """CPU seconds until now of the processes that this one has begun: the local policy.

    Source: clock_getcpuclockid(3) and kernel/time/posix-cpu-timers.c in Linux, for the number of a process's clock.
    """
    begun = [pid for path in Path("/proc/self/task").glob("*/children") for pid in path.read_text().split()]
    return sum(time.clock_gettime(~int(pid) << 3 | 2) for pid in begun)


class _HookTime:
    """CPU seconds between hooks set before and after those of the agent."""

    def __init__(self, model: Any) -> None:
        self.spent_s = self._begun_s = 0.0
        self._routers = [module for module in model.modules() if type(module).__name__.endswith("Router")]
        for router in self._routers:
            router.register_forward_hook(self._begin)

    def end(self) -> None:
        """The agent's hooks are set."""
        for router in self._routers:
            router.register_forward_hook(self._add)

    def _begin(self, *_: object) -> None:
        self._begun_s = time.thread_time()

    def _add(self, *_: object) -> None:
        self.spent_s += time.thread_time() - self._begun_s


class _Job:
    """A model in training; gradients are averaged over the ranks."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self._optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
        self._data = torch.Generator().manual_seed(1)

    def step(self) -> None:
        """One training step on random tokens."""
        tokens = torch.randint(CONFIG["vocab_size"], (SAMPLES, TOKENS), generator=self._data)  # type: ignore[call-overload]
        self._optimizer.zero_grad()
        self.model(input_ids=tokens, labels=tokens).loss.backward()
        if dist.is_initialized() and dist.get_world_size() > 1:
            flat = torch.cat([p.grad.flatten() for p in self.model.parameters() if p.grad is not None])
            dist.all_reduce(flat)
        self._optimizer.step()


def measure(ranks: int, pairs: int, in_thread: bool) -> list[Step]:
    """All steps of all ranks, with the service stopped half-way."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as service:
        url = service.enter_context(running_service(Path(folder), 0, shown=False))
        search = _search(url, ranks)

        def stop(_rank: int, pair: int) -> None:
            if pair == pairs // 2:
                service.close()

        results = launch(train, ranks, (url, search, pairs, in_thread), on_report=stop, timeout_s=3600.0)
    return [step for result in results for step in result]


def _search(url: str, ranks: int) -> str:
    config = transformers.MixtralConfig(**CONFIG).to_dict() | {"architectures": ["MixtralForCausalLM"]}
    request = SearchRequest(
        model=ModelRequest(hf_config=config),
        cluster=ClusterRequest(nodes=1, devices_per_node=ranks, device="cpu-core"),
        training=Training(global_batch_size=SAMPLES * ranks, sequence_length=TOKENS, precision="fp32"),
        options=Options(axes=("dp", "ep"), sharding=(Sharding.NONE,), recompute=(Recompute.NONE,)),
    )
    body = request.model_dump(mode="json", exclude_none=True)
    found = answer(httpx.post(f"{url}/v1/searches", json=body, headers={"Prefer": "wait=60"}, timeout=90))
    return str(found["id"])


def rows(ranks: int = 1, pairs: int = 6, in_thread: bool = False) -> list[Row]:
    """The agent's part in CPU and wall time, and its slowest steps."""
    steps = measure(ranks, pairs, in_thread)
    what = f"agent, HF Mixtral, CPU, {ranks} {'rank' if ranks == 1 else 'ranks'}, service stopped half-way"
    with_agent = [step for step in steps if step.with_agent]
    # Background work of a block with an agent may end in one without.
    inside_s, beside_s = (sum(getattr(step, name) for step in steps) for name in ("agent_s", "policy_s"))
    own = (inside_s + beside_s) / (sum(step.cpu_s for step in with_agent) - inside_s)
    part = beside_s / (inside_s + beside_s)
    found = [Row(f"{what}: own time, attributed", "≤ 1 %", f"{own:.2%} ({part:.0%} of it beside)", own <= AIM_RATIO)]
    for name, clock in (("CPU", "all_cpu_s"), ("wall", "wall_s")):
        ratios = _block_ratios(steps, clock)
        low, high = _interval(ratios)
        overhead = median(ratios) - 1
        text = f"{overhead:+.2%} (95 %: {low - 1:+.2%} … {high - 1:+.2%}; {len(ratios)} pairs)"
        found.append(Row(f"{what}: {name} time, paired", "≤ 1 %", text, surely(low - 1, high - 1, AIM_RATIO)))
    plain, boundary = _cpu_ms(steps, False, False), _cpu_ms(steps, True, True)
    noise_ms = max(plain) - median(plain)
    own_ms = max(step.agent_s for step in with_agent) * 1e3
    text = (
        f"{own_ms:.1f} ms; steps without an agent: median {median(plain):.1f}, slowest {max(plain):.1f}; with one, at a"
    )
    text += f" window's end: {median(boundary):.1f}, {max(boundary):.1f}"
    found.append(Row(f"{what}: most CPU in one step", f"≤ {noise_ms:.1f} ms (noise)", text, own_ms <= noise_ms))
    return found


def _block_ratios(steps: list[Step], clock: str) -> list[float]:
    """For each pair of blocks and each rank mixed: seconds with the agent over seconds without."""
    sums: dict[tuple[int, bool], float] = {}
    for step in steps:
        key = (step.pair, step.with_agent)
        sums[key] = sums.get(key, 0.0) + getattr(step, clock)
    return [sums[pair, True] / sums[pair, False] for pair, with_agent in sorted(sums) if with_agent]


def _interval(values: list[float]) -> tuple[float, float]:
    """A 95 % interval of the median, by resampling."""
    draw = random.Random(0)
    medians = sorted(median(draw.choices(values, k=len(values))) for _ in range(RESAMPLES))
    return medians[int(0.025 * RESAMPLES)], medians[int(0.975 * RESAMPLES)]


def _cpu_ms(steps: list[Step], with_agent: bool, boundary: bool) -> list[float]:
    return [s.cpu_s * 1e3 for s in steps if (s.with_agent, s.boundary) == (with_agent, boundary)]


if __name__ == "__main__":
    numbers = [int(text) for text in sys.argv[1:] if text.isdecimal()]
    show(rows(*numbers, in_thread="--thread" in sys.argv))
