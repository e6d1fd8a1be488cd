"""The examples of docs/clusters.md are clusters, and become what the text says."""

import json
import re
from pathlib import Path

from planner.spec.parse import parse
from planner.spec.request import SearchRequest
from profiles import resolve_cluster

TEXT = (Path(__file__).parents[2] / "docs" / "clusters.md").read_text(encoding="utf-8")
COMMON = {"model": {"preset": "gpt2"}, "training": {"global_batch_size": 8, "sequence_length": 128}}


def examples():
    found = re.findall(r"```json\n(.*?)```", TEXT, re.DOTALL)
    return [resolve_cluster(parse(SearchRequest, {**COMMON, "cluster": json.loads(each)}).cluster) for each in found]


def sizes(cluster):
    return [(level.num_devices, level.link.bandwidth_bytes_per_s) for level in cluster.levels]


def test_every_example_is_the_cluster_that_the_text_describes():
    plain, pods, graph, groups, across = examples()
    assert [size for size, _ in sizes(plain)] == [8, 64]
    assert [size for size, _ in sizes(pods)] == [8, 3072, 24576]
    assert sizes(graph) == [(2, 450e9), (4, 50e9), (8, 25e9)]
    assert [group.usable_bytes for group in groups.groups][1] == 30 * 10**9
    assert groups.num_devices == 16
    assert sizes(across) == [(2, 50e9), (4, 450e9)]
