"""DeepSpeed: its JSON, the launcher's command, and for a pipeline the arguments of `PipelineModule`.

Source: DeepSpeed 0.19.8: `runtime/config.py`, `runtime/zero/config.py`, `runtime/tensor_parallel/config.py`
(`autotp_size`), `module_inject/auto_ep_config.py` (`expert_parallel`), `runtime/pipe/module.py` and `topology.py`. JSON
has no key for stages, nor one that turns recomputation on: both are in the client's code. It has no comments either, so
the launch script carries the header.
"""

from __future__ import annotations

import json

from planner.cost.deepspeed import deepspeed_cuts
from planner.export.deepspeed_rules import mixed_gradients
from planner.export.header import header, placement_notes
from planner.export.job import Job
from planner.export.overlap import Overlap, overlap_notes
from planner.export.shell import continued
from planner.spec.cluster import Precision
from planner.spec.export import ExportedFile
from planner.spec.strategy import Recompute, Sharding
from planner.spec.training import Optimizer

VERSIONS = "DeepSpeed 0.19.8"
_STAGE = {Sharding.NONE: 0, Sharding.OPTIMIZER: 1, Sharding.GRADIENTS: 2, Sharding.FULL: 3}


def deepspeed_files(job: Job) -> tuple[ExportedFile, ...]:
    """Configuration and launch script, and a Python file where there are stages."""
    config = ExportedFile(name="deepspeed-config.json", text=json.dumps(deepspeed_config(job), indent=2) + "\n")
    launch = ExportedFile(name="deepspeed-launch.sh", text=_launch(job))
    pipeline = ExportedFile(name="deepspeed_pipeline.py", text=_pipeline(job))
    return (config, launch, pipeline) if job.num_stages > 1 else (config, launch)


def left_to_user(job: Job) -> tuple[str, ...]:
    """What the job's own code has to do."""
    left = [
        "TRAIN_SCRIPT: your script with model, data and tokenizer; HOSTFILE: a line 'name slots=N' for each node.",
        f"Micro-batches of {_tokens(job)} tokens a sample, as the data loader makes them.",
        "optimizer.params (learning rate, betas, weight decay), a scheduler, gradient_clipping.",
    ]
    if job.num_stages > 1:
        left.append("The model as a list of layers for deepspeed_pipeline.py: embedding, each block, head.")
    if job.num_stages > 1 and job.first.tp > 1:
        left.append(f"Tensor-parallel layers over {job.first.tp} ranks: AutoTP does not cut a pipeline's layers.")
    if _recomputed(job) and job.num_stages == 1:
        left.append("Recomputation of every block, in the model (gradient_checkpointing_enable() of Hugging Face's).")
    if job.model.moe_layers and not _replaced_experts(job):
        factor = job.training.capacity_factor
        kept = "drop_tokens=False" if factor is None else f"capacity_factor={factor}"
        left.append(f"Experts as deepspeed.moe.layer.MoE(ep_size={_expert_parallel(job)}, {kept}, …) in the model.")
    if _replaced_experts(job):
        left.append("expert_parallel.preset_model, or its patterns, where AutoEP does not know the model by its type.")
    return tuple(left)


def _data_overlap(job: Job) -> str | None:
    """Source: DeepSpeed 0.19.8, `runtime/engine.py`: a pipeline turns overlap_comm off; stage 0 reads none."""
    if job.num_stages > 1:
        return "DeepSpeed has no overlap_comm with stages"
    return None if _zero(job).get("overlap_comm") else "overlap_comm is for a plan with ZeRO"


def _tokens(job: Job) -> str:
    read = f" (and {job.training.encoder_length} that the encoder reads)" if job.model.has_encoder else ""
    return f"{job.plan.sequence_length}{read}"


def notes(job: Job) -> tuple[str, ...]:
    """Where DeepSpeed does otherwise than the plan's price, and what was assumed."""
    found = [*placement_notes(job), *overlap_notes(job, Overlap(data=_data_overlap(job)))]
    if job.sharding is Sharding.NONE and mixed_gradients(job):
        found.append(
            "ZeRO-1 over a single rank shards nothing; it is there for gradients in other numbers than weights."
        )
    if _cut_by_autotp(job):
        found.append(
            f"A step has {job.plan.global_batch_size} samples; train_batch_size is left out, because without an mpu "
            "DeepSpeed takes it for micro-batch x accumulation x all ranks, those of tensor parallelism too."
        )
    if job.training.optimizer is Optimizer.SGD and job.sharding is not Sharding.NONE:
        found.append("DeepSpeed calls ZeRO with SGD untested.")
    return tuple(found)


