"""Who may do what: every route of the API with every scope, and none of them more than it should."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from tests.contract.api import problem
from tests.contract.conftest import World

SCOPES = ("", "service", "locks", "monitor", "operator")
ANYONE = {*SCOPES, "nobody"}
LEASE_ID = "0" * 32

# Method, path -> the scopes that let in a caller who is no participant; what a participant may is tested elsewhere.
MAY: dict[tuple[str, str], set[str]] = {
    ("POST", "/v1/appointments/{appointment_id}/entries"): set(),
    ("POST", "/agoraToken"): set(),
    ("POST", "/v1/appointments"): {"service"},
    ("GET", "/v1/appointments/{appointment_id}"): {"service"},
    ("PATCH", "/v1/appointments/{appointment_id}"): {"service"},
    ("POST", "/v1/users/{user_id}/coupons"): {"service"},
    ("GET", "/v1/users/{user_id}/coupons"): {"service"},
    ("POST", "/v1/locks/{name}/leases"): {"locks"},
    ("PUT", "/v1/locks/{name}/leases/{lease_id}"): {"locks"},
    ("DELETE", "/v1/locks/{name}/leases/{lease_id}"): {"locks"},
    ("GET", "/v1/locks"): {"monitor", "operator"},
    ("GET", "/v1/locks/{name}"): {"monitor", "operator"},
    ("GET", "/v1/contention"): {"monitor", "operator"},
    ("GET", "/v1/contention/stream"): {"monitor", "operator"},
    ("POST", "/v1/locks/{name}/force-release"): {"operator"},
    ("GET", "/livez"): ANYONE,
    ("GET", "/readyz"): ANYONE,
    ("GET", "/metrics"): ANYONE,
    ("GET", "/openapi.json"): ANYONE,
}
BODIES: dict[tuple[str, str], dict[str, Any]] = {
    ("POST", "/v1/appointments"): {"user_id": 1, "invitee_user_id": 2},
    ("PATCH", "/v1/appointments/{appointment_id}"): {"status": "open"},
    ("POST", "/v1/users/{user_id}/coupons"): {"coupon_id": 1, "count": 1, "reference": "scopes"},
    ("POST", "/v1/locks/{name}/leases"): {"ttl_ms": 100},
    ("PUT", "/v1/locks/{name}/leases/{lease_id}"): {"ttl_ms": 100},
    ("POST", "/v1/locks/{name}/force-release"): {"reason": "a test of scopes", "fencing_token": 1},
}


def test_the_matrix_has_every_route(world: World) -> None:
    paths = world.api.get("/openapi.json").json["paths"]
    described = {(method.upper(), path) for path, methods in paths.items() for method in methods}
    assert described - {("GET", "/dashboard")} == set(MAY)


@pytest.mark.parametrize(("method", "path"), MAY, ids=[f"{method} {path}" for method, path in MAY])
def test_each_scope_opens_what_it_should_and_nothing_else(world: World, method: str, path: str) -> None:
    appointment_id, inviter, invitee = world.meeting()
    stranger = world.person()
    names = {"appointment_id": appointment_id, "user_id": inviter, "lease_id": LEASE_ID}
    body = BODIES.get((method, path))
    if path == "/agoraToken":
        body = {"appointmentId": appointment_id, "otherUserid": invitee}
    for number, scope in enumerate([*SCOPES, "nobody"]):
        url = path.format(**names, name=f"scopes:{appointment_id}-{number}")
        more: dict[str, Any] = {} if scope == "nobody" else {"user": stranger, "scope": scope}
        # A stream has no end, and HEAD is the same question.
        asked = "HEAD" if path.endswith("/stream") and scope in MAY[method, path] else method
        answer = world.api.call(asked, url, send=body, **more)
        if scope in MAY[method, path]:
            assert answer.status not in (401, 403), (scope, answer)
        elif scope == "nobody":
            problem(answer, "unauthenticated")
        else:
            assert answer.status == 403, (scope, answer)
            assert answer.json["code"] in ("forbidden", "illegal-request")


def test_scopes_do_not_add_up_to_another(world: World) -> None:
    for pair in itertools.combinations(("service", "locks", "monitor"), 2):
        send = {"reason": "a test of scopes", "fencing_token": 1}
        answer = world.api.post("/v1/locks/scopes/force-release", user=1, scope=" ".join(pair), send=send)
        problem(answer, "forbidden")
