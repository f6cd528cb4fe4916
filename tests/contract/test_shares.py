"""Nobody keeps others out: those who are not known have few places of their own, and one caller has only a share."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from urllib.parse import urlencode

import pytest
import redis

from service.handlers.http import MAX_FORM_FIELDS
from tests.contract.api import Answer, Api, in_background, problem
from tests.contract.page import Page
from tests.contract.pressure import held_lock
from tests.contract.under_way import entering
from tests.harness import Rows, Service, bearer, wait_until

StartService = Callable[..., Service]

HOSTILE, OTHER = 6666, 7
LONG_MS = 60_000
WAIT_FOR_A_TABLE = (
    "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
)


# Before it is known who calls


@contextmanager
def slow_body(
    api: Api, method: str, path: str, content_type: str, **headers: str
) -> Iterator[http.client.HTTPConnection]:
    """A request whose body was announced, and does not come."""
    with api.connection_closing() as connection:
        connection.putrequest(method, path)
        for name, value in {"Content-Type": content_type, "Content-Length": "100", **headers}.items():
            connection.putheader(name.replace("_", "-"), value)
        connection.endheaders()
        yield connection


@contextmanager
def slow_log_in(api: Api) -> Iterator[http.client.HTTPConnection]:
    form, ours = "application/x-www-form-urlencoded", {"Sec_Fetch_Site": "same-origin"}
    with slow_body(api, "POST", "/dashboard/login", form, **ours) as connection:
        yield connection


def test_slow_log_ins_keep_only_other_strangers_out(start_service: StartService, rows: Rows) -> None:
    running = start_service(workers=1, max_unauthenticated="5", max_requests_in_flight="8", body_wait_s="60")
    api = Api(running.url)
    rows.grant(OTHER, 1)
    id_ = rows.appointment(OTHER, 1)
    with ExitStack() as stack:
        for _ in range(40):
            stack.enter_context(slow_log_in(api))
        wait_until(lambda: api.get("/dashboard/login").status == 503, what="the strangers' places to be taken")

        assert api.call("POST", f"/v1/appointments/{id_}/entries", user=OTHER).status == 201
        assert Page(api, "monitor").get("").status == 200
        assert api.get("/readyz").status == 200
        assert problem(api.get("/v1/contention"), "unauthenticated")

    wait_until(lambda: api.get("/dashboard/login").status == 200, what="a place for a stranger")


def test_nobody_reads_a_body_before_it_is_known_who_calls_but_the_form(start_service: StartService) -> None:
    api = Api(start_service(workers=1, body_wait_s="60").url)
    description = api.get("/openapi.json").json["paths"]
    routes = [(method.upper(), path) for path, methods in description.items() for method in methods if method != "get"]
    routes += [("POST", "/dashboard/locks/a/force-release"), ("POST", "/dashboard/logout")]
    for method, path in routes:
        path = path.replace("{name}", "a").replace("{lease_id}", "0" * 32).replace("{user_id}", "1")
        path = path.replace("{appointment_id}", "1")
        for content_type in ("application/json", "multipart/form-data; boundary=x"):
            with slow_body(api, method, path, content_type, Sec_Fetch_Site="same-origin") as connection:
                answer = connection.getresponse()
                assert answer.status in (303, 401), (method, path)


@pytest.mark.parametrize("path", ["/dashboard/login", "/dashboard/theme"])
def test_a_form_is_small_and_plain(world_api: Api, path: str) -> None:
    def send(content_type: str, body: bytes) -> int:
        headers = {"Content-Type": content_type, "Sec-Fetch-Site": "same-origin"}
        return world_api.call("POST", path, body=body, headers=headers).status

    form = "application/x-www-form-urlencoded"
    assert send("multipart/form-data; boundary=x", parts(900)) == 400
    assert send("text/plain", b"token=a") == 400
    assert send(form, urlencode({f"f{number}": "" for number in range(21)}).encode()) == 413
    assert send(form, b"token=" + b"a" * 16 * 1024) == 413
    assert send(form, b"token=a&theme=no&next=%2Fdashboard") in (400, 401)


@pytest.mark.parametrize("kind", ["multipart/form-data; boundary=x", "application/x-www-form-urlencoded"])
def test_the_origins_form_may_come_in_few_parts(world_api: Api, kind: str) -> None:
    form = parts if "multipart" in kind else pairs

    def send(count: int) -> Answer:
        headers = {"Content-Type": kind, **bearer(OTHER)}
        return world_api.call("POST", "/agoraToken", body=form(count), headers=headers)

    assert len(form(500)) < 64 * 1024, "too many, and not too long"
    for count in (MAX_FORM_FIELDS + 1, 500):
        assert problem(send(count), "too-large")
    for count in (2, MAX_FORM_FIELDS):
        assert problem(send(count), "illegal-request")


def names(count: int) -> list[str]:
    """Fields, of which the first are those of the origin's form."""
    return ["appointmentId", "otherUserid", *[f"f{number}" for number in range(count)]][:count]


