"""Section 3.5: every refusal in its one form, whatever strange request provokes it."""

from __future__ import annotations

import gzip
import http.client
import json
import socket
import time
from collections.abc import Iterator, Mapping

import jwt
import pytest

from tests.contract.api import (
    Answer,
    Api,
    assert_books_right,
    everything,
    held_row,
    in_background,
    problem,
    waits_for_row,
)
from tests.contract.conftest import World
from tests.harness import SECRET, bearer, service, token, wait_until

LIMIT = 64 * 1024
ROUTES = [
    ("POST", "/v1/appointments/{id}/entries"),
    ("POST", "/agoraToken"),
    ("POST", "/v1/appointments"),
    ("GET", "/v1/appointments/{id}"),
    ("PATCH", "/v1/appointments/{id}"),
    ("POST", "/v1/users/{id}/coupons"),
    ("GET", "/v1/users/{id}/coupons"),
]
PUBLIC = ["/livez", "/readyz", "/metrics", "/openapi.json"]
SERVICE_ONLY = [ROUTES[2], ROUTES[4], ROUTES[5]]
WITH_BODY = [ROUTES[1], *SERVICE_ONLY]


@pytest.fixture(autouse=True)
def _nothing_went_wrong_inside(world: World) -> Iterator[None]:
    yield
    assert '"error"' not in world.service.logged(), "refusals are no errors of ours"


def signed(claims: Mapping[str, object], *, secret: str = SECRET, algorithm: str = "HS256") -> str:
    return jwt.encode(dict(claims), secret if algorithm != "none" else "", algorithm=algorithm)


def bad_authorizations() -> dict[str, str | None]:
    later = time.time() + 600
    good = token(7)
    claims: dict[str, dict[str, object]] = {
        "expired": {"sub": "7", "exp": time.time() - 1},
        "without exp": {"sub": "7"},
        "without sub": {"exp": later},
        "not yet valid": {"sub": "7", "exp": later, "nbf": later},
        "for another audience": {"sub": "7", "exp": later, "aud": "others"},
        "sub 0": {"sub": "0", "exp": later},
        "sub too large": {"sub": str(2**63), "exp": later},
        "sub with a leading zero": {"sub": "07", "exp": later},
        "sub no number": {"sub": "root", "exp": later},
    }
    return {
        "none": None,
        "empty": "",
        "no scheme": good,
        "another scheme": "Basic Zm9vOmJhcg==",
        "no token": "Bearer ",
        "junk": "Bearer x.y.z",
        "too long": "Bearer " + "x" * 8100,  # as long as aiohttp lets a header be
        "cut short": f"Bearer {good[:-3]}",
        "another secret": "Bearer " + signed({"sub": "7", "exp": later}, secret="b" * 40),
        "unsigned": "Bearer " + signed({"sub": "7", "exp": later}, algorithm="none"),
        "HS512": "Bearer " + jwt.encode({"sub": "7", "exp": later}, SECRET * 2, algorithm="HS512"),
        **{name: "Bearer " + signed(each) for name, each in claims.items()},
    }


@pytest.mark.parametrize("why", bad_authorizations())
def test_nobody_without_a_valid_token_is_answered(world: World, why: str) -> None:
    id_, *_ = world.meeting()
    authorization = bad_authorizations()[why]
    headers = {} if authorization is None else {"Authorization": authorization}
    before = everything(world.rows)
    for method, path in ROUTES:
        answer = world.api.call(method, path.format(id=id_), headers=headers, send={} if method != "GET" else None)
        problem(answer, "unauthenticated")
        assert authorization is None or len(authorization) < 20 or authorization not in answer.body.decode()
    assert everything(world.rows) == before


@pytest.mark.parametrize("scope", ["", "locks monitor operator", "services", "Service", "service2 ,service"])
@pytest.mark.parametrize(("method", "path"), SERVICE_ONLY)
def test_what_services_do_takes_their_scope(world: World, method: str, path: str, scope: str) -> None:
    id_, inviter, invitee = world.meeting()
    bodies: dict[tuple[str, str], dict[str, object]] = {
        SERVICE_ONLY[0]: {"user_id": inviter, "invitee_user_id": invitee},
        SERVICE_ONLY[1]: {"status": "ended"},
        SERVICE_ONLY[2]: {"coupon_id": 1, "count": 1, "reference": f"forbidden {id_}"},
    }
    target = path.format(id=inviter if "users" in path else id_)
    before = everything(world.rows)
    problem(world.api.call(method, target, user=inviter, scope=scope, send=bodies[method, path]), "forbidden")
    assert everything(world.rows) == before


