"""`benchmarks/validation.py`: the aims in the terminal, the figures in a document."""

import json
import re
import runpy
from pathlib import Path

import pytest
from run_rows import row

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"
DOCUMENT = ROOT / "docs" / "validation.md"
SOURCE = "Somebody's measurements 2024"
RECORD = {
    "date": "2026-11-21",
    "method": "made up",
    "constants": 3,
    "sources": [
        {
            "source": SOURCE,
            "rows": 2,
            "left_out_mean_absolute_error": 0.123,
            "left_out_median_absolute_error": 0.119,
        }
    ],
    "errors": [{"device": "*", "stack": "*", "kind": "dense", "rows": 9, "low_ratio": 0.91, "high_ratio": 1.18}],
}
ROWS = (
    row(group="tiny"),
    row(id="made-up-2", group="tiny", batch={"micro": 1}, measured={"step_time_s": 1.7, "peak_mem_gb": 21.0}),
    row(id="made-up-4", group="tiny", batch={"micro": 4}, oom=True, measured={"step_time_s": None}),
    row(id="sideways", group="tiny", parallel={"tp": 4, "dp": 2}, measured={"step_time_s": 1.9}),
    row(id="tpu", hardware={"gpu": "TPUv4"}, usable_for_accuracy=False),
)


@pytest.fixture
def folder(tmp_path) -> Path:
    """Runs, a record and the document as it is kept by hand."""
    (tmp_path / "runs.json").write_text(json.dumps(ROWS))
    (tmp_path / "record.json").write_text(json.dumps(RECORD))
    (tmp_path / "validation.md").write_text(DOCUMENT.read_text(encoding="utf-8"), encoding="utf-8")
    return tmp_path


@pytest.fixture
def script(folder, monkeypatch, capsys):
    """The script in this process; it answers with exit code, stdout and stderr."""
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(BENCHMARKS)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["validation.py", *arguments])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(BENCHMARKS / "validation.py"), run_name="__main__")
        written = capsys.readouterr()
        return ended.value.code, written.out, written.err

    return run


def test_each_aim_stands_beside_what_is_reached(script):
    code, out, err = script("runs.json")
    assert (code, err) == (0, "")
    lines = {line.split("  ")[0].strip(): line for line in out.splitlines()}
    assert "≤ 12.00 %" in lines["all sources but vTrain, step time, mean error"]
    assert lines["MoE, mean error"].split()[-2:] == ["no", "rows"]
    assert re.search(r"≤ 2\.0 ms +\d+\.\d ms +(yes|no)", out)


def test_the_figures_of_the_document_are_renewed_and_its_text_is_kept(folder, script):
    write = ("runs.json", "--write", "validation.md", "--record", "record.json")
    assert script(*write)[2] == ""
    document, picture = folder / "validation.md", folder / "validation.svg"
    first = (document.read_text(encoding="utf-8"), picture.read_text(encoding="utf-8"))
    for words in (
        "3 constants, fitted on 2026-11-21 to 2 rows. Method: made up.",
        "| 12.3 % | 11.9 % |",
        "| any | any | dense | 9 | 0.91 – 1.18 |",
        "| hardware.gpu: no device preset for 'TPUv4' | 1 | 0 |",
        "`made-up-2`",
    ):
        assert words in first[0]
    by_hand = re.compile(r"(?<=-->\n).*?(?=<!-- end -->)", re.DOTALL)
    assert by_hand.sub("", first[0]) == by_hand.sub("", DOCUMENT.read_text(encoding="utf-8"))
    assert script(*write)[0] == 0
    second = (document.read_text(encoding="utf-8"), picture.read_text(encoding="utf-8"))
    processor_time = re.compile(r"\| one estimate of a plan.*")
    assert processor_time.sub("", second[0]) == processor_time.sub("", first[0])
    assert second[1] == first[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("none.json",), "runs: cannot read none.json: No such file or directory"),
        (("record.json",), "runs"),
        (("runs.json", "--write", "runs.json", "--record", "record.json"), "--write: runs.json must have the parts"),
        (("runs.json", "--write", "none.md", "--record", "record.json"), "--write: cannot read none.md"),
        (("runs.json", "--write", "validation.md", "--record", "none.json"), "--record: cannot read none.json"),
        (("runs.json", "--write", "validation.md", "--record", "bare.json"), "--record: bare.json lacks date, method"),
    ],
)
def test_bad_input_is_one_line_that_says_where_the_format_is_described(folder, script, arguments, message):
    (folder / "bare.json").write_text("{}")
    code, _, err = script(*arguments)
    assert code == 2
    assert err.startswith(message)
    assert err.endswith("(docs/runs-format.md says what a RUNS file holds)\n")
    assert err.count("\n") == 1
