"""Who is asking and what is asked is said once: of two that differ none is chosen."""

from __future__ import annotations

import json
from urllib.parse import quote

import pytest

from tests.contract.api import Answer, answer_of, problem
from tests.contract.conftest import World
from tests.contract.lease_client import fresh_name, leases_of
from tests.contract.page import COOKIE
from tests.harness import bearer, token

Headers = tuple[tuple[str, str], ...]

FORM = ("Content-Type", "application/x-www-form-urlencoded")
OURS, THEIRS = ("Sec-Fetch-Site", "same-origin"), ("Sec-Fetch-Site", "cross-site")


def of_user(user: int, scope: str = "") -> tuple[str, str]:
    """The header of a caller of the API."""
    return ("Authorization", bearer(user, scope)["Authorization"])


def session_of(user: int, scope: str) -> tuple[str, str]:
    """The header of a browser."""
    return ("Cookie", f"{COOKIE}={token(user, scope)}")


def ask(world: World, method: str, path: str, headers: Headers, body: str = "") -> Answer:
    """A request with each of these headers in a line of its own."""
    with world.api.connection_closing() as connection:
        connection.putrequest(method, path)
        for name, value in (*headers, ("Content-Length", str(len(body)))):
            connection.putheader(name, value)
        connection.endheaders(body.encode())
        return answer_of(connection.getresponse(), 0.0)


@pytest.mark.parametrize("scopes", [("monitor", ""), ("", "monitor"), ("monitor", "monitor")])
def test_two_tokens_are_nobody(world: World, scopes: tuple[str, str]) -> None:
    two = tuple(of_user(7, scope) for scope in scopes)
    assert ask(world, "GET", "/v1/locks", (of_user(7, "monitor"),)).status == 200
    problem(ask(world, "GET", "/v1/locks", two), "unauthenticated")

    id_, inviter, _ = world.meeting()
    problem(ask(world, "POST", f"/v1/appointments/{id_}/entries", (of_user(inviter), *two)), "unauthenticated")
    assert world.rows.balance(inviter) == 5


def test_two_request_ids_are_none(world: World) -> None:
    answer = ask(world, "GET", "/livez", (("X-Request-Id", "one"), ("X-Request-Id", "two")))
    assert answer.headers["x-request-id"] not in ("one", "two")


@pytest.mark.parametrize("name", ["Host", "Content-Type", "Content-Length"])
def test_what_is_sent_and_to_whom_is_said_once(world: World, name: str) -> None:
    lock = fresh_name()
    twice = {"Host": "another", "Content-Type": FORM[1], "Content-Length": "2"}[name]
    sent = (of_user(7, "locks"), ("Content-Type", "application/json"), (name, twice))

    problem(ask(world, "POST", leases_of(lock), sent, json.dumps({"ttl_ms": 1000})), "invalid-request")

    assert world.api.get(f"/v1/locks/{quote(lock, safe='')}", user=7, scope="monitor").code == "lock-free"


@pytest.mark.parametrize("name", ["limit", "sort", "search", "cursor"])
def test_a_parameter_of_a_list_is_given_once(world: World, name: str) -> None:
    page = world.api.get("/v1/locks?limit=1", user=7, scope="monitor").json
    value = {"limit": "1", "sort": "name", "search": "a", "cursor": page["next_cursor"] or "x"}[name]
    answer = world.api.get(f"/v1/locks?{name}={value}&{name}={value}", user=7, scope="monitor")
    told = problem(answer, "invalid-request")
    assert (told["field"], told["detail"]) == (name, f"{name}: is given twice")


@pytest.mark.parametrize(
    "path",
    [
        "/locks?search=a&search=b",
        "/locks/{lock}?name=a&name=b",
        "/heatmap?range=day&range=hour",
        "/appointments?id=1&id=2",
        "/login?code=1&code=2",
        "/exports/locks.csv?search=a&search=b",
        "/series?range=day&range=hour",
        "/streams/locks?search=a&search=b",
    ],
)
def test_a_parameter_of_the_page_is_given_once(world: World, path: str) -> None:
    answer = ask(world, "GET", f"/dashboard{path.format(lock='said:twice')}", (session_of(17, "operator"),))
    assert answer.status == 400
    assert b"is given twice" in answer.body


@pytest.mark.parametrize("scope", ["operator", "monitor"])
def test_two_sessions_are_nobodys(world: World, scope: str) -> None:
    session, others = session_of(18, scope), session_of(19, "monitor")
    for two in ((session, others), (others, session), (("Cookie", f"{session[1]}; {others[1]}"),)):
        assert ask(world, "GET", "/dashboard/locks", two).status == 401
    assert ask(world, "GET", "/dashboard/locks", (session,)).status == 200


@pytest.mark.parametrize("two", [(OURS, THEIRS), (THEIRS, OURS)])
def test_a_form_that_says_twice_where_it_comes_from_is_not_ours(world: World, two: Headers) -> None:
    body = "theme=dark&next=%2Fdashboard"
    assert ask(world, "POST", "/dashboard/theme", (FORM, OURS), body).status == 303
    assert ask(world, "POST", "/dashboard/theme", (FORM, *two), body).status == 403
    ours, theirs = (("Origin", origin) for origin in (f"http://{world.api.host}:{world.api.port}", "http://evil"))
    assert ask(world, "POST", "/dashboard/theme", (FORM, ours), body).status == 303
    for origins in ((ours, theirs), (theirs, ours)):
        assert ask(world, "POST", "/dashboard/theme", (FORM, *origins), body).status == 403
