"""Documents keep their promises: links lead somewhere, commands exist, the tree and the glossary are complete."""

from __future__ import annotations

import re

import pytest
from source_tree import PACKAGES, ROOT

from planner.cost import estimate
from planner.spec.plan import Plan, Schedule, ScheduleKind, Stage, StageRun
from planner.spec.strategy import Axis, AxisKind, ExpertStrategy, Recompute, Sharding, Strategy
from planner.spec.training import Training
from planner.spec.workload import Workload
from planner.view.theme import PART_LOOKS
from profiles import cluster_from_shorthand, model_preset, resolve_cluster

DOCUMENTS = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
EXTERNAL = re.compile(r"[a-z]+:")


def _text(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(document):
    targets = re.findall(r"\]\(([^)#]+)", document.read_text(encoding="utf-8"))
    missing = [t for t in targets if not EXTERNAL.match(t) and not (document.parent / t).exists()]
    assert not missing


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_paths_that_are_named_exist(document):
    roots = "|".join((*PACKAGES, "tests", "docs", "docker", "benchmarks"))
    paths = re.findall(rf"`((?:{roots})/[\w./-]*)`", document.read_text(encoding="utf-8"))
    assert not [path for path in paths if not (ROOT / path).exists()]


def test_every_make_command_that_is_named_exists():
    targets = set(re.findall(r"^([a-z]+):", _text("Makefile"), re.MULTILINE))
    named = {name for document in DOCUMENTS for name in re.findall(r"`make ([a-z]+)`", document.read_text())}
    assert named
    assert named <= targets


def test_the_readme_shows_the_commands_that_matter():
    shown = re.findall(r"^make (\w+)", _text("README.md"), re.MULTILINE)
    assert shown == ["run", "test", "demo"]


def _tree_of_the_readme() -> list[str]:
    block = re.search(r"## The tree\n+```\n(.*?)```", _text("README.md"), re.DOTALL)
    assert block
    folders: list[str] = []
    for indent, folder in re.findall(r"^( *)([\w/]+)/", block[1], re.MULTILINE):
        folders.append(folder if not indent else f"{_last_root(folders)}/{folder}")
    return folders


def _last_root(folders: list[str]) -> str:
    """The last folder of the first level."""
    return next(folder for folder in reversed(folders) if "/" not in folder)


def test_the_tree_of_the_readme_is_the_tree_of_the_repository():
    shown = set(_tree_of_the_readme())
    assert not [folder for folder in shown if not (ROOT / folder).is_dir()]
    rooms = {f"planner/{path.parent.name}" for path in (ROOT / "planner").glob("*/__init__.py")}
    assert set(PACKAGES) | rooms <= shown


def _section(title: str) -> str:
    found = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", _text("docs/glossary.md"), re.MULTILINE | re.DOTALL)
    assert found, title
    return found[1]


def _parts(title: str) -> set[str]:
    return set(re.findall(r"^\| `(\w+)` \|", _section(title), re.MULTILINE))


def test_glossary_and_pictures_know_the_same_parts():
    parts = _parts("Parts of the time of a step") | _parts("Parts of the memory of a device")
    assert parts == set(PART_LOOKS)


def _mixed_estimate():
    """Every kind of part at once: two strategies per stage, experts, context parallelism, interleaving, skew."""
    axes = (Axis(AxisKind.DP, 4), Axis(AxisKind.CP, 2), Axis(AxisKind.TP, 2))
    edge = Strategy(axes=axes, sharding=Sharding.FULL, sequence_parallel=True, recompute=Recompute.FULL)
    experts = ExpertStrategy(expert_parallel_size=8, expert_data_parallel_size=2)
    block = edge.model_copy(update={"sharding": Sharding.OPTIMIZER, "experts": experts})
    wide = block.model_copy(update={"axes": (Axis(AxisKind.DP, 8), Axis(AxisKind.TP, 2))})
    pieces = (
        (StageRun(first_layer=0, num_layers=1, strategy=edge), StageRun(first_layer=1, num_layers=7, strategy=block)),
        (StageRun(first_layer=8, num_layers=4, strategy=wide), StageRun(first_layer=12, num_layers=4, strategy=block)),
        (StageRun(first_layer=16, num_layers=8, strategy=block),),
        (StageRun(first_layer=24, num_layers=9, strategy=block), StageRun(first_layer=33, num_layers=1, strategy=edge)),
    )
    plan = Plan(
        global_batch_size=128,
        sequence_length=4096,
        micro_batch_size=2,
        num_micro_batches=16,
        schedule=Schedule(kind=ScheduleKind.INTERLEAVED, virtual_stages=2),
        stages=tuple(
            Stage(first_device=16 * number, num_devices=16, runs=(*pieces[number], *pieces[number + 2]))
            for number in range(2)
        ),
    )
    skewed = Workload(name="skewed", expert_shares=((0.3, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1),))
    cluster = resolve_cluster(cluster_from_shorthand("4x8:h100-sxm-80g"))
    training = Training(global_batch_size=128, sequence_length=4096)
    return estimate(model_preset("mixtral-8x7b"), cluster, training, plan, skewed)


def test_the_glossary_explains_every_part_of_an_estimate():
    priced = _mixed_estimate()
    assert set(priced.time) == _parts("Parts of the time of a step")
    assert set(priced.stages[0].memory) == _parts("Parts of the memory of a device")
