import json
from pathlib import Path

import pytest

from planner.cost.parameters import total_parameters
from planner.spec.errors import InputError, MalformedError, NotFoundError
from planner.spec.request import ModelRequest
from profiles import model_names, model_preset, model_request_from_file, resolve_model
from profiles.catalogue import content

CONFIGS = Path(__file__).parents[3] / "shared" / "data" / "hf_configs"
TINY = {
    "model_type": "llama",
    "vocab_size": 96,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
}


@pytest.mark.parametrize("name", model_names())
def test_every_preset_is_a_model_of_its_name_with_a_source(name):
    assert model_preset(name).name == name
    assert content("models", name)["source"]


def test_no_alias_names_two_models():
    aliases = [alias for name in model_names() for alias in (name, *content("models", name)["aliases"])]
    assert len(set(aliases)) == len(aliases)
    assert all(alias == alias.lower() for alias in aliases)


def test_presets_are_found_by_alias_and_in_any_case():
    assert model_preset("Mixtral") == model_preset("mixtral-8x7b")


def test_an_unknown_preset_lists_close_matches():
    with pytest.raises(NotFoundError, match="did you mean mixtral-8x7b"):
        model_preset("mixtral-8x7")
    with pytest.raises(InputError, match=r"^preset: .*llama-3\.1-8b"):
        resolve_model(ModelRequest(preset="llama-3.1-8"))


def test_an_unknown_preset_far_from_all_lists_each_once_under_its_own_name():
    with pytest.raises(NotFoundError) as caught:
        model_preset("zzzz")
    assert str(caught.value).partition("known are ")[2].split(", ") == list(model_names())


def test_a_config_and_explicit_layers_resolve_to_the_same_model():
    model = resolve_model(ModelRequest(hf_config=TINY))
    assert resolve_model(ModelRequest(spec=model)) == model


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(TINY),
        json.dumps({"hf_config": TINY}),
        json.dumps({"spec": resolve_model(ModelRequest(hf_config=TINY)).model_dump(mode="json")}),
    ],
    ids=["config", "hf_config", "spec"],
)
def test_a_file_may_hold_a_config_or_a_request(tmp_path, text):
    file = tmp_path / "model.json"
    file.write_text(text)
    assert resolve_model(model_request_from_file(str(file))) == resolve_model(ModelRequest(hf_config=TINY))


def test_a_directory_with_a_config_is_a_model(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    assert model_request_from_file(str(tmp_path)).hf_config == TINY


def test_a_name_that_is_no_file_is_a_preset():
    assert model_request_from_file("mixtral") == ModelRequest(preset="mixtral-8x7b")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[1]", "must hold a JSON object"),
        ('{"hidden_size": NaN}', "NaN is no JSON number"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_a_file_that_is_no_json_object_is_malformed(tmp_path, text, message):
    file = tmp_path / "model.json"
    file.write_text(text)
    with pytest.raises(MalformedError, match=f"^model: .*{message}"):
        model_request_from_file(str(file))


def test_a_missing_file_is_malformed_and_not_taken_for_a_preset():
    with pytest.raises(MalformedError, match=r"cannot read nowhere\.json: No such file"):
        model_request_from_file("nowhere.json")


def test_a_name_that_is_neither_file_nor_preset_says_both():
    with pytest.raises(InputError, match=r"^model: there is no such file, and no model preset is named 'mixtra'"):
        model_request_from_file("mixtra")


def test_a_request_file_with_two_answers_is_refused(tmp_path):
    file = tmp_path / "model.json"
    file.write_text(json.dumps({"preset": "mixtral", "hf_config": TINY}))
    with pytest.raises(InputError, match="give exactly one of preset, hf_config and spec"):
        model_request_from_file(str(file))


@pytest.mark.skipif(not CONFIGS.is_dir(), reason="the folder of real config files is not beside this checkout")
@pytest.mark.parametrize(
    ("file", "preset"),
    [
        ("Mixtral-8x7B.json", "mixtral-8x7b"),
        ("DeepSeek-V3.json", "deepseek-v3"),
        ("Qwen3-30B-A3B.json", "qwen3-30b-a3b"),
        ("Llama-3.1-8B.json", "llama-3.1-8b"),
        ("Llama-3.1-70B.json", "llama-3.1-70b"),
        ("gpt-oss-20b.json", "gpt-oss-20b"),
    ],
)
def test_config_files_as_users_have_them_equal_the_presets(file, preset):
    model = resolve_model(model_request_from_file(str(CONFIGS / file)))
    assert model.runs == model_preset(preset).runs
    assert total_parameters(model) == total_parameters(model_preset(preset))


@pytest.mark.skipif(not CONFIGS.is_dir(), reason="the folder of real config files is not beside this checkout")
@pytest.mark.parametrize(
    ("file", "lacks", "preset"),
    [
        (
            "galvatron-bert-huge-uncased-32.json",
            {"model_type": "bert", "type_vocab_size": 2, "intermediate_size": 5120},
            "bert-huge-32",
        ),
        ("galvatron-vit-huge-patch16-224.json", {"model_type": "vit"}, "vit-huge"),
        ("galvatron-swin-huge-patch4-window7-224.json", {"model_type": "swin"}, "swin-huge-48"),
        ("galvatron-t5-large.json", {"model_type": "t5"}, "t5-large"),
    ],
)
def test_config_files_of_galvatron_equal_the_presets_once_they_say_their_type(file, lacks, preset):
    content = {**json.loads((CONFIGS / file).read_text()), **lacks}
    assert resolve_model(ModelRequest(hf_config=content)).runs == model_preset(preset).runs