def deepspeed_config(job: Job) -> dict[str, object]:
    """The JSON."""
    plan, training = job.plan, job.training
    sections: dict[str, object] = {
        **({} if _cut_by_autotp(job) else {"train_batch_size": plan.global_batch_size}),
        "train_micro_batch_size_per_gpu": plan.micro_batch_size,
        "gradient_accumulation_steps": plan.num_micro_batches,
        "zero_optimization": _zero(job),
    }
    if training.precision is not Precision.FP32:
        sections[training.precision.value] = {"enabled": True}
    sections["data_types"] = {"grad_accum_dtype": training.gradient_precision.value}
    sections["communication_data_type"] = training.gradient_precision.value
    if _cut_by_autotp(job):
        sections["tensor_parallel"] = {"autotp_size": job.first.tp}
    if _replaced_experts(job):
        sections["expert_parallel"] = {"enabled": True, "autoep_size": _expert_parallel(job)}
    sections["optimizer"] = _OPTIMIZERS[training.optimizer]
    if training.optimizer is Optimizer.SGD and job.sharding is not Sharding.NONE:
        sections["zero_allow_untested_optimizer"] = True
    sections["gradient_clipping"] = 1.0
    return sections


_OPTIMIZERS: dict[Optimizer, dict[str, object]] = {
    Optimizer.ADAM: {"type": "AdamW", "params": {"lr": 3e-4, "betas": [0.9, 0.95], "weight_decay": 0.1}},
    Optimizer.SGD: {"type": "SGD", "params": {"lr": 1e-2, "momentum": 0.9}},
}


def _zero(job: Job) -> dict[str, object]:
    stage = _STAGE[job.sharding]
    if stage == 0:
        return {"stage": 1 if mixed_gradients(job) else 0}
    return {"stage": stage, "overlap_comm": job.num_stages == 1, "contiguous_gradients": True}


def _cut_by_autotp(job: Job) -> bool:
    """AutoTP cuts a whole model; layers of a pipeline are the client's."""
    return job.first.tp > 1 and job.num_stages == 1


def _expert_parallel(job: Job) -> int:
    return job.experts.expert_parallel_size if job.experts else 1


def _replaced_experts(job: Job) -> bool:
    """AutoEP replaces the model's experts; dropping tokens and pipelines are for MoE layers of the model's own."""
    return bool(job.model.moe_layers) and job.num_stages == 1 and job.training.capacity_factor is None


def _recomputed(job: Job) -> bool:
    return any(strategy.recompute is Recompute.FULL for _, strategy in job.strategies)


def _launch(job: Job) -> str:
    needed = "".join(f': "${{{name}:?must be set}}"\n' for name in ("TRAIN_SCRIPT", "HOSTFILE"))
    command = continued(
        "deepspeed",
        f'--hostfile "$HOSTFILE" --num_nodes {job.nodes[0]} --num_gpus {job.devices_per_node}',
        '"$TRAIN_SCRIPT" --deepspeed --deepspeed_config "$(dirname "${BASH_SOURCE[0]}")/deepspeed-config.json"',
        '"$@"',
    )
    top = header(job, VERSIONS, left_to_user(job), notes(job))
    return f"#!/usr/bin/env bash\n{top}set -euo pipefail\n{needed}{command}"


def pipeline_arguments(job: Job) -> dict[str, int | str]:
    """Stages, their partition, ranks: what `deepspeed_pipeline.py` is filled with.

    Stages of the uniform partition are cut so; others begin where the blocks alone, counted evenly, put them.
    """
    starts = tuple(piece.numbers[0] for piece in job.pieces)
    uniform = starts == deepspeed_cuts(job.model, job.num_stages)[0]
    return {
        "num_pp": job.num_stages,
        "num_mp": job.first.tp,
        "num_dp": job.first.data_parallel_size,
        "partition_method": "uniform" if uniform else "type",
        "activation_checkpoint_interval": int(_recomputed(job)),
    }


def _pipeline(job: Job) -> str:
    values = pipeline_arguments(job)
    by_type = values["partition_method"] == "type"
    method = 'f"type:{block_class}"' if by_type else '"uniform"'
    top = header(job, VERSIONS, left_to_user(job), notes(job))
    return f'''{top}
from deepspeed.pipe import PipelineModule
from deepspeed.runtime.pipe.topology import PipeModelDataParallelTopology


def pipeline_module(layers, block_class, **others):
    """`layers`: {len(job.model.layers)} LayerSpecs, one for each layer; `block_class`: name of the blocks' class.

    Stages begin at layers {" ".join(str(piece.numbers[0]) for piece in job.pieces)}.
    """
    assert len(layers) == {len(job.model.layers)}
    return PipelineModule(
        layers=layers,
        topology=PipeModelDataParallelTopology(
            num_pp={values["num_pp"]}, num_mp={values["num_mp"]}, num_dp={values["num_dp"]}
        ),
        partition_method={method},
        activation_checkpoint_interval={values["activation_checkpoint_interval"]},
        checkpointable_layers=[block_class],
        **others,
    )
'''
