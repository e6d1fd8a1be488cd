"""`trimtab plan`, `estimate`, `picture` with the real search: what people and programs read."""

import json
import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from xml.etree import ElementTree

import pytest
from command_line import trimtab
from service_process import ROOT

from planner.spec.estimate import Estimate
from planner.spec.plan import Plan
from planner.spec.shortlist import Shortlist
from planner.spec.timeline import PlanTimeline

CLUSTER = "1x4:a100-sxm-80g"
TRAINING = ("--global-batch-size", 8, "--sequence-length", 128)


def test_plan_prints_a_shortlist_that_programs_read(tiny, capsys):
    result = trimtab(capsys, "plan", tiny, CLUSTER, *TRAINING, "--json")
    assert (result.code, result.err) == (0, "")
    shortlist = Shortlist.model_validate_json(result.out)
    assert 1 <= len(shortlist.plans) <= 8
    assert shortlist.plans[0].plan.num_devices == 4


def test_plan_prints_tables_that_people_read(tiny, capsys):
    result = trimtab(capsys, "plan", tiny, CLUSTER, *TRAINING)
    assert (result.code, result.err) == (0, "")
    for title in ("Shortlist", "Plan", "Stages", "Time of a step", "Memory per device", "Certificate"):
        assert title in result.out
    assert max(map(len, result.out.splitlines())) <= 400


def test_plan_prints_what_the_readme_shows(capsys, monkeypatch):
    monkeypatch.setattr("api.commands.terminal.WIDTH_OF_FILES", 400)
    document = (ROOT / "README.md").read_text(encoding="utf-8")
    command, shown = re.search(
        r"```\ntrimtab (plan mixtral.*)\n```.*?```\n(Shortlist.*?)```", document, re.DOTALL
    ).groups()
    printed = " ".join(trimtab(capsys, *command.split()).out.split())
    lines = [" ".join(line.split()) for line in shown.splitlines() if not line.startswith(" ──")]
    assert [line for line in lines if line not in printed] == []


def test_plan_writes_the_shortlist_to_a_file(shortlist_file):
    assert Shortlist.model_validate_json(shortlist_file.read_text()).plans


def test_options_narrow_the_search(tiny, capsys):
    narrow = ("--axes", "dp", "--recompute", "none", "--shortlist-size", 1, "--precision", "fp16")
    result = trimtab(capsys, "plan", tiny, CLUSTER, *TRAINING, *narrow, "--json")
    [entry] = Shortlist.model_validate_json(result.out).plans
    strategies = {run.strategy for stage in entry.plan.stages for run in stage.runs}
    assert len(entry.plan.stages) == 1
    assert {axis.kind.value for strategy in strategies for axis in strategy.axes} <= {"dp"}
    assert {strategy.recompute.value for strategy in strategies} == {"none"}


def test_baselines_are_compared_and_stand_beside_the_shortlist(tiny, tmp_path, capsys):
    few = ("--axes", "dp,pp", "--sharding", "none", "--recompute", "none", "--compare-baselines")
    file = tmp_path / "compared.json"
    result = trimtab(capsys, "plan", tiny, CLUSTER, *TRAINING, *few, "--json", "--output", file)
    assert (result.code, result.err) == (0, "")
    by_name = {each.name: each for each in Shortlist.model_validate_json(result.out).baselines}
    assert set(by_name) >= {"dp", "sdp", "tp", "pp", "dp+tp", "dp+pp", "3d-uniform", "megatron"}
    assert by_name["dp+pp"].speedup_ratio == pytest.approx(1)
    assert by_name["dp"].speedup_ratio >= 1
    assert "options.axes" in by_name["tp"].impossible
    assert trimtab(capsys, "estimate", tiny, CLUSTER, file).code == 0
    shown = trimtab(capsys, "plan", tiny, CLUSTER, *TRAINING, *few).out
    assert "Baselines" in shown and "speed-up over it" in shown


