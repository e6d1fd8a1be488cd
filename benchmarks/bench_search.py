"""CPU seconds and memory of the offline search, each case in a process of its own. By hand: `make bench-search`.

Galvatron's figures are those that its own search answered on the same profiles (../shared/data/galvatron/results);
without that folder its cases are left out. Its plans are priced with our estimate().
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from math import inf
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from planner.cost import estimate
from planner.search import plan_from_shorthand, search
from planner.spec.cluster import Cluster
from planner.spec.model import Block, Model, MoeFeedForward
from planner.spec.request import ALL_AXES, Options
from planner.spec.strategy import Recompute
from planner.spec.training import Training
from profiles import cluster_from_shorthand, model_preset, resolve_cluster
from profiles.galvatron import Imported, Wishes, import_files

DATA = Path(__file__).parents[2] / "shared" / "data" / "galvatron"
OLD = ("v2.1_gpt", "v2.1_hardware", "results")
PROFILES = {
    "gpt-1.5b": "hidden1600_head32_seqlen1024",
    "gpt-2.7b": "hidden2560_head32_seqlen2048",
    "gpt-6.7b": "hidden4096_head32_seqlen2048",
}
ITS_SPACE = Options(
    axes=("dp", "sdp", "tp", "pp", "sp"),
    sharding=("none", "gradients", "full"),
    recompute=("none", "full"),
    schedules=("1f1b",),
    shortlist_size=1,
)
"""What Galvatron's search tries, and sequence parallelism, with which it runs its tensor parallelism."""
WHOLE = Options(axes=ALL_AXES, schedules=("1f1b", "interleaved", "gpipe", "zero_bubble"))


class Case(NamedTuple):
    """A question with what it is held against."""

    name: str
    aim: str
    question: Callable[[], tuple[Model, Cluster, Training]]
    options: Options = Options()
    their_cpu_s: float | None = None
    their_step_s: float | None = None
    """Of another planner's plan, priced by us; None where it has none, or it does not fit."""


class Result(NamedTuple):
    """What a search took and found."""

    cpu_s: float
    peak_bytes: int
    step_s: float
    summary: str
    certificate: str


class Preset:
    """A question of presets, made where it is asked."""

    def __init__(self, model: str, cluster: str, batch: int, length: int, experts: int | None = None) -> None:
        self._names = model, cluster, batch, length, experts

    def __call__(self) -> tuple[Model, Cluster, Training]:
        """Model, cluster, training."""
        model, cluster, batch, length, experts = self._names
        found = model_preset(model)
        training = Training(global_batch_size=batch, sequence_length=length)
        return _widened(found, experts), resolve_cluster(cluster_from_shorthand(cluster)), training


class Imports:
    """A question of one of Galvatron's results."""

    def __init__(self, model: str, result: str) -> None:
        self._model, self._result = model, result

    def __call__(self) -> tuple[Model, Cluster, Training]:
        """Model, cluster, training."""
        imported = _imported(self._model)
        limit = next(each for each in imported.results if each.name == self._result).memory_limit_bytes
        plan = imported.plans[self._result]
        training = Training(
            global_batch_size=plan.global_batch_size,
            sequence_length=plan.sequence_length,
            gradient_precision="bf16",
        )
        cluster = resolve_cluster(imported.cluster).model_copy(update={"memory_limit_bytes": limit})
        return imported.model, cluster, training


def _widened(model: Model, experts: int | None) -> Model:
    """With so many experts in each of its MoE layers."""
    if experts is None:
        return model
    runs = []
    for run in model.runs:
        layer = run.layer
        if isinstance(layer, Block) and isinstance(layer.feed_forward, MoeFeedForward):
            wide = layer.feed_forward.model_copy(update={"num_experts": experts})
            layer = layer.model_copy(update={"feed_forward": wide})
        runs.append(run.model_copy(update={"layer": layer}))
    return model.model_copy(update={"runs": tuple(runs)})


def _imported(model: str) -> Imported:
    if model == "llama-2-7b":
        return import_files([DATA / "head_llama2-7b", DATA / "results"], Wishes(size=(1, 8), reserve_bytes=0))
    wishes = Wishes(size=(1, 8), profile=PROFILES[model], reserve_bytes=2**30)
    return import_files([DATA / folder for folder in OLD], wishes)


