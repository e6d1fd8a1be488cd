"""Searches that end the way a test wants: module-level functions, so that worker processes find them by name."""

import os
import signal
import subprocess
import tempfile
import threading
import time
from pathlib import Path

from planner.cost import estimate
from planner.spec.cluster import Provenance
from planner.spec.errors import InputError, NearestMiss, NoPlanFitsError
from planner.spec.plan import Plan
from planner.spec.shortlist import Certificate, CertificateStatus, Shortlist, ShortlistEntry
from planner.spec.workload import BALANCED, Scenario

TINY_MODEL = {
    "spec": {
        "name": "tiny-moe",
        "hidden_size": 64,
        "runs": [
            {"layer": {"kind": "embedding", "vocab_size": 512}},
            {
                "layer": {
                    "kind": "block",
                    "attention": {"kind": "gqa", "num_heads": 4, "num_kv_heads": 4, "head_dim": 16},
                    "feed_forward": {"kind": "moe", "num_experts": 4, "top_k": 2, "expert_width": 128},
                },
                "num_layers": 2,
            },
            {"layer": {"kind": "head", "vocab_size": 512}},
        ],
    }
}
TINY_REQUEST = {
    "model": TINY_MODEL,
    "cluster": {"nodes": 1, "devices_per_node": 4, "device": "a100-sxm-80g"},
    "training": {"global_batch_size": 8, "sequence_length": 128},
}
LONG_REQUEST = {
    "model": {"preset": "deepseek-v3"},
    "cluster": {"nodes": 256, "devices_per_node": 8, "device": "h100-sxm-80g"},
    "training": {"global_batch_size": 15360, "sequence_length": 4096},
}


def plan_with(*, micro_batch_size: int) -> Plan:
    """All four layers of the tiny model on one stage of four devices, experts spread over all."""
    dense = {"axes": [["dp", 4]], "sharding": "optimizer"}
    return Plan.model_validate(
        {
            "global_batch_size": 8,
            "sequence_length": 128,
            "micro_batch_size": micro_batch_size,
            "num_micro_batches": 2 // micro_batch_size,
            "stages": [
                {
                    "first_device": 0,
                    "num_devices": 4,
                    "runs": [
                        {"first_layer": 0, "num_layers": 1, "strategy": dense},
                        {
                            "first_layer": 1,
                            "num_layers": 2,
                            "strategy": {**dense, "experts": {"expert_parallel_size": 4}},
                        },
                        {"first_layer": 3, "num_layers": 1, "strategy": dense},
                    ],
                }
            ],
        }
    )


def instant(model, cluster, training, options, report):
    """Two plans, priced by the real estimate."""
    report(0.5, "half way")
    plans = [plan_with(micro_batch_size=2), plan_with(micro_batch_size=1)]
    prices = [estimate(model, cluster, training, plan) for plan in plans]
    best = prices[0].step_time_s
    entries = tuple(
        ShortlistEntry(
            rank=rank,
            plan=plan,
            estimate=price,
            best_for=("balanced",) if rank == 1 else (),
            regret_ratio=0.0,
            scenario_step_time_s={"balanced": price.step_time_s},
            scenario_regret_ratio={"balanced": price.step_time_s / best - 1.0},
            switch_cost_s={},
        )
        for rank, (plan, price) in enumerate(zip(plans, prices, strict=True), start=1)
    )
    certificate = Certificate(
        status=CertificateStatus.OPTIMAL, lower_bound_s=best, gap_ratio=0.0, space="two plans", evaluated=2, pruned={}
    )
    scenarios = (Scenario(workload=BALANCED, probability=1.0),)
    return Shortlist(
        plans=entries,
        certificate=certificate,
        scenarios=scenarios,
        provenance=Provenance.DATASHEET,
        search_time_s=0.0,
    )


def risky(model, cluster, training, options, report):
    """Two plans, of which the first runs out of memory where load is skewed."""
    found = instant(model, cluster, training, options, report)
    first, *others = found.plans
    skewed = Scenario(workload=BALANCED.model_copy(update={"name": "skewed"}), probability=0.5)
    balanced = found.scenarios[0].model_copy(update={"probability": 0.5})
    plans = (first.model_copy(update={"out_of_memory_in": ("skewed",)}), *others)
    return found.model_copy(update={"plans": plans, "scenarios": (balanced, skewed)})


def endless(model, cluster, training, options, report):
    """Goes on until it is stopped."""
    step = 0
    while True:
        step += 1
        report(min(0.9, step / 1000), f"step {step}")
        time.sleep(0.005)


def until_stopped(folder, model, cluster, training, options, report):
    """Goes on until it is stopped; a file in the folder is written again as long as it does."""
    file = Path(tempfile.mkstemp(".runs", dir=folder)[1])
    step = 0
    while True:
        step += 1
        file.write_text(str(step))
        report(min(0.9, step / 1000), f"step {step} of {os.getpid()}")
        time.sleep(0.005)


def until_told(marker, model, cluster, training, options, report):
    """Goes on until a file is there, and succeeds."""
    while not Path(marker).exists():
        report(0.3, "waiting for the file")
        time.sleep(0.01)
    return instant(model, cluster, training, options, report)


def endless_with_solver(pid_file, model, cluster, training, options, report):
    """Starts a solver of its own, as CBC is one, and goes on until it is stopped."""
    solver = subprocess.Popen(["sleep", "600"])
    Path(pid_file).write_text(f"{os.getpid()} {solver.pid}")
    endless(model, cluster, training, options, report)


def deaf(pid_file, model, cluster, training, options, report):
    """One long step that heeds no signal that can be held off and reports nothing, as a solver's inner loop may be."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    report(0.5, "deaf")
    Path(pid_file).write_text(str(os.getpid()))
    sum(range(10**13))


def misses(model, cluster, training, options, report):
    """Nothing fits."""
    raise NoPlanFitsError(NearestMiss(summary="pp1 · dp4", stage=0, missing_bytes=5 * 2**30, limit_bytes=80 * 2**30))


def glutton(model, cluster, training, options, report):
    """Takes memory until there is no more."""
    eaten = []
    while True:
        eaten.append(bytearray(64 * 2**20))
        report(0.1, f"ate {len(eaten)} times")


def refuses(model, cluster, training, options, report):
    """The input is impossible."""
    raise InputError.at("training.global_batch_size", "must be at least 4")


def breaks(model, cluster, training, options, report):
    """A bug."""
    raise ZeroDivisionError("secret detail")


def dies(model, cluster, training, options, report):
    """Is killed each time."""
    os.kill(os.getpid(), signal.SIGKILL)


def dies_once(marker, model, cluster, training, options, report):
    """Is killed the first time, and succeeds the second."""
    if not Path(marker).exists():
        Path(marker).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return instant(model, cluster, training, options, report)


def hangs_at_exit(model, cluster, training, options, report):
    """Leaves a thread behind that keeps its process from ending."""
    threading.Thread(target=time.sleep, args=(600,)).start()
    return instant(model, cluster, training, options, report)


def notes_its_turn(log, model, cluster, training, options, report):
    """Writes down when it begins and ends."""
    with Path(log).open("a") as file:
        file.write(f"begin {training.sequence_length}\n")
    time.sleep(0.2)
    with Path(log).open("a") as file:
        file.write(f"end {training.sequence_length}\n")
    return instant(model, cluster, training.model_copy(update={"sequence_length": 128}), options, report)
