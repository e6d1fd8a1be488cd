"""The agent on four real processes: one decision, at one step, on every rank, whatever the service does."""

from __future__ import annotations

import time

import pytest
import torch
import torch.distributed as dist
from planner_samples import SEARCH, InThread, SamplePlanner, Warnings, keep, make_agent, sample_run, turn
from training_samples import (
    EXPERTS,
    LAYERS,
    RANKS,
    TOKENS,
    largest_difference,
    make_job,
    my_batches,
    train_step,
    train_with_migrations,
)

from planner.online import begin, decide
from planner.spec.errors import InputError
from runtime.agent import Agent
from runtime.hooks import attach
from runtime.launch import launch
from runtime.moe import moe_layers
from runtime.policy import LocalPolicy
from runtime.shipment import Shipment

STEPS, WINDOW = 33, 4


def turning_policy(run):
    """Away from the service, experts turn too: so it shows who decided by the reason."""
    return InThread(lambda window: turn(window).model_copy(update={"reason": "decided alone"}))


def train_with_agent(report, url, steps, patience_s=5.0):
    model, optimizer = make_job()
    heard, losses, data = [], [], my_batches()
    step = 0

    def note(decision):
        heard.append((step, decision))

    arguments = {"window_steps": WINDOW, "timeout_s": 5.0, "policy": turning_policy}
    agent = make_agent(url, model, optimizer, on_decision=note, **arguments)
    for step in range(1, steps + 1):
        losses.append(train_step(model, optimizer, next(data)))
        agent.step()
        report(step)
        time.sleep(0.02)
    agent.close(patience_s)
    return losses, heard, [layer.slots for layer in moe_layers(model)]


@pytest.fixture(scope="module")
def plain_losses():
    return launch(train_with_migrations, RANKS, (STEPS, 0), timeout_s=120)[0]


