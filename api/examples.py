"""Filled-in requests for Swagger UI. A test sends every one of them to the service."""

from __future__ import annotations

from fastapi.openapi.models import Example

Json = dict[str, object]

MIXTRAL: Json = {"preset": "mixtral-8x7b"}
H100_8X8: Json = {"nodes": 8, "devices_per_node": 8, "device": "h100-sxm-80g"}
TRAINING: Json = {"global_batch_size": 1024, "sequence_length": 4096, "precision": "bf16", "optimizer": "adam"}


METRICS_EXAMPLE = (
    "# HELP trimtab_searches Searches in the database\n# TYPE trimtab_searches gauge\n"
    'trimtab_searches{state="queued"} 0.0\n'
)

SEARCH_EXAMPLES: dict[str, Example] = {
    "mixtral": {
        "summary": "Mixtral-8x7B on 8 nodes with 8 H100",
        "value": {"model": MIXTRAL, "cluster": H100_8X8, "training": TRAINING, "options": {"shortlist_size": 8}},
    },
    "llama": {
        "summary": "Llama-3.1-8B on one node, largest throughput, few devices",
        "value": {
            "model": {"preset": "llama-3.1-8b"},
            "cluster": {"nodes": 1, "devices_per_node": 8, "device": "a100-sxm-80g"},
            "training": {"global_batch_size": "max", "max_global_batch_size": 256, "sequence_length": 8192},
            "options": {"shortlist_size": 3, "recompute": ["none", "selective"]},
        },
    },
    "lengths": {
        "summary": "Llama-3.1-8B on 8 nodes, plans also for long sequences and for a small batch",
        "value": {
            "model": {"preset": "llama-3.1-8b"},
            "cluster": H100_8X8,
            "training": {"global_batch_size": 512, "sequence_length": 8192},
            "options": {
                "scenarios": [
                    {"probability": 0.7},
                    {"sequence_length": 131072, "probability": 0.2},
                    {"global_batch_size": 96, "probability": 0.1},
                ]
            },
        },
    },
    "gates": {
        "summary": "Mixtral-8x7B on 8 nodes, plans also for skewed load, one expert per token, dropped tokens",
        "value": {
            "model": MIXTRAL,
            "cluster": H100_8X8,
            "training": TRAINING,
            "options": {
                "scenarios": [
                    {"probability": 0.4},
                    {
                        "name": "two hot experts",
                        "workload": {"expert_shares": [[0.25, 0.25, 0.1, 0.1, 0.1, 0.1, 0.05, 0.05]]},
                        "probability": 0.2,
                    },
                    {"top_k": 1, "probability": 0.2},
                    {"capacity_factor": 1.25, "probability": 0.2},
                ]
            },
        },
    },
}


def _run(first_layer: int, num_layers: int, *, experts: bool) -> Json:
    strategy: Json = {"axes": [["dp", 8], ["tp", 2]], "sharding": "optimizer", "sequence_parallel": True}
    if experts:
        strategy["recompute"] = "selective"
        strategy["experts"] = {"expert_parallel_size": 8, "expert_data_parallel_size": 2}
    return {"first_layer": first_layer, "num_layers": num_layers, "strategy": strategy}


def _stage(number: int, *runs: Json) -> Json:
    return {"first_device": 16 * number, "num_devices": 16, "runs": list(runs)}


MIXTRAL_PLAN: Json = {
    "global_batch_size": 1024,
    "sequence_length": 4096,
    "micro_batch_size": 1,
    "num_micro_batches": 128,
    "schedule": {"kind": "1f1b"},
    "stages": [
        _stage(0, _run(0, 1, experts=False), _run(1, 8, experts=True)),
        _stage(1, _run(9, 8, experts=True)),
        _stage(2, _run(17, 8, experts=True)),
        _stage(3, _run(25, 8, experts=True), _run(33, 1, experts=False)),
    ],
}
"""Mixtral-8x7B (embedding, 32 blocks, head) in 4 stages of 16 devices."""

