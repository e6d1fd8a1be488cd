"""Browsers: led to the sign-in page, let in by its cookie, and not used by pages of other sites."""

import re
from importlib.metadata import version

import pytest
from invented_searches import TINY_REQUEST
from tokens_in_store import bearer, id_of, token

from api.access_guard import COOKIE
from api.database import utc_now
from api.sign_in import own_path
from api.token_store import TokenStore

PAGE = {"Accept": "text/html,application/xhtml+xml"}
SCRIPT = f'<script src="/assets/trimtab.js?v={version("trimtab")}" defer>'
HERE = {"Sec-Fetch-Site": "same-origin"}


@pytest.fixture
def guarded(serve):
    client = serve(access="tokens")
    client.follow_redirects = False
    return client


def signed_in(client, text, **fields):
    return client.post("/sign-in", data={"token": text, **fields}, headers=HERE)


def test_a_browser_is_led_to_the_sign_in_page_and_back_to_where_it_wanted(guarded, database):
    answer = guarded.get("/v1/runs?limit=5", headers=PAGE)
    assert (answer.status_code, answer.headers["location"]) == (303, "/sign-in?next=/v1/runs%3Flimit%3D5")
    page = guarded.get(answer.headers["location"], headers=PAGE)
    assert page.status_code == 200 and 'name="next" value="/v1/runs?limit=5"' in page.text
    answer = signed_in(guarded, f" {token(database, 'read')}\n", next="/v1/runs?limit=5")
    assert (answer.status_code, answer.headers["location"]) == (303, "/v1/runs?limit=5")
    assert guarded.get("/v1/runs?limit=5", headers=PAGE).status_code == 200


def test_programs_are_not_led_to_pages(guarded):
    assert guarded.get("/v1/runs", headers={"Accept": "application/json"}).status_code == 401
    assert guarded.post("/v1/runs", headers=PAGE).status_code == 401


@pytest.mark.parametrize(("scheme", "secure"), [("http", False), ("https", True)])
def test_the_cookie_is_out_of_reach_of_scripts_and_other_sites(guarded, database, scheme, secure):
    text = token(database, "read")
    answer = guarded.post(f"{scheme}://testserver/sign-in", data={"token": text}, headers=HERE)
    parts = [part.strip().lower() for part in answer.headers["set-cookie"].split(";")]
    assert parts[0] == f"{COOKIE}={text}"
    assert {"httponly", "samesite=strict", "path=/"} <= set(parts) and ("secure" in parts) == secure


def test_a_wrong_token_is_told_what_is_wrong_and_sets_nothing(guarded, database):
    text = token(database, "read")
    TokenStore(database, utc_now).revoke(id_of(text))
    for given, said in [(text, "revoked"), ("hello", "no token of Trimtab"), ("", "no token of Trimtab")]:
        answer = signed_in(guarded, given)
        assert answer.status_code == 401 and 'role="alert"' in answer.text and said in answer.text
        assert "set-cookie" not in answer.headers and text not in answer.text


def test_a_cookie_that_is_no_longer_good_leads_to_a_page_that_says_why(guarded, database):
    text = token(database, "read")
    guarded.cookies.set(COOKIE, text)
    TokenStore(database, utc_now).revoke(id_of(text))
    assert guarded.get("/v1/runs", headers=PAGE).status_code == 303
    assert "revoked" in guarded.get("/sign-in").text


def test_signing_out_forgets_the_cookie(guarded, database):
    signed_in(guarded, token(database, "read"))
    assert "You are signed in" in guarded.get("/sign-in").text
    answer = guarded.post("/sign-out", headers=HERE)
    assert (answer.status_code, answer.headers["location"]) == (303, "/sign-in")
    assert guarded.get("/v1/runs", headers=PAGE).status_code == 303


def test_names_of_tokens_are_text_on_the_page(guarded, database):
    from api.tokens import Role, mint  # noqa: PLC0415

    minted = mint()
    TokenStore(database, utc_now).add(minted, "<script>alert(1)</script>", [Role.READ], None, None)
    signed_in(guarded, minted.text)
    for path in ("/sign-in", "/sign-in?next=/%22%3E%3Cscript%3E", "/"):
        assert re.findall(r"<script[^>]*>", guarded.get(path).text) == [SCRIPT]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Sec-Fetch-Site": "same-origin"}, 202),
        ({"Sec-Fetch-Site": "none"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Origin": "http://testserver"}, 403),
        ({"Origin": "http://testserver"}, 202),
        ({"Origin": "https://testserver"}, 202),
        ({"Origin": "http://testserver:81"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({}, 403),
    ],
)
def test_a_cookie_counts_only_for_what_our_own_pages_send(guarded, database, headers, status):
    signed_in(guarded, token(database, "submit"))
    assert guarded.post("/v1/searches", json=TINY_REQUEST, headers=headers).status_code == status
    assert guarded.get("/v1/runs", headers={**headers, "Accept": "*/*"}).status_code == 200


def test_programs_with_a_token_need_to_say_no_origin(guarded, database):
    assert guarded.post("/v1/searches", json=TINY_REQUEST, headers=bearer(token(database, "submit"))).status_code == 202


def test_pages_of_other_sites_change_nothing_on_an_open_service_either(client):
    other = {"Origin": "http://evil.example"}
    assert client.post("/v1/searches", json=TINY_REQUEST, headers=other).status_code == 403
    assert client.delete("/v1/searches/x", headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403
    assert client.post("/v1/searches", json=TINY_REQUEST).status_code == 202


@pytest.mark.parametrize("role", ["read", "submit"])
def test_every_page_says_who_is_signed_in_and_shows_what_they_may_do(guarded, database, role):
    signed_in(guarded, token(database, role))
    for path in ("/", "/runs", "/nothing", "/sign-in"):
        text = guarded.get(path, headers=PAGE).text
        assert "Signed in as" in text and 'action="/sign-out"' in text, path
    text = guarded.get("/", headers=PAGE).text
    assert ('action="/searches"' in text) == (role == "submit")
    assert ("with a token of the role" in text) == (role == "read")


def test_an_open_service_has_the_form_and_nobody_to_sign_out(client):
    text = client.get("/", headers=PAGE).text
    assert 'action="/searches"' in text and "/sign-out" not in text


def test_nobody_is_signed_in_by_another_site(guarded, database):
    data = {"token": token(database, "read")}
    assert guarded.post("/sign-in", data=data, headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403


@pytest.mark.parametrize(
    "given", ["//evil.example", "https://evil.example", "/\\evil.example", "\\evil", "evil", "", "/\n/evil", "/\t/evil"]
)
def test_nobody_is_led_to_another_site(guarded, database, given):
    assert own_path(given) == "/"
    assert signed_in(guarded, token(database, "read"), next=given).headers["location"] == "/"


def test_a_header_goes_over_a_cookie(guarded, database):
    signed_in(guarded, token(database, "read"))
    assert guarded.get("/v1/runs", headers={"Authorization": "Bearer nonsense"}).status_code == 401


def test_an_open_service_says_that_it_needs_no_token(client):
    assert "needs no token" in client.get("/sign-in").text
    assert "set-cookie" not in client.post("/sign-in", data={"token": "x"}, follow_redirects=False).headers


def test_a_token_in_the_address_is_not_carried_on_to_the_sign_in_page(guarded, database):
    text = token(database, "read")
    answer = guarded.get(f"/v1/runs?token={text}", headers=PAGE)
    assert answer.status_code == 303 and not re.search("ttk_", answer.headers["location"])
