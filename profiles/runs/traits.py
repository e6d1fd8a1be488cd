"""What a family of models shares beyond its sizes, and which families are not modelled."""

from __future__ import annotations

from dataclasses import dataclass, replace

from planner.spec.model import Norm


@dataclass(frozen=True)
class Traits:
    """What all models of a family share."""

    norm: Norm = Norm.RMS
    gated: bool = True
    causal: bool = True
    positions: bool = False
    """Learned positions in the embedding."""
    tied: bool = False
    biases: bool = False
    """In attention, feed-forward networks and experts."""
    qkv_bias: bool = False
    qk_norm: bool = False
    window: int | None = None
    """In every other block."""
    sinks: bool = False


_GPT = Traits(norm=Norm.LAYER, gated=False, positions=True, tied=True, biases=True)
_PLAIN = Traits()
FAMILIES = {
    "baichuan": _PLAIN,
    "bert": replace(_GPT, causal=False),
    "bloom": replace(_GPT, positions=False),
    "dbrx": replace(_PLAIN, norm=Norm.LAYER),
    "deepseek": _PLAIN,
    "ernie": _PLAIN,
    "falcon": Traits(norm=Norm.LAYER, gated=False, tied=True),
    "gemma": replace(_PLAIN, tied=True),
    "glm": replace(_PLAIN, qkv_bias=True),
    "gpt": _GPT,
    "gpt-neox": replace(_GPT, positions=False, tied=False),
    "gpt-oss": replace(_PLAIN, biases=True, window=128, sinks=True),
    "grok": _PLAIN,
    "gshard": replace(_GPT, biases=False),
    "internlm": _PLAIN,
    "kimi": _PLAIN,
    "llama": _PLAIN,
    "mistral": _PLAIN,
    "mixtral": _PLAIN,
    "mpt": Traits(norm=Norm.LAYER, gated=False, tied=True),
    "nemotron": Traits(norm=Norm.LAYER, gated=False),
    "olmo": _PLAIN,
    "opt": _GPT,
    "phi": _PLAIN,
    "pythia": replace(_GPT, positions=False, tied=False),
    "qwen": replace(_PLAIN, qkv_bias=True),
    "qwen3": replace(_PLAIN, qk_norm=True),
    "starcoder": _GPT,
    "yi": _PLAIN,
}
"""By the first word of `model.family`; of several that begin it the longest holds."""
NOT_MODELLED = {
    "next": "linear attention (Qwen3-Next)",
    "mamba": "state-space layers (mamba)",
    "hybrid": "hybrid blocks (mamba or linear attention)",
    "jamba": "state-space layers (jamba)",
    "rwkv": "recurrent layers (rwkv)",
    "t5": "an encoder with a decoder (t5)",
    "ul2": "an encoder with a decoder (ul2)",
    "bart": "an encoder with a decoder (bart)",
    "vit": "image towers (vit)",
    "vlm": "image towers (vlm)",
    "clip": "image towers (clip)",
    "diffusion": "diffusion models",
    "dit": "diffusion models",
    "resnet": "convolutions",
}
"""By a word of the family or the name of a model."""