INVALID_IDS = ["0", "-1", "+1", "042", "1.0", "1e3", "0x1", str(2**63), "9" * 40, "abc", "null", "1%20", "%201"]
INVALID_IDS += [
    "%D9%A4%D9%A2",
    "%EF%BC%97",
    "%00",
    "1%00",
    "%FF",
    "%C3%28",
    "1%2F2",
    "%zz",
    "1;2",
    "a" * 3000,
    "%F0%9F%8D%BE",
]


@pytest.mark.parametrize("bad", INVALID_IDS)
def test_an_id_in_the_path_is_a_plain_positive_number(world: World, bad: str) -> None:
    for method, path in ROUTES:
        if "{id}" not in path:
            continue
        answer = world.api.call(
            method, path.format(id=bad), user=7, scope="service", send={"status": "open"} if method != "GET" else None
        )
        members = problem(answer, "invalid-request")
        assert members["field"] == ("user_id" if "users" in path else "appointment_id")


@pytest.mark.parametrize("path", ["/v1", "/v1/", "/v1/nothing", "/v1/appointments/", "/v1/appointments//entries"])
@pytest.mark.parametrize("method", ["GET", "POST", "PROPFIND"])
def test_an_unknown_route_is_not_found(world: World, method: str, path: str) -> None:
    problem(world.api.call(method, path), "not-found")


@pytest.mark.parametrize(
    "path", ["/livez/", "/LIVEZ", "/v1/appointments/1/entries/", "/v2/appointments", "/%2e%2e/etc"]
)
def test_routes_are_spelt_exactly(world: World, path: str) -> None:
    problem(world.api.get(path), "not-found")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v1/appointments/1/entries", {"POST"}),
        ("HEAD", "/v1/appointments/1/entries", {"POST"}),
        ("GET", "/agoraToken", {"POST"}),
        ("DELETE", "/v1/appointments/1", {"GET", "HEAD", "PATCH"}),
        ("PUT", "/v1/appointments", {"POST"}),
        ("PATCH", "/v1/users/1/coupons", {"GET", "HEAD", "POST"}),
        ("POST", "/livez", {"GET", "HEAD"}),
        ("OPTIONS", "/metrics", {"GET", "HEAD"}),
        ("PROPFIND", "/readyz", {"GET", "HEAD"}),
    ],
)
def test_a_route_says_which_methods_it_has(world: World, method: str, path: str, allowed: set[str]) -> None:
    answer = world.api.call(method, path)
    assert set(answer.headers["allow"].split(", ")) == allowed
    if method == "HEAD":
        assert (answer.status, answer.body) == (405, b"")
    else:
        problem(answer, "method-not-allowed")


def test_head_is_get_without_the_body(world: World) -> None:
    id_, inviter, _ = world.meeting()
    for path in [*PUBLIC, f"/v1/appointments/{id_}", f"/v1/users/{inviter}/coupons"]:
        got, headed = world.api.get(path, user=inviter), world.api.call("HEAD", path, user=inviter)
        assert (headed.status, headed.body) == (200, b"")
        assert headed.headers["content-type"] == got.headers["content-type"]
        assert headed.headers["x-request-id"]


@pytest.mark.parametrize("sane", ["a", "abc-123", "0af7651916cd43dd8448eb211c80319c", "x" * 128, "A.b_c:d/e+f=g@h-1"])
def test_a_sane_request_id_comes_back(world: World, sane: str) -> None:
    id_, inviter, _ = world.meeting()
    named = {"headers": {"X-Request-Id": sane}}
    refused = world.api.enter(id_ + 10**9, inviter, **named)
    assert problem(refused, "illegal-request")["request_id"] == sane
    for answer in (
        world.api.get("/livez", **named),
        world.api.get("/nothing", **named),
        world.api.enter(id_, inviter, **named),
    ):
        assert answer.headers["x-request-id"] == sane


