"""What pages call times, models, clusters and errors."""

from datetime import datetime, timedelta, timezone

import pytest

from api import short_names
from api.web import words
from planner.spec.parse import parse
from planner.spec.request import AnyClusterRequest, ModelRequest

NOON = datetime(2026, 11, 22, 12, tzinfo=timezone.utc)


@pytest.mark.parametrize(
    ("passed_s", "said"),
    [
        (-5, "just now"),
        (0, "just now"),
        (59, "just now"),
        (60, "1 min ago"),
        (3599, "59 min ago"),
        (3600, "1 h ago"),
        (86399, "23 h ago"),
        (86400, "1 day ago"),
        (90 * 86400, "90 days ago"),
    ],
)
def test_ages_are_told_in_their_largest_unit(passed_s, said):
    assert words.ago(NOON - timedelta(seconds=passed_s), NOON) == said


def test_times_are_told_with_their_zone():
    assert words.utc(NOON) == "2026-11-22 12:00:00 UTC"


@pytest.mark.parametrize(
    ("request_", "name"),
    [
        ({"preset": "mixtral-8x7b"}, "mixtral-8x7b"),
        ({"hf_config": {"_name_or_path": "house/model", "model_type": "llama"}}, "house/model"),
        ({"hf_config": {"_name_or_path": "", "model_type": "llama"}}, "llama"),
        ({"hf_config": {"_name_or_path": 7}}, "config.json"),
        ({"hf_config": {"_name_or_path": "m" * 300}}, "m" * 199 + "…"),
    ],
)
def test_models_are_called_as_their_request_calls_them(request_, name):
    assert short_names.model_name(parse(ModelRequest, request_)) == name


def test_groups_of_nodes_are_joined():
    groups = [{"nodes": 1, "devices_per_node": 8, "device": name} for name in ("a100-sxm-80g", "v100-sxm2-32g")]
    request = parse(AnyClusterRequest, {"groups": groups})
    assert short_names.cluster_name(request) == "1 × 8 a100-sxm-80g + 1 × 8 v100-sxm2-32g"


def test_messages_are_sentences_where_they_stand_alone():
    assert words.sentence("no search 'x'") == "No search 'x'."
    assert words.sentence("Not Found.") == "Not Found."
