"""CPU seconds of the offline search on one core, and what it found. By hand: `python benchmarks/bench_search.py`."""

from __future__ import annotations

import time

from rich.console import Console
from rich.table import Table

from planner.search import search
from planner.spec.training import Training
from profiles import cluster_from_shorthand, model_preset, resolve_cluster

CASES = (
    ("mixtral-8x7b", "8x8:h100-sxm-80g", 1024, 4096),
    ("mixtral-8x22b", "16x8:h100-sxm-80g", 256, 4096),
    ("llama-2-7b", "1x8:a100-sxm-80g", 64, 2048),
    ("llama-3.1-70b", "8x8:h100-sxm-80g", 512, 8192),
    ("gpt-3-175b", "8x8:a100-sxm-80g", 256, 2048),
    ("qwen3-30b-a3b", "4x8:h100-sxm-80g", 512, 4096),
)


def main() -> None:
    table = Table("model", "cluster", "CPU s", "best plan", "step s", "MFU", "certificate", "families solved")
    for model, cluster, batch, length in CASES:
        training = Training(global_batch_size=batch, sequence_length=length)
        question = (model_preset(model), resolve_cluster(cluster_from_shorthand(cluster)), training)
        began = time.process_time()
        found = search(*question)
        spent = time.process_time() - began
        best, certificate = found.plans[0], found.certificate
        table.add_row(
            model,
            cluster,
            f"{spent:.1f}",
            best.plan.summary,
            f"{best.estimate.step_time_s:.2f}",
            f"{best.estimate.mfu:.1%}",
            f"{certificate.status.value}, gap {certificate.gap_ratio:.2%}",
            str(certificate.evaluated),
        )
    Console(width=180).print(table)


if __name__ == "__main__":
    main()