def test_other_circumstances_can_be_named_and_each_says_its_best_plan(tiny, capsys):
    also = ("--also-batch", 16, "--also-batch", 6, "--also-length", 1024, "--also-capacity", "1.5", "--also-top-k", 1)
    result = trimtab(capsys, "plan", tiny, CLUSTER, *TRAINING, *also, "--json")
    assert (result.code, result.err) == (0, "")
    shortlist = Shortlist.model_validate_json(result.out)
    named = ["batch 16", "batch 6", "length 1024", "capacity 1.5", "top-k 1"]
    assert [scenario.name for scenario in shortlist.scenarios] == ["balanced", "zipf-0.3", "zipf-0.8", *named]
    assert [scenario.probability for scenario in shortlist.scenarios[3:]] == pytest.approx([1 / 6] * 5)
    assert {name for entry in shortlist.plans for name in entry.best_for} >= set(named)
    shown = trimtab(capsys, "plan", tiny, CLUSTER, *TRAINING, *also).out
    assert "Scenarios" in shown and "regret of plan 1" in shown and "length 1024" in shown


def test_scenarios_are_read_from_a_file_and_equally_likely_unless_it_says_otherwise(tiny, tmp_path, capsys):
    file = tmp_path / "scenarios.json"
    for probabilities in ((None, None), (0.25, 0.75)):
        rows = [{"probability": p} if p else {} for p in probabilities]
        file.write_text(json.dumps({"scenarios": [rows[0], rows[1] | {"name": "long", "sequence_length": 512}]}))
        result = trimtab(capsys, "plan", tiny, CLUSTER, *TRAINING, "--scenarios", file, "--json")
        assert (result.code, result.err) == (0, "")
        found = [(each.name, each.probability) for each in Shortlist.model_validate_json(result.out).scenarios]
        assert found == [("balanced", probabilities[0] or 0.5), ("long", probabilities[1] or 0.5)]


def test_baselines_are_not_searched_unless_asked_for(tiny, capsys):
    result = trimtab(capsys, "plan", tiny, CLUSTER, *TRAINING, "--json")
    assert Shortlist.model_validate_json(result.out).baselines == ()


def test_pruning_is_explained_to_people_and_programs_where_they_ask(tiny, capsys):
    asked = ("--explain-pruning", "--without-rule", "cp-inside-dp", "--without-rule", "dp-and-sdp-apart")
    result = trimtab(capsys, "plan", tiny, CLUSTER, *TRAINING, *asked, "--json")
    assert (result.code, result.err) == (0, "")
    certificate = Shortlist.model_validate_json(result.out).certificate
    rules = {each.rule: each for each in certificate.pruned_rules}
    assert set(rules) == set(certificate.pruned)
    assert not {"cp-inside-dp", "dp-and-sdp-apart"} & set(rules)
    assert rules["tp-on-nearest-devices"].examples and "fastest links" in rules["tp-on-nearest-devices"].why
    shown = trimtab(capsys, "plan", tiny, CLUSTER, *TRAINING, *asked).out
    assert "Pruning" in shown and "--without-rule" in shown
    assert "Pruning" not in trimtab(capsys, "plan", tiny, CLUSTER, *TRAINING).out


def test_a_rule_that_there_is_not_is_refused_with_those_that_there_are(tiny, capsys):
    result = trimtab(capsys, "plan", tiny, CLUSTER, *TRAINING, "--without-rule", "tp-everywhere")
    assert result.code == 2
    [line] = result.err.splitlines()
    assert line.startswith("trimtab: --without-rule: ") and "tp-within-node" in line


def test_the_largest_batch_can_be_searched(tiny, capsys):
    options = ("--global-batch-size", "max", "--max-global-batch-size", 16, "--sequence-length", 128)
    result = trimtab(capsys, "plan", tiny, CLUSTER, *options, "--json")
    assert result.code == 0, result.err
    assert Shortlist.model_validate_json(result.out).plans[0].plan.global_batch_size <= 16


