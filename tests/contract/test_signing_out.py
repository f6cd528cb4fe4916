"""Signing out ends a session everywhere; a code works once, whatever is forced; what it begins only looks."""

from __future__ import annotations

import itertools
import time
from contextlib import ExitStack
from http.client import HTTPResponse

import pytest

from service.sessions import new_login_code
from tests.conftest import StartService
from tests.contract.api import Api, in_background, problem, waits_for_row
from tests.contract.conftest import World
from tests.contract.page import COOKIE, Page, cookie_of, lease, next_message
from tests.contract.test_overload import LONG_WAITS
from tests.contract.test_scopes import API, BODIES, LEASE_ID
from tests.contract.under_way import Call, under_way
from tests.harness import SECRET, OwnRedis, Rows, token, wait_until

# So many requests, each on a connection of its own, reach both workers.
OFTEN = 12
OVER_SOON_S = 20.0  # about a second on a machine that has time


def by_code(api: Api, code: str | None = None) -> Page:
    """Whoever comes first with a code."""
    page = Page(api, None)
    answer = page.get(f"/login?code={code or new_login_code(SECRET, now=time.time())}")
    page.token = cookie_of(answer).get(COOKIE)
    assert page.token, answer
    return page


def respelt(session: str) -> str:
    """The same token in other letters: the last one of its signature has bits that say nothing."""
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    return session[:-1] + letters[letters.index(session[-1]) ^ 1]


def test_a_session_signed_out_is_none_in_any_worker_or_instance_nor_after_a_flush_and_a_restart(
    start_service: StartService, own_redis: OwnRedis
) -> None:
    here, there = (start_service(workers=2, redis_url=own_redis.url) for _ in range(2))
    copy = token(17, "operator")
    pages = [Page(Api(each.url), None) for each in (here, there)]
    for page in pages:
        page.token = copy
        assert {page.get("").status for _ in range(OFTEN)} == {200}

    signed_out = pages[0].post("/logout", {})

    assert (signed_out.status, signed_out.headers["location"]) == (303, "/dashboard/login?because=out")
    assert cookie_of(signed_out)[COOKIE] == ""
    for page in pages:
        assert {
            page.get(path).status for path in ("", "/locks", "/series", "/exports/locks.csv") for _ in range(4)
        } == {401}
        assert page.post("/login", {"token": copy}).status == 401
        page.token = respelt(copy)
        assert page.get("").status == 401
        assert page.force("any", 1, "with a copy").status == 401
        page.token = token(18, "monitor")
        assert page.get("").status == 200, "whoever else is there goes on"
    own_redis.flush()
    assert here.stop() == 0
    again = Page(Api(start_service(workers=1, redis_url=own_redis.url).url), None)
    again.token = copy
    assert again.get("").status == 401
    assert again.api.get("/v1/locks", headers={"Authorization": f"Bearer {copy}"}).status == 200, "as the words say"


def test_whoever_reads_much_keeps_no_session_that_is_signed_out_alive(
    start_service: StartService, rows: Rows, database_url: str
) -> None:
    """All threads that read are taken, by somebody without any scope; what is signed out is asked beside them."""
    here, there = (Api(start_service(workers=1, read_threads="1", **LONG_WAITS).url) for _ in range(2))
    page, id_ = Page(here, "monitor"), rows.appointment(1, 2)
    assert page.post("/logout", {}).status == 303
    stranger = Rows(database_url)
    stranger.run("BEGIN")
    stranger.run("LOCK TABLE appointment_info IN ACCESS EXCLUSIVE MODE")
    try:
        with under_way(there.url, [Call("GET", f"/v1/appointments/{id_}", 1)] * 3) as sent:
            wait_until(lambda: waits_for_row(rows), what="the reads to take the threads")
            page.api = there
            assert page.get("/locks").status == 401
            stranger.run("ROLLBACK")
            sent.wait_for_all()
    finally:
        stranger.close()


def test_what_is_written_of_a_session_is_a_digest_and_goes_when_it_is_over(world: World) -> None:
    world.rows.run("INSERT INTO spent_token VALUES ('over', now() - interval '9 days', now() - interval '2 days')")
    page = Page(world.api, "monitor")
    assert page.token is not None

    for _ in range(2):
        assert page.post("/logout", {}).status == 303

    rows = world.rows.run("SELECT encode(digest, 'escape'), expires_at > now() FROM spent_token")
    assert len(rows) > 0
    assert {alive for _, alive in rows} == {True}, "what was over is gone"
    assert all(len(page.token) > 64 and page.token not in str(digest) for digest, _ in rows)


def test_nobody_without_a_session_writes_anything_by_signing_out(world: World) -> None:
    before = world.rows.number("SELECT count(*) FROM spent_token")
    for cookie in (None, "", "nonsense", token(7, "monitor", ttl_s=-5), new_login_code(SECRET, now=time.time())):
        page = Page(world.api, None)
        page.token = cookie
        assert page.post("/logout", {}).status == 303
    assert world.rows.number("SELECT count(*) FROM spent_token") == before


