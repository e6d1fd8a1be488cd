"""What a service that is open on loopback may be called, and where redirects lead."""

import pytest
from invented_searches import TINY_REQUEST


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "192.168.0.1", "", "@"]
)
def test_a_site_that_gives_its_name_our_address_is_refused_where_everybody_may_come_in(serve, host):
    client = serve()
    headers = {"Host": host, "Origin": f"http://{host}"}
    assert client.post("/v1/searches", json=TINY_REQUEST, headers=headers).status_code == 403
    answer = client.get("/v1/searches", headers=headers)
    assert answer.status_code == 403 and "allowed_hosts" in answer.json()["detail"]
    guarded = serve(access="tokens")
    assert guarded.get("/healthz", headers=headers).status_code == 200, "a token is what no other site has"


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:81", "127.0.0.1:8000", "127.1.2.3", "[::1]:8000", "plan.example"]
)
def test_loopback_names_and_those_that_are_allowed_are_answered(serve, host):
    assert serve(allowed_hosts=["plan.example"]).get("/v1/searches", headers={"Host": host}).status_code == 200
    assert serve(host="0.0.0.0", access="open").get("/v1/searches", headers={"Host": "any"}).status_code == 200


def test_redirects_name_no_host(serve):
    for service in (serve(), serve(host="0.0.0.0", access="open")):
        answer = service.get("/v1/searches/", headers={"Host": "localhost"}, follow_redirects=False)
        assert answer.status_code == 307 and answer.headers["location"] == "/v1/searches"
