"""`trimtab import-galvatron`: Galvatron's profiles and plans as files that `plan` and `estimate` take."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Annotated

import typer

from api.commands.lines import printable, say
from api.commands.options import JsonOption, write_text
from api.commands.terminal import show
from planner.spec.errors import InputError
from planner.spec.plan import Plan
from planner.view import Column, Table
from planner.view.quantities import percent
from profiles import model_request_from_file, parse_bytes, resolve_model
from profiles.galvatron import USUAL_DEVICE, Imported, Wishes, import_files

_SIZE = re.compile(r"(\d{1,6})x(\d{1,6})")


def import_galvatron(
    folders: Annotated[
        list[Path], typer.Argument(metavar="DIR…", help="Folders, with what is below them, or files of Galvatron's")
    ],
    output: Annotated[Path, typer.Option(metavar="OUT", help="Folder that is written")],
    profile: Annotated[str | None, typer.Option(help="Which profile, where there are several, as llama2-7b")] = None,
    model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Sizes of the model, as plan takes them, where no file has them")
    ] = None,
    device: Annotated[str, typer.Option(help="Preset with what Galvatron does not measure")] = USUAL_DEVICE,
    cluster: Annotated[
        str | None, typer.Option(metavar="NxG", help="Nodes x devices of each; what most plans are for")
    ] = None,
    sequence_length: Annotated[int | None, typer.Option(min=1, help="Tokens per sample; what was profiled")] = None,
    reserve: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Memory of a device that no plan may use, as 1GiB or 0; the preset's"),
    ] = None,
    reduce_each_micro_batch: Annotated[
        bool,
        typer.Option(
            "--reduce-each-micro-batch", help="The job reduces gradients of every micro-batch: async_grad_reduce is off"
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Read Galvatron's hardware and model profiles and its plans: OUT/model.json, OUT/cluster.json, OUT/plans/*.json.

    What the files leave open, and how it was decided, is said on stderr. For example:

    trimtab import-galvatron models/llama_hf/configs profile_hardware/hardware_configs --output llama

    trimtab estimate llama/model.json llama/cluster.json llama/plans/PLAN.json --gradient-precision bf16

    trimtab plan llama/model.json llama/cluster.json --global-batch-size 64 --sequence-length 2048 --memory-limit 24GiB
    """
    wishes = Wishes(
        device=device,
        size=_size(cluster),
        profile=profile,
        model=None if model is None else resolve_model(model_request_from_file(model)),
        sequence_length=sequence_length,
        reserve_bytes=_reserve(reserve),
        reduces_once=not reduce_each_micro_batch,
    )
    imported = import_files(folders, wishes)
    _write(output, imported)
    for sentence in imported.choices:
        print(printable(sentence), file=sys.stderr)
    if as_json:
        say(json.dumps(_content(imported), indent=2))
    else:
        show(_plans(imported), _compared(imported))


def _reserve(text: str | None) -> int | None:
    if text is None:
        return None
    return 0 if text.strip() == "0" else parse_bytes(text, "--reserve")


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise InputError.at("--cluster", f"must be nodes x devices of each, as 2x8, got {text!r:.40}")
    return int(match[1]), int(match[2])


def _write(output: Path, imported: Imported) -> None:
    """The three kinds of files; raises InputError at `--output`."""
    plans = output / "plans"
    try:
        plans.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError.at("--output", f"cannot make the folder {plans}: {error.strerror or error}") from None
    write_text(output / "model.json", json.dumps({"spec": imported.model.model_dump(mode="json")}, indent=2) + "\n")
    cluster = imported.cluster.model_dump(mode="json", exclude_none=True)
    write_text(output / "cluster.json", json.dumps(cluster, indent=2) + "\n")
    for name, plan in imported.plans.items():
        write_text(plans / f"{name}.json", plan.model_dump_json(indent=2) + "\n")


def _content(imported: Imported) -> dict[str, object]:
    return {
        "model": imported.model.name,
        "precision": imported.precision,
        "cluster": f"{imported.cluster.nodes}x{imported.cluster.devices_per_node}",
        "plans": {name: _facts(plan) for name, plan in imported.plans.items()},
        "results": [
            {**result.model_dump(mode="json", exclude={"plan"}), "plan_id": imported.plans[result.name].id}
            for result in imported.results
        ],
        "comparisons": [{**each._asdict(), "error_ratio": each.error_ratio} for each in imported.comparisons],
        "choices": list(imported.choices),
    }


def _facts(plan: Plan) -> dict[str, object]:
    return {
        "id": plan.id,
        "summary": plan.summary,
        "global_batch_size": plan.global_batch_size,
        "sequence_length": plan.sequence_length,
    }


def _plans(imported: Imported) -> Table:
    columns = (Column("name"), Column("plan"), Column("global batch", True), Column("tokens", True))
    rows = tuple(
        (name, plan.summary, str(plan.global_batch_size), str(plan.sequence_length))
        for name, plan in imported.plans.items()
    )
    return Table("Plans", columns, rows)


def _compared(imported: Imported) -> Table:
    """How near our formulas come to what was measured, by kind."""
    columns = (
        Column("measured by Galvatron"),
        Column("cases", True),
        Column("mean error", True),
        Column("worst", True),
    )
    kinds: dict[str, list[float]] = {}
    for each in imported.comparisons:
        kinds.setdefault(each.kind, []).append(abs(each.error_ratio))
    rows = tuple(
        (kind, str(len(errors)), percent(sum(errors) / len(errors)), percent(max(errors)))
        for kind, errors in kinds.items()
    )
    return Table("Formulas against the profile", columns, rows)