@pytest.mark.parametrize("insane", ["", " ", "x" * 129, "a b", "<script>", 'a"b', "é", "a,b", "a\tb"])
def test_an_insane_request_id_is_replaced(world: World, insane: str) -> None:
    answers = [world.api.get(path, headers={"X-Request-Id": insane}) for path in ("/livez", "/livez", "/nothing")]
    given = [answer.headers["x-request-id"] for answer in answers]
    assert len(set(given)) == 3
    assert all(len(each) >= 16 and each.isascii() and each != insane for each in given)


def test_every_request_gets_an_id(world: World) -> None:
    assert len({world.api.get("/livez").headers["x-request-id"] for _ in range(20)}) == 20


def chunks(size: int) -> Iterator[bytes]:
    for _ in range(size // 1024):
        yield b" " * 1024


@pytest.mark.parametrize(("method", "path"), [ROUTES[0], *WITH_BODY, ("POST", "/agoraToken?form")])
def test_a_body_over_the_limit_is_too_large(world: World, method: str, path: str) -> None:
    type_ = "application/x-www-form-urlencoded" if "form" in path else "application/json"
    target = path.format(id=7).partition("?")[0]
    headers = {"Content-Type": type_}
    members = problem(
        world.api.call(method, target, user=7, scope="service", body=b" " * (LIMIT + 1), headers=headers), "too-large"
    )
    assert "large" in members["detail"]


FORM_TO_THE_ORIGINS_ROUTE = (*ROUTES[1], "application/x-www-form-urlencoded")


@pytest.mark.parametrize(
    ("method", "path", "content_type"),
    [(*route, "application/json") for route in WITH_BODY] + [FORM_TO_THE_ORIGINS_ROUTE],
)
def test_a_chunked_body_over_the_limit_is_too_large(world: World, method: str, path: str, content_type: str) -> None:
    with world.api.connection_closing() as connection:
        headers = {**bearer(7, "service"), "Content-Type": content_type, "Transfer-Encoding": "chunked"}
        connection.request(method, path.format(id=7), chunks(LIMIT + 8192), headers, encode_chunked=True)
        response = connection.getresponse()
        names = {name.lower(): value for name, value in response.getheaders()}
        problem(Answer(response.status, names, response.read()), "too-large")


def test_a_body_just_within_the_limit_is_read(world: World) -> None:
    start, end = b'{"status": "open", "x": "', b'"}'
    body = start + b"x" * (LIMIT - len(start) - len(end)) + end
    assert len(body) == LIMIT
    answer = world.api.call(
        "PATCH", "/v1/appointments/7", user=7, scope="service", body=body, headers={"Content-Type": "application/json"}
    )
    assert problem(answer, "invalid-request")["field"] == "x"


def test_a_small_body_that_unpacks_to_a_large_one_is_too_large(world: World) -> None:
    body = gzip.compress(b" " * 10_000_000)
    assert len(body) < LIMIT
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    answer = world.api.call("PATCH", "/v1/appointments/7", user=7, scope="service", body=body, headers=headers)
    problem(answer, "too-large")


def test_a_body_that_does_not_unpack_cannot_be_read(world: World) -> None:
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    for path in ("/agoraToken", "/v1/appointments"):
        answer = world.api.post(path, user=7, scope="service", body=b"not gzip", headers=headers)
        assert problem(answer, "invalid-request")["field"]


NEW_APPOINTMENT = {"user_id": 1, "invitee_user_id": 2}
NEW_GRANT = {"coupon_id": 1, "count": 1, "reference": "r"}
BAD_BODIES: list[tuple[str, str, object, str]] = [
    ("POST", "/v1/appointments", {}, "user_id"),
    ("POST", "/v1/appointments", {"user_id": 1}, "invitee_user_id"),
    ("POST", "/v1/appointments", {"user_id": 1, "invitee_user_id": 1}, "invitee_user_id"),
    ("POST", "/v1/appointments", {**NEW_APPOINTMENT, "user_id": 0}, "user_id"),
    ("POST", "/v1/appointments", {**NEW_APPOINTMENT, "user_id": True}, "user_id"),
    ("POST", "/v1/appointments", {**NEW_APPOINTMENT, "user_id": 1.0}, "user_id"),
    ("POST", "/v1/appointments", {**NEW_APPOINTMENT, "user_id": None}, "user_id"),
    ("POST", "/v1/appointments", {**NEW_APPOINTMENT, "user_id": [1]}, "user_id"),
    ("POST", "/v1/appointments", {**NEW_APPOINTMENT, "user_id": 2**63}, "user_id"),
    ("POST", "/v1/appointments", {**NEW_APPOINTMENT, "prepare_id": -1}, "prepare_id"),
    ("POST", "/v1/appointments", {**NEW_APPOINTMENT, "status": "ended"}, "status"),
    ("POST", "/v1/appointments", [NEW_APPOINTMENT], "body"),
    ("POST", "/v1/appointments", "text", "body"),
    ("PATCH", "/v1/appointments/7", {}, "status"),
    ("PATCH", "/v1/appointments/7", {"status": "closed"}, "status"),
    ("PATCH", "/v1/appointments/7", {"status": "OPEN"}, "status"),
    ("PATCH", "/v1/appointments/7", {"status": 1}, "status"),
    ("PATCH", "/v1/appointments/7", {"status": "open", "user_id": 9}, "user_id"),
    ("POST", "/v1/users/7/coupons", {**NEW_GRANT, "coupon_id": 999}, "coupon_id"),
    ("POST", "/v1/users/7/coupons", {**NEW_GRANT, "coupon_id": "x"}, "coupon_id"),
    ("POST", "/v1/users/7/coupons", {**NEW_GRANT, "count": 0}, "count"),
    ("POST", "/v1/users/7/coupons", {**NEW_GRANT, "count": -5}, "count"),
    ("POST", "/v1/users/7/coupons", {**NEW_GRANT, "count": 10**9 + 1}, "count"),
    ("POST", "/v1/users/7/coupons", {**NEW_GRANT, "count": 0.5}, "count"),
    ("POST", "/v1/users/7/coupons", {**NEW_GRANT, "reference": ""}, "reference"),
    ("POST", "/v1/users/7/coupons", {**NEW_GRANT, "reference": 5}, "reference"),
    ("POST", "/v1/users/7/coupons", {**NEW_GRANT, "reference": "r" * 201}, "reference"),
    ("POST", "/v1/users/7/coupons", {**NEW_GRANT, "reference": "a\0b"}, "reference"),
    ("POST", "/v1/users/7/coupons", {"coupon_id": 1, "count": 1}, "reference"),
]


@pytest.mark.parametrize(("method", "path", "body", "field"), BAD_BODIES)
def test_a_body_that_cannot_be_read_names_the_field(
    world: World, method: str, path: str, body: object, field: str
) -> None:
    before = everything(world.rows)
    answer = world.api.call(method, path, user=7, scope="service", send=body)
    members = problem(answer, "invalid-request")
    assert members["field"] == field
    assert everything(world.rows) == before


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"{'status': 'open'}", b"\xff\xfe", b'{"status": "\xed\xa0\x80"}', b"[" * 60_000, b"NaN", b"null"],
)
@pytest.mark.parametrize(("method", "path"), SERVICE_ONLY)
def test_a_body_that_is_not_json_is_refused(world: World, method: str, path: str, body: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    answer = world.api.call(method, path.format(id=7), user=7, scope="service", body=body, headers=headers)
    assert problem(answer, "invalid-request")["field"] == "body"


@pytest.mark.parametrize(
    ("method", "path", "body", "field"),
    [
        ("POST", "/v1/appointments", '{"user_id": 1, "invitee_user_id": 2, "user_id": 3}', "user_id"),
        ("POST", "/v1/appointments", '{"user_id": 1, "invitee_user_id": 2, "\\u0075ser_id": 1}', "user_id"),
        (
            "POST",
            "/v1/appointments",
            '{"user_id": 1, "invitee_user_id": 2, "prepare_id": {"a": [{"b": 1, "b": 1}]}}',
            "b",
        ),
        ("POST", "/v1/users/7/coupons", '{"coupon_id": 1, "count": 1, "count": 9, "reference": "twice"}', "count"),
        ("PATCH", "/v1/appointments/7", '{"status": "open", "status": "ended"}', "status"),
        ("POST", "/v1/locks/twice/leases", '{"ttl_ms": 100, "ttl_ms": 3600000}', "ttl_ms"),
        ("PUT", f"/v1/locks/twice/leases/{'0' * 32}", '{"ttl_ms": 100, "ttl_ms": 200}', "ttl_ms"),
        ("POST", "/v1/locks/twice/force-release", '{"reason": "a", "fencing_token": 1, "reason": "b"}', "reason"),
        ("POST", "/agoraToken", '{"appointmentId": 1, "otherUserid": 2, "appointmentId": 3}', "appointmentId"),
        ("POST", "/v1/appointments", json.dumps({"x" * 5000: 1})[:-1] + f', "{"x" * 5000}": 1}}', "x" * 100),
    ],
)
def test_a_key_that_is_given_twice_is_named(world: World, method: str, path: str, body: str, field: str) -> None:
    before = everything(world.rows)
    headers = {"Content-Type": "application/json"}
    answer = world.api.call(method, path, user=7, scope="service locks operator", body=body, headers=headers)
    assert problem(answer, "invalid-request")["field"] == field
    assert everything(world.rows) == before


@pytest.mark.parametrize("levels", [33, 500, 985, 1000, 1020])
@pytest.mark.parametrize(("begin", "end"), [("[", "]"), ('{"a":', "}")])
def test_a_body_that_is_nested_deeper_than_any_of_ours_is_refused(
    world: World, begin: str, end: str, levels: int
) -> None:
    body = f'{{"user_id": 1, "invitee_user_id": {begin * levels}2{end * levels}}}'
    headers = {"Content-Type": "application/json"}
    answer = world.api.post("/v1/appointments", user=7, scope="service", body=body, headers=headers)
    members = problem(answer, "invalid-request")
    assert "levels deep" in members["detail"]


FORM_FIELD = b'--x\r\nContent-Disposition: form-data; name="%b"\r\n\r\n1\r\n'


@pytest.mark.parametrize(
    ("content_type", "body", "field"),
    [
        ("application/x-www-form-urlencoded", b"appointmentId=1&otherUserid=2&appointmentId=3", "appointmentId"),
        ("application/x-www-form-urlencoded", b"appointmentId=1&otherUserid=2&%ff=3&%ff=3", "\ufffd"),
        ("multipart/form-data; boundary=x", FORM_FIELD % b"otherUserid" * 2 + b"--x--\r\n", "otherUserid"),
        ("multipart/form-data; boundary=x", FORM_FIELD % b"\xff" * 2 + b"--x--\r\n", "?"),
    ],
)
def test_a_field_that_a_form_gives_twice_is_named(world: World, content_type: str, body: bytes, field: str) -> None:
    answer = world.api.post("/agoraToken", user=7, body=body, headers={"Content-Type": content_type})
    assert problem(answer, "invalid-request")["field"] == field


@pytest.mark.parametrize(
    "reference", ['{"coupon_id":1,"count":1,"reference":"\\ud800"}', '{"coupon_id":1,"count":1,"reference":"\\u0000"}']
)
def test_a_reference_that_no_database_can_keep_is_refused(world: World, reference: str) -> None:
    headers = {"Content-Type": "application/json"}
    answer = world.api.post("/v1/users/7/coupons", user=7, scope="service", body=reference, headers=headers)
    assert problem(answer, "invalid-request")["field"] in ("reference", "body")


@pytest.mark.parametrize("content_type", ["text/plain", "application/xml", "multipart/form-data; boundary=x"])
def test_a_body_of_another_kind_is_refused(world: World, content_type: str) -> None:
    answer = world.api.post(
        "/v1/appointments",
        user=7,
        scope="service",
        body=json.dumps(NEW_APPOINTMENT),
        headers={"Content-Type": content_type},
    )
    assert problem(answer, "invalid-request")["field"] == "Content-Type"


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("limit=0", "limit"),
        ("limit=201", "limit"),
        ("limit=-1", "limit"),
        ("limit=", "limit"),
        ("limit=abc", "limit"),
        ("limit=%D9%A4", "limit"),
        ("limit=" + "9" * 30, "limit"),
        ("limit=1&limit=1", "limit"),
        ("cursor=", "cursor"),
        ("cursor=abc", "cursor"),
        ("cursor=%00", "cursor"),
        ("cursor=" + "A" * 2000, "cursor"),
        ("cursor=MC5ncmFudC4w0", "cursor"),
    ],
)
def test_a_query_that_cannot_be_read_names_the_parameter(world: World, query: str, field: str) -> None:
    assert problem(world.api.get(f"/v1/users/7/coupons?{query}", user=7), "invalid-request")["field"] == field


