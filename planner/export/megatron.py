"""Megatron-LM: arguments with their environment, and a script that starts `pretrain_gpt.py`.

Options and rules were read in Megatron-LM d98e8a6 and 000c4ac (`arguments.py`: `validate_args`), and tried on
megatron-core 0.16.1: `TransformerConfig`, `PipelineParallelLayerLayout`, `RankGenerator`. ZeRO-2 and 3 take what the
quick start of Megatron-FSDP lists: no fusion of gradient accumulation, the distributed optimizer, its own checkpoint
format, and CUDA_DEVICE_MAX_CONNECTIONS unset; all else under tp or cp needs it to be 1 before Blackwell.
"""

from __future__ import annotations

from planner.export.header import header, placement_notes
from planner.export.job import Job, Piece
from planner.export.megatron_model import expert_arguments, model_arguments, padded_vocabulary, recipe_arguments
from planner.export.megatron_rules import experts_of
from planner.export.overlap import Overlap, overlap_notes
from planner.export.shell import Arguments, argument, arrays, continued
from planner.spec.cluster import Precision
from planner.spec.export import ExportedFile
from planner.spec.model import GroupedQueryAttention, LatentAttention
from planner.spec.plan import ScheduleKind
from planner.spec.strategy import Recompute, Sharding

VERSIONS = "Megatron-LM d98e8a6, megatron-core 0.16.1"


def megatron_files(job: Job) -> tuple[ExportedFile, ...]:
    """Two scripts of bash, the second of which reads the first."""
    top = header(job, VERSIONS, left_to_user(job), notes(job))
    first = f"{top}\n{_environment(job)}{arrays(megatron_arguments(job))}"
    return (
        ExportedFile(name="megatron-arguments.sh", text=first),
        ExportedFile(name="megatron-launch.sh", text=f"#!/usr/bin/env bash\n{top}{_launch(job)}"),
    )


def megatron_arguments(job: Job) -> dict[str, Arguments]:
    """All arguments that follow from plan, model and recipe, by the name of their array."""
    return {
        "PARALLEL_ARGS": (*_parallel(job), *_pipeline(job), *_sharded(job)),
        "RECOMPUTE_ARGS": _recompute(job),
        "MODEL_ARGS": model_arguments(job),
        "MOE_ARGS": expert_arguments(job),
        "RECIPE_ARGS": recipe_arguments(job),
    }


def left_to_user(job: Job) -> tuple[str, ...]:
    """What the launch script takes from variables, and what the arguments assume."""
    tokens, rows = padded_vocabulary(job)
    left = [
        f"{', '.join(_NEEDED)}.",
        f"A tokenizer of {tokens} tokens; the matrix is padded to {rows} rows.",
        "Learning-rate schedule, initialisation, norm epsilon, validation, logging.",
    ]
    attention = job.blocks[0].attention
    if isinstance(attention, LatentAttention):
        left.append("Rotary base and scaling (--rotary-base, --rotary-scaling-factor, --mscale, --mscale-all-dim).")
    elif ("--position-embedding-type", ("rope",)) in model_arguments(job):
        left.append("Rotary positions are assumed: --rotary-base, --rotary-percent, --use-rope-scaling.")
    if experts_of(job):
        left.append(
            "How the router scores and is balanced, here softmax after top-k with an auxiliary loss (MOE_BALANCE, "
            "MOE_AUX_LOSS_COEFF): --moe-router-score-function, --moe-router-pre-softmax and the like."
        )
    return tuple(left)


def notes(job: Job) -> tuple[str, ...]:
    """Where Megatron-LM does otherwise than the plan's price, and what was assumed."""
    found = [*placement_notes(job), *overlap_notes(job, Overlap(_tensor_overlap(job), _expert_overlap(job)))]
    if job.blocks[0].feed_forward.gated:
        found.append(
            "Gated networks are written as --swiglu; a model does not say what gates it (--quick-geglu is GELU)."
        )
    if job.training.precision is Precision.FP8:
        found.append("fp8 has a scale for each tensor here; --fp8-recipe blockwise has one for each 128 x 128.")
    if job.training.dropout:
        found.append("Dropout is 0.1 after attention and feed-forward, and none on attention probabilities.")
    if _fully_sharded(job):
        found.append("ZeRO-2 and ZeRO-3 are Megatron-FSDP; it writes checkpoints of its own format.")
    attention = job.blocks[0].attention
    if isinstance(attention, LatentAttention) and attention.q_lora_rank is None:
        found.append("Queries have no low rank: --q-lora-rank is left out, whose default is none.")
    if isinstance(attention, GroupedQueryAttention) and attention.num_kv_heads % job.first.tp:
        found.append(f"tp {job.first.tp} exceeds the {attention.num_kv_heads} key-value heads, which are replicated.")
    return tuple(found)


def _tensor_overlap(job: Job) -> str:
    """Source: `validate_args`: only with sequence parallelism; its user buffers are Transformer Engine's."""
    if not job.first.sequence_parallel:
        return "--tp-comm-overlap needs --sequence-parallel, which the plan has not"
    return "add --tp-comm-overlap, which needs Transformer Engine with its user buffers"


def _expert_overlap(job: Job) -> str:
    """Source: megatron-core 0.16.1, `TransformerConfig.__post_init__`."""
    option = "--overlap-moe-expert-parallel-comm"
    if job.num_stages > 1 and job.plan.schedule.virtual_stages == 1:
        return f"{option} needs virtual stages, which the plan has not"
    if any(Recompute.FULL in piece for piece in job.recompute):
        return f"{option} forbids the plan's full recomputation"
    if job.training.precision is Precision.FP32:
        return f"{option} needs 16 bits"
    return f"add {option}, which needs torch 2.6"


