"""Tables say what the values hold: every number reappears, sums are shown, nothing is invented."""

from __future__ import annotations

import pytest
import view_samples as samples

from planner.spec.cluster import Provenance
from planner.spec.decision import Action, Decision
from planner.spec.errors import InputError, NearestMiss
from planner.spec.placement import Move, Placement
from planner.spec.plan import Schedule, ScheduleKind
from planner.spec.shortlist import (
    BaselineResult,
    Certificate,
    CertificateStatus,
    PrunedRule,
    RuleKind,
    Shortlist,
    ShortlistEntry,
)
from planner.spec.workload import Scenario
from planner.view import (
    Table,
    assumption_table,
    baseline_table,
    captions,
    decision_table,
    fastest_everywhere,
    headline_table,
    memory_table,
    misfit_line,
    pruning_table,
    scenario_table,
    shortlist_table,
    stage_table,
    time_table,
)
from planner.view.parts import part_name
from planner.view.quantities import memory, percent, seconds, significant


def _shortlist():
    _, plan, estimate = samples.mixtral()
    entry = ShortlistEntry(
        rank=1, plan=plan, estimate=estimate, best_for=("balanced", "skewed"), regret_ratio=0.0, switch_cost_s={}
    )
    certificate = Certificate(
        status=CertificateStatus.OPTIMAL, lower_bound_s=11.8, gap_ratio=0, space="all", evaluated=10, pruned={}
    )
    return Shortlist(
        plans=(entry,), certificate=certificate, scenarios=(), provenance=Provenance.DATASHEET, search_time_s=1.0
    )


def _all_tables():
    for model, plan, estimate in (samples.mixtral(), samples.one_device(), samples.largest()):
        yield headline_table(plan, estimate)
        yield stage_table(model, plan)
        yield time_table(estimate)
        yield memory_table(plan, estimate)
        yield assumption_table(estimate)
    yield shortlist_table(_shortlist())


def _column(table: Table, title: str) -> list[str]:
    number = [column.title for column in table.columns].index(title)
    return [row[number] for row in table.rows]


def test_every_row_has_one_cell_per_column():
    for table in _all_tables():
        assert table.rows
        assert {len(row) for row in table.rows} == {len(table.columns)}


def test_a_shortlist_names_each_plan_with_its_price():
    table = shortlist_table(_shortlist())
    (row,) = table.rows
    _, plan, _ = samples.mixtral()
    assert row == (
        "1",
        plan.summary,
        "11.8 s",
        "2,777",
        "41.7 %",
        "62.0",
        "0.0 %",
        "0.0 %",
        "balanced, skewed",
        plan.id,
    )


def test_scenarios_in_which_a_plan_runs_out_of_memory_stand_beside_its_regret():
    shortlist = _shortlist()
    (fits,) = shortlist.plans
    lacks = fits.model_copy(update={"rank": 2, "best_for": (), "out_of_memory_in": ("skewed", "collapsed")})
    table = shortlist_table(shortlist.model_copy(update={"plans": (fits, lacks)}))
    assert _column(table, "regret") == ["0.0 %", "0.0 %"]
    assert _column(table, "out of memory in") == ["–", "skewed, collapsed"]
    titles = [column.title for column in table.columns]
    assert titles.index("out of memory in") == titles.index("worst") + 1
    assert {len(row) for row in table.rows} == {len(titles)}


def test_where_a_plan_does_not_run_is_said_in_a_line_with_how_probable_it_is():
    scenarios = tuple(Scenario(probability=share, top_k=top_k) for share, top_k in ((0.5, None), (0.2, 4), (0.3, 8)))
    shortlist = _shortlist().model_copy(update={"scenarios": scenarios})
    (fits,) = shortlist.plans
    lacks = fits.model_copy(update={"out_of_memory_in": ("top-k 4", "top-k 8"), "cannot_run_in": ("batch 3",)})
    assert misfit_line(shortlist, fits) is None
    assert misfit_line(shortlist, lacks) == (
        "runs out of memory in top-k 4 and top-k 8 (probability 50.0 %), and cannot run in batch 3"
    )


