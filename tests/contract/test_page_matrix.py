"""Every route of the page with every kind of session, and every form from every kind of place; GET changes nothing."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import pytest

from service.sessions import new_login_code
from tests.contract.api import Answer, everything
from tests.contract.conftest import World
from tests.contract.lease_client import fresh_name
from tests.contract.page import COOKIE, FROM_OUR_PAGE, Page, cookie_of, lease
from tests.contract.route_table import route_table
from tests.harness import SECRET, token

LOOKS, FORCES, ANYBODY = "looks", "forces", "anybody"
LOCK = "matrix"

# Method, path -> whom it is for, and an address of it.
GET: Mapping[str, tuple[str, str]] = {
    "": (LOOKS, ""),
    "/locks": (LOOKS, "/locks"),
    "/locks/{name}": (LOOKS, f"/locks/{LOCK}"),
    "/hot": (LOOKS, "/hot"),
    "/heatmap": (LOOKS, "/heatmap"),
    "/incidents": (LOOKS, "/incidents"),
    "/instances": (LOOKS, "/instances"),
    "/charges": (LOOKS, "/charges"),
    "/audit-log": (LOOKS, "/audit-log"),
    "/appointments/{appointment_id}": (LOOKS, "/appointments/{appointment_id}"),
    "/appointments": (LOOKS, "/appointments?id=1"),
    "/streams/{view}": (LOOKS, "/streams/locks"),
    "/exports/{table}": (LOOKS, "/exports/locks.csv"),
    "/series": (LOOKS, "/series"),
    "/locks/{name}/force-release": (FORCES, f"/locks/{LOCK}/force-release"),
    "/login": (ANYBODY, "/login"),
    "/static/{digest}/{file}": (ANYBODY, "/static/0/page.css"),
}
POST: Mapping[str, tuple[str, dict[str, Any]]] = {
    "/login": (ANYBODY, {"token": "nonsense"}),
    "/logout": (ANYBODY, {}),
    "/theme": (ANYBODY, {"theme": "dark"}),
    "/locks/{name}/force-release": (FORCES, {"fencing_token": 1, "reason": "a matrix"}),
}
SESSIONS = (
    "none", "garbage", "expired", "signed-out", "no scope", "other scopes", "monitor", "operator", "code",
    "code, signed-out", "two", "a code itself",
)  # fmt: skip
MAY = {LOOKS: {"monitor", "operator", "code"}, FORCES: {"operator"}}
HAS_NO_SCOPE = {LOOKS: {"no scope", "other scopes"}, FORCES: {"no scope", "other scopes", "monitor", "code"}}

# Where a form comes from, as headers with {host}: allowed or not.
SAME = "same-origin"
PLACES: tuple[tuple[dict[str, str], bool], ...] = (
    ({}, False),
    ({"Sec-Fetch-Site": SAME}, True),
    ({"Sec-Fetch-Site": SAME, "Origin": "http://{host}"}, True),
    ({"Sec-Fetch-Site": "same-site", "Origin": "http://{host}"}, False),
    ({"Sec-Fetch-Site": "cross-site", "Origin": "http://{host}"}, False),
    ({"Sec-Fetch-Site": "none", "Origin": "http://{host}"}, False),
    ({"Sec-Fetch-Site": "", "Origin": "http://{host}"}, False),
    ({"Sec-Fetch-Site": "Same-Origin"}, False),
    ({"Sec-Fetch-Site": "same-origin, cross-site"}, False),
    ({"Origin": "http://{host}"}, True),
    ({"Origin": "HTTP://{host}"}, True),
    ({"Origin": ""}, False),
    ({"Origin": "null"}, False),
    ({"Origin": "{host}"}, False),
    ({"Origin": "//{host}"}, False),
    ({"Origin": "http://elsewhere.example"}, False),
    ({"Origin": "http://{host}.elsewhere.example"}, False),
    ({"Origin": "http://elsewhere.{host}"}, False),
    ({"Origin": "http://{name}:1"}, False),
    ({"Origin": "http://{name}"}, False),
    ({"Origin": "https://{host}"}, False),
    ({"Origin": "https://{host}", "X-Forwarded-Proto": "https"}, True),
    ({"Origin": "https://{host}", "X-Forwarded-Proto": "HTTPS, http"}, True),
    ({"Origin": "http://{host}", "X-Forwarded-Proto": "https"}, False),
    ({"Origin": "ftp://{host}"}, False),
    ({"Origin": "http://[::1"}, False),
    ({"Origin": "http://["}, False),
    ({"Origin": "http://[::1]:notaport"}, False),
    ({"Origin": "http://{host}/"}, False),
    ({"Origin": "http://{host}/dashboard"}, False),
    ({"Origin": "http://{host}?"}, False),
    ({"Origin": "http://{host}#"}, False),
    ({"Origin": "http://user@{host}"}, False),
    ({"Origin": "http://{host}@elsewhere.example"}, False),
    ({"Origin": "http://elsewhere.example\\@{host}"}, False),
    ({"Origin": "http://{host} http://elsewhere.example"}, False),
    ({"Origin": "http://{host}."}, False),
    ({"Origin": "http://\xe4\xf6.example"}, False),
    ({"Referer": "http://{host}/dashboard"}, False),
    ({"Origin": "http://page.example", "Host": "page.example"}, True),
    ({"Origin": "http://page.example", "Host": "PAGE.Example"}, True),
    ({"Origin": "http://page.example.", "Host": "page.example."}, True),
    ({"Origin": "http://page.example", "Host": "page.example."}, False),
    ({"Origin": "http://page.example", "Host": "page.example:80"}, False),
    ({"Origin": "http://page.example", "Host": ""}, False),
    ({"Origin": "http://", "Host": ""}, False),
    ({"Origin": "http://[::1", "Host": "[::1"}, True),
)  # fmt: skip


def test_the_matrix_has_every_route_of_the_page(world: World) -> None:
    found = {(method, path) for method, path in route_table(world) if path.startswith("/dashboard")}
    gets = {(method, f"/dashboard{path}") for path in GET for method in ("GET", "HEAD")}
    assert found == gets | {("POST", f"/dashboard{path}") for path in POST}


def someone(world: World, session: str) -> Page:
    """A browser with this kind of session."""
    page = Page(world.api, None)
    match session:
        case "garbage":
            page.token = "garbage.of.somebody"
        case "expired":
            page.token = token(17, "operator", ttl_s=-5)
        case "no scope":
            page.token = token(17, "")
        case "other scopes":
            page.token = token(17, "service locks")
        case "monitor" | "operator":
            page.token = token(17, session)
        case "signed-out":
            page.token = token(17, "operator")
        case "code" | "code, signed-out":
            page.token = cookie_of(page.get(f"/login?code={_code()}"))[COOKIE]
        case "two":
            page.token = f"{token(17, 'operator')}; {COOKIE}={token(18, 'operator')}"
        case "a code itself":
            page.token = _code()
    if session.endswith("signed-out"):
        assert page.post("/logout", {}).status == 303
    return page


@pytest.mark.parametrize("session", SESSIONS)
def test_every_route_of_the_page_opens_for_those_whom_it_is_for(world: World, session: str) -> None:
    appointment_id, _, _ = world.meeting()
    page = someone(world, session)
    for path, (whom, address) in GET.items():
        url = address.format(appointment_id=appointment_id)
        if path == "/streams/{view}":
            with page.stream("locks") as stream:
                status, body = stream.status, b"" if stream.status == 200 else stream.read()
        else:
            answer = page.get(url)
            status, body = answer.status, answer.body
        assert status == _expected(whom, session, status), (session, path)
        assert page.token is None or page.token.encode() not in body
    name = fresh_name()
    held = lease(world.api, name)
    forced = page.force(name, held["fencing_token"], "a matrix")
    assert forced.status == (303 if session in MAY[FORCES] else _expected(FORCES, session, 0)), session


def _expected(whom: str, session: str, opened: int) -> int:
    if whom == ANYBODY:
        assert opened not in (401, 403)
        return opened
    if session in HAS_NO_SCOPE[whom]:
        return 403
    if session not in MAY[whom]:
        return 401
    assert opened in (200, 303)
    return opened


@pytest.mark.parametrize(("headers", "allowed"), PLACES, ids=[str(headers) for headers, _ in PLACES])
def test_a_form_is_taken_from_our_own_page_alone(world: World, headers: dict[str, str], allowed: bool) -> None:
    host = world.api.url.removeprefix("http://")
    sent = {name: value.format(host=host, name=world.api.host) for name, value in headers.items()}
    for path, (_, fields) in POST.items():
        page = Page(world.api, "operator")
        answer = page.post(path.format(name=LOCK), fields, sent)
        assert (answer.status != 403) is allowed, (path, answer)
        assert answer.status < 500
        if not allowed:
            assert "set-cookie" not in answer.headers
            assert page.get("").status == 200, "nobody was signed out"


@pytest.mark.parametrize("session", ["none", "monitor", "operator"])
def test_head_is_answered_as_get_is_without_the_body(world: World, session: str) -> None:
    appointment_id, _, _ = world.meeting()
    page = someone(world, session)
    for path, (_, address) in GET.items():
        url = address.format(appointment_id=appointment_id)
        if path == "/streams/{view}":
            with page.stream("locks") as stream:
                got = Answer(stream.status, {"content-type": stream.headers["content-type"]}, b"")
        else:
            got = page.get(url)
        with world.api.connection_closing() as connection:
            headed = page.head(url, on=connection)
            assert world.api.get("/livez", on=connection).json == {"status": "alive"}, (path, "it was over")
        assert (headed.status, headed.body) == (got.status, b""), path
        for name in ("content-type", "location"):
            assert headed.headers.get(name) == got.headers.get(name), path


def test_head_of_an_address_that_logs_in_does_not_use_it(world: World) -> None:
    page, address = Page(world.api, None), f"/login?code={_code()}"
    headed = page.head(address)
    assert (headed.status, cookie_of(headed)) == (200, {})
    assert cookie_of(page.get(address))


def test_a_get_changes_nothing_but_a_code_that_logs_in(world: World) -> None:
    appointment_id, _, _ = world.meeting()
    held = lease(world.api, LOCK)
    page = Page(world.api, "operator")
    before = everything(world.rows)
    query = f"fencing_token={held['fencing_token']}&reason=x&theme=dark&token={page.token}"
    addresses = [address.format(appointment_id=appointment_id) for _, address in GET.values()]
    for path in (*addresses, "/logout", "/theme"):
        if not path.startswith("/streams"):
            answer = page.get(f"{path}{'&' if '?' in path else '?'}{query}")
            assert "set-cookie" not in answer.headers, path
            assert answer.status in (200, 303, 404, 405), path
    assert everything(world.rows) == before
    assert world.api.get(f"/v1/locks/{LOCK}", user=1, scope="monitor").json["fencing_token"] == held["fencing_token"]
    assert page.get("").status == 200
    code = page.get(f"/login?code={_code()}")
    assert COOKIE in cookie_of(code)
    assert len(everything(world.rows)["spent_token"]) == len(before["spent_token"]) + 1


@pytest.mark.parametrize("proto", ["", "http", "https", "https, http", "nonsense"])
def test_cookies_have_their_attributes_however_a_session_begins_and_ends(world: World, proto: str) -> None:
    headers = {"X-Forwarded-Proto": proto} if proto else {}
    page = Page(world.api, None)
    begun: list[Answer] = [
        page.post("/login", {"token": token(17, "monitor")}, {**FROM_OUR_PAGE, **headers}),
        page.get(f"/login?code={_code()}", **headers),
    ]
    page.token = cookie_of(begun[0])[COOKIE]
    for answer in (*begun, page.post("/logout", {}, {**FROM_OUR_PAGE, **headers})):
        cookie = cookie_of(answer)
        assert cookie["path"] == "/dashboard"
        assert cookie["samesite"] == "Strict"
        assert "httponly" in cookie
        assert "domain" not in cookie
        assert ("secure" in cookie) is proto.startswith("https")
        assert ("strict-transport-security" in answer.headers) is proto.startswith("https")


def _code() -> str:
    return new_login_code(SECRET, now=time.time())
