"""torchtitan: a TOML file for v0.2, scripts with options for 0.3.0 and for the state of b5bcd76.

Source: v0.2.2 `config/job_config.py` and `distributed/pipeline_parallel.py`, whose parser read what is written here;
the same files of 0.3.0 (options by tyro, no TOML, the head is `lm_head`, no expert_tensor_parallel_degree, activation
checkpointing is a subcommand at the end). b5bcd76 counts batches in tokens, and pipeline micro-batches by number
(`num_pp_microbatches`); this form was read, not run. A pipeline splits `local_batch_size`, which then holds the samples
of all micro-batches; without one it is a micro-batch, and the trainer accumulates up to the global batch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from planner.export.header import header, placement_notes
from planner.export.job import Job, Piece
from planner.export.overlap import Overlap, overlap_notes
from planner.export.shell import Argument, Arguments, argument, arrays, continued
from planner.export.torchtitan_models import Flavor, flavor_of
from planner.spec.cluster import Precision
from planner.spec.export import ExportedFile
from planner.spec.plan import ScheduleKind
from planner.spec.strategy import Recompute, Sharding

VERSIONS = "torchtitan v0.2.2, 0.3.0 and b5bcd76"
Table = Mapping[str, object]
"""One table of a TOML file: text, numbers, flags, lists."""


def torchtitan_files(job: Job) -> tuple[ExportedFile, ...]:
    """One file for each version that can run the plan."""
    old = () if _lacks_switch(job) else (ExportedFile(name="torchtitan-v0.2.toml", text=_toml(job)),)
    released = ExportedFile(name="torchtitan-v0.3.sh", text=_script(job, "torchtitan 0.3.0", released_arguments(job)))
    newest = ExportedFile(name="torchtitan-main.sh", text=_script(job, "torchtitan b5bcd76", newest_arguments(job)))
    return (*old, released, newest)


def left_to_user(job: Job) -> tuple[str, ...]:
    """What the files have placeholders for, or do not hold."""
    model = [] if flavor_of(job.model) else ["The model: name and flavor, or module and config, of these very sizes."]
    return (
        *model,
        "Tokenizer and other assets (hf_assets_path), data set, number of steps, checkpoints, metrics.",
        "Learning rate and its schedule, clipping of gradients, compilation.",
    )


def notes(job: Job) -> tuple[str, ...]:
    """Where torchtitan does otherwise than the plan's price, and what was assumed."""
    found = [
        *placement_notes(job),
        *overlap_notes(job, Overlap(tensor="parallelism.enable_async_tensor_parallel does so, with compile")),
    ]
    if _lacks_switch(job):
        found.append("v0.2 has no file: it cannot have tensor parallelism without sequence parallelism.")
    if job.first.cp > 1:
        found.append("cp: from 0.3 on a config with FlexAttention is needed, and its load balancer (ptrr).")
    if Recompute.SELECTIVE in _kinds(job):
        found.append(
            "Selective recomputation keeps attention and every second matrix product here, not all but the core."
        )
    if job.training.precision.is_quantised:
        found.append("8 bits need torchao; from 0.3 on they are part of the config (converters of its model_registry).")
    return tuple(found)


def _lacks_switch(job: Job) -> bool:
    return job.first.tp > 1 and not job.first.sequence_parallel


def tables(job: Job) -> dict[str, Table]:
    """The TOML file of v0.2 by table."""
    flavor = flavor_of(job.model) or _UNKNOWN
    parallel = dict(_parallelism(job, "output"))
    if job.experts and job.experts.expert_parallel_size > 1:
        parallel["expert_tensor_parallel_degree"] = job.experts.expert_tensor_parallel_size
    mode = next(iter(_kinds(job))).value
    recompute = {"mode": mode, "selective_ac_option": "op"} if mode == "selective" else {"mode": mode}
    return {
        "job": {"dump_folder": "./outputs", "description": f"plan {job.plan.id} of Trimtab: {job.plan.summary}"},
        "model": {"name": flavor.name, "flavor": flavor.flavor, "hf_assets_path": "SET_ME", **_converters(job)},
        "optimizer": {"name": "AdamW", "lr": 3e-4},
        "lr_scheduler": {"warmup_steps": 200},
        "training": {"dataset": "c4", "steps": 10000, **_training(job), **_formats(job)},
        "parallelism": parallel,
        "activation_checkpoint": recompute,
        **_quantised(job),
    }


def released_arguments(job: Job) -> Arguments:
    """Options of 0.3.0; the last, a subcommand, has to stay the last."""
    sections = {"training": {**_training(job), **_formats(job)}, "parallelism": _parallelism(job, "lm_head")}
    return (*_options(sections), *_switches(job))


def newest_arguments(job: Job) -> Arguments:
    """Options of b5bcd76, where batches are counted in tokens."""
    plan = job.plan
    training: Table = {
        "num_tokens_per_microbatch_per_dp_rank": plan.micro_batch_size * plan.sequence_length,
        "num_tokens_per_train_step": plan.global_batch_size * plan.sequence_length,
        "max_context_length": plan.sequence_length,
        **_formats(job),
    }
    parallel = dict(_parallelism(job, "lm_head"))
    if parallel.pop("pipeline_parallel_microbatch_size", None) is not None:
        parallel["num_pp_microbatches"] = plan.num_micro_batches
    return (*_options({"training": training, "parallelism": parallel}), *_switches(job))


def _training(job: Job) -> Table:
    plan = job.plan
    held = plan.num_micro_batches if job.num_stages > 1 else 1
    return {
        "local_batch_size": plan.micro_batch_size * held,
        "global_batch_size": plan.global_batch_size,
        "seq_len": plan.sequence_length,
    }


