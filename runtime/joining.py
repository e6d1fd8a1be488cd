"""How the ranks of a job join a run of the planner together, and what must fit between the two."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import torch

from planner.spec.errors import InputError, Problem, UnavailableError
from planner.spec.parse import parse
from planner.spec.run import Run
from runtime.client import Attachment
from runtime.exchange import Group, broadcast_json, rank
from runtime.hooks import RouterCounter
from runtime.moe import ExpertParallelMoe

logger = logging.getLogger("trimtab.agent")


def join(attach: Callable[[], Attachment], group: Group | None, device: torch.device) -> Attachment | None:
    """Rank 0 attaches, all ranks of the group get what it got; None: the service is away. A collective.

    Raises the same InputError on all ranks.
    """
    answer: dict[str, object] = {}
    failure: Exception | None = None
    if rank(group) == 0:
        try:
            answer["attachment"] = attach().model_dump(mode="json")
        except InputError as error:
            answer["problems"] = [[problem.field, problem.message] for problem in error.problems]
        except UnavailableError as error:
            logger.warning("the planner service is away (%s); training begins without it", error)
        except Exception as error:  # the other ranks wait: tell them first
            failure = error
            answer["problems"] = [["agent", f"failed on rank 0: {error!r}"]]
    answer = broadcast_json(answer, group, device)
    if failure is not None:
        raise failure
    if "problems" in answer:
        raise InputError(*(Problem(*problem) for problem in parse(list[tuple[str, str]], answer["problems"])))
    return parse(Attachment, answer["attachment"]) if "attachment" in answer else None


def check_run(run: Run, counters: Sequence[RouterCounter], layers: Sequence[ExpertParallelMoe]) -> None:
    """Raises InputError unless the run's model has these routers, and its placement these expert-parallel layers."""
    planned = run.context.model
    wanted = [planned.moe(layer).num_experts for layer in planned.moe_layers]
    found = [counter.num_experts for counter in counters]
    if wanted != found:
        raise InputError.at(
            "model", f"has routers for {_by_layer(found)}, but run {run.name!r} was planned for {_by_layer(wanted)}"
        )
    if layers and (run.placement is None or run.placement.num_ranks != layers[0].num_ranks):
        planned_ranks = 1 if run.placement is None else run.placement.num_ranks
        raise InputError.at(
            "plan",
            f"run {run.name!r} spreads the experts over {planned_ranks} ranks, the model over {layers[0].num_ranks}: "
            "begin a run with a plan of that expert-parallel size",
        )


def _by_layer(experts: Sequence[int]) -> str:
    sizes = sorted(set(experts))
    return f"{len(experts)} MoE layers of {' or '.join(map(str, sizes)) or 'no'} experts"
