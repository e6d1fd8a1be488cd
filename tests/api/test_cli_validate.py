"""`trimtab validate` as a user sees it."""

import json
import subprocess
import sys
from xml.etree import ElementTree

import pytest
from command_line import trimtab

ROW = {
    "id": "tiny-1",
    "source": "Somebody's measurements 2024",
    "model": {
        "name": "Tiny",
        "family": "llama-dense",
        "layers": 8,
        "hidden": 1024,
        "ffn_hidden": 2816,
        "heads": 16,
        "kv_heads": 4,
        "vocab": 32000,
    },
    "hardware": {"gpu": "A100-SXM4-80GB", "gpus": 8, "gpus_per_node": 8},
    "parallel": {"tp": 1, "pp": 1, "dp": 8, "zero": 1, "recompute": "none"},
    "batch": {"global": 64, "micro": 1, "seq": 2048},
    "precision": "bf16",
    "measured": {"step_time_s": 0.5, "peak_mem_gb": 12.0},
    "group": "tiny",
}
FIELDS = {
    "id",
    "predicted_step_time_s",
    "measured_step_time_s",
    "error_ratio",
    "predicted_peak_memory_bytes",
    "measured_peak_memory_bytes",
    "skipped",
}


@pytest.fixture(autouse=True)
def files(tmp_path, monkeypatch):
    """A folder with good and bad files, in which the command runs."""
    monkeypatch.chdir(tmp_path)
    rows = [
        ROW,
        {**ROW, "id": "tiny-2", "batch": {**ROW["batch"], "micro": 2}, "usable_for_accuracy": False},
        {**ROW, "id": "tiny-4", "batch": {**ROW["batch"], "micro": 4}, "source": "vTrain (single-node)"},
        {**ROW, "id": "tpu", "hardware": {**ROW["hardware"], "gpu": "TPUv4"}},
    ]
    bad = [ROW, {**ROW, "id": "bad", "parallel": {**ROW["parallel"], "tp": 2}}]
    (tmp_path / "runs.json").write_text(json.dumps({"runs": rows}))
    (tmp_path / "bad.json").write_text(json.dumps(bad))
    (tmp_path / "empty.json").write_text("[]")
    (tmp_path / "text.json").write_text("no rows")


def test_each_run_has_a_line_and_the_summary_follows(capsys):
    found = trimtab(capsys, "validate", "runs.json")
    assert (found.code, found.err) == (0, "")
    for words in ("tiny-1", "hardware.gpu: no device preset for 'TPUv4'", "Step time", "By device", "Farthest off"):
        assert words in found.out
    assert "skipped of the usable rows" in found.out
    assert "1 (33.3 %)" in found.out


def test_in_a_file_each_run_has_one_whole_line_with_its_reason(capsys, tmp_path):
    hostile = {**ROW, "id": "a\x1b[2J\nb", "measured": {"mfu": 0.4}, "flops_convention": "ours"}
    ids = ["long-" * 38, "中" * 60]
    rows = [*({**ROW, "id": name, "hardware": {"gpu": "x" * 150, "gpus": 8}} for name in ids), hostile]
    (tmp_path / "long.json").write_text(json.dumps(rows))
    found = trimtab(capsys, "validate", "long.json")
    assert found.code == 0
    lines = found.out.splitlines()
    for name in (*ids, r"a\x1b[2J\nb"):
        [line] = [line for line in lines if line.lstrip().startswith(name)]
        reason = f"hardware.gpu: no device preset for '{'x' * 150}'" if name in ids else "measured: no step time can be"
        assert reason in line
    assert "\x1b" not in found.out


def test_control_characters_of_an_id_are_escaped_in_errors(capsys, tmp_path):
    (tmp_path / "hostile.json").write_text(json.dumps([{**ROW, "id": "a\x1b[2J\nb", "precision": 8}]))
    found = trimtab(capsys, "validate", "hostile.json")
    assert found.err == "trimtab: runs[0] (a\\x1b[2J\\nb).precision: must be text, got 8\n"


def test_a_usable_row_without_any_measured_time_is_told_and_counted(capsys, tmp_path):
    rows = [ROW, {**ROW, "id": "share", "measured": {"mfu": 0.4}, "flops_convention": "ours"}]
    (tmp_path / "share.json").write_text(json.dumps(rows))
    answer = json.loads(trimtab(capsys, "validate", "share.json", "--json").out)
    assert answer["summary"]["unmeasured_rows"] == 1
    assert answer["rows"][0]["note"] is None
    assert answer["rows"][1]["skipped"] is None
    assert answer["rows"][1]["note"].startswith("measured: no step time can be derived, measured.mfu alone is given")
    assert "of which no step time can be derived" in trimtab(capsys, "validate", "share.json").out


