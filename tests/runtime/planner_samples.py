"""A planner service for the agent's tests: the real policy behind a tiny HTTP server that can be made to misbehave."""

from __future__ import annotations

import json
import logging
import threading
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from training_samples import EXPERTS, LAYERS, MODEL, RANKS, TOKENS

from planner.online import begin, decide
from planner.spec.decision import Action, Decision
from planner.spec.placement import Placement
from planner.spec.plan import Plan, Stage, StageRun
from planner.spec.request import ClusterRequest
from planner.spec.run import Run, RunContext
from planner.spec.strategy import Axis, AxisKind, ExpertStrategy, Strategy
from planner.spec.training import Precision, Training
from planner.spec.window import Window
from profiles import resolve_cluster
from runtime.agent import Agent

SEARCH = "search-1"


def sample_plan(ranks, micro_batch_size=2, expert_ranks=None):
    """Data parallelism on `ranks`, experts over `expert_ranks` (None: all) of them."""
    axes = (Axis(AxisKind.DP, ranks),) if ranks > 1 else ()
    size = expert_ranks or ranks
    experts = ExpertStrategy(expert_parallel_size=size, expert_data_parallel_size=ranks // size)
    plain, spread = Strategy(axes=axes), Strategy(axes=axes, experts=experts)
    runs = (
        StageRun(first_layer=0, num_layers=1, strategy=plain),
        StageRun(first_layer=1, num_layers=LAYERS, strategy=spread),
        StageRun(first_layer=LAYERS + 1, num_layers=1, strategy=plain),
    )
    stage = Stage(first_device=0, num_devices=ranks, runs=runs)
    return Plan(
        global_batch_size=micro_batch_size * ranks,
        sequence_length=TOKENS,
        micro_batch_size=micro_batch_size,
        num_micro_batches=1,
        stages=(stage,),
    )


def sample_run(name="my-run", ranks=RANKS, micro_batch_size=2, more_plans=()):
    cluster = resolve_cluster(ClusterRequest(nodes=1, devices_per_node=ranks, device="cpu-core"))
    plan = sample_plan(ranks, micro_batch_size)
    training = Training(global_batch_size=plan.global_batch_size, sequence_length=TOKENS, precision=Precision.FP32)
    context = RunContext(model=MODEL, cluster=cluster, training=training, plans=(plan, *more_plans))
    state = begin(context)
    return Run(
        id=f"id-of-{name}",
        name=name,
        search_id=SEARCH,
        created_at=datetime(2026, 11, 21, tzinfo=timezone.utc),
        plan_id=state.plan_id,
        placement=state.placement,
        context=context,
    )


def keep(window: Window) -> Decision:
    plan_id = window.plan_id or "as it is"
    return Decision(
        window=window.index,
        action=Action.KEEP,
        plan_id=plan_id,
        imbalance_before=1.0,
        imbalance_after=1.0,
        imbalance_bound=1.0,
        reason="the sample keeps",
    )


def turn(window: Window) -> Decision:
    """Every window moves each expert one slot on."""
    rows = window.placement.layers if window.placement else Placement.contiguous([EXPERTS] * LAYERS, RANKS).layers
    placement = Placement(layers=tuple((row[-1], *row[:-1]) for row in rows), num_ranks=window.placement.num_ranks)
    changes = {"action": Action.REBALANCE, "placement": placement, "reason": "the sample turns"}
    return Decision(**keep(window).model_dump() | changes)


def real_policy(run):
    """The service's policy for a run, from its beginning."""
    state = begin(run.context, run.plan_id)

    def answer(window):
        nonlocal state
        decision, state = decide(window, state, run.context)
        return decision

    return answer


def make_agent(service, model, optimizer=None, **changes):
    """An agent of this job for the sample run, with what each test wants otherwise."""
    arguments = {"service": service, "run": "my-run", "search": SEARCH}
    return Agent(model=model, optimizer=optimizer, **arguments | changes)


class Warnings(logging.Handler):
    """Keeps what the agent warns of in this process, with its cause."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.told = []
        logging.getLogger("trimtab.agent").addHandler(self)

    def emit(self, record):
        self.told.append((record.getMessage(), str(record.exc_info[1]) if record.exc_info else None))


class InThread:
    """A local policy without a process of its own: answers like `answer`."""

    def __init__(self, answer):
        self.answer = answer

    def __call__(self, window):
        return self.answer(window)

    def close(self):
        pass


def refused(field, message):
    """422, as the service says it."""
    return 422, {"detail": f"{field}: {message}", "errors": [{"field": field, "message": message}]}


class SamplePlanner:
    """Behaves as told: `mode` is `up`, `slow`, `garbage`, `misfit`, `stale`, `hang-up`, or an HTTP status."""

    def __init__(self, ranks=RANKS, decide=turn, mode="up", runs=()):
        self.decide, self.mode, self.ranks = decide, mode, ranks
        self.runs = {run.id: run for run in runs}
        self.windows, self.decisions, self.requests = [], [], []
        self.released = threading.Event()  # until then, a slow service keeps all waiting
        planner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                planner.serve(self, None)

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                planner.serve(self, json.loads(body))

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.block_on_close = False
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.released.set()
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()

    def serve(self, handler, body):
        self.requests.append((handler.command, handler.path, handler.headers.get("Authorization")))
        mode = self.mode
        if mode == "slow":
            self.released.wait(60)
        status, answer = (mode, {"detail": "as told"}) if isinstance(mode, int) else self.route(handler, body)
        if mode == "hang-up":
            handler.close_connection = True
            return
        content = b"<html>no JSON</html>" if mode == "garbage" else json.dumps(answer).encode()
        try:
            handler.send_response(status)
            handler.send_header("Content-Length", str(len(content)))
            handler.end_headers()
            handler.wfile.write(content)
        except OSError:
            pass  # the agent did not wait for it

    def route(self, handler, body):
        url = urlsplit(handler.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        parts = url.path.removeprefix("/v1/runs").strip("/").split("/")
        if parts == [""] and body is None:
            found = [run for run in self.runs.values() if run.name == query["name"]]
            return 200, {"items": [run.model_dump(mode="json") for run in found[-1:]], "next": None}
        if parts == [""]:
            return self.begin_run(body)
        if parts[0] not in self.runs:
            return 404, {"detail": f"no run {parts[0]!r}"}
        if len(parts) == 1:
            return 200, self.runs[parts[0]].model_dump(mode="json")
        if body is None:
            return 200, self.page(self.windows if parts[1] == "windows" else self.decisions, parts, query)
        return 200, self.take(Window.model_validate(body))

    def begin_run(self, body):
        if body["search_id"] != SEARCH:
            return refused("search_id", f"no search {body['search_id']!r}")
        run = sample_run(body["name"], self.ranks)
        if body.get("plan_id") not in (None, run.plan_id):
            return refused("plan_id", "must be a plan of the shortlist")
        self.runs[run.id] = run
        return 201, run.model_dump(mode="json")

    def page(self, values, parts, query):
        """Pages of two, so that the agent has to turn them."""
        indices = [window.index for window in self.windows]
        rest = [(i, v) for i, v in zip(indices, values, strict=True) if i > int(query.get("after", -1))]
        shown = rest[: min(2, int(query.get("limit", 2)))]
        path = f"/v1/runs/{parts[0]}/{parts[1]}?after={shown[-1][0]}" if len(rest) > len(shown) else None
        return {"items": [value.model_dump(mode="json") for _, value in shown], "next": path}

    def take(self, window):
        decision = self.decide(window)
        self.windows.append(window)
        self.decisions.append(decision)
        if self.mode == "stale":
            decision = decision.model_copy(update={"window": window.index + 7})
        if self.mode == "misfit":
            odd = Placement(layers=((0, 1, 2, 3),) * LAYERS, num_ranks=self.ranks)
            decision = Decision(**turn(window).model_dump() | {"placement": odd})
        return decision.model_dump(mode="json")