def test_estimate_prices_the_best_plan_of_a_shortlist_as_the_search_did(tiny, shortlist_file, capsys):
    result = trimtab(capsys, "estimate", tiny, CLUSTER, shortlist_file, "--json")
    assert result.code == 0, result.err
    best = Shortlist.model_validate_json(shortlist_file.read_text()).plans[0]
    assert Estimate.model_validate_json(result.out) == best.estimate


def test_estimate_takes_a_plan_s_file_and_shorthand(tiny, shortlist_file, tmp_path, capsys):
    plan = Shortlist.model_validate_json(shortlist_file.read_text()).plans[0].plan
    file = tmp_path / "plan.json"
    file.write_text(plan.model_dump_json())
    assert plan == Plan.model_validate_json(file.read_text())
    from_file = trimtab(capsys, "estimate", tiny, CLUSTER, file, "--json")
    assert Estimate.model_validate_json(from_file.out).plan_id == plan.id
    short = trimtab(capsys, "estimate", tiny, CLUSTER, "tp1-pp1-dp4-ep4-mbs2", *TRAINING, "--json")
    assert short.code == 0, short.err
    assert Estimate.model_validate_json(short.out).stages


def test_estimate_shows_tables(tiny, shortlist_file, capsys):
    result = trimtab(capsys, "estimate", tiny, CLUSTER, shortlist_file)
    assert result.code == 0
    assert "Time of a step" in result.out and "Memory per device" in result.out


def test_people_and_programs_read_how_sure_a_price_is(tiny, shortlist_file, capsys):
    priced = Estimate.model_validate_json(trimtab(capsys, "estimate", tiny, CLUSTER, shortlist_file, "--json").out)
    assert priced.error_band is not None
    assert 0 < priced.error_band.step_time_low_s < priced.error_band.step_time_high_s
    assert priced.error_band.basis.startswith(f"{priced.error_band.rows:,} runs of MoE models")
    shown = trimtab(capsys, "estimate", tiny, CLUSTER, shortlist_file).out
    assert f"comparable runs: {priced.error_band.basis})" in shown
    assert "Taken for granted" in shown and "not modelled: data loading" in shown
    assert "error band" in trimtab(capsys, "plan", tiny, CLUSTER, *TRAINING).out


def test_picture_draws_svg(tiny, shortlist_file, tmp_path, capsys):
    result = trimtab(capsys, "picture", tiny, CLUSTER, shortlist_file)
    assert ElementTree.fromstring(result.out).tag.endswith("svg")
    file = tmp_path / "plan.svg"
    written = trimtab(capsys, "picture", tiny, CLUSTER, shortlist_file, "--output", file)
    assert (written.code, written.out) == (0, "")
    assert file.read_text() == result.out.removesuffix("\n")


def test_a_timeline_is_written_in_the_times_of_the_estimate(tiny, shortlist_file, tmp_path, capsys):
    result = trimtab(capsys, "timeline", tiny, CLUSTER, shortlist_file)
    assert (result.code, result.err) == (0, "")
    drawn = PlanTimeline.model_validate_json(result.out)
    priced = Estimate.model_validate_json(trimtab(capsys, "estimate", tiny, CLUSTER, shortlist_file, "--json").out)
    assert drawn.otherData["step_time_s"] == priced.step_time_s
    file = tmp_path / "step.json"
    written = trimtab(capsys, "timeline", tiny, CLUSTER, shortlist_file, "--output", file)
    assert (written.code, written.out) == (0, "")
    assert file.read_text() == result.out.removesuffix("\n")


def test_plan_draws_its_shortlist_where_it_is_asked_to(tiny, tmp_path, capsys):
    file = tmp_path / "shortlist.svg"
    result = trimtab(capsys, "plan", tiny, CLUSTER, *TRAINING, "--json", "--picture", file)
    assert (result.code, result.err) == (0, "")
    count = len(Shortlist.model_validate_json(result.out).plans)
    root = ElementTree.fromstring(file.read_text())
    assert (root.findtext("{*}title") or "").startswith(f"Shortlist of {count} plan")


