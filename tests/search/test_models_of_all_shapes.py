"""Models whose layers differ in width and length: the search against every plan of a small space, and presets."""

import pytest
from every_plan import fastest
from small_questions import MIB, a_cluster

from planner.cost import estimate
from planner.search import plan_from_shorthand, search
from planner.spec.errors import InputError, NoPlanFitsError
from planner.spec.model import (
    Block,
    DenseFeedForward,
    Embedding,
    EncoderEnd,
    GroupedQueryAttention,
    Head,
    LayerRun,
    Merging,
    Model,
    PatchEmbedding,
)
from planner.spec.request import Options
from planner.spec.shortlist import CertificateStatus
from planner.spec.training import Training
from planner.view import plan_picture
from profiles import cluster_from_shorthand, model_preset, resolve_cluster

FEW = Options(
    axes=("dp", "tp", "pp", "sp"), sharding=("none",), recompute=("none",), max_micro_batch_size=2, schedules=("1f1b",)
)
ATTENTION = GroupedQueryAttention(num_heads=4, num_kv_heads=4, head_dim=32)
ALL = ATTENTION.model_copy(update={"causal": False})
NETWORK = DenseFeedForward(width=512, gated=False)


def model(*layers) -> Model:
    return Model(name="tiny", hidden_size=128, runs=tuple(LayerRun(layer=layer) for layer in layers))


def encoder_decoder() -> Model:
    return model(
        Embedding(vocab_size=1000, tokens_per_sample="encoder"),
        Block(attention=ALL, feed_forward=NETWORK, tokens_per_sample="encoder"),
        EncoderEnd(),
        Block(attention=ATTENTION, cross_attention=ALL, feed_forward=NETWORK),
        Head(vocab_size=1000),
    )


def two_stages_of_windows() -> Model:
    windows = ALL.model_copy(update={"window": 16})
    wide = {"hidden_size": 256, "tokens_per_sample": 64}
    return model(
        PatchEmbedding(tokens_per_sample=256, patch_values=48),
        Block(attention=windows, feed_forward=NETWORK, tokens_per_sample=256),
        Merging(**wide, input_size=128, merged_tokens=4),
        Block(**wide, attention=windows, feed_forward=NETWORK),
        Head(**wide, vocab_size=1000, pooled=True),
    )


@pytest.mark.parametrize("make", [encoder_decoder, two_stages_of_windows])
@pytest.mark.parametrize("memory", [10, 12, 13, 14, 20, 40])
@pytest.mark.parametrize("bandwidth", [1e8, 1e11])
def test_no_plan_of_the_space_is_faster_than_the_found_one(make, memory, bandwidth):
    shape = make()
    encoder = 512 if shape.has_encoder else None
    training = Training(global_batch_size=4, sequence_length=256, encoder_sequence_length=encoder)
    cluster = a_cluster(2, memory * MIB, bandwidth)
    expected = fastest(shape, cluster, training, FEW)
    if expected is None:
        with pytest.raises(NoPlanFitsError):
            search(shape, cluster, training, FEW)
        return
    best = search(shape, cluster, training, FEW).plans[0]
    assert best.estimate.step_time_s == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("name", "sequence_length"), [("bert-huge-32", 512), ("vit-huge", 197), ("swin-huge-32", 3136), ("t5-large", 512)]
)
def test_presets_of_other_shapes_get_certified_plans_with_pictures(name, sequence_length):
    shape = model_preset(name)
    cluster = resolve_cluster(cluster_from_shorthand("1x8:rtx-titan-24g"))
    wide = cluster.model_copy(update={"memory_limit_bytes": 16 * 10**9})
    cluster = cluster.model_copy(update={"memory_limit_bytes": 8 * 10**9})
    training = Training(global_batch_size=64, sequence_length=sequence_length, precision="fp16")
    options = Options(axes=("dp", "sdp", "tp", "pp", "sp"), schedules=("1f1b",))
    found = search(shape, cluster, training, options)
    best = found.plans[0]
    assert found.certificate.status is CertificateStatus.OPTIMAL
    assert estimate(shape, cluster, training, best.plan) == best.estimate
    assert best.estimate.fits
    with_more = search(shape, wide, training, options).plans[0].estimate
    assert with_more.step_time_s <= best.estimate.step_time_s * (1 + 1e-9)
    assert plan_picture(shape, best.plan, best.estimate).startswith("<svg")


def test_a_model_of_images_says_how_many_tokens_it_makes_of_one():
    cluster = resolve_cluster(cluster_from_shorthand("1x8:rtx-titan-24g"))
    with pytest.raises(InputError, match="must be 197, the tokens that the model makes of an image, is 200"):
        search(model_preset("vit-huge"), cluster, Training(global_batch_size=8, sequence_length=200))


def test_shorthand_cuts_models_of_any_shape_into_stages():
    cluster = resolve_cluster(cluster_from_shorthand("1x8:rtx-titan-24g"))
    for name, length in (("swin-huge-32", 3136), ("t5-large", 512)):
        training = Training(global_batch_size=8, sequence_length=length)
        for text in ("pp4-dp2-mbs1", "pp2-dp4-mbs1"):
            plan = plan_from_shorthand(text, model_preset(name), cluster, training)
            assert plan.num_layers == len(model_preset(name).layers)