def parts(count: int) -> bytes:
    """A multipart form that names an appointment that is nobody's and a user."""
    lines = [f'--x\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{10**15}\r\n' for name in names(count)]
    return "".join([*lines, "--x--\r\n"]).encode()


def pairs(count: int) -> bytes:
    """The same urlencoded."""
    return urlencode(dict.fromkeys(names(count), 10**15)).encode()


# One caller's share


def refused(answer: Answer) -> None:
    """It is this caller's share that is used up."""
    told = problem(answer, "too-many-requests")
    assert answer.headers["retry-after"] == "1"
    assert told["retryable"] is True
    assert told["charged"] is False


def lease(
    api: Api, name: str, user: int, *, wait_ms: int = 0, lease_id: str | None = None, ttl_ms: int = LONG_MS
) -> Answer:
    wanted = {"ttl_ms": ttl_ms, "wait_ms": wait_ms, **({} if lease_id is None else {"lease_id": lease_id})}
    return api.call("POST", f"/v1/locks/{name}/leases", user=user, scope="locks", send=wanted)


def test_a_caller_has_half_of_the_leases_and_every_end_of_one_makes_room(
    start_service: StartService,
) -> None:
    api = Api(start_service(workers=1, max_leases="8").url)
    chosen = "0123456789abcdef" * 2
    had = [lease(api, f"shares:{number}", HOSTILE).json for number in range(3)]
    assert lease(api, "shares:chosen", HOSTILE, lease_id=chosen).status == 201

    refused(lease(api, "shares:more", HOSTILE))
    refused(lease(api, "shares:more", HOSTILE, lease_id="f" * 32))
    assert lease(api, "shares:chosen", HOSTILE, lease_id=chosen).status == 200  # it is had already
    assert problem(lease(api, "shares:0", OTHER), "lock-busy")
    for number in range(4):
        assert lease(api, f"shares:other:{number}", OTHER).status == 201
    refused(lease(api, "shares:other:4", OTHER))

    def end(number: int) -> str:
        return f"/v1/locks/shares:{number}/leases/{had[number]['lease_id']}"

    ends: list[Callable[[], Answer]] = [
        lambda: api.call("DELETE", end(0), user=OTHER, scope="locks"),
        lambda: api.call(
            "POST",
            "/v1/locks/shares:1/force-release",
            user=1,
            scope="operator",
            send={"reason": "a test of shares", "fencing_token": had[1]["fencing_token"]},
        ),
        lambda: api.call("DELETE", f"/v1/locks/shares:chosen/leases/{chosen}", user=HOSTILE, scope="locks"),
    ]
    for number, ended in enumerate(ends):
        assert ended().status < 300
        again = f"shares:again:{number}"
        wait_until(lambda name=again: lease(api, name, HOSTILE).status == 201)  # type: ignore[misc]
        refused(lease(api, "shares:more", HOSTILE))

    assert api.call("DELETE", end(2), user=HOSTILE, scope="locks").status == 204
    assert lease(api, "shares:short", HOSTILE, ttl_ms=100).status == 201  # and it runs out
    wait_until(lambda: lease(api, "shares:last", HOSTILE).status == 201)
    refused(lease(api, "shares:more", HOSTILE))


def test_a_caller_has_half_of_the_waits_and_hanging_up_makes_room(start_service: StartService) -> None:
    api = Api(start_service(workers=1, max_lease_waits="4").url)
    assert lease(api, "shares:held", OTHER).status == 201
    body = json.dumps({"ttl_ms": LONG_MS, "wait_ms": LONG_MS}).encode()
    with ExitStack() as stack:
        waiting = [stack.enter_context(api.connection_closing()) for _ in range(2)]
        for connection in waiting:
            headers = {"Content-Type": "application/json", **bearer(HOSTILE, "locks")}
            connection.request("POST", "/v1/locks/shares:held/leases", body=body, headers=headers)
        wait_until(lambda: lease(api, "shares:held", HOSTILE, wait_ms=1).status == 429, what="both to wait")
        refused(lease(api, "shares:held", HOSTILE, wait_ms=1))
        assert problem(lease(api, "shares:held", OTHER, wait_ms=1), "lock-busy")

    wait_until(lambda: lease(api, "shares:held", HOSTILE, wait_ms=1).status == 409, what="room for a wait")


