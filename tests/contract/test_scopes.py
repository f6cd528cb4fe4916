"""Who may do what: every route of the application with every kind of token, and none of them more than it should."""

from __future__ import annotations

import itertools
import json
import time
from typing import Any
from urllib.parse import quote

import pytest

from tests.contract.api import Answer, answer_of, problem
from tests.contract.conftest import World
from tests.contract.described import operations_of, resolved
from tests.contract.lease_client import LeaseClient, fresh_name, leases_of
from tests.contract.page import COOKIE, FROM_OUR_PAGE
from tests.contract.route_table import route_table
from tests.harness import token

PREFIX = "scopes:"
NOBODY, EXPIRED, BOUND = "nobody", "expired", f"locks:{PREFIX}"
SCOPES = ("", "service", "locks", BOUND, "monitor", "operator")
EVERYBODY = (*SCOPES, NOBODY, EXPIRED)
ANYONE, LOOKS = set(EVERYBODY), {"monitor", "operator"}
LEASE_ID = "0" * 32
STREAM = "text/event-stream"

# Method, path -> who is let in of those who are no participant; what a participant may is tested elsewhere.
API: dict[tuple[str, str], set[str]] = {
    ("POST", "/v1/appointments/{appointment_id}/entries"): set(),
    ("POST", "/agoraToken"): set(),
    ("POST", "/v1/appointments"): {"service"},
    ("GET", "/v1/appointments/{appointment_id}"): {"service"},
    ("PATCH", "/v1/appointments/{appointment_id}"): {"service"},
    ("POST", "/v1/users/{user_id}/coupons"): {"service"},
    ("GET", "/v1/users/{user_id}/coupons"): {"service"},
    ("POST", "/v1/locks/{name}/leases"): {"locks", BOUND},
    ("PUT", "/v1/locks/{name}/leases/{lease_id}"): {"locks", BOUND},
    ("DELETE", "/v1/locks/{name}/leases/{lease_id}"): {"locks", BOUND},
    ("GET", "/v1/locks"): LOOKS,
    ("GET", "/v1/locks/{name}"): LOOKS,
    ("GET", "/v1/contention"): LOOKS,
    ("GET", "/v1/contention/stream"): LOOKS,
    ("POST", "/v1/locks/{name}/force-release"): {"operator"},
    ("GET", "/livez"): ANYONE,
    ("GET", "/readyz"): ANYONE,
    ("GET", "/metrics"): ANYONE,
    ("GET", "/openapi.json"): ANYONE,
}
PAGE: dict[tuple[str, str], set[str]] = {
    ("GET", "/"): ANYONE,
    ("GET", "/dashboard"): LOOKS,
    ("GET", "/dashboard/locks"): LOOKS,
    ("GET", "/dashboard/locks/{name}"): LOOKS,
    ("GET", "/dashboard/hot"): LOOKS,
    ("GET", "/dashboard/heatmap"): LOOKS,
    ("GET", "/dashboard/incidents"): LOOKS,
    ("GET", "/dashboard/instances"): LOOKS,
    ("GET", "/dashboard/charges"): LOOKS,
    ("GET", "/dashboard/audit-log"): LOOKS,
    ("GET", "/dashboard/appointments/{appointment_id}"): LOOKS,
    ("GET", "/dashboard/appointments"): LOOKS,
    ("GET", "/dashboard/locks/{name}/force-release"): {"operator"},
    ("POST", "/dashboard/locks/{name}/force-release"): {"operator"},
    ("GET", "/dashboard/login"): ANYONE,
    ("POST", "/dashboard/login"): set(SCOPES),  # by the token in the form: whoever has one may log in, and is told more
    ("POST", "/dashboard/logout"): ANYONE,
    ("POST", "/dashboard/theme"): ANYONE,
    ("GET", "/dashboard/streams/{view}"): LOOKS,
    ("GET", "/dashboard/exports/{table}"): LOOKS,
    ("GET", "/dashboard/series"): LOOKS,
    ("GET", "/dashboard/static/{digest}/{file}"): ANYONE,
}
MAY = API | PAGE
FORCED = {"reason": "a test of scopes", "fencing_token": 1}
BODIES: dict[tuple[str, str], dict[str, Any]] = {
    ("POST", "/v1/appointments"): {"user_id": 1, "invitee_user_id": 2},
    ("PATCH", "/v1/appointments/{appointment_id}"): {"status": "open"},
    ("POST", "/v1/users/{user_id}/coupons"): {"coupon_id": 1, "count": 1, "reference": "scopes"},
    ("POST", "/v1/locks/{name}/leases"): {"ttl_ms": 100},
    ("PUT", "/v1/locks/{name}/leases/{lease_id}"): {"ttl_ms": 100},
    ("POST", "/v1/locks/{name}/force-release"): FORCED,
}
FORMS: dict[tuple[str, str], str] = {
    ("POST", "/dashboard/locks/{name}/force-release"): "reason=a+test&fencing_token=1",
    ("POST", "/dashboard/login"): "token={token}",
    ("POST", "/dashboard/theme"): "theme=dark",
}


