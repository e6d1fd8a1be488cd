"""Models as megatron-core builds them from exported arguments, without memory and without a device: a program.

It takes one line of JSON for each job, {"words": the arguments, "vocabulary": rows}, and answers with a line for each:
the parameters of the model. It is a process of its own because it patches CUDA away and begins a process group.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import warnings

import megatron_parser
import torch

warnings.simplefilter("ignore")


def parameters(words: list[str], vocabulary: int) -> int:
    """Of the whole model on one rank, the vocabulary not padded."""
    from megatron.core import transformer  # noqa: PLC0415
    from megatron.core.models.gpt import GPTModel  # noqa: PLC0415
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec  # noqa: PLC0415
    from megatron.core.transformer.identity_op import IdentityOp  # noqa: PLC0415

    read = megatron_parser.parse(words)
    read.moe_grouped_gemm = False  # needs Transformer Engine; the same matrices, one by one
    config = megatron_parser.transformer_config(read, transformer)
    config.perform_initialization, config.use_cpu_initialization = False, True
    spec = get_gpt_decoder_block_spec(config, use_transformer_engine=False)
    for layer in spec.layer_specs if read.multi_latent_attention else ():
        # Its core has no parameters, and needs Transformer Engine.
        layer.submodules.self_attention.submodules.core_attention = IdentityOp
    with torch.device("meta"):
        model = GPTModel(
            config,
            spec,
            vocab_size=vocabulary,
            max_sequence_length=read.max_position_embeddings,
            position_embedding_type=read.position_embedding_type,
            share_embeddings_and_output_weights=not read.untie_embeddings_and_output_weights,
        )
    return sum(parameter.numel() for parameter in model.parameters())


def main() -> None:
    """One process group of one rank, then a model for each line."""
    from megatron.core import parallel_state  # noqa: PLC0415
    from megatron.core.transformer import multi_latent_attention  # noqa: PLC0415
    from megatron.core.transformer.moe import moe_utils  # noqa: PLC0415

    torch.cuda.current_device = lambda: torch.device("meta")
    torch.cuda.Stream = lambda *given, **named: None
    moe_utils.te_general_gemm = None
    for name in ("TEColumnParallelLinear", "TELinear"):  # are asked for by type, and None here
        setattr(multi_latent_attention, name, type(name, (), {}))
    with tempfile.TemporaryDirectory() as folder:
        store = torch.distributed.FileStore(os.path.join(folder, "store"), 1)
        torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
        parallel_state.initialize_model_parallel()
        for line in sys.stdin:
            job = json.loads(line)
            print(parameters(job["words"], job["vocabulary"]), flush=True)
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
