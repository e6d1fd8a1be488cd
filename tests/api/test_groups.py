"""Clusters of unlike groups from the command line and over HTTP: a plan that somebody else made is priced."""

import json

import pytest
from command_line import trimtab
from invented_searches import TINY_MODEL, TINY_REQUEST

from planner.spec.estimate import Estimate

BOTH = "1x8:a100-sxm-80g+1x8:v100-sxm2-32g"
GROUPS = {
    "groups": [
        {"nodes": 1, "devices_per_node": 8, "device": "a100-sxm-80g"},
        {"nodes": 1, "devices_per_node": 8, "device": "v100-sxm2-32g", "memory_limit_bytes": 10**10},
    ]
}


def hand_written(first=8):
    """Stages of unlike sizes: the first on `first` devices, the other two on what it leaves of sixteen."""
    sizes = (first, 12 - first, 4)

    def stage(number, *layers):
        common = {"axes": [["dp", sizes[number]]], "sharding": "optimizer"}
        experts = {"expert_parallel_size": 4, "expert_data_parallel_size": sizes[number] // 4}
        runs = [
            {
                "first_layer": layer,
                "num_layers": 1,
                "strategy": common | ({"experts": experts} if layer in (1, 2) else {}),
            }
            for layer in layers
        ]
        return {"first_device": sum(sizes[:number]), "num_devices": sizes[number], "runs": runs}

    batch = {"global_batch_size": 32, "sequence_length": 128, "micro_batch_size": 8 // first, "num_micro_batches": 4}
    return {**batch, "stages": [stage(0, 0, 1), stage(1, 2), stage(2, 3)]}


@pytest.fixture
def files(tmp_path):
    for name, content in (("model", TINY_MODEL), ("plan", hand_written()), ("cluster", GROUPS)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    return tmp_path


def test_estimate_prices_a_hand_written_plan_on_two_groups(files, capsys):
    command = ("estimate", files / "model.json", BOTH, files / "plan.json", "--precision", "fp16")
    result = trimtab(capsys, *command, "--json")
    assert (result.code, result.err) == (0, "")
    stages = Estimate.model_validate_json(result.out).stages
    assert [stage.device for stage in stages] == ["a100-sxm-80g", "v100-sxm2-32g", "v100-sxm2-32g"]
    shown = trimtab(capsys, *command).out
    assert "0–7: a100-sxm-80g" in shown
    assert "12–15: v100-sxm2-32g" in shown


def test_a_file_of_groups_has_limits_of_its_own(files, capsys):
    result = trimtab(
        capsys,
        "estimate",
        files / "model.json",
        files / "cluster.json",
        files / "plan.json",
        "--precision",
        "fp16",
        "--json",
    )
    limits = [stage.limit_bytes for stage in Estimate.model_validate_json(result.out).stages]
    assert limits[1:] == [10**10, 10**10]
    assert limits[0] > 8 * 10**10


def test_a_memory_limit_and_a_stack_hold_for_every_group(files, capsys):
    options = ("--precision", "fp16", "--memory-limit", "30GB", "--stack", "pytorch-fsdp", "--json")
    result = trimtab(capsys, "estimate", files / "model.json", BOTH, files / "plan.json", *options)
    found = Estimate.model_validate_json(result.out)
    assert {stage.limit_bytes for stage in found.stages} == {30 * 10**9}
    assert any("stack pytorch-fsdp" in text for text in found.assumptions)


def test_a_stage_across_groups_is_one_clear_line(files, capsys):
    (files / "plan.json").write_text(json.dumps(hand_written(first=4)))
    result = trimtab(capsys, "estimate", files / "model.json", BOTH, files / "plan.json", "--precision", "fp16")
    assert result.code == 2
    assert "plan.stages[1]: has devices 4–11; a stage must lie in one group" in result.err


def test_a_device_without_the_number_format_is_named(files, capsys):
    result = trimtab(capsys, "estimate", files / "model.json", BOTH, files / "plan.json")
    assert (result.code, "v100-sxm2-32g has no bf16" in result.err) == (2, True)


def test_a_picture_of_two_groups_names_their_devices(files, capsys):
    result = trimtab(capsys, "picture", files / "model.json", BOTH, files / "plan.json", "--precision", "fp16")
    assert result.code == 0
    assert ">8–11: v100-sxm2-32g<" in result.out


def test_the_service_prices_a_plan_on_groups(client):
    training = {"global_batch_size": 32, "sequence_length": 128, "precision": "fp16"}
    body = {"model": TINY_MODEL, "cluster": GROUPS, "training": training, "plan": hand_written()}
    answer = client.post("/v1/estimates", json=body)
    assert answer.status_code == 200, answer.text
    assert [stage["limit_bytes"] for stage in answer.json()["stages"]][1:] == [10**10, 10**10]


def test_the_service_names_what_is_wrong_in_a_group(client):
    wrong = {"groups": [GROUPS["groups"][0], {**GROUPS["groups"][1], "nodes": 0}]}
    answer = client.post("/v1/searches", json={**TINY_REQUEST, "cluster": wrong})
    assert answer.status_code == 422
    assert [item["field"] for item in answer.json()["errors"]] == ["cluster.groups.1.nodes"]


def test_a_search_keeps_the_groups_that_were_asked_for(client):
    asked = client.post("/v1/searches", json={**TINY_REQUEST, "cluster": GROUPS}).json()
    kept = client.get(f"/v1/searches/{asked['id']}").json()["request"]["cluster"]
    assert [group["device"] for group in kept["groups"]] == ["a100-sxm-80g", "v100-sxm2-32g"]