def test_a_picture_that_cannot_be_written_is_refused_before_the_search(tiny, tmp_path, capsys):
    result = trimtab(capsys, "plan", tiny, CLUSTER, *TRAINING, "--picture", tmp_path / "none" / "shortlist.svg")
    assert result.code == 2 and result.err.startswith("trimtab: --picture: cannot write")


def test_too_little_memory_exits_with_3_and_the_nearest_miss(capsys):
    result = trimtab(
        capsys, "plan", "llama-3.1-70b", "1x1:a100-sxm-80g", "--global-batch-size", 1, "--sequence-length", 128
    )
    assert result.code == 3
    [line] = result.err.splitlines()
    assert "nearest miss" in line and "stage 0 needs" in line and "lacks" in line and "GiB" in line
    assert result.out == ""


def test_the_command_says_its_version(capsys):
    assert trimtab(capsys, "--version").out.startswith("trimtab 0.")


def test_without_arguments_there_is_help(capsys):
    result = trimtab(capsys)
    assert result.code == 0
    for command in ("plan", "estimate", "picture", "timeline", "serve", "replay"):
        assert command in result.out


def test_progress_is_shown_on_a_terminal_and_stays_off_stdout(tiny):
    ours, theirs = os.openpty()
    command = [sys.executable, "-m", "api.cli", "plan", str(tiny), CLUSTER, *map(str, TRAINING), "--json"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=theirs, text=True)
    os.close(theirs)
    out, _ = process.communicate(timeout=60)
    err = os.read(ours, 100_000).decode()
    os.close(ours)
    assert process.returncode == 0
    assert Shortlist.model_validate_json(out)
    assert "Searching" in err


def test_ctrl_c_ends_a_search_with_one_line_and_no_traceback():
    ours, theirs = os.openpty()
    options = ("--global-batch-size", "15360", "--sequence-length", "4096")
    command = [sys.executable, "-m", "api.cli", "plan", "deepseek-v3", "256x8:h100-sxm-80g", *options]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=theirs, text=True)
    os.close(theirs)
    err = ""
    while "Searching" not in err:
        err += os.read(ours, 100_000).decode(errors="replace")
    process.send_signal(signal.SIGINT)
    with suppress(OSError):  # the terminal's other end is gone
        while piece := os.read(ours, 100_000):
            err += piece.decode(errors="replace")
    os.close(ours)
    out, _ = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert "Traceback" not in err
    # After the last sequence that clears the bar's line.
    assert err.rpartition("\x1b[2K")[2].strip() == "trimtab: stopped"


def test_a_reader_that_goes_away_gets_no_traceback(tiny):
    command = f"{sys.executable} -m api.cli plan {tiny} {CLUSTER} --global-batch-size 8 --sequence-length 128 | true"
    result = subprocess.run(command, cwd=ROOT, shell=True, capture_output=True, text=True, timeout=60, check=False)
    assert result.stderr == ""


def test_programs_ask_for_pictures_and_timelines_as_for_anything_else(tiny, shortlist_file, tmp_path, capsys):
    best = Shortlist.model_validate_json(shortlist_file.read_text()).plans[0].plan
    asked = (tiny, CLUSTER, shortlist_file, "--json")
    drawn = json.loads(trimtab(capsys, "picture", *asked).out)
    assert (drawn["plan_id"], drawn["plan_summary"]) == (best.id, best.summary)
    assert drawn["svg"] + "\n" == trimtab(capsys, "picture", *asked[:-1]).out
    assert PlanTimeline.model_validate_json(trimtab(capsys, "timeline", *asked).out).otherData["plan_id"] == best.id
    for command in ("picture", "timeline"):
        file = tmp_path / command
        written = json.loads(trimtab(capsys, command, *asked, "--output", file).out)
        assert (written["plan_id"], written["output"]) == (best.id, str(file)) and file.stat().st_size > 1000