def test_the_matrix_has_every_route_of_the_application(world: World) -> None:
    routes = set(route_table(world))
    heads = {("GET", path) for method, path in routes if method == "HEAD"}
    assert {route for route in routes if route[0] != "HEAD"} == set(MAY)
    assert heads == {route for route in routes if route[0] == "GET"}
    paths = world.api.get("/openapi.json").json["paths"]
    assert {(method.upper(), path) for path, methods in paths.items() for method in methods} == {
        *API,
        ("GET", "/dashboard"),
    }


def bearing(who: str, user: int) -> str | None:
    """The access token of each kind; None for who has none."""
    if who == NOBODY:
        return None
    return token(user, " ".join(SCOPES), ttl_s=-10) if who == EXPIRED else token(user, who)


def asked(world: World, method: str, url: str, *, sent: dict[str, str], body: bytes | str | None) -> Answer:
    """One request; of a stream, which has no end, only the head."""
    with world.api.connection_closing() as connection:
        connection.request(method, url, body, sent)
        response = connection.getresponse()
        if response.getheader("Content-Type", "").startswith(STREAM):
            return Answer(response.status, {}, b"", 0.0)
        return answer_of(response, time.monotonic())


@pytest.mark.parametrize(("method", "path"), API, ids=[f"{method} {path}" for method, path in API])
def test_each_token_opens_what_it_should_and_nothing_else(world: World, method: str, path: str) -> None:
    appointment_id, inviter, invitee = world.meeting()
    stranger = world.person()
    names = {"appointment_id": appointment_id, "user_id": inviter, "lease_id": LEASE_ID}
    body = BODIES.get((method, path))
    if path == "/agoraToken":
        body = {"appointmentId": appointment_id, "otherUserid": invitee}
    for number, who in enumerate(EVERYBODY):
        url = path.format(**names, name=f"{PREFIX}{appointment_id}-{number}")
        bearer = bearing(who, stranger)
        sent = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {bearer}"} if bearer else {})
        answer = asked(world, method, url, sent=sent, body=None if body is None else json.dumps(body))
        if who in MAY[method, path]:
            assert answer.status not in (401, 403), (who, answer)
            assert answer.status < 500, (who, answer)
        elif who in (NOBODY, EXPIRED):
            problem(answer, "unauthenticated")
        else:
            assert answer.status == 403, (who, answer)
            assert answer.json["code"] in ("forbidden", "illegal-request")


@pytest.mark.parametrize(("method", "path"), PAGE, ids=[f"{method} {path}" for method, path in PAGE])
def test_each_session_sees_of_the_page_what_it_should(world: World, method: str, path: str) -> None:
    appointment_id, _, _ = world.meeting()
    names = {"appointment_id": appointment_id, "view": "overview", "table": "locks.csv", "digest": "0", "file": "none"}
    for number, who in enumerate(EVERYBODY):
        url = path.format(**names, name=f"{PREFIX}{appointment_id}-{number}")
        if path == "/dashboard/appointments":
            url += f"?id={appointment_id}"
        bearer = bearing(who, world.person())
        sent = {"Content-Type": "application/x-www-form-urlencoded", **FROM_OUR_PAGE}
        if bearer:
            sent["Cookie"] = f"{COOKIE}={bearer}"
        answer = asked(world, method, url, sent=sent, body=FORMS.get((method, path), "").format(token=bearer or ""))
        if who in MAY[method, path]:
            assert answer.status not in (401, 403), (who, answer)
            assert answer.status < 500, (who, answer)
        else:
            assert answer.status == (401 if who in (NOBODY, EXPIRED) else 403), (who, answer)


