import json

import pytest
from run_rows import record, row, text

from planner.spec.errors import InputError, MalformedError
from profiles.runs import read_runs
from profiles.runs.reading import SHOWN_PROBLEMS, records

MINIMAL = {
    "id": "least",
    "source": "ours",
    "model": {"name": "Tiny", "family": "llama-dense"},
    "hardware": {"gpu": "H100", "gpus": 8},
    "parallel": {},
    "batch": {},
    "precision": "bf16",
    "measured": {},
}


def test_a_list_and_an_object_with_runs_are_the_same_file():
    rows = [row(), row(id="made-up-2")]
    assert read_runs(text(*rows)) == read_runs(json.dumps({"about": "us", "runs": rows}).encode())


def test_a_file_is_read_from_its_path(tmp_path):
    path = tmp_path / "runs.json"
    path.write_bytes(text(row()))
    assert read_runs(path) == read_runs(str(path)) == read_runs(text(row()))


def test_keys_of_others_are_left_alone():
    assert record(qa={"ratio": 1.0}, read_from="a page", model={"expert_group_size": 2048}).id == "made-up-1"


def test_nulls_are_unknown_facts():
    found = record(batch={"micro": None}, parallel={"vpp": None, "zero": None}, notes=None)
    assert (found.batch.micro, found.parallel.vpp, found.words) == (None, None, "")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parallel": {"tp": 2.5}}, "runs[0] (made-up-1).parallel.tp: must be a whole number, got 2.5"),
        ({"parallel": {"tp": -2}}, "runs[0] (made-up-1).parallel.tp: must be greater than or equal to 1"),
        ({"parallel": {"dp": 8}}, "parallel.dp: dp 8 x tp 2 x pp 2 x cp 1 must be hardware.gpus 16, is 32"),
        ({"parallel": {"zero": 4}}, "parallel.zero: must be less than or equal to 3, got 4"),
        ({"measured": {"step_time_s": -1.0}}, "measured.step_time_s: must be in seconds, from 1e-05 to 86400, got -1"),
        (
            {"measured": {"step_time_s": 1e9}},
            "measured.step_time_s: must be in seconds, from 1e-05 to 86400, got 1e+09",
        ),
        ({"measured": {"step_time_s": "1.5 s"}}, "measured.step_time_s: must be a number, got '1.5 s'"),
        ({"measured": {"peak_mem_gb": -3}}, "measured.peak_mem_gb: must be greater than 0, got -3"),
        ({"measured": {"mfu": 54.2}}, "measured.mfu: must be less than 1.5, got 54.2"),
        ({"peak_mem_unit": "MB"}, "peak_mem_unit: must be 'GB' or 'GiB', got 'MB'"),
        ({"oom": "yes"}, "oom: must be true or false, got 'yes'"),
        ({"batch": {"globl": 64}}, "batch.globl: is not a known field"),
        ({"mesured": {}}, "mesured: is not a known field"),
        (
            {"measured": {"step_time_s": 1500.0, "samples_per_s": 42.7}},
            "measured.step_time_s: must be in seconds and measured.samples_per_s in samples per second of all devices: "
            "they say 1500 s and 1.499 s per step",
        ),
        (
            {"measured": {"step_time_s": 1.5, "tokens_per_s_per_gpu": 10.9}},
            "measured.tokens_per_s_per_gpu in tokens per second of one device",
        ),
        (
            {"measured": {"step_time_s": 1e-5}},
            "measured.step_time_s: must be in seconds: a step of 1e-05 s would need more than",
        ),
    ],
)
def test_a_wrong_row_is_named_with_its_field_and_what_would_be_right(changes, message):
    made = row(**changes)
    if "globl" in made["batch"]:
        del made["batch"]["global"]
    if "mesured" in made:
        del made["measured"]
    with pytest.raises(InputError) as caught:
        read_runs(text(made))
    assert message in str(caught.value)
    assert "runs[0] (made-up-1)" in str(caught.value)


@pytest.mark.parametrize("field", ["source", "model", "hardware", "parallel", "batch", "measured", "precision"])
def test_a_missing_field_is_named(field):
    made = row()
    del made[field]
    with pytest.raises(InputError, match=rf"runs\[0\] \(made-up-1\)\.{field}: is required"):
        read_runs(text(made))


def test_a_row_without_id_is_called_by_its_number():
    made = row()
    del made["id"]
    with pytest.raises(InputError, match=r"runs\[1\]\.id: is required"):
        read_runs(text(row(), made))


def test_two_rows_of_one_id_are_an_error():
    with pytest.raises(InputError, match=r"runs\[2\] \(made-up-1\)\.id: must be unique, runs\[0\] has it too"):
        read_runs(text(row(), row(id="other"), row()))


def test_all_wrong_rows_are_told_up_to_a_limit():
    rows = [row(id=f"r{number}", oom=1) for number in range(SHOWN_PROBLEMS + 5)]
    with pytest.raises(InputError) as caught:
        read_runs(text(*rows))
    assert len(caught.value.problems) == SHOWN_PROBLEMS + 1
    assert "runs[0] (r0).oom" in str(caught.value)
    assert str(caught.value).endswith("runs: 5 more are wrong")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "runs: is not JSON"),
        (b"{}", 'runs: must be a list of rows, or an object with "runs"'),
        (b"null", "runs: must be a list of rows"),
        (b"[3]", r"runs[0]"),
    ],
)
def test_a_file_that_is_no_list_of_rows_is_refused(content, message):
    with pytest.raises(InputError) as caught:
        read_runs(content)
    assert message in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(MalformedError, match=r"runs: cannot read .*none\.json: No such file"):
        read_runs(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": 3}, "model: must be an object, got 3"),
        ({"measured": []}, "measured: must be an object, got a list"),
        ({"source": None}, "source: must be text, got null"),
        ({"source": ""}, "source: must have at least 1 character, got ''"),
        ({"hardware": {"gpu": {}}}, "hardware.gpu: must be text, got an object"),
        ({"parallel": {"fsdp": 1.5}}, "must be true or false, or: must be a whole number, or: must be text, got 1.5"),
        ({"parallel": {"tp": True}}, "parallel.tp: must be a whole number, got true"),
        ({"precision": 16}, "precision: must be text, got 16"),
    ],
)
def test_what_is_of_another_kind_is_said_in_plain_words_with_what_stands_there(changes, message):
    with pytest.raises(InputError) as caught:
        read_runs(text(row(**changes)))
    assert str(caught.value).endswith(message)


def test_a_long_wrong_value_is_cut():
    with pytest.raises(InputError) as caught:
        record(id="x" * 5000)
    assert len(caught.value.problems[0].message) < 200


REQUIRED = ("model.name", "model.family", "hardware.gpu", "hardware.gpus")


def test_a_row_of_the_required_fields_alone_is_read():
    found = records([MINIMAL])
    assert found[0].usable_for_accuracy
    assert not found[0].oom


@pytest.mark.parametrize("path", REQUIRED)
@pytest.mark.parametrize("null", [False, True])
def test_a_required_field_of_a_part_is_neither_absent_nor_null(path, null):
    part, name = path.split(".")
    made = {**MINIMAL, part: {**MINIMAL[part], name: None}}
    if not null:
        del made[part][name]
    with pytest.raises(InputError, match=rf"runs\[0\] \(least\)\.{part}\.{name}: "):
        records([made])