def test_the_title_of_the_rows_farthest_off_says_how_they_are_ordered(capsys):
    assert "Farthest off by factor (half and twice are equally far)" in trimtab(capsys, "validate", "runs.json").out


def test_machines_get_rows_and_summary(capsys):
    found = trimtab(capsys, "validate", "runs.json", "--json")
    answer = json.loads(found.out)
    assert (found.code, found.err) == (0, "")
    assert [row["id"] for row in answer["rows"]] == ["tiny-1", "tiny-2", "tiny-4", "tpu"]
    assert all(row.keys() >= FIELDS for row in answer["rows"])
    first, *_, last = answer["rows"]
    assert first["error_ratio"] == first["predicted_step_time_s"] / 0.5 - 1
    assert (first["measured_peak_memory_bytes"], first["skipped"]) == (12 * 10**9, None)
    assert (last["predicted_step_time_s"], last["error_ratio"], last["measured_step_time_s"]) == (None, None, 0.5)
    assert last["skipped"] == "hardware.gpu: no device preset for 'TPUv4'"
    assert answer["summary"]["accuracy_rows"] == 2
    assert answer["summary"]["ranking"]["groups"] == 1


def test_rows_can_be_chosen(capsys):
    answer = json.loads(trimtab(capsys, "validate", "runs.json", "--json", "--source", "VTRAIN").out)
    assert [row["id"] for row in answer["rows"]] == ["tiny-4"]
    answer = json.loads(trimtab(capsys, "validate", "runs.json", "--json", "--only-usable").out)
    assert [row["id"] for row in answer["rows"]] == ["tiny-1", "tiny-4", "tpu"]
    found = trimtab(capsys, "validate", "runs.json", "--only-summary")
    assert "tiny-2" not in found.out
    assert "Step time" in found.out


def test_the_scatter_plot_is_svg_and_the_same_each_time(capsys, tmp_path):
    for name in ("a.svg", "b.svg"):
        assert trimtab(capsys, "validate", "runs.json", "--only-summary", "--plot", name).code == 0
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    root = ElementTree.fromstring((tmp_path / "a.svg").read_text())
    texts = " ".join("".join(node.itertext()) for node in root.iter("{http://www.w3.org/2000/svg}text"))
    axes = ("measured step time, s", "predicted step time, s", "predicted over measured")
    for words in (*axes, "megatron-core-2025: 2 runs", "within 10 %", "hollow"):
        assert words in texts


def test_the_scatter_plot_is_png_where_the_name_says_so(capsys, tmp_path):
    assert trimtab(capsys, "validate", "runs.json", "--only-summary", "--plot", "a.png").code == 0
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("validate none.json", "runs: cannot read none.json: No such file or directory"),
        ("validate text.json", "text.json: is not JSON"),
        ("validate empty.json", "runs: must hold at least one row"),
        (
            "validate bad.json",
            "runs[1] (bad).parallel.dp: dp 8 x tp 2 x pp 1 x cp 1 must be hardware.gpus 8, is 16",
        ),
        ("validate runs.json --source nobody", "--source: no such row; sources are Somebody's measurements 2024"),
        ("validate runs.json --plot a.pdf", "--plot: must end in .svg or .png, got 'a.pdf'"),
        ("validate runs.json --plot none/a.svg", "--plot: cannot write none/a.svg: there is no directory none"),
        ("validate runs.json --source Somebody --plot a.svg --only-usable --json extra", "unexpected extra argument"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(capsys, line, message):
    found = trimtab(capsys, *line.split())
    assert found.code == 2
    assert message in found.err
    assert found.err.count("\n") == 1
    assert found.out == ""


def test_a_plot_of_nothing_is_refused(capsys, tmp_path):
    (tmp_path / "one.json").write_text(json.dumps([{**ROW, "measured": {}}]))
    found = trimtab(capsys, "validate", "one.json", "--plot", "a.svg")
    assert found.code == 2
    assert "nothing to draw" in found.err


def test_no_other_command_waits_for_the_drawing_library():
    script = "import sys, api.cli; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
