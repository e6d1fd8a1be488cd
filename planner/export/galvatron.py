"""Galvatron: its JSON, and the arguments that the JSON does not hold, for 2.4 and for 3.0.

Source: the keys as in facts read from PKU-DAIR/Hetu-Galvatron 2.4 and 3.0 (profiles/galvatron/plan_file.py reads them);
`core/runtime/arguments.py` (2.4) and `core/runtime/args_schema.py` (3.0) for what stands beside the file. The search
writes `embed_sdp`, the runtime reads `vocab_sdp`: both are written. JSON has no comments, so the other two files carry
the header. Lists have an entry for each block; data-parallel degrees follow from the rest.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from planner.export.galvatron_rules import default_shardings
from planner.export.header import header, placement_notes
from planner.export.job import Job
from planner.export.overlap import Overlap, overlap_notes
from planner.export.shell import Arguments, argument, arrays
from planner.spec.cluster import Precision
from planner.spec.export import ExportedFile
from planner.spec.plan import ScheduleKind
from planner.spec.strategy import Recompute, Sharding, Strategy

VERSIONS = "Galvatron 2.4 and 3.0"
JSON_NAME = "galvatron-plan.json"


def galvatron_files(job: Job) -> tuple[ExportedFile, ...]:
    """The plan, and one file for each version."""
    old = header(job, "Galvatron 2.4", left_to_user(job), notes(job)) + arrays({"GALVATRON_ARGS": old_arguments(job)})
    new = header(job, "Galvatron 3.0", left_to_user(job), notes(job)) + _yaml(job)
    return (
        ExportedFile(name=JSON_NAME, text=json.dumps(galvatron_plan(job), indent=4) + "\n"),
        ExportedFile(name="galvatron-2.4-arguments.sh", text=old),
        ExportedFile(name="galvatron-3.0-runtime.yaml", text=new),
    )


def left_to_user(job: Job) -> tuple[str, ...]:
    """What stands in the training script of the model."""
    return (
        f"Sizes of the model, data, tokenizer, iterations, learning rate: merge with yours; the folder of {JSON_NAME}.",
        f"torchrun --nnodes {job.nodes[0]} --nproc-per-node {job.devices_per_node}, with the addresses of your nodes.",
    )


def notes(job: Job) -> tuple[str, ...]:
    """What was assumed."""
    found = [*placement_notes(job), *overlap_notes(job, Overlap())]
    if Sharding.OPTIMIZER in default_shardings(job):
        found.append("ZeRO-1 is zero2 with async_grad_reduce: gradients are summed whole and reduced once.")
    if Sharding.GRADIENTS in default_shardings(job) and not _reduces_once(job):
        found.append("ZeRO-2 reduces gradients of every micro-batch: async_grad_reduce is off.")
    return tuple(found)


def galvatron_plan(job: Job) -> dict[str, object]:
    """The JSON."""
    kinds = dict(job.strategies)
    blocks = [kinds[number + 1] for piece in job.pieces for number in piece.blocks]
    edge = job.first
    zero3 = int(edge.sharding is Sharding.FULL)
    gpipe = job.plan.schedule.kind is ScheduleKind.GPIPE
    return {
        "pp_deg": job.num_stages,
        "tp_sizes_enc": _listed(_tensor(s) for s in blocks),
        "tp_consecutive_flags": _listed(1 for _ in blocks),
        "dp_types_enc": _listed(int(s.sharding is Sharding.FULL) for s in blocks),
        "use_sp": _listed(int(s.ulysses > 1) for s in blocks),
        "cp_sizes_enc": _listed(s.cp for s in blocks),
        "checkpoint": _listed(int(s.recompute is Recompute.FULL) for s in blocks),
        "global_bsz": job.plan.global_batch_size,
        "chunks": job.plan.num_micro_batches,
        "pp_division": _listed(len(piece.blocks) for piece in job.pieces),
        "pipeline_type": "gpipe" if gpipe else "pipedream_flush",
        "default_dp_type": "zero2" if default_shardings(job) - {Sharding.NONE} else "ddp",
        "vtp": _tensor(edge),
        "vsp": int(edge.ulysses > 1),
        "vcp": edge.cp,
        "embed_sdp": zero3,
        "vocab_sdp": zero3,
        "world_size": job.plan.num_devices,
    }


def _tensor(strategy: Strategy) -> int:
    """tp, or the degree of Ulysses in its place."""
    return max(strategy.tp, strategy.ulysses)


def _listed(values: Iterable[int]) -> str:
    return ",".join(map(str, values))


def _reduces_once(job: Job) -> bool:
    """Whether gradients of micro-batches are summed before they are reduced."""
    return Sharding.GRADIENTS not in default_shardings(job) or job.plan.num_micro_batches == 1


def _sequence_parallel(job: Job) -> bool:
    return any(strategy.sequence_parallel for _, strategy in job.strategies)


def _reduces_in_fp32(job: Job) -> bool:
    return job.training.gradient_precision is Precision.FP32 and job.training.precision is not Precision.FP32


def old_arguments(job: Job) -> Arguments:
    """Of 2.4, beside the JSON."""
    return (
        argument("--galvatron_config_path", JSON_NAME),
        argument("--mixed_precision", job.training.precision),
        argument("--seq-length", job.plan.sequence_length),
        argument("--dropout_prob", 0.1 if job.training.dropout else 0.0),
        *([argument("--sequence-parallel")] if _sequence_parallel(job) else []),
        *([] if _reduces_once(job) else [argument("--no_async_grad_reduce")]),
        *([argument("--reduce_in_fp32")] if _reduces_in_fp32(job) else []),
    )


def runtime_settings(job: Job) -> dict[str, dict[str, object]]:
    """Of 3.0's `runtime`, beside the JSON."""
    return {
        "parallel": {
            "galvatron_config_path": JSON_NAME,
            "mixed_precision": job.training.precision.value,
            "async_grad_reduce": _reduces_once(job),
            "reduce_in_fp32": _reduces_in_fp32(job),
        },
        "model": {"dropout_prob": 0.1 if job.training.dropout else 0.0},
        "train": {
            "global_batch_size": job.plan.global_batch_size,
            "chunks": job.plan.num_micro_batches,
            "seq_length": job.plan.sequence_length,
            "sequence_parallel": _sequence_parallel(job),
        },
    }


def _yaml(job: Job) -> str:
    lines = ["runtime:"]
    for section, settings in runtime_settings(job).items():
        lines += [f"  {section}:", *(f"    {name}: {json.dumps(value)}" for name, value in settings.items())]
    return "\n".join(lines) + "\n"
