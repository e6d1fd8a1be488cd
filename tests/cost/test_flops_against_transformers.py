"""Model FLOPs against what torch counts in a forward pass of the library's own models, small ones."""

import os
import warnings

import pytest

from planner.cost.flops import model_flops_per_sample
from profiles import model_from_config

os.environ.setdefault("HF_HUB_OFFLINE", "1")
transformers = pytest.importorskip("transformers", reason="the library is a development dependency")
torch = pytest.importorskip("torch", reason="the library builds its models with torch")
flop_counter = pytest.importorskip("torch.utils.flop_counter", reason="comes with torch")

TEXT = {"vocab_size": 512, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2}
T5 = {"vocab_size": 512, "d_model": 256, "d_kv": 32, "d_ff": 512, "num_layers": 2, "num_heads": 8}
VIT = {
    "hidden_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "intermediate_size": 512,
    "image_size": 64,
    "num_labels": 40,
}
SWIN = {"image_size": 112, "embed_dim": 128, "depths": [1, 2, 1], "num_heads": [4, 8, 16], "num_labels": 40}
CASES = [
    ("bert", {**TEXT, "num_attention_heads": 8}, "AutoModelForMaskedLM", (96, 96)),
    ("gpt_neox", {**TEXT, "num_attention_heads": 8}, "AutoModelForCausalLM", (96, 96)),
    ("gemma2", {**TEXT, "num_attention_heads": 8, "head_dim": 32}, "AutoModelForCausalLM", (96, 96)),
    ("t5", T5, "AutoModelForSeq2SeqLM", (96, 96)),
    ("t5", T5, "AutoModelForSeq2SeqLM", (64, 160)),
    ("vit", VIT, "AutoModelForImageClassification", (17, 17)),
    ("swin", SWIN, "AutoModelForImageClassification", (784, 784)),
]
SAMPLES = 2


def counted(model_type, config, library_class, lengths):
    """FLOPs of a sample's forward pass."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        settings = transformers.AutoConfig.for_model(model_type, **config, attn_implementation="eager")
        model = getattr(transformers, library_class).from_config(settings)
        if library_class == "AutoModelForImageClassification":
            inputs = {"pixel_values": torch.zeros(SAMPLES, 3, settings.image_size, settings.image_size)}
        else:
            inputs = {"input_ids": torch.zeros(SAMPLES, lengths[1], dtype=torch.long), "use_cache": False}
        if model_type == "t5":
            inputs["decoder_input_ids"] = torch.zeros(SAMPLES, lengths[0], dtype=torch.long)
        if model_type == "bert":
            inputs.pop("use_cache")
        with flop_counter.FlopCounterMode(display=False) as counter:
            model(**inputs)
    return counter.get_total_flops() / SAMPLES


@pytest.mark.parametrize(("model_type", "config", "library_class", "lengths"), CASES, ids=lambda v: str(v)[:12])
def test_forward_flops_are_those_that_torch_counts(model_type, config, library_class, lengths):
    model = model_from_config({"model_type": model_type, **config})
    expected = counted(model_type, config, library_class, lengths)
    assert model_flops_per_sample(model, *lengths) / 3 == pytest.approx(expected, rel=0.01)
