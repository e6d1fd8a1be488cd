"""`make demo`: the whole story in one terminal, in under three minutes.

It starts the service on a free port with a database that goes away again, has it plan a small Mixture-of-Experts
language model for two processes of this machine, trains that model on the sources of Python's standard library with an
agent inside, shows windows and decisions as they come, measures what the moved experts gained, and trains once more
without an agent. Exits with 1 if one of its promises fails: the model learns, experts move, the load of the ranks
becomes more even, the losses are those of the training without an agent. None of them is about time, which is shown.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from rich.console import Console
from rich.markup import escape

from api.commands.terminal import show
from planner.spec.cluster import Precision
from planner.spec.decision import Action, Decision
from planner.spec.errors import NotFoundError, RankFailedError, TrimtabError, UnavailableError
from planner.spec.model import Model, MoeFeedForward
from planner.spec.parse import parse
from planner.spec.placement import TokenSplit
from planner.spec.request import ClusterRequest, ModelRequest, Options, SearchRequest
from planner.spec.shortlist import Shortlist
from planner.spec.strategy import Recompute, Sharding
from planner.spec.training import AttentionKernel, Training
from planner.view import certificate_line
from planner.view.quantities import seconds
from planner.view.tables import Column, Table, shortlist_table
from runtime.comparison import Comparison
from runtime.example import Job, Progress, Trained, can_run, language_model, train, train_alone
from runtime.launch import launch

RANKS = 2
SEQUENCE_LENGTH = 128
EXPERTS = MoeFeedForward(num_experts=16, top_k=2, expert_width=512)
EXTRA_SLOTS_PER_RANK = 1
SEED = 1
"""With experts in order the gate that this one trains has an imbalance of about 1.6; that of seed 0, 1.4."""
ALONE_STEPS = 31
"""Of the training without an agent: experts have moved in the other one by then."""
WINDOW_STEPS = 10
LOSS_TOLERANCE = 1e-3
"""Nats. The trainings with and without an agent add up gradients in another order; roundings grow with the steps."""
TRAINING_TIMEOUT_S = 240.0
SERVICE_TIMEOUT_S = 30.0

console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())


def main(
    keep: Annotated[bool, typer.Option("--keep", help="Leave the service running at the end, until Ctrl-C")] = False,
    port: Annotated[int, typer.Option(help="Port of the service; 0: any free one")] = 0,
    steps: Annotated[int, typer.Option(min=3 * WINDOW_STEPS, help="Steps of the training")] = 61,
) -> None:
    """Plan, train, adapt: the whole story in one terminal."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="trimtab-demo-") as folder, running_service(Path(folder), port) as url:
        search_id, shortlist = plan(url)
        job = job_for(url, search_id, shortlist, steps)
        trained, progress, decisions = run_training(job)
        show_gain(trained.comparison)
        alone = losses_alone(job.model_copy(update={"num_steps": min(steps, ALONE_STEPS)}))
        difference = max(abs(one - other) for one, other in zip(trained.losses, alone, strict=False))
        promises = check_promises(trained.comparison, progress, decisions, difference)
        show_where_to_look(url, search_id, job)
        for promise, kept in promises.items():
            console.print(f"[{'green' if kept else 'bold red'}]{'✓' if kept else '✗'} {promise}[/]")
        console.print(f"[dim]{time.monotonic() - began:.0f} s in all[/]")
        if keep:
            wait_for_interrupt()
    if not all(promises.values()):
        raise typer.Exit(1)


