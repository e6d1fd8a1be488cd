"""Paths and addresses that a client writes are names like any other: nothing is opened, nothing is asked."""

import copy
import sys

import pytest
from invented_searches import TINY_REQUEST

MARK = "trimtab-trap"


class Watch:
    """Hears what this process opens, connects to and starts, while it is switched on; hooks cannot be taken out."""

    def __init__(self):
        self.on, self.heard = False, []

    def __call__(self, event, arguments):
        if self.on and event.partition(".")[0] in ("open", "os", "socket", "subprocess", "urllib", "glob", "shutil"):
            if MARK in repr(arguments) or event in ("socket.getaddrinfo", "subprocess.Popen"):
                self.heard.append((event, arguments))


WATCH = Watch()
sys.addaudithook(WATCH)


@pytest.fixture
def trap(tmp_path):
    """Ways to name one file and one host; both bear the mark."""
    folder = tmp_path / MARK
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "preset.toml").write_text("x = 1")
    WATCH.heard.clear()
    WATCH.on = True
    yield [
        str(folder / "config.json"),
        str(folder),
        f"../../../../../../../../{folder}/preset",
        f"..%2f..%2f{MARK}",
        f"file://{folder}/config.json",
        f"http://{MARK}.invalid/config.json",
        f"//{MARK}.invalid/x",
        f"{MARK}/../../mixtral-8x7b",
        f"~/{MARK}",
        f"${{{MARK}}}",
    ]
    WATCH.on = False


def changed(path, value):
    request = copy.deepcopy(TINY_REQUEST)
    *way, last = path.split(".")
    here = request
    for part in way:
        here = here.setdefault(part, {})
    here[last] = value
    return request


CONFIG = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "vocab_size": 512,
    "max_position_embeddings": 128,
}


def requests(given):
    yield changed("model", {"preset": given})
    for key in (
        "model_type",
        "_name_or_path",
        "auto_map",
        "architectures",
        "base_model",
        "$ref",
        "quantization_config",
    ):
        for value in (given, [given], {"AutoConfig": given}):
            yield changed("model", {"hf_config": CONFIG | {key: value}})
    yield changed("model", {"hf_config": {"$ref": given}})
    yield changed("model.spec.name", given)
    yield changed("cluster.device", given)
    yield changed("cluster.stack", given)
    yield changed("cluster", {"preset": given})
    link = {"a": 0, "b": given, "bandwidth_bytes_per_s": 1e9, "latency_s": 1e-6}
    yield changed("cluster.links", [link, link | {"a": 1}, link | {"a": 2}, link | {"a": 3}])
    yield changed("cluster.links", given)
    yield changed("options.target", given)
    yield changed("options.scenarios", given)
    yield changed("training", given)


def test_the_watch_hears_what_is_opened(trap):
    open(trap[0]).close()
    assert WATCH.heard


def test_no_body_makes_the_service_open_a_path_or_ask_an_address(client, trap):
    for given in trap:
        for request in requests(given):
            answer = client.post("/v1/searches", json=request)
            assert answer.status_code in (202, 422), answer.text
    assert WATCH.heard == []


def test_no_address_makes_the_service_open_a_path(client, trap):
    for given in trap:
        for path in ("models", "devices", "stacks", "searches", "plans", "runs", "profiles"):
            answer = client.get(f"/v1/{path}/{given.replace('/', '%2F').replace('%2f', '%252f')}")
            assert answer.status_code in (404, 405, 422), answer.text
        answer = client.get("/sign-in", params={"next": given})
        assert answer.status_code == 200
    assert WATCH.heard == []


@pytest.mark.parametrize(
    "path", ["/static/../app.py", "/static/%2e%2e/app.py", "/static/..%2f..%2fapp.py", "/static//etc/passwd"]
)
def test_static_files_are_those_of_swagger_ui(client, path):
    answer = client.get(path)
    assert answer.status_code == 404 and "import" not in answer.text and "root:" not in answer.text
