"""Layouts that real clusters make awkward: nodes that degrees do not divide, sequences that do not divide."""

import pytest
from small_questions import MIB, a_cluster, a_model, a_training

from planner.cost import estimate
from planner.cost.collectives import tiers
from planner.search import plan_from_shorthand, search
from planner.spec.errors import InputError, NoPlanFitsError
from planner.spec.request import Options
from planner.spec.training import Training
from profiles import cluster_from_shorthand, model_preset, resolve_cluster


def cluster_of(shorthand: str):
    return resolve_cluster(cluster_from_shorthand(shorthand))


@pytest.mark.parametrize(
    ("shorthand", "degree"), [("3x8:a100-sxm-80g", 6), ("3x8:a100-sxm-80g", 3), ("2x6:a100-sxm-80g", 4)]
)
def test_a_group_that_straddles_nodes_is_priced_over_the_network(shorthand, degree):
    levels = cluster_of(shorthand).levels
    crossed = tiers(levels, ((degree, 1),))
    assert crossed[-1].members == degree
    assert crossed[-1].bytes_per_s == levels[-1].link.bytes_per_s


@pytest.mark.parametrize("shorthand", ["3x8:a100-sxm-80g", "2x6:a100-sxm-80g"])
def test_tensor_parallel_groups_of_found_plans_tile_the_nodes(shorthand):
    cluster = cluster_of(shorthand)
    training = Training(global_batch_size=48, sequence_length=2048)
    found = search(model_preset("llama-2-13b"), cluster, training)
    degrees = {run.strategy.tp for entry in found.plans for stage in entry.plan.stages for run in stage.runs}
    assert all(cluster.devices_per_node % degree == 0 for degree in degrees)


def test_where_the_sequence_does_not_divide_tensor_parallelism_goes_without_sequence_parallelism():
    training = Training(global_batch_size=4, sequence_length=255)
    found = search(a_model(), a_cluster(4, 400 * MIB), training, Options(axes=("tp", "sp")))
    strategies = {run.strategy for entry in found.plans for stage in entry.plan.stages for run in stage.runs}
    assert all(s.tp == 4 and not s.sequence_parallel for s in strategies)


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
def test_with_one_kind_of_recomputation_a_misfit_is_still_a_misfit(recompute):
    with pytest.raises(NoPlanFitsError) as caught:
        search(
            model_preset("llama-3.1-70b"),
            cluster_of("1x8:h100-sxm-80g"),
            Training(global_batch_size=8, sequence_length=4096),
            Options(recompute=(recompute,)),
        )
    assert caught.value.nearest_miss.missing_bytes > 0


def test_a_time_limit_of_nothing_still_gives_a_plan_and_a_valid_bound():
    question = (a_model(blocks=6, experts=8), a_cluster(4, 60 * MIB), a_training(16))
    optimum = search(*question)
    ticks = iter(range(10**9))
    hurried = search(*question, Options(time_limit_s=1e-9), clock=lambda: float(next(ticks)))
    bound = hurried.certificate.lower_bound_s
    assert 0 < bound <= optimum.plans[0].estimate.step_time_s * (1 + 1e-12)
    assert hurried.plans[0].estimate.fits


def test_interleaving_does_not_multiply_the_logits_of_the_last_stage():
    model, cluster = model_preset("llama-3.1-8b"), cluster_of("1x8:h100-sxm-80g")
    training = Training(global_batch_size=32, sequence_length=8192)
    logits = []
    for text in ("pp4-dp2-mbs1", "pp4-dp2-vpp4-mbs1"):
        price = estimate(model, cluster, training, plan_from_shorthand(text, model, cluster, training))
        logits.append(price.stages[-1].memory["logits"])
    assert logits[0] == logits[1] > 0


def test_a_batch_beyond_all_sense_is_refused():
    with pytest.raises(ValueError, match="16777216"):
        Training(global_batch_size=10**12, sequence_length=2048)


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("tp3", "plan: tp x pp x cp x ulysses"),
        ("tp2-foo", "'foo' is unknown"),
        ("tp2-tp4", "'tp4' is unknown or stands twice"),
        ("mbs7", "mbs x dp"),
        ("vpp2", "vpp needs pp"),
        ("ep2", "ep needs a model with experts"),
        ("gpipe-pp2-vpp2", "gpipe has no virtual stages"),
        ("zb-pp2-vpp2", "zb has no virtual stages"),
        ("gpipe-zb-pp2", "gpipe and zb are two schedules"),
        ("pp4-vpp2-mbs8", "vpp needs micro-batches in a multiple of pp, not 1"),
        ("zero9", "'zero9' is unknown"),
        ("", "'' is unknown"),
    ],
)
def test_a_shorthand_that_cannot_be_says_what_is_wrong(text, field):
    with pytest.raises(InputError, match=field):
        plan_from_shorthand(text, a_model(), a_cluster(4, 400 * MIB), a_training(8))


def test_a_shorthand_names_the_plan_that_it_says():
    model, cluster = model_preset("mixtral-8x7b"), cluster_of("8x8:h100-sxm-80g")
    training = Training(global_batch_size=1024, sequence_length=4096)
    rest = "ep8-etp1-vpp2-mbs1-zero1-sp-recompute:selective"
    plan = plan_from_shorthand(f"tp2-pp4-{rest}", model, cluster, training)
    assert plan.summary == "pp4 vpp2 · tp2 dp8 sp zero1 · ep8 edp2 · selective · mbs1 x128 · 2 strategies"
    assert (
        plan_from_shorthand("tp2-pp4-dp8-ep8-etp1-vpp2-mbs1-zero1-sp-recompute:selective", model, cluster, training)
        == plan
    )