def _parallel(job: Job) -> Arguments:
    strategy, experts = job.first, job.experts
    ring = [argument("--context-parallel-size", strategy.cp), argument("--cp-comm-type", "p2p")]
    spread = []
    if experts:
        spread = [
            argument("--expert-model-parallel-size", experts.expert_parallel_size),
            argument("--expert-tensor-parallel-size", experts.expert_tensor_parallel_size),
        ]
    return (
        argument("--tensor-model-parallel-size", strategy.tp),
        argument("--pipeline-model-parallel-size", job.num_stages),
        *(ring if strategy.cp > 1 else []),
        *([argument("--sequence-parallel")] if strategy.sequence_parallel else []),
        *spread,
    )


def _pipeline(job: Job) -> Arguments:
    """Nothing for one stage or even ones; a layout otherwise, which says the number of virtual stages as well."""
    if job.num_stages == 1:
        return ()
    pieces, virtual = job.pieces, job.plan.schedule.virtual_stages
    even = len({len(piece.blocks) for piece in pieces}) == 1
    if not even or not all(piece.blocks for piece in pieces):
        return (argument("--pipeline-model-parallel-layout", "|".join(map(_letters, pieces))),)
    interleaved = job.plan.schedule.kind is ScheduleKind.INTERLEAVED
    return (argument("--num-virtual-stages-per-pipeline-rank", virtual),) if interleaved else ()


def _letters(piece: Piece) -> str:
    """`Et*3`: embedding and three blocks; L is the loss, the head included."""
    count = len(piece.blocks)
    blocks = "t" if count == 1 else f"t*{count}" if count else ""
    return f"{'E' * piece.has_embedding}{blocks}{',' if blocks and piece.has_head else ''}{'L' * piece.has_head}"


def _sharded(job: Job) -> Arguments:
    if job.sharding is Sharding.NONE:
        several = job.first.data_parallel_size * job.first.cp > 1
        return (argument("--overlap-grad-reduce"),) if several else ()
    overlap = (argument("--overlap-grad-reduce"), argument("--overlap-param-gather"))
    if not _fully_sharded(job):
        return (argument("--use-distributed-optimizer"), *overlap)
    parts = "optim_grads" if job.sharding is Sharding.GRADIENTS else "optim_grads_params"
    copies = [argument("--num-distributed-optimizer-instances", job.replicas)] if job.replicas > 1 else []
    return (
        argument("--use-megatron-fsdp"),
        argument("--data-parallel-sharding-strategy", parts),
        argument("--use-distributed-optimizer"),
        argument("--no-gradient-accumulation-fusion"),
        *copies,
        *overlap,
        argument("--ckpt-format", "fsdp_dtensor"),
    )


def _fully_sharded(job: Job) -> bool:
    return job.sharding in (Sharding.GRADIENTS, Sharding.FULL)


def _recompute(job: Job) -> Arguments:
    kinds = [kind for piece in job.recompute for kind in piece]
    if Recompute.SELECTIVE in kinds:
        return (argument("--recompute-granularity", "selective"), argument("--recompute-modules", "core_attn"))
    if Recompute.FULL not in kinds:
        return ()
    full = argument("--recompute-granularity", "full")
    if Recompute.NONE not in kinds:
        return (full, argument("--recompute-method", "uniform"), argument("--recompute-num-layers", 1))
    first = max(piece.count(Recompute.FULL) for piece in job.recompute)
    return (full, argument("--recompute-method", "block"), argument("--recompute-num-layers", first))


def _environment(job: Job) -> str:
    if _fully_sharded(job):
        return "unset CUDA_DEVICE_MAX_CONNECTIONS\n\n"
    return "export CUDA_DEVICE_MAX_CONNECTIONS=1\n\n" if job.first.tp * job.first.cp > 1 else ""


_NEEDED = (
    "MEGATRON_PATH",
    "DATA_PATH",
    "TOKENIZER_TYPE",
    "TOKENIZER_MODEL",
    "CHECKPOINT_PATH",
    "TRAIN_ITERS",
    "LR",
    "MASTER_ADDR",
    "NODE_RANK",
)


def _launch(job: Job) -> str:
    needed = "".join(f': "${{{name}:?must be set}}"\n' for name in _NEEDED)
    names = [f'"${{{name}[@]}}"' for name in (*megatron_arguments(job), "USER_ARGS") if name != "MOE_ARGS"]
    balance = (
        'MOE_ARGS+=(\n    --moe-router-load-balancing-type "${MOE_BALANCE:-aux_loss}"\n'
        '    --moe-aux-loss-coeff "${MOE_AUX_LOSS_COEFF:-1e-2}"\n)\n'
    )
    user = (
        "USER_ARGS=(\n    --data-path ${DATA_PATH}\n"
        '    --tokenizer-type "$TOKENIZER_TYPE"\n    --tokenizer-model "$TOKENIZER_MODEL"\n'
        '    --save "$CHECKPOINT_PATH"\n    --load "$CHECKPOINT_PATH"\n    --save-interval 1000\n'
        '    --train-iters "$TRAIN_ITERS"\n    --lr "$LR"\n)\n'
    )
    torchrun = continued(
        "torchrun",
        f'--nnodes {job.nodes[0]} --nproc-per-node {job.devices_per_node} --node-rank "$NODE_RANK"',
        '--master-addr "$MASTER_ADDR" --master-port "${MASTER_PORT:-29500}"',
        '"$MEGATRON_PATH/pretrain_gpt.py"',
        *names,
        *(['"${MOE_ARGS[@]}"'] if experts_of(job) else []),
    )
    return (
        'set -euo pipefail\nsource "$(dirname "${BASH_SOURCE[0]}")/megatron-arguments.sh"\n'
        f"{needed}{balance if experts_of(job) else ''}{user}{torchrun}"
    )