def test_a_caller_has_half_of_the_streams_of_either_kind(start_service: StartService) -> None:
    api = Api(start_service(workers=1, max_streams="4").url)
    page = Page(api, "monitor", user_id=HOSTILE)

    def contention(user: int) -> http.client.HTTPConnection:
        connection = api.connection()
        connection.request("GET", "/v1/contention/stream", headers=bearer(user, "monitor"))
        return connection

    with ExitStack() as stack:
        stack.enter_context(page.stream("locks"))
        first = stack.enter_context(closing(contention(HOSTILE)))
        assert first.getresponse().status == 200
        second = stack.enter_context(closing(contention(HOSTILE)))
        assert second.getresponse().status == 429
        assert stack.enter_context(page.stream("locks")).status == 429
        other = stack.enter_context(closing(contention(OTHER)))
        assert other.getresponse().status == 200

    def has_room() -> bool:
        with closing(contention(HOSTILE)) as connection:
            return connection.getresponse().status == 200

    wait_until(has_room, what="a place for a stream")


def test_a_caller_has_half_of_the_exports_under_way(start_service: StartService, rows: Rows, database_url: str) -> None:
    patient = {"charge_timeout_s": "300", "statement_timeout_s": "200", "row_lock_timeout_s": "200"}
    api = Api(start_service(workers=1, max_exports="4", audit_interval_s="0", **patient).url)
    page, other = Page(api, "monitor", user_id=HOSTILE), Page(api, "monitor", user_id=OTHER)
    with closing(Rows(database_url)) as stranger, in_background() as start:
        stranger.run("BEGIN")
        stranger.run("LOCK TABLE user_consume IN ACCESS EXCLUSIVE MODE")
        exports = [start(page.get, "/exports/charges.csv") for _ in range(2)]
        wait_until(lambda: rows.number(WAIT_FOR_A_TABLE) == 2, what="both exports to be under way")

        refused(page.get("/exports/locks.csv"))
        refused(page.get("/exports/charges.json"))
        assert other.get("/exports/locks.csv").status == 200
        assert page.get("/locks").status == 200

        stranger.run("ROLLBACK")
        assert [export.result().status for export in exports] == [200, 200]
    assert page.get("/exports/locks.csv").status == 200


def test_a_caller_has_half_of_the_requests_under_way(start_service: StartService, rows: Rows, redis_url: str) -> None:
    running = start_service(workers=1, max_requests_in_flight="8", lock_wait_s="60")
    api = Api(running.url)
    for user_id in (HOSTILE, OTHER):
        rows.grant(user_id, 1)
    held, free = rows.appointment(HOSTILE, 1), rows.appointment(OTHER, 1)
    with (
        closing(redis.Redis.from_url(redis_url)) as client,
        held_lock(client, held) as release,
        entering(api.url, [(held, HOSTILE)] * 6) as calls,
    ):
        wait_until(lambda: len(calls.so_far()) == 2, what="those beyond the share")
        for answer in calls.so_far():
            refused(answer)
        assert api.call("POST", f"/v1/appointments/{free}/entries", user=OTHER).status == 201
        release()
        assert sorted(answer.status for answer in calls.wait_for_all()) == [200, 200, 200, 201, 429, 429]

    assert api.get(f"/v1/users/{HOSTILE}/coupons", user=HOSTILE).status == 200


def test_whoever_forces_from_the_page_has_a_share_too(start_service: StartService) -> None:
    api = Api(start_service(workers=1, max_requests_in_flight="8", body_wait_s="60").url)
    operator = Page(api, "operator", user_id=HOSTILE)
    form, session = "application/x-www-form-urlencoded", {"Cookie": f"chargeonce_session={operator.token}"}
    with ExitStack() as stack:
        for _ in range(4):
            ours = {"Sec_Fetch_Site": "same-origin", **session}
            stack.enter_context(slow_body(api, "POST", "/dashboard/locks/a/force-release", form, **ours))
        wait_until(lambda: operator.get("").status == 429, what="the share to be used up")
        assert operator.get("/locks/a/force-release").status == 429
        assert Page(api, "operator", user_id=OTHER).get("/locks/a/force-release").status == 200

    wait_until(lambda: operator.get("/locks/a/force-release").status == 200, what="room again")


def test_every_route_that_takes_a_token_tells_of_the_share(world_api: Api) -> None:
    for path, methods in world_api.get("/openapi.json").json["paths"].items():
        for method, operation in methods.items():
            takes_token = bool(operation["security"]) or path == "/dashboard"
            assert ("429" in operation["responses"]) is takes_token, (method, path)


@pytest.fixture
def world_api(request: pytest.FixtureRequest) -> Api:
    """The service that all tests share."""
    api = request.getfixturevalue("default_world").api
    assert isinstance(api, Api)
    return api