@pytest.mark.parametrize("kind", ["token", "code"])
def test_open_streams_of_a_session_end_when_it_is_signed_out_and_others_go_on(world: World, kind: str) -> None:
    page = by_code(world.api) if kind == "code" else Page(world.api, "monitor")
    other = Page(world.api, "monitor")
    with ExitStack() as stack:
        streams = [stack.enter_context(page.stream(name)) for name in ("locks", "heatmap") * 3]
        goes_on = stack.enter_context(other.stream("locks"))
        for stream in (*streams, goes_on):
            assert "data:" in next_message(stream)
        assert page.post("/logout", {}).status == 303
        began_at_s = time.monotonic()

        ends = [_last_message(stream) for stream in streams]

        assert time.monotonic() - began_at_s < OVER_SOON_S
        assert [end.startswith("event: signed-out") for end in ends] == [True] * 6
        assert "data:" in next_message(goes_on)
        assert "signed-out" not in next_message(goes_on)


def test_of_many_with_one_code_at_once_one_is_let_in(start_service: StartService, own_redis: OwnRedis) -> None:
    instances = [start_service(workers=2, redis_url=own_redis.url) for _ in range(2)]
    pages = [Page(Api(instances[number % 2].url), None) for number in range(32)]
    for _ in range(3):
        code = new_login_code(SECRET, now=time.time())
        with in_background() as start:
            answers = [each.result() for each in [start(page.get, f"/login?code={code}") for page in pages]]
        assert {answer.status for answer in answers} == {303}
        assert [bool(cookie_of(answer)) for answer in answers].count(True) == 1


def test_a_used_code_stays_used_whatever_is_forced_or_flushed(start_service: StartService, own_redis: OwnRedis) -> None:
    api = Api(start_service(workers=2, redis_url=own_redis.url).url)
    code = new_login_code(SECRET, now=time.time())
    by_code(api, code)

    held = api.get("/v1/locks?search=login", user=1, scope="operator").json["locks"]
    for row in held:
        send = {"reason": "to use the code again", "fencing_token": row["fencing_token"]}
        api.post(f"/v1/locks/{row['name']}/force-release", user=1, scope="operator", send=send)
    own_redis.flush()

    for _ in range(OFTEN):
        again = Page(api, None).get(f"/login?code={code}")
        assert (again.headers["location"], cookie_of(again)) == ("/dashboard/login?because=code", {})


def test_what_a_code_begins_sees_every_view_and_forces_nothing(world: World) -> None:
    page = by_code(world.api)
    held = lease(world.api, "page:seen-by-code")

    for path in ("", "/locks", "/locks/page%3Aseen-by-code", "/charges", "/audit-log", "/series", "/exports/locks.csv"):
        assert page.get(path).status == 200, path
    told = page.get("/locks/page%3Aseen-by-code").body.decode()
    assert "chargeonce token --user 1 --scope operator" in told
    assert "Release by force" not in told
    refused = page.force("page:seen-by-code", held["fencing_token"], "by code")
    assert refused.status == page.get("/locks/page%3Aseen-by-code/force-release").status == 403
    assert b"chargeonce token --user 1 --scope operator" in refused.body
    assert world.api.get("/v1/locks/page%3Aseen-by-code", user=1, scope="monitor").status == 200
    assert world.rows.run("SELECT FROM lock_audit WHERE lock_name = 'page:seen-by-code'") == []


@pytest.mark.parametrize(("method", "path"), [route for route, may in API.items() if "nobody" not in may])
def test_what_a_code_begins_is_no_access_token_anywhere(world: World, method: str, path: str) -> None:
    appointment_id = world.rows.appointment(1, 2)
    url = path.format(appointment_id=appointment_id, user_id=1, name="by-code", lease_id=LEASE_ID)
    body = BODIES.get((method, path), {"appointmentId": appointment_id, "otherUserid": 2})

    for session in (by_code(world.api).token, new_login_code(SECRET, now=time.time())):
        problem(
            world.api.call(method, url, send=body, headers={"Authorization": f"Bearer {session}"}), "unauthenticated"
        )


def test_a_session_of_a_code_that_is_over_or_forged_is_none(world: World) -> None:
    page = by_code(world.api)
    good = page.token or ""
    end, _, rest = good.partition(".")
    for session in (f"{int(end) + 3600}.{rest}", good[:-1], good + "=", new_login_code(SECRET, now=time.time())):
        page.token = session
        assert page.get("").status == 401, session


def _last_message(stream: HTTPResponse) -> str:
    """Its end, or one of many where it does not end."""
    return list(itertools.islice(iter(lambda: next_message(stream), ""), 20))[-1]