def _formats(job: Job) -> Table:
    whole = job.training.precision is Precision.FP32
    return {"mixed_precision_param": "float32" if whole else "bfloat16", "mixed_precision_reduce": "float32"}


def _parallelism(job: Job, head: str) -> Table:
    plan, strategy = job.plan, job.first
    table: dict[str, object] = {
        "data_parallel_replicate_degree": job.replicas,
        "data_parallel_shard_degree": job.shards,
        "fsdp_reshard_after_forward": _RESHARD[job.sharding],
        "context_parallel_degree": strategy.cp,
        "tensor_parallel_degree": strategy.tp,
        "pipeline_parallel_degree": job.num_stages,
        "expert_parallel_degree": job.experts.expert_parallel_size if job.experts else 1,
    }
    if job.num_stages > 1:
        table["pipeline_parallel_schedule"] = _SCHEDULES[plan.schedule.kind]
        table["pipeline_parallel_microbatch_size"] = plan.micro_batch_size
        table["module_fqns_per_model_part"] = [_modules(piece, head) for piece in job.pieces]
    return table


_RESHARD = {
    Sharding.NONE: "default",
    Sharding.GRADIENTS: "never",
    Sharding.FULL: "always",
}
_SCHEDULES = {
    ScheduleKind.ONE_F_ONE_B: "1F1B",
    ScheduleKind.INTERLEAVED: "Interleaved1F1B",
    ScheduleKind.GPIPE: "GPipe",
}
_UNKNOWN = Flavor("SET_ME", "SET_ME", "SET_ME", 0, 0)


def _modules(piece: Piece, head: str) -> list[str]:
    """Names of the modules of a stage."""
    first = ["tok_embeddings"] if piece.has_embedding else []
    last = ["norm", head] if piece.has_head else []
    return [*first, *(f"layers.{number}" for number in piece.blocks), *last]


def _kinds(job: Job) -> frozenset[Recompute]:
    """Of all blocks: one, by the rules of torchtitan."""
    return frozenset(kind for piece in job.recompute for kind in piece)


def _converters(job: Job) -> Table:
    kind = _EIGHT_BITS.get(job.training.precision)
    if kind is None:
        return {}
    products = ["linear", "grouped_mm"] if job.model.moe_layers else ["linear"]
    return {"converters": [f"quantize.{product}.{kind}" for product in products]}


def _quantised(job: Job) -> dict[str, Table]:
    kind = _EIGHT_BITS.get(job.training.precision)
    if kind is None:
        return {}
    linear: Table = {"recipe_name": "tensorwise" if kind == "float8" else "mxfp8_cublas"}
    grouped: dict[str, Table] = {f"quantize.grouped_mm.{kind}": {"fqns": ["experts"]}} if job.model.moe_layers else {}
    return {f"quantize.linear.{kind}": linear, **grouped}


_EIGHT_BITS = {Precision.FP8: "float8", Precision.MXFP8: "mx"}


def _options(sections: dict[str, Table]) -> Arguments:
    return tuple(
        _option(f"--{section}.{name}", value) for section, table in sections.items() for name, value in table.items()
    )


def _option(name: str, value: object) -> Argument:
    """A list of lists is one word for each, with commas inside."""
    if isinstance(value, list):
        return argument(name, *(",".join(words) for words in value))
    return argument(name, value)


def _switches(job: Job) -> Arguments:
    """What is on unless said otherwise, then the kind of recomputation.

    CUDA graphs go with neither stages nor the usual dispatch of experts (0.3.0, `trainer.py`: `_validate_cuda_graphs`).
    """
    experts = job.experts.expert_parallel_size if job.experts else 1
    graphs = [argument("--training.disable_cuda_graphs")] if job.num_stages * experts > 1 else []
    cuts = [argument("--parallelism.no-enable-sequence-parallel")] if _lacks_switch(job) else []
    return (*graphs, *cuts, argument(f"activation_checkpoint:{next(iter(_kinds(job)))}"))


def _toml(job: Job) -> str:
    top = header(job, "torchtitan v0.2.2", left_to_user(job), (*notes(job), _START_TOML))
    body = "\n".join(
        f"[{name}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in table.items())
        for name, table in tables(job).items()
    )
    return f"{top}\n{body}"


_START_TOML = "Start on every node: torchrun … -m torchtitan.train --job.config_file torchtitan-v0.2.toml"


def _script(job: Job, version: str, arguments: Arguments) -> str:
    flavor = flavor_of(job.model)
    module = flavor.name if flavor else ""
    config = flavor.config if flavor else ""
    preset = f': "${{MODULE:={module}}}"\n: "${{CONFIG:={config}}}"\n' if module and config else _NEEDED_MODEL
    torchrun = continued(
        "torchrun",
        f'--nnodes {job.nodes[0]} --nproc-per-node {job.devices_per_node} --node-rank "$NODE_RANK"',
        '--master-addr "$MASTER_ADDR" --master-port "${MASTER_PORT:-29500}"',
        '-m torchtitan.train --module "$MODULE" --config "$CONFIG" --hf_assets_path "$HF_ASSETS_PATH"',
        '"$@" "${PLAN_ARGS[@]}"',
    )
    return (
        f"#!/usr/bin/env bash\n{header(job, version, left_to_user(job), notes(job))}set -euo pipefail\n"
        f"{preset}{_NEEDED}{arrays({'PLAN_ARGS': arguments})}{torchrun}"
    )


_NEEDED_MODEL = ': "${MODULE:?must be set, as llama3}"\n: "${CONFIG:?must be set, as llama3_8b}"\n'
_NEEDED = "".join(f': "${{{name}:?must be set}}"\n' for name in ("HF_ASSETS_PATH", "MASTER_ADDR", "NODE_RANK"))
