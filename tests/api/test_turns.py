"""Many who write wait for the database: whoever reads, and whoever watches the service, is answered meanwhile."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
from invented_searches import TINY_REQUEST
from service_in_process import until_ready

from api import turns
from api.engines import ANY_USE, LOOKING, READING, WRITING, make_engines

WRITERS = 45
READ = ("/readyz", "/healthz", "/metrics", "/v1/searches", "/v1/runs", "/v1/profiles", "/")


def asked(client, number):
    training = {**TINY_REQUEST["training"], "sequence_length": 8 * (number + 1)}
    return client.post("/v1/searches", json={**TINY_REQUEST, "training": training}).status_code


@pytest.mark.both_databases
def test_reads_are_answered_while_many_writers_wait(serve, database):
    client = serve(workers=1)
    until_ready(client)
    with ThreadPoolExecutor(WRITERS) as pool:
        with database.writing() as lock:
            lock.connection()
            writers = [pool.submit(asked, client, number) for number in range(WRITERS)]
            found = [client.get(path).status_code for _ in range(5) for path in READ]
            assert not any(writer.done() for writer in writers), "they wait for us still"
            assert set(found) == {200}
        assert {writer.result() for writer in writers} == {202}, "none was refused, and all come to their turn"


@pytest.mark.both_databases
def test_who_watches_finds_a_connection_though_readers_have_all_of_theirs(serve, database):
    client = serve(workers=0)
    until_ready(client)
    with ThreadPoolExecutor(4) as pool:
        with ExitStack() as stack:
            for _ in range(sum(READING)):
                stack.enter_context(database.reading()).connection()
            readers = [pool.submit(client.get, "/v1/runs") for _ in range(4)]
            assert client.get("/readyz").status_code == 200
            assert not any(reader.done() for reader in readers)
        assert {reader.result().status_code for reader in readers} == {200}


def test_a_request_whose_turn_does_not_come_is_told_to_try_again(serve, database, monkeypatch):
    monkeypatch.setattr(turns, "TURN_S", 0.1)
    client = serve(workers=1)
    with ThreadPoolExecutor(turns.AT_ONCE + 1) as pool:
        with database.writing() as lock:
            lock.connection()
            answers = [pool.submit(client.delete, "/v1/profiles/none") for _ in range(turns.AT_ONCE + 1)]
            while not (refused := [answer.result() for answer in answers if answer.done()]):
                pass
            assert [(each.status_code, each.headers["retry-after"]) for each in refused] == [(503, "5")]
        assert sorted(answer.result().status_code for answer in answers) == [404] * turns.AT_ONCE + [503]


def test_a_service_process_keeps_as_many_connections_as_operators_are_told(database_url):
    sizes = (WRITING, READING, LOOKING)
    assert (
        [sum(size.kept for size in sizes), sum(sum(size) for size in sizes)] == [8, 16] == [ANY_USE.kept, sum(ANY_USE)]
    )
    engines = make_engines(database_url)
    assert [engine.pool.size() for engine in engines] == [size.kept for size in sizes]
    for engine in engines:
        engine.dispose()
