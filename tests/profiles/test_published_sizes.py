"""Sizes that publishers state, from their model cards and papers, against the counts of our presets.

Publishers count what is active for one token in two ways: Mistral, Qwen and Allen AI with the embedding, OpenAI and
DeepSeek without it. They also round: 0.5 % holds where enough digits are published, otherwise half of the last digit
(some cut off: Qwen publishes 3.35 as 3.3, DeepSeek 2.45 as 2.4).
"""

import pytest

from planner.cost.parameters import active_parameters, total_parameters
from profiles import model_names, model_preset

TOTALS = [
    ("mixtral-8x7b", 46.7e9, "Mixtral of experts (arXiv 2401.04088): 47B; Hugging Face counts 46.7B"),
    ("mixtral-8x22b", 141e9, "mistral.ai/news/mixtral-8x22b"),
    ("deepseek-v3", 671e9, "arXiv 2412.19437, without the multi-token-prediction module"),
    ("qwen3-30b-a3b", 30.5e9, "model card of Qwen/Qwen3-30B-A3B"),
    ("qwen3-235b-a22b", 235e9, "model card of Qwen/Qwen3-235B-A22B"),
    ("qwen3-8b", 8.2e9, "model card of Qwen/Qwen3-8B"),
    ("llama-3.1-8b", 8.03e9, "Hugging Face's count for meta-llama/Llama-3.1-8B"),
    ("llama-3.1-70b", 70.6e9, "Hugging Face's count for meta-llama/Llama-3.1-70B"),
    ("llama-3.1-405b", 405e9, "arXiv 2407.21783"),
    ("llama-2-7b", 6.74e9, "Hugging Face's count for meta-llama/Llama-2-7b-hf"),
    ("llama-2-13b", 13.0e9, "arXiv 2307.09288"),
    ("llama-2-70b", 69.0e9, "Hugging Face's count for meta-llama/Llama-2-70b-hf"),
    ("gpt-oss-20b", 20.91e9, "gpt-oss model card (arXiv 2508.10925), table 1"),
    ("gpt-3-175b", 174.6e9, "arXiv 2005.14165, table D.1"),
    ("gpt2", 124e6, "model card of openai-community/gpt2"),
    ("gpt2-xl", 1.558e9, "github.com/openai/gpt-2, 1558M"),
    ("gpt2-medium", 355e6, "model card of openai-community/gpt2-medium"),
    ("gpt2-large", 774e6, "model card of openai-community/gpt2-large"),
    ("gpt-oss-120b", 116.83e9, "gpt-oss model card (arXiv 2508.10925), table 1"),
    ("qwen3-32b", 32.8e9, "model card of Qwen/Qwen3-32B"),
    ("qwen2-57b-a14b", 57.4e9, "model card of Qwen/Qwen2-57B-A14B"),
    ("qwen1.5-moe-a2.7b", 14.3e9, "model card of Qwen/Qwen1.5-MoE-A2.7B"),
    ("deepseek-v2", 236e9, "arXiv 2405.04434"),
    ("deepseek-v2-lite", 15.7e9, "arXiv 2405.04434, appendix B"),
    ("olmoe-1b-7b", 6.92e9, "Hugging Face's count for allenai/OLMoE-1B-7B-0924"),
    ("bert-large", 336e6, "model card of google-bert/bert-large-uncased"),
    ("bert-huge-32", 672e6, "Galvatron (arXiv 2211.13878), table 2"),
    ("bert-huge-48", 987e6, "Galvatron (arXiv 2211.13878), table 2"),
    ("vit-huge", 632e6, "Galvatron (arXiv 2211.13878), table 2"),
    ("swin-huge-32", 701e6, "Galvatron (arXiv 2211.13878), table 2"),
    ("swin-huge-48", 1016e6, "Galvatron (arXiv 2211.13878), table 2"),
    ("t5-large", 737e6, "Galvatron (arXiv 2211.13878), table 2"),
    ("switch-base-128", 7.4e9, "Switch Transformers (arXiv 2101.03961), table 9"),
    ("gemma-2-9b", 9_241_705_984, "arXiv 2408.00118, table 2: 917,962,752 of the embedding and 8,324,201,984 others"),
    ("gemma-2-27b", 27.23e9, "arXiv 2408.00118, table 2: 1,180,237,824 of the embedding and 26,047,480,320 others"),
    ("gemma-3-27b", 27.0e9, "arXiv 2503.19786, table 1: 1,416M of the embedding and 25,600M others"),
    ("gpt-neox-20b", 20.55e9, "arXiv 2204.06745, section 2: 20,554,567,680"),
    ("opt-175b", 175e9, "arXiv 2205.01068"),
    ("bloom-176b", 176_247_271_424, "arXiv 2211.05100, table 3"),
    ("dbrx", 132e9, "model card of databricks/dbrx-base"),
]
ROUNDED_TOTALS = [("glam-64b-64e", 1.2e12, 0.05 / 1.2, "arXiv 2112.06905, table 4: 1.2T")]
ACTIVE_WITH_EMBEDDING = [
    ("mixtral-8x7b", 12.9e9, 0.005, "mistral.ai/news/mixtral-of-experts: 12.9B"),
    ("mixtral-8x22b", 39e9, 0.005, "mistral.ai/news/mixtral-8x22b: 39B"),
    ("qwen3-30b-a3b", 3.3e9, 0.1 / 3.3, "model card: 3.3B, cut off after the first digit"),
    ("qwen3-235b-a22b", 22e9, 0.01, "model card: 22B"),
    ("olmoe-1b-7b", 1.3e9, 0.05 / 1.3, "arXiv 2409.02060: 1.3B"),
    ("glam-64b-64e", 96.6e9, 0.005, "arXiv 2112.06905, table 4: 96.6B"),
    ("dbrx", 36e9, 0.5 / 36, "model card: 36B"),
]
ACTIVE_WITHOUT_EMBEDDING = [
    ("deepseek-v3", 36.7e9, 0.005, "README_WEIGHTS.md of deepseek-ai/DeepSeek-V3: 36.7B; the paper rounds to 37B"),
    ("gpt-oss-20b", 3.61e9, 0.005, "gpt-oss model card (arXiv 2508.10925), table 1: 3.61B"),
    ("gpt-oss-120b", 5.13e9, 0.005, "gpt-oss model card (arXiv 2508.10925), table 1: 5.13B"),
    ("deepseek-v2", 21e9, 0.5 / 21, "arXiv 2405.04434: 21B"),
    ("deepseek-v2-lite", 2.4e9, 0.1 / 2.4, "arXiv 2405.04434, appendix B: 2.4B, cut off after the first digit"),
]