def galvatron() -> Iterator[Case]:
    """Its results on its profiles, smallest memory first."""
    if not DATA.exists():
        return
    for model in ("llama-2-7b", *PROFILES):
        imported = _imported(model)
        for result in sorted(imported.results, key=lambda each: each.memory_limit_bytes):
            question = Imports(model, result.name)
            price = estimate(*question(), imported.plans[result.name])
            share = 100 if model == "llama-2-7b" else 20
            for name, options in (("", Options()), (", its space", ITS_SPACE)):
                yield Case(
                    f"{model}, 8 GPUs, {result.memory_limit_bytes / 2**30:.0f} GiB{name}",
                    f"1/{share} of its CPU time",
                    question,
                    options,
                    their_cpu_s=result.search_cpu_s,
                    their_step_s=price.step_time_s if price.fits else None,
                )


def calculon() -> Case:
    """GPT-3 on 64 A100: its best plan of 48,456 took 283 CPU seconds; with the recomputation that fits and is best."""
    question = Preset("gpt-3-175b", "8x8:a100-sxm-80g", 256, 2048)
    model, cluster, training = question()
    its = inf
    for recompute in Recompute:
        text = f"tp4-pp8-dp2-vpp4-mbs1-zero1-sp-recompute:{recompute.value}"
        price = estimate(model, cluster, training, plan_from_shorthand(text, model, cluster, training))
        its = min(its, price.step_time_s if price.fits else inf)
    return Case("GPT-3 175B, 64 A100", "1 s", question, their_cpu_s=283.0, their_step_s=its)


def presets() -> Iterator[Case]:
    """Large models on many devices, and one model on ever more devices."""
    mixtral = Preset("mixtral-8x7b", "8x8:h100-sxm-80g", 1024, 4096)
    yield Case("Mixtral-8x7B, 64 H100", "0.5 s", mixtral)
    yield Case("the same, whole space", "", mixtral, WHOLE)
    deepseek = Preset("deepseek-v3", "256x8:h100-sxm-80g", 8192, 4096)
    yield Case("DeepSeek-V3, 2,048 H100", "3 s", deepseek)
    yield Case("the same, whole space", "", deepseek, WHOLE)
    yield Case("1T MoE, 16,384 H100", "10 s", Preset("deepseek-v3", "2048x8:h100-sxm-80g", 16384, 4096, experts=384))
    for nodes in (8, 64, 512, 2048):
        aim = "10 x the first" if nodes == 2048 else ""
        question = Preset("llama-3.1-70b", f"{nodes}x8:h100-sxm-80g", 16384, 4096)
        yield Case(f"Llama-3.1-70B, {nodes * 8:,} H100", aim, question)


def run(case: Case) -> Result:
    """One search, in this process."""
    question = case.question()
    began = time.process_time()
    found = search(*question, case.options)
    spent = time.process_time() - began
    best, certificate = found.plans[0], found.certificate
    return Result(
        cpu_s=spent,
        peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        step_s=best.estimate.step_time_s,
        summary=best.plan.summary,
        certificate=f"{certificate.status.value}, gap {certificate.gap_ratio:.2%}",
    )


def main() -> None:
    """Print the table."""
    columns = ("case", "aim", "CPU s", "theirs", "ours / theirs", "its plan by us", "peak", "best plan", "certificate")
    table = Table(*columns)
    for case in (*galvatron(), calculon(), *presets()):
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as alone:
            result = alone.submit(run, case).result()
        its = "" if case.their_cpu_s is None else f"{case.their_cpu_s:.1f}"
        ratio = "" if case.their_cpu_s is None else f"1/{case.their_cpu_s / result.cpu_s:.0f}"
        step = case.their_step_s or inf
        slower = "does not fit" if step == inf else f"{step / result.step_s - 1:+.1%}"
        table.add_row(
            case.name,
            case.aim,
            f"{result.cpu_s:.2f}",
            its,
            ratio,
            slower if case.their_cpu_s is not None else "",
            f"{result.peak_bytes / 2**20:.0f} MiB",
            f"{result.step_s:.3g} s: {result.summary}",
            result.certificate,
        )
    Console(width=230).print(table)


if __name__ == "__main__":
    main()