@pytest.mark.parametrize(
    "request_line",
    [
        b"BREW /livez HTTP/1.1\r\nHost: x",
        b"GET /livez HTTP/9.9\r\nHost: x",
        b"GET /livez HTTP/1.1\r\nHost: x\r\nno header",
        b"GET /livez HTTP/1.1\r\nHost: x\r\nX-Long: " + b"x" * 10_000,
        b"GET /" + b"x" * 10_000 + b" HTTP/1.1\r\nHost: x",
        b"POST /agoraToken HTTP/1.1\r\nHost: x\r\nContent-Length: many",
    ],
)
def test_what_is_no_http_is_refused_in_the_same_form(world: World, request_line: bytes) -> None:
    with socket.create_connection((world.api.host, world.api.port), timeout=30) as client:
        client.sendall(request_line + b"\r\n\r\n")
        response = http.client.HTTPResponse(client)
        response.begin()
        names = {name.lower(): value for name, value in response.getheaders()}
        problem(Answer(response.status, names, response.read()), "invalid-request")
    assert world.api.get("/livez").status == 200


def test_a_client_that_goes_away_in_mid_request_disturbs_nobody(world: World) -> None:
    id_, inviter, _ = world.meeting()
    for bytes_sent in (b"POST /agoraToken HTTP/1.1\r\nHost: x\r\n", b""):
        head = bytes_sent or (
            b"POST /agoraToken HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n"
            + f"Authorization: {bearer(inviter)['Authorization']}\r\n\r\n{{".encode()
        )
        with socket.create_connection((world.api.host, world.api.port)) as client:
            client.sendall(head)
    with held_row(world.database_url, id_) as release:
        with socket.create_connection((world.api.host, world.api.port)) as client:
            client.sendall(
                f"POST /v1/appointments/{id_}/entries HTTP/1.1\r\nHost: x\r\n"
                f"Authorization: {bearer(inviter)['Authorization']}\r\n\r\n".encode()
            )
            wait_until(lambda: waits_for_row(world.rows))
        release()
    # Whether the entry of the one who left still went in is open; that it is told truly to who comes next is not.
    assert world.api.enter(id_, inviter).status in (200, 201)
    assert_books_right(world.database_url)


def test_more_requests_than_may_be_under_way_are_refused_as_overloaded(
    world: World, tmp_path_factory: pytest.TempPathFactory
) -> None:
    addresses = {"database_url": world.database_url, "redis_url": world.redis_url}
    limits = {
        "max_requests_in_flight": "1",
        "row_lock_timeout_s": "20",
        "statement_timeout_s": "20",
        "charge_timeout_s": "30",
    }
    (id_, inviter, _), (other, other_inviter, _) = world.meeting(), world.meeting()
    with service(tmp_path_factory.mktemp("small"), workers=1, **addresses, **limits) as small, in_background() as start:
        api = Api(small.url)
        with held_row(world.database_url, id_) as release:
            entering = start(api.enter, id_, inviter)
            wait_until(lambda: waits_for_row(world.rows))
            before = everything(world.rows)
            problem(api.enter(other, other_inviter), "overloaded")
            assert everything(world.rows) == before
            assert api.get("/readyz").status == 200, "probes and metrics are answered all the same"
            release()
        assert entering.result().status == 201
        assert api.enter(other, other_inviter).status == 201