GROUPS: Json = {
    "groups": [
        {"nodes": 1, "devices_per_node": 8, "device": "a100-sxm-80g"},
        {"nodes": 1, "devices_per_node": 8, "device": "v100-sxm2-32g"},
    ]
}
GPT2_PLAN: Json = {
    "global_batch_size": 64,
    "sequence_length": 1024,
    "micro_batch_size": 1,
    "num_micro_batches": 8,
    "stages": [
        {
            "first_device": 8 * number,
            "num_devices": 8,
            "runs": [{"first_layer": first, "num_layers": layers, "strategy": {"axes": [["dp", 8]]}}],
        }
        for number, (first, layers) in enumerate(((0, 37), (37, 13)))
    ],
}
"""GPT-2 XL (embedding, 48 blocks, head): three quarters of it on the faster devices."""

ESTIMATE_EXAMPLES: dict[str, Example] = {
    "mixtral": {
        "summary": "Mixtral-8x7B on 64 H100: pp4, tp2, dp8, ep8",
        "value": {"model": MIXTRAL, "cluster": H100_8X8, "training": TRAINING, "plan": MIXTRAL_PLAN},
    },
    "groups": {
        "summary": "GPT-2 XL on unlike devices: a stage on 8 A100, a shorter one on 8 V100",
        "value": {
            "model": {"preset": "gpt2-xl"},
            "cluster": GROUPS,
            "training": {"global_batch_size": 64, "sequence_length": 1024, "precision": "fp16"},
            "plan": GPT2_PLAN,
        },
    },
}
WHAT_IF_EXAMPLES: dict[str, Example] = {
    "skew": {
        "summary": "Two of 8 experts get half of the tokens",
        "value": {
            "workload": {
                "name": "two hot experts",
                "expert_shares": [[0.25, 0.25, 0.1, 0.1, 0.1, 0.1, 0.05, 0.05]],
            }
        },
    },
    "slow network": {
        "summary": "The same devices over 100 Gbit/s Ethernet",
        "value": {"cluster": {**H100_8X8, "inter_node": {"bandwidth_bytes_per_s": 1.25e9, "latency_s": 2e-5}}},
    },
}
EXPORTED_FILE_EXAMPLE = "# mixtral-8x7b for Megatron-LM d98e8a6, megatron-core 0.16.1, exported by Trimtab.\n…"
"""The beginning of one file."""
RUN_EXAMPLES: dict[str, Example] = {
    "run": {
        "summary": "A job on the shortlist of a search",
        "value": {"name": "mixtral-pretraining", "search_id": "id of a search that succeeded"},
    }
}
WINDOW_EXAMPLES: dict[str, Example] = {
    "mixtral": {
        "summary": "32 MoE layers with 8 experts over 10 steps, experts 0 and 1 hot",
        "value": {
            "index": 0,
            "first_step": 0,
            "num_steps": 10,
            "tokens": [[20971520, 20971520, 8388608, 8388608, 8388608, 8388608, 4194304, 4194304]] * 32,
        },
    }
}

TIMELINE_EXAMPLE: Json = {
    "traceEvents": [
        {
            "name": "process_name",
            "ph": "M",
            "pid": 2,
            "tid": 20,
            "args": {"name": "stage 0: devices 0–31, layers 0–16"},
        },
        {"name": "thread_name", "ph": "M", "pid": 2, "tid": 21, "args": {"name": "compute"}},
        {
            "name": "forward 0",
            "ph": "X",
            "pid": 2,
            "tid": 21,
            "cat": "forward",
            "ts": 0.0,
            "dur": 98231.417,
            "args": {"micro_batch": 0, "virtual_stage": 0, "layers": "0–16"},
        },
    ],
    "displayTimeUnit": "ms",
    "otherData": {"step_time_s": 10.1378, "simulated_step_time_s": 10.1378, "not_drawn": []},
}
"""The beginning of a timeline."""
