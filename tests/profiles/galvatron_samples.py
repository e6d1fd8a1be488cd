"""Small copies of files that Galvatron ships or writes: facts of PKU-DAIR/Hetu-Galvatron (Apache-2.0), v2.1 and 3.0."""

import json
from pathlib import Path

BANDWIDTH = {
    "allreduce_size_8_consec_1": 154.203,
    "allreduce_size_4_consec_1": 159.119,
    "allreduce_size_4_consec_0": 155.815,
    "allreduce_size_2_consec_1": 138.156,
    "allreduce_size_2_consec_0": 151.344,
}
TWO_NODES = {
    "allreduce_size_16_consec_1": 45.6885,
    "allreduce_size_8_consec_1": 153.454,
    "allreduce_size_8_consec_0": 32.111,
    "allreduce_size_4_consec_1": 152.376,
    "allreduce_size_4_consec_0": 19.2516,
    "allreduce_size_2_consec_1": 151.229,
    "allreduce_size_2_consec_0": 9.28218,
}
HARDWARE = {
    "allreduce_bandwidth_1nodes_8gpus_per_node": BANDWIDTH,
    "p2p_bandwidth_1nodes_8gpus_per_node": {"pp_size_2": 163.671, "pp_size_4": 138.581, "pp_size_8": 109.45},
    "overlap_coefficient": {"overlap_coe": 1.145979403115153},
}
TIMES = {
    "sp_time_1nodes_8gpus_per_node": {
        "allreduce_size_8_1MB_time": 0.07895,
        "allreduce_size_8_8MB_time": 0.1827,
        "allreduce_size_8_256MB_time": 2.3584,
        "allreduce_size_2_1MB_time": 0.0703,
        "all2all_size_8_1MB_time": 0.1124,
    }
}
GPT_NAME = "hidden1600_head32_seqlen1024"
GPT = {
    f"computation_profiling_bf16_{GPT_NAME}": {
        "layernum[12]_bsz4": 41.484313583374025,
        "layernum[24]_bsz4": 70.19392623901368,
        "layertype_0": 0.5981169303258261,
    },
    f"memory_profiling_bf16_{GPT_NAME}": {
        "1_1_8": {"layernum[1]_bsz8_rank0_ms": 386.52294921875},
        "layertype_0": {
            "parameter_size": 119.087890625,
            "tp_activation_per_bsz_dict": {
                "1": 58.20361328125,
                "2": 36.988525390625,
                "4": 26.2032470703125,
                "8": 21.02252197265625,
                "checkpoint": 3.619140625,
            },
        },
        "other_memory_pp_off": {"model_states": 2615.0, "activation": 374.67578125},
        "other_memory_pp_on_first": {"model_states": 1277.0, "activation": 9.4715576171875},
        "other_memory_pp_on_last": {"model_states": 1304.0, "activation": 192.3895263671875},
    },
}
GPT_SIZES = {
    "gpt-1.5b": {
        "n_layer": 48,
        "n_embd": 1600,
        "n_head": 32,
        "head_dim": 50,
        "vocab_size": 50257,
        "n_positions": 1024,
    }
}
LLAMA = {
    "computation_profiling_bf16_llama2-7b_all": {
        "layernum[2]_bsz1_seq2048": 15.0786208152771,
        "layernum[4]_bsz1_seq2048": 23.87112617492676,
        "layernum[2]_bsz8_seq2048": 86.66073913574219,
        "layernum[4]_bsz8_seq2048": 149.65230712890624,
        "layertype_0_bsz1_seq2048": 4.396252679824831,
        "layertype_other_bsz1_seq2048": 6.286115455627439,
    },
    "memory_profiling_bf16_llama2-7b_all": {
        "1_2_4_vtp_sp": {"layernum[1]_bsz8_seq2048_rank0_ms": 1.0},
        "layertype_0_sp": {
            "2048": {
                "parameter_size": 778.2236328125,
                "tp_activation_per_bsz_dict": {
                    "1": 514.5634765625,
                    "2": 273.28173828125,
                    "4": 136.885498046875,
                    "8": 68.3204345703125,
                    "checkpoint": 32.0,
                },
            }
        },
        "other_memory_pp_off_sp": {
            "2048": {
                "model_states": {"1": 4130.34765625, "2": 2321.640625, "4": 1289.1015625, "8": 771.869140625},
                "activation": {"1": 841.58203125, "2": 358.83984375, "4": 163.58642578125, "8": 78.13916015625},
            }
        },
        "other_memory_pp_on_first_sp": {
            "2048": {"model_states": {"1": 2021.0048828125}, "activation": {"1": 198.7357177734375}}
        },
        "other_memory_pp_on_last_sp": {
            "2048": {"model_states": {"1": 2021.0673828125}, "activation": {"1": 717.560302734375}}
        },
    },
}


def listed(*runs: tuple[int, int]) -> str:
    """`(value, times)` as Galvatron lists them."""
    return ",".join(str(value) for value, times in runs for _ in range(times))


LLAMA_PLAN = {
    "pp_deg": 1,
    "tp_sizes_enc": listed((1, 32)),
    "tp_consecutive_flags": listed((1, 32)),
    "dp_types_enc": listed((1, 32)),
    "use_sp": listed((0, 32)),
    "checkpoint": listed((1, 20), (0, 12)),
    "global_bsz": 16,
    "chunks": 1,
    "pp_division": "32",
    "pipeline_type": "pipedream_flush",
    "default_dp_type": "zero2",
    "vtp": 2,
    "vsp": 1,
    "embed_sdp": 1,
}
LLAMA_PLAN_NAME = "galvatron_config_llama2-7b_1nodes_8gpus_per_node_36GB_bf16"
GPT_RESULT = {
    "version": "v2.1",
    "args": {"name": GPT_NAME, "mem": "24"},
    "cpu_s": 1.825,
    "throughput_samples_s": 88.71425288385298,
    "iter_time_s": 0.36070866810877883,
    "pp_deg": 1,
    "global_bsz": 32,
    "chunks": 4,
    "pp_division": {"1": [48], "2": [24, 24]},
    "mem_used_MB": "[12259]",
    "plan_rle": [['[1, 2, 4, {"tp": 0, "fsdp": 0}]', 19], ['[1, 1, 8, {"fsdp": 1, "cpt": 1}]', 29]],
}
GPT_RESULT_NAME = "gpt1.5b_8g_12GB_bsz32"


def write(folder: Path, *groups: dict[str, object]) -> Path:
    """A folder with these files."""
    folder.mkdir(parents=True, exist_ok=True)
    for group in groups:
        for name, content in group.items():
            (folder / f"{name}.json").write_text(json.dumps(content))
    return folder