def check_that_ranks_agree(results, plain_losses):
    losses, heard, slots = results[0]
    assert all(other == (losses, heard, slots) for other in results)
    for step, decision in heard:
        assert (decision.window + 1) * WINDOW + 2 < step <= (decision.window + 2) * WINDOW + 1
    assert [decision.window for _, decision in heard] == list(range(STEPS // WINDOW - 1))
    assert largest_difference(losses, plain_losses) <= 1e-5
    assert slots[0] == (*range(EXPERTS - len(heard), EXPERTS), *range(EXPERTS - len(heard)))
    return [decision.reason == "decided alone" for _, decision in heard]


def test_a_service_that_goes_away_in_the_middle_changes_nothing_and_hears_everything_later(plain_losses):
    with SamplePlanner() as planner:

        def follow(rank, step):
            if rank == 0 and step in (10, 26):
                planner.mode = "hang-up" if step == 10 else "up"

        results = launch(train_with_agent, RANKS, (planner.url, STEPS), on_report=follow, timeout_s=120)
        alone = check_that_ranks_agree(results, plain_losses)
    assert not alone[0] and any(alone)
    first_seen = list(dict.fromkeys(window.index for window in planner.windows))
    assert first_seen == list(range(STEPS // WINDOW)), "every window arrives, in order"
    assert all(sum(row) == WINDOW * RANKS * 2 * TOKENS * 2 for w in planner.windows for row in w.tokens)


def test_a_service_that_does_not_answer_holds_no_rank_up(plain_losses):
    with SamplePlanner() as planner:

        def follow(rank, message):
            if message == 1 and rank == 0:
                planner.mode = "slow"

        results = launch(train_with_agent, RANKS, (planner.url, STEPS, 0.2), on_report=follow, timeout_s=120)
        assert not planner.released.is_set() and not planner.windows, "it has answered nothing yet"
    assert all(check_that_ranks_agree(results, plain_losses))


def train_with_a_rank_out_of_memory(report, url):
    """On rank 2 the first migration fails while it is prepared; returns also slots and warnings by step."""
    pack, tries = Shipment.pack, []

    def fail_once(*arguments):
        tries.append(arguments)
        if dist.get_rank() == 2 and len(tries) == 1:
            raise RuntimeError("out of memory, as asked")
        return pack(*arguments)

    Shipment.pack = fail_once
    warnings = Warnings()
    model, optimizer = make_job()
    data, losses, slots = my_batches(), [], []
    with make_agent(url, model, optimizer, window_steps=WINDOW, policy=turning_policy) as agent:
        for _ in range(4 * WINDOW + 1):
            losses.append(train_step(model, optimizer, next(data)))
            agent.step()
            slots.append({layer.slots for layer in moe_layers(model)})
            time.sleep(0.02)
    return losses, slots, warnings.told


def test_a_rank_that_fails_to_prepare_a_migration_stops_it_on_all_ranks_and_nothing_else(plain_losses):
    with SamplePlanner() as planner:
        results = launch(train_with_a_rank_out_of_memory, RANKS, (planner.url,), timeout_s=60)
    losses, slots, _ = results[0]
    assert all(other[:2] == (losses, slots) for other in results)
    assert largest_difference(losses, plain_losses[: 4 * WINDOW + 1]) <= 1e-5
    first = tuple(range(EXPERTS))
    assert all(len(rows) == 1 for rows in slots)
    in_turn = list(dict.fromkeys(row for rows in slots for row in rows))
    assert in_turn == [first, (first[-1], *first[:-1]), (*first[-2:], *first[:-2])]
    assert slots[: 2 * WINDOW + 2] == [{first}] * (2 * WINDOW + 2), "not the first decision, the next ones were"
    message = "window 0: not carried out, nothing was moved: rank 2 of the group cannot prepare the migration"
    causes = [None, None, "out of memory, as asked", None]
    assert [told for _, _, told in results] == [[(message, cause)] for cause in causes]


def begin_what_cannot_begin(report, url):
    model, optimizer = make_job()
    with pytest.raises(InputError) as caught:
        Agent(service=url, run="my-run", search="unknown", model=model, optimizer=optimizer)
    return str(caught.value)


def test_all_ranks_raise_the_same_error_when_the_run_cannot_begin():
    with SamplePlanner() as planner:
        messages = launch(begin_what_cannot_begin, RANKS, (planner.url,), timeout_s=60)
    assert len(set(messages)) == 1 and "no search 'unknown'" in messages[0]


def begin_with_other_arguments(report, url, changes):
    """What rank 2 asks for differs by `changes`; it may have no service at all."""
    model, optimizer = make_job()
    arguments = {"service": url, "run": "my-run", "search": SEARCH, "model": model, "optimizer": optimizer}
    if dist.get_rank() == 2:
        if changes.get("model") == "other":
            changes = {"model": torch.nn.Linear(2, 2)}
        arguments |= changes
    try:
        Agent(**arguments).close()
    except InputError as error:
        return str(error), any(module._forward_hooks for module in model.modules())


def begin_all(report, url, cases):
    """One launch for all cases: a job whose agent could not be made can make another one."""
    return [begin_with_other_arguments(report, url, changes) for changes in cases]


DIFFERENT = [
    ({"window_steps": 7}, "window_steps: must be the same on all ranks; rank 0 has 50, rank 2 has 7"),
    ({"run": "your-run"}, 'run: must be the same on all ranks; rank 0 has "my-run", rank 2 has "your-run"'),
    ({"plan": "other"}, 'plan: must be the same on all ranks; rank 0 has null, rank 2 has "other"'),
    ({"apply": "advise"}, "apply: must be the same on all ranks; rank 0 has true, rank 2 has false"),
    ({"window_steps": 0}, "window_steps: must be greater than or equal to 1, got 0 (on rank 2)"),
    ({"model": "other"}, "model: has no router that is known"),
    ({"optimizer": None}, "optimizer: is required to move experts with their state"),
    ({"timeout_s": float("nan")}, "timeout_s: must be a finite number"),
    ({"model": None}, "model: must be a torch module"),
    ({"service": None}, None),
]


def test_ranks_that_ask_for_different_things_all_get_an_error_and_none_waits_for_ever():
    with SamplePlanner() as planner:
        cases = [changes for changes, _ in DIFFERENT]
        everywhere = launch(begin_all, RANKS, (planner.url, cases), timeout_s=120)
    for case, ((_, wanted), *answers) in enumerate(zip(DIFFERENT, *everywhere, strict=True)):
        assert len(set(answers)) == 1, DIFFERENT[case]
        if wanted is None:
            assert answers[0] is None, "only rank 0 needs the service"
        else:
            message, hooks_left = answers[0]
            assert message.startswith(wanted) and not hooks_left


def count_alone(report):
    """Counts of this rank's tokens, without an agent, summed by hand."""
    model, optimizer = make_job()
    counters, data = attach(model), my_batches()
    for _ in range(WINDOW):
        train_step(model, optimizer, next(data))
    counts = torch.stack([counter.take(torch.device("cpu")) for counter in counters])
    dist.all_reduce(counts)
    return counts.tolist()


def test_a_window_holds_the_tokens_of_all_ranks():
    with SamplePlanner(decide=keep) as planner:
        launch(train_with_agent, RANKS, (planner.url, WINDOW), timeout_s=60)
    [window] = planner.windows
    wanted = launch(count_alone, RANKS, timeout_s=60)[0]
    assert [list(row) for row in window.tokens] == wanted


def skew_routers(model):
    """All tokens of every layer choose experts that one rank holds at first."""
    for layer in moe_layers(model):
        favoured = torch.zeros(EXPERTS)
        favoured[: EXPERTS // RANKS] = 50.0
        layer.router.projection.bias = torch.nn.Parameter(favoured, requires_grad=False)


def train_skewed(report, url):
    seen, thought = [], []

    class RecordingPolicy(LocalPolicy):
        def __call__(self, window):
            seen.append(window)
            decision = super().__call__(window)
            thought.append(decision)
            return decision

    model, optimizer = make_job()
    skew_routers(model)
    heard, data = [], my_batches()
    arguments = {"window_steps": WINDOW, "policy": RecordingPolicy}
    agent = make_agent(url, model, optimizer, on_decision=heard.append, **arguments)
    report("attached")
    for step in range(1, 4 * WINDOW + 2):
        train_step(model, optimizer, next(data))
        agent.step()
        deadline = time.monotonic() + 60
        while dist.get_rank() == 0 and len(thought) < (step - 1) // WINDOW and time.monotonic() < deadline:
            time.sleep(0.05)  # its process has just begun
    agent.close(timeout_s=0.1)
    return heard, [layer.slots for layer in moe_layers(model)], seen


def test_the_local_policy_is_the_services_policy():
    run = sample_run(micro_batch_size=512)  # as if steps were long: then moving pays
    with SamplePlanner(runs=[run]) as planner:

        def leave(rank, message):
            planner.mode = "hang-up"

        results = launch(train_skewed, RANKS, (planner.url,), on_report=leave, timeout_s=120)
    heard, slots, seen = results[0]
    assert all(other[:2] == (heard, slots) for other in results)
    state, wanted = begin(run.context), []
    for window in seen[:3]:
        decision, state = decide(window, state, run.context)
        wanted.append(decision)
    assert heard == wanted
    for layer in range(LAYERS):
        busy = {slots[layer].index(expert) // (EXPERTS // RANKS) for expert in range(EXPERTS // RANKS)}
        assert len(busy) == 2, "the two busy experts stand on different ranks now"