def test_the_fastest_plan_that_runs_everywhere_is_the_first_of_equal_ones():
    shortlist = _shortlist()
    (entry,) = shortlist.plans
    lacks = entry.model_copy(update={"out_of_memory_in": ("skewed",)})
    slow = entry.model_copy(
        update={
            "rank": 2,
            "estimate": entry.estimate.model_copy(update={"tokens_per_s": entry.estimate.tokens_per_s / 2}),
        }
    )
    second, third = (entry.model_copy(update={"rank": rank}) for rank in (3, 4))
    plans = (lacks, slow, second, third)
    assert fastest_everywhere(shortlist.model_copy(update={"plans": plans})) == second
    assert fastest_everywhere(shortlist.model_copy(update={"plans": (lacks,)})) is None


def test_each_scenario_says_its_best_plan_and_what_the_first_would_lose_there():
    shortlist = _shortlist()
    (entry,) = shortlist.plans
    names = ("balanced", "skewed", "length 32768", "batch 3", "length 9")
    first = entry.model_copy(
        update={
            "best_for": ("balanced",),
            "scenario_step_time_s": {"balanced": 11.8, "skewed": 15.0},
            "scenario_regret_ratio": {"balanced": 0.0, "skewed": 0.25},
            "out_of_memory_in": ("length 32768",),
            "cannot_run_in": ("batch 3",),
        }
    )
    other = entry.model_copy(
        update={
            "rank": 2,
            "best_for": ("skewed", "length 32768", "batch 3"),
            "scenario_step_time_s": {"skewed": 12.0, "length 32768": 90.0, "batch 3": 0.5},
            "scenario_regret_ratio": {"skewed": 0.0, "length 32768": 0.0, "batch 3": 0.01},
        }
    )
    scenarios = tuple(Scenario(name=name, probability=0.25) for name in names[:4])
    update = {"plans": (first, other), "scenarios": scenarios, "without_plan": names[4:], "proven_in": names[1:4]}
    table = scenario_table(shortlist.model_copy(update=update))
    assert _column(table, "scenario") == list(names)
    assert [text[0] for text in _column(table, "best plan")] == ["1", "2", "2", "2", "n"]
    assert _column(table, "step") == ["11.8 s", "12.0 s", "90.0 s", "500 ms", "–"]
    assert _column(table, "proven") == ["no", "yes", "yes", "no", "–"]
    assert _column(table, "regret of plan 1") == ["0.0 %", "25.0 %", "out of memory", "cannot run", "–"]
    assert _column(shortlist_table(shortlist.model_copy(update=update)), "cannot run in") == ["batch 3", "–"]


def test_time_parts_add_up_to_the_step_and_empty_parts_are_left_out():
    _, _, estimate = samples.mixtral()
    table = time_table(estimate)
    assert "context-parallel communication" not in _column(table, "part")
    *shares, whole = (float(text.removesuffix(" %")) for text in _column(table, "share"))
    assert whole == 100
    assert sum(shares) == pytest.approx(whole, abs=0.1)


def test_memory_parts_add_up_to_the_peak_of_each_stage():
    _, plan, estimate = samples.mixtral()
    table = memory_table(plan, estimate)
    assert _column(table, "stage") == ["0", "1", "2", "3"]
    for row in table.rows:
        *parts, peak, limit, free = (float(cell) for cell in row[1:])
        assert sum(parts) == pytest.approx(peak, abs=0.05 * len(parts))
        assert limit - peak == pytest.approx(free, abs=0.11)


def test_memory_that_is_missing_is_negative_free_memory_and_named_in_the_headline():
    _, plan, estimate = samples.two_strategies_per_stage()
    assert _column(memory_table(plan, estimate), "free")[0] == "-21.0"
    assert any("lacks 21.0 GiB" in value for value in _column(headline_table(plan, estimate), "value"))