@contextmanager
def running_service(folder: Path, port: int, shown: bool = True) -> Iterator[str]:
    """The service as a process of its own, over a database in `folder`; yields its address, and stops it at the end.

    `shown`: as the first chapter of the demo.
    """
    if shown:
        heading("1", "The service")
    log = folder / "service.log"
    command = [sys.executable, "-m", "api.cli", "serve", "--port", str(port)]
    command += ["--database-url", f"sqlite:///{folder / 'demo.db'}", "--workers", "1"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TRIMTAB_")}
    with log.open("wb") as output:
        # A session of its own: Ctrl-C reaches the demo only, which then stops the service in order.
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
    try:
        url = wait_for_service(process, log)
        if shown:
            console.print(f"{url}  [dim](process {process.pid}, SQLite in {escape(str(folder))})[/]")
        yield url
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_for_service(process: subprocess.Popen[bytes], log: Path) -> str:
    """The address, once the service is ready; raises UnavailableError with its log if it does not become so."""
    deadline = time.monotonic() + SERVICE_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        address = re.search(r"serves at (http://\S+?),?\s", log.read_text())
        if address is not None:
            try:
                if httpx.get(f"{address[1]}/readyz").is_success:
                    return address[1]
            except httpx.TransportError:
                pass  # not listening yet
        time.sleep(0.1)
    raise UnavailableError(f"the service did not start:\n{log.read_text()}")


def plan(url: str) -> tuple[str, Shortlist]:
    """Have the service plan the model for this machine's processes."""
    heading("2", "The plan")
    request = SearchRequest(
        model=ModelRequest(spec=model()),
        cluster=ClusterRequest(nodes=1, devices_per_node=RANKS, device="cpu-core"),
        training=Training(
            global_batch_size=16,
            sequence_length=SEQUENCE_LENGTH,
            precision=Precision.FP32,
            attention_kernel=AttentionKernel.UNFUSED,
        ),
        # What the training program can run; it moves experts, but does not switch plans.
        options=Options(axes=("dp", "ep"), sharding=(Sharding.NONE,), recompute=(Recompute.NONE,), shortlist_size=1),
    )
    console.print(
        f"A byte-level language model with {EXPERTS.num_experts} experts in each of {len(model().moe_layers)} layers, "
        f"top-{EXPERTS.top_k}, on {RANKS} processes (`cpu-core`):"
    )
    body = request.model_dump(mode="json", exclude_none=True)
    search = answer(httpx.post(f"{url}/v1/searches", json=body, headers={"Prefer": "wait=60"}, timeout=90))
    shortlist = parse(Shortlist, answer(httpx.get(f"{url}/v1/searches/{search['id']}/shortlist")))
    show(shortlist_table(shortlist))
    console.print(f"[dim]{certificate_line(shortlist)}[/]")
    return search["id"], shortlist


def model() -> Model:
    """What is planned and trained."""
    return language_model(hidden_size=128, num_blocks=3, num_heads=4, experts=EXPERTS, sequence_length=SEQUENCE_LENGTH)


def job_for(url: str, search_id: str, shortlist: Shortlist, num_steps: int) -> Job:
    """The job that runs the best plan that the training program can run."""
    runnable = [entry.plan for entry in shortlist.plans if can_run(entry.plan)]
    if not runnable:
        raise NotFoundError("the shortlist has no plan that the training program can run")
    return Job(
        model=model(),
        plan=runnable[0],
        service=url,
        search=search_id,
        run="demo",
        num_steps=num_steps,
        window_steps=WINDOW_STEPS,
        extra_slots_per_rank=EXTRA_SLOTS_PER_RANK,
        token_split=TokenSplit.STEP,
        seed=SEED,
    )


def run_training(job: Job) -> tuple[Trained, list[Progress], list[Decision]]:
    """Train in processes of their own, and show what they report."""
    heading("3", "The training job")
    console.print(
        f"{RANKS} processes, {job.num_steps} steps on the sources of Python's standard library, no auxiliary loss; "
        f"room for {EXTRA_SLOTS_PER_RANK} replica on each rank and layer, tokens of replicas are split in every step. "
        f"The agent reports every {job.window_steps} steps. "
        "Imbalance: load of the busiest rank over the mean of both, averaged over layers.\n"
    )
    progress: list[Progress] = []
    decisions: list[Decision] = []

    def on_report(_rank: int, message: Any) -> None:
        if isinstance(message, Decision):
            decisions.append(message)
            show_decision(message)
        else:
            progress.append(message)
            console.print(
                f"  step {message.step:>4}   loss {message.loss:.3f}   {message.step_time_s * 1e3:>5.0f} ms/step"
            )
            if message.step > job.num_steps - job.window_steps:
                console.print("\nThe same passes with experts in order, as at the start, and adapted, in turns …")

    results = launch(train, RANKS, (job,), on_report=on_report, timeout_s=TRAINING_TIMEOUT_S)
    return results[0], progress, decisions


def losses_alone(job: Job) -> list[float]:
    """Losses of rank 0 in the same training without an agent, experts in order and no replicas."""
    console.print(f"\nThe first {job.num_steps} steps once more, without an agent, experts in order …\n")
    return launch(train_alone, RANKS, (job,), timeout_s=TRAINING_TIMEOUT_S)[0]  # type: ignore[no-any-return]


def show_decision(decision: Decision) -> None:
    """One decision, as it is carried out."""
    color = "cyan" if decision.action is Action.KEEP else "bold yellow"
    balance = f"imbalance {decision.imbalance_before:.2f}"
    if decision.action is Action.REBALANCE:
        balance += f" → {decision.imbalance_after:.2f} (bound {decision.imbalance_bound:.2f})"
    console.print(f"  [{color}]window {decision.window:>2}: {decision.action.value}[/]  {balance}")
    console.print(f"     [dim]{escape(decision.reason)}[/]")


def check_promises(
    comparison: Comparison, progress: list[Progress], decisions: list[Decision], loss_difference: float
) -> dict[str, bool]:
    """What the demo promises, and whether it came true."""
    _, at_start, adapted = comparison.imbalance
    rebalances = [decision for decision in decisions if decision.action is Action.REBALANCE]
    moved = sum(len(decision.moves) for decision in rebalances)
    return {
        f"the model learns: loss {progress[0].loss:.2f} → {progress[-1].loss:.2f}": (
            progress[-1].loss < progress[0].loss - 0.5
        ),
        f"experts moved: {moved} came to another rank, by {len(rebalances)} decisions": moved > 0,
        f"the decisions made the ranks' loads more even: imbalance {at_start:.2f} → {adapted:.2f}": adapted < at_start,
        f"moves change no result: losses differ by {loss_difference:.0e} at most from training without an agent": (
            loss_difference <= LOSS_TOLERANCE
        ),
    }


def show_gain(comparison: Comparison) -> None:
    """What the moves were worth, as measured; times are medians over the rounds."""
    heading("4", "What it gained")
    loads = comparison.imbalance
    rows = (
        _row("load of the busiest rank / mean", map("{:.2f}".format, loads), [load / loads[-1] for load in loads]),
        _row("CPU time of the busiest rank", map(seconds, comparison.busiest_cpu_s), comparison.busiest_cpu_ratios),
        _row("wall time of a pass", map(seconds, comparison.wall_s), comparison.wall_ratios),
    )
    titles = ("in order", "job's start", "adapted", "in order / adapted", "start / adapted")
    columns = (Column(""), *(Column(title, numeric=True) for title in titles))
    show(Table("Forward and backward passes on the same batches", columns, rows))
    first_part, _, adapted_part = (
        cpu_s / wall_s for cpu_s, wall_s in zip(comparison.busiest_cpu_s, comparison.wall_s, strict=True)
    )
    console.print(
        "[dim]In order: each expert on one rank, as frameworks place them. The job's start: with one replica on each "
        "rank and layer, before any decision. "
        f"Medians over {len(comparison.rounds)} batches, each passed under all placements in turns. "
        f"{RANKS} processes on {os.cpu_count()} cores: where each has a core of its own, a step takes at "
        "least what its busiest rank works, and more where layers are hot on different ranks. Here the busiest rank "
        f"worked for {first_part:.0%} and {adapted_part:.0%} of the wall time; the rest it waited, for the other rank, "
        "or for a core that others use: then wall times say little.[/]"
    )


def _row(name: str, cells: Iterable[str], ratios: Sequence[float]) -> tuple[str, ...]:
    return name, *cells, *(f"{ratio:.2f}" for ratio in ratios[:-1])


def show_where_to_look(url: str, search_id: str, job: Job) -> None:
    """Addresses of what was made."""
    heading("5", "Where to look")
    runs = answer(httpx.get(f"{url}/v1/runs", params={"name": job.run}))["items"]
    windows = answer(httpx.get(f"{url}/v1/runs/{runs[0]['id']}/windows"))["items"]
    picture = httpx.get(f"{url}/v1/plans/{job.plan.id}/picture")
    places = {
        "the plan": f"/v1/plans/{job.plan.id}",
        f"its picture ({picture.headers.get('content-type', '?')}, {len(picture.content):,} bytes)": (
            f"/v1/plans/{job.plan.id}/picture"
        ),
        "the shortlist": f"/v1/searches/{search_id}/shortlist",
        f"the run: {len(windows)} windows": f"/v1/runs/{runs[0]['id']}/windows",
        "its decisions": f"/v1/runs/{runs[0]['id']}/decisions",
        "Swagger UI": "/docs",
    }
    for name, path in places.items():
        console.print(f"  {url}{path}   [dim]{escape(name)}[/]", soft_wrap=True)
    console.print(
        "\n[dim]The service ends with the demo; `.venv/bin/python -m api.demo --keep` leaves it running to look at, "
        "`make run` starts one that lasts.[/]\n"
    )


def answer(response: httpx.Response) -> Any:
    """The JSON of a success; raises UnavailableError with what the service said otherwise."""
    if not response.is_success:
        raise UnavailableError(f"{response.request.url} answered {response.status_code}: {response.text}")
    return response.json()


def wait_for_interrupt() -> None:
    """Leave the service running until Ctrl-C."""
    console.print("The service runs until Ctrl-C.")
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        console.print("stopped")


def heading(number: str, text: str) -> None:
    """The begin of a chapter."""
    console.print(f"\n[bold]{number} · {text}[/]")


def run() -> None:
    """Entry point; one line instead of a traceback."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        typer.run(main)
    except RankFailedError as error:
        sys.exit(f"demo: {error.summary}")
    except TrimtabError as error:
        sys.exit(f"demo: {error}")


if __name__ == "__main__":
    run()
