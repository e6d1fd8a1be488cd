"""Questions whose bytes no table could count are refused with the field; large ones that are real are not."""

import pytest

from planner.search import search
from planner.search.sizes import check_sizes
from planner.spec.errors import InputError
from planner.spec.model import Model
from planner.spec.request import ClusterRequest, Options
from planner.spec.training import Training
from profiles import model_names, model_preset, resolve_cluster

CLUSTER = resolve_cluster(ClusterRequest(nodes=1, devices_per_node=8, device="h100-sxm-80g"))


def tiny(**changes):
    attention = {"kind": "gqa", "num_heads": 4, "num_kv_heads": 4, "head_dim": 16}
    block = {"kind": "block", "attention": attention, "feed_forward": {"kind": "dense", "width": 256}} | changes
    model = {"name": "tiny", "hidden_size": 64, "runs": [{"layer": block, "num_layers": 2}]}
    return Model.model_validate(model)


def refused(model, **recipe):
    with pytest.raises(InputError) as caught:
        search(model, CLUSTER, Training(**{"global_batch_size": 64, "sequence_length": 128} | recipe))
    return caught.value.problems[0].field


def test_a_sequence_beyond_counting_is_refused():
    assert refused(tiny(), sequence_length=2**53 - 1) == "training.sequence_length"


def test_a_model_beyond_counting_is_refused():
    assert refused(tiny(feed_forward={"kind": "dense", "width": 2**45})) == "model"


def test_scores_of_unfused_attention_are_counted():
    flash = Training(global_batch_size=64, sequence_length=2**24)
    check_sizes(tiny(), flash, Options())
    with pytest.raises(InputError, match="67108864 wide"):
        check_sizes(tiny(), flash.model_copy(update={"attention_kernel": "unfused"}), Options())


def test_the_longest_scenario_counts():
    scenarios = [{"probability": 0.5}, {"probability": 0.5, "sequence_length": 2**52}]
    with pytest.raises(InputError, match="4503599627370496 tokens"):
        check_sizes(tiny(), Training(global_batch_size=64, sequence_length=128), Options(scenarios=scenarios))


@pytest.mark.parametrize("name", model_names())
def test_every_model_that_is_known_is_searched_with_a_million_tokens(name):
    check_sizes(model_preset(name), Training(global_batch_size=1024, sequence_length=2**20), Options())