def test_what_the_host_keeps_is_named_where_it_keeps_anything():
    _, plan, estimate = samples.offloaded()
    table = headline_table(plan, estimate)
    row = dict(zip(_column(table, "quantity"), _column(table, "value"), strict=True))
    assert row["host memory"] == "300 GiB of 256 GiB for each device of the fullest stage, lacks 44.0 GiB"
    _, plan, estimate = samples.mixtral()
    assert "host memory" not in _column(headline_table(plan, estimate), "quantity")


def test_the_error_band_stands_below_the_step_time_with_the_runs_that_it_is_of():
    _, plan, estimate = samples.mixtral()
    assert "error band" not in _column(headline_table(plan, estimate), "quantity")
    table = headline_table(plan, estimate.model_copy(update={"error_band": samples.BAND}))
    names = _column(table, "quantity")
    assert names.index("error band") == names.index("step time") + 1
    assert dict(table.rows)["error band"] == (
        "10.9 s to 13.4 s (10–90 % of comparable runs: 74 runs of MoE models on h100-sxm-80g with any stack)"
    )


def test_all_that_a_price_takes_for_granted_is_listed():
    _, _, estimate = samples.mixtral()
    assert _column(assumption_table(estimate), "assumption") == list(estimate.assumptions)


def test_stages_with_equal_memory_stand_once():
    _, plan, estimate = samples.mixtral()
    first, second = estimate.stages[:2]
    table = memory_table(plan, estimate.model_copy(update={"stages": (first, second, second, first)}))
    assert _column(table, "stage") == ["0", "1–2", "3"]


def test_an_estimate_of_another_plan_is_refused():
    _, plan, _ = samples.mixtral()
    _, _, other = samples.one_device()
    with pytest.raises(InputError, match=r"estimate\.plan_id: must be that of the plan"):
        memory_table(plan, other)


def test_a_plan_of_another_model_is_refused():
    _, plan, _ = samples.mixtral()
    with pytest.raises(InputError, match=r"6 layers, hold 34"):
        stage_table(samples.model(dense=4), plan)


def test_equal_neighbouring_stages_stand_once_with_their_number():
    model, plan, _ = samples.largest()
    table = stage_table(model, plan)
    assert [name for name in _column(table, "stage") if name] == ["stage 0", "stages 1–62 (×62)", "stage 63"]
    assert _column(table, "layers")[0] == "0: embedding"
    assert "2, 66: 2 MoE blocks (in stage 1)" in _column(table, "layers")


def test_each_strategy_of_a_stage_has_its_row():
    model, plan, _ = samples.two_strategies_per_stage()
    table = stage_table(model, plan)
    assert _column(table, "layers") == [
        "0–3: embedding, 3 dense blocks",
        "4–11: 8 MoE blocks",
        "12–14: 3 MoE blocks",
        "15–28: 14 MoE blocks",
        "29: head",
    ]
    assert _column(table, "strategy")[1] == "tp2 cp2 dp4 sp zero3 · etp1 ep8 edp2 · full"


def test_a_decision_is_one_row_with_its_ledger():
    decision = Decision(
        window=12,
        action=Action.REBALANCE,
        plan_id="a",
        placement=Placement(layers=((0, 1),), num_ranks=2),
        moves=(Move(layer=0, expert=1, from_rank=1, to_rank=0, to_slot=0),),
        gain_s_per_step=0.0123,
        cost_s=1.5,
        payback_steps=122,
        horizon_steps=400,
        imbalance_before=1.8,
        imbalance_after=1.1,
        imbalance_bound=1.05,
        reason="expert 1 got most tokens",
    )
    (row,) = decision_table([decision]).rows
    reason = "expert 1 got most tokens"
    assert row == ("12", "rebalance", "1.80", "1.10", "1.05", "1", "12.3 ms", "1.50 s", "122", reason)