@pytest.mark.parametrize(("name", "published", "source"), TOTALS, ids=[row[0] for row in TOTALS])
def test_total_parameters_agree_with_the_published_count(name, published, source):
    assert total_parameters(model_preset(name)) == pytest.approx(published, rel=0.005), source


@pytest.mark.parametrize(("name", "published", "tolerance", "source"), ROUNDED_TOTALS)
def test_total_parameters_agree_with_a_count_of_few_digits(name, published, tolerance, source):
    assert total_parameters(model_preset(name)) == pytest.approx(published, rel=tolerance), source


@pytest.mark.parametrize(
    ("name", "published", "tolerance", "source"), ACTIVE_WITH_EMBEDDING, ids=[row[0] for row in ACTIVE_WITH_EMBEDDING]
)
def test_active_parameters_agree_with_the_published_count(name, published, tolerance, source):
    assert active_parameters(model_preset(name)) == pytest.approx(published, rel=tolerance), source


@pytest.mark.parametrize(
    ("name", "published", "tolerance", "source"),
    ACTIVE_WITHOUT_EMBEDDING,
    ids=[row[0] for row in ACTIVE_WITHOUT_EMBEDDING],
)
def test_active_parameters_without_the_embedding_agree_with_the_published_count(name, published, tolerance, source):
    assert active_parameters(model_preset(name), embedding=False) == pytest.approx(published, rel=tolerance), source


def test_a_tied_head_is_active_even_where_the_embedding_is_not_counted():
    gpt2 = model_preset("gpt2")
    positions = 1024 * 768
    assert active_parameters(gpt2) - active_parameters(gpt2, embedding=False) == positions


def test_every_preset_is_compared():
    assert sorted(row[0] for row in [*TOTALS, *ROUNDED_TOTALS]) == model_names()