@pytest.mark.parametrize("path", [path for method, path in PAGE if method == "GET" and PAGE[method, path] != ANYONE])
def test_the_page_takes_no_token_in_a_header(world: World, path: str) -> None:
    url = path.format(appointment_id=1, name="scopes", view="overview", table="locks.csv")
    assert world.api.get(url, user=1, scope="operator").status == 401


def test_scopes_do_not_add_up_to_another(world: World) -> None:
    for pair in itertools.combinations(("service", "locks", BOUND, "monitor"), 2):
        answer = world.api.post("/v1/locks/scopes/force-release", user=1, scope=" ".join(pair), send=FORCED)
        problem(answer, "forbidden")


RESERVED = ("appointment:3", "appointment:", "chargeonce:audit", "chargeonce:health/x")


@pytest.mark.parametrize("name", RESERVED)
@pytest.mark.parametrize(
    "scope",
    ["locks", "locks:appointment:", "locks:a locks:c", "locks locks:appointment:3 locks:chargeonce: monitor operator"],
)
def test_the_services_own_locks_are_reached_by_no_token(world: World, scope: str, name: str) -> None:
    for answer in each_of_a_lease(world, name, scope):
        members = problem(answer, "name-reserved")
        assert repr(name) in members["detail"]


@pytest.mark.parametrize("name", ["other:1", "scopes", "Scopes:1", ":scopes:1", "appointment:1"])
def test_a_bound_token_reaches_the_names_that_begin_so_and_no_others(world: World, name: str) -> None:
    for answer in each_of_a_lease(world, name, BOUND):
        problem(answer, "name-reserved")


def test_a_bound_token_has_extends_and_gives_back_a_lease(world: World) -> None:
    name = fresh_name(PREFIX.rstrip(":"))
    had = LeaseClient(world.api).lease(name, scope=BOUND)
    kept = f"{leases_of(name)}/{had['lease_id']}"
    assert world.api.call("PUT", kept, user=1, scope=BOUND, send={"ttl_ms": 1000}).status == 200
    assert world.api.call("DELETE", kept, user=1, scope="locks:other:").status == 403
    assert world.api.call("DELETE", kept, user=1, scope=BOUND).status == 204


def test_a_prefix_of_nothing_is_no_scope(world: World) -> None:
    for answer in each_of_a_lease(world, "scopes:1", "locks:"):
        problem(answer, "forbidden")


def test_an_appointment_is_entered_while_somebody_tries_to_hold_its_lock(world: World) -> None:
    appointment_id, inviter, _ = world.meeting()
    problem(LeaseClient(world.api).ask(f"appointment:{appointment_id}", ttl_ms=3_600_000), "name-reserved")
    answer = world.api.enter(appointment_id, inviter)
    assert (answer.status, answer.json["outcome"]) == (201, "charged")


def test_an_operator_still_reaches_every_name(world: World) -> None:
    for name in RESERVED:
        path = f"/v1/locks/{quote(name, safe='')}"
        problem(world.api.get(path, user=1, scope="operator"), "lock-free")
        problem(world.api.post(f"{path}/force-release", user=1, scope="operator", send=FORCED), "holder-changed")


def test_openapi_says_which_routes_refuse_a_name(world: World) -> None:
    document = world.api.get("/openapi.json").json
    told = {
        (method, path)
        for method, path, operation in operations_of(document)
        if "403" in operation["responses"]
        and "name-reserved" in resolved(document, operation["responses"]["403"])["description"]
    }
    assert told == {route for route in API if "/leases" in route[1]}


def each_of_a_lease(world: World, name: str, scope: str) -> list[Answer]:
    """What each route of leases says of this name, whatever the body is."""
    one = f"{leases_of(name)}/{LEASE_ID}"
    return [
        world.api.post(leases_of(name), user=1, scope=scope, send={"ttl_ms": 100}),
        world.api.post(leases_of(name), user=1, scope=scope, send={"ttl_ms": "wrong"}),
        world.api.call("PUT", one, user=1, scope=scope, send={"ttl_ms": 100}),
        world.api.call("DELETE", one, user=1, scope=scope),
    ]