@pytest.mark.parametrize(
    ("value_s", "text"),
    [(0, "0 s"), (4.2e-6, "4.20 µs"), (0.0123, "12.3 ms"), (0.99996, "1.00 s"), (11.84, "11.8 s"), (4321.4, "4,321 s")],
)
def test_times_have_three_digits_and_the_fitting_unit(value_s, text):
    assert seconds(value_s) == text


@pytest.mark.parametrize(
    ("value_bytes", "text"), [(0, "0 GiB"), (3 * 2**20, "3.00 MiB"), (2**30, "1.00 GiB"), (80 * 2**30, "80.0 GiB")]
)
def test_bytes_are_written_in_binary_units(value_bytes, text):
    assert memory(value_bytes) == text


@pytest.mark.parametrize(("ratio", "text"), [(0, "0.0 %"), (0.0001, "< 0.1 %"), (0.417, "41.7 %"), (1, "100.0 %")])
def test_a_ratio_above_zero_never_reads_as_zero(ratio, text):
    assert percent(ratio) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.9999, "1.00"), (9.996, "10.0"), (99.96, "100"), (812345.4, "812,345"), (0.00123, "0.00123")]
)
def test_rounding_never_adds_a_digit(value, text):
    assert significant(value) == text


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("tensor_parallel_communication", "tensor-parallel communication"),
        ("expert_all_to_all", "expert all-to-all"),
        ("optimizer_states", "optimizer states"),
        ("compute", "compute"),
    ],
)
def test_named_parts_read_as_prose(key, name):
    assert part_name(key) == name


def test_every_schedule_has_a_name():
    names = {
        captions.schedule(Schedule(kind=kind, virtual_stages=2 if kind is ScheduleKind.INTERLEAVED else 1))
        for kind in ScheduleKind
    }
    assert names == {"1F1B", "GPipe", "zero-bubble", "interleaved 1F1B, 2 virtual stages per device"}


def test_a_baseline_is_shown_with_its_plan_or_with_what_it_lacks():
    _, plan, _ = samples.mixtral()
    result = BaselineResult(
        name="dp+tp", plan=plan, step_time_s=14.2, speedup_ratio=1.2034, status=CertificateStatus.OPTIMAL
    )
    miss = NearestMiss(summary="pp4 · dp1", stage=3, missing_bytes=round(1.2 * samples.GIB), limit_bytes=10**9)
    table = baseline_table(
        _shortlist().model_copy(
            update={
                "baselines": (
                    result,
                    result.model_copy(update={"status": CertificateStatus.BOUNDED}),
                    BaselineResult(name="pp", nearest_miss=miss),
                    BaselineResult(name="tp", impossible="options.axes: must hold tp"),
                )
            }
        )
    )
    assert _column(table, "best plan") == [
        plan.summary,
        f"{plan.summary} (not proven the best)",
        "does not fit: stage 3 lacks 1.20 GiB under pp4 · dp1",
        "impossible: options.axes: must hold tp",
    ]
    assert _column(table, "speed-up over it") == ["1.20 x", "1.20 x", "–", "–"]
    assert _column(table, "step") == ["14.2 s", "14.2 s", "–", "–"]


def test_pruning_names_rules_with_reasons_and_says_which_can_be_switched_off():
    rule = PrunedRule(
        rule="tp-within-node",
        kind=RuleKind.PRUNED_BY_EXPERIENCE,
        removed=1234,
        why="Near is fast.",
        examples=tuple("abcd"),
    )
    other = PrunedRule(rule="dominated", kind=RuleKind.DOMINATED, removed=5, why="Another is no worse.")
    certificate = _shortlist().certificate.model_copy(update={"pruned_rules": (rule, other)})
    table = pruning_table(certificate)
    assert table.rows == (
        (
            "tp-within-node",
            "1,234",
            "pruned by experience, switched off by --without-rule",
            "Near is fast.",
            "a; b; c …",
        ),
        ("dominated", "5", "dominated", "Another is no worse.", "–"),
    )
