"""`trimtab export`: files for people to start from, and one line for what a framework cannot run."""

import pytest
from command_line import trimtab

from planner.spec.export import Export
from planner.spec.shortlist import Shortlist

CLUSTER = "1x4:a100-sxm-80g"
TRAINING = ("--global-batch-size", 8, "--sequence-length", 128)


@pytest.fixture
def shortlist_file(tiny, tmp_path, capsys):
    file = tmp_path / "shortlist.json"
    narrow = ("--target", "megatron", "--axes", "dp,ep,pp")
    assert trimtab(capsys, "plan", tiny, CLUSTER, *TRAINING, *narrow, "--output", file).code == 0
    return file


def test_a_shortlist_s_best_plan_is_written_to_a_folder_that_is_made(tiny, shortlist_file, tmp_path, capsys):
    folder = tmp_path / "launch" / "megatron"
    result = trimtab(capsys, "export", tiny, CLUSTER, shortlist_file, "megatron", "--output", folder)
    assert (result.code, result.err) == (0, "")
    best = Shortlist.model_validate_json(shortlist_file.read_text()).plans[0].plan
    assert {file.name for file in folder.iterdir()} == {"megatron-arguments.sh", "megatron-launch.sh"}
    for file in folder.iterdir():
        assert f"# Plan {best.id}: " in file.read_text() and str(file) in result.out.replace("\n", "")
    assert "Left to you:" in result.out


def test_any_plan_of_a_shortlist_is_exported_by_its_rank(tiny, shortlist_file, capsys):
    entries = Shortlist.model_validate_json(shortlist_file.read_text()).plans
    for entry in entries[:2]:
        given = ("export", tiny, CLUSTER, shortlist_file, "megatron", "--rank", entry.rank, "--json")
        assert Export.model_validate_json(trimtab(capsys, *given).out).plan_id == entry.plan.id


def test_programs_read_the_files_as_json_and_people_read_them_one_after_the_other(tiny, capsys):
    given = ("export", tiny, CLUSTER, "pp2-ep2-mbs1", "megatron", *TRAINING)
    shown, machine = trimtab(capsys, *given), trimtab(capsys, *given, "--json")
    assert (shown.code, shown.err, machine.code, machine.err) == (0, "", 0, "")
    export = Export.model_validate_json(machine.out)
    assert export.target == "megatron"
    for file in export.files:
        assert f"==> {file.name} <==\n{file.text}" in shown.out


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        (("pp2-ep2-mbs1", "galvatron", *TRAINING), "plan"),
        (("pp2-ep2-mbs1", "jax", *TRAINING), "target"),
        (("pp2-ep2-mbs1", "megatron"), "--global-batch-size"),
        (("pp2-ep2-mbs1", "megatron", *TRAINING, "--rank", 2), "--rank"),
        (("pp2-ep2-mbs1", "megatron", *TRAINING, "--output", "/dev/null/x"), "--output"),
        (("pp3", "megatron", *TRAINING), "plan"),
    ],
)
def test_what_cannot_be_exported_is_one_line_with_the_field(tiny, capsys, arguments, field):
    result = trimtab(capsys, "export", tiny, CLUSTER, *arguments)
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith(f"trimtab: {field}: ")
    assert result.err.count("\n") == 1


def test_the_rule_that_a_plan_breaks_is_named(tiny, capsys):
    result = trimtab(capsys, "export", tiny, CLUSTER, "pp2-ep2-mbs1", "galvatron", *TRAINING)
    assert "(galvatron-dense-blocks)" in result.err


def test_a_refusal_names_the_first_rank_that_can_be_written(tiny, tmp_path, capsys):
    file = tmp_path / "any.json"
    assert trimtab(capsys, "plan", tiny, CLUSTER, *TRAINING, "--output", file).code == 0
    result = trimtab(capsys, "export", tiny, CLUSTER, file, "megatron")
    assert result.code == 2 and "(--target megatron)" in result.err
    rank = result.err.rpartition("; or export --rank ")[2].partition(",")[0]
    assert int(rank) > 1
    for number in range(2, int(rank) + 1):
        code = trimtab(capsys, "export", tiny, CLUSTER, file, "megatron", "--rank", number).code
        assert code == (0 if number == int(rank) else 2)


def test_a_rule_that_no_search_knows_of_is_no_reason_to_search(tiny, capsys):
    result = trimtab(capsys, "export", tiny, CLUSTER, "pp2-ep2-mbs1", "galvatron", *TRAINING)
    assert "search with" not in result.err
