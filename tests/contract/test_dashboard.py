"""The page /dashboard over HTTP: who sees what, what is never shown, and what a browser is told to refuse."""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import re
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.conftest import StartService
from tests.contract.api import Api
from tests.contract.conftest import World
from tests.contract.page import EXPORTS, STREAMS, VIEWS, Page, lease, next_message
from tests.harness import wait_until

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self';"
    " font-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
VENDOR = Path("service/dashboard/static/vendor")
ATTACK = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def settings() -> dict[str, str]:
    """Few streams, so that their bound is soon reached."""
    return {"max_streams": "4", "caller_share": "1"}


def test_every_page_bears_the_strict_policy_and_nothing_inline(world: World) -> None:
    operator = Page(world.api, "operator")
    appointment_id, _, _ = world.meeting()

    for path in (
        *VIEWS,
        f"/appointments/{appointment_id}",
        "/locks/page%3Atest/force-release",
        "/locks?sort=no",
        "/login",
    ):
        answer = operator.get(path)
        assert answer.headers["content-security-policy"] == POLICY, path
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["referrer-policy"] == "same-origin"
        text = answer.body.decode()
        assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son[a-z]+=|javascript:", text, re.IGNORECASE), (
            path
        )


def test_every_route_asks_for_a_session_and_for_its_scope(world: World) -> None:
    appointment_id, _, _ = world.meeting()
    shown = [*VIEWS, f"/appointments/{appointment_id}"]
    told = [
        *(f"/exports/{name}.csv" for name in EXPORTS),
        "/series",
        f"/exports/appointment.json?appointment_id={appointment_id}",
    ]
    operators_alone = ["/locks/page%3Atest/force-release"]

    for scope in (None, "", "service", "locks", "service locks", "monitor", "operator", "monitor operator"):
        page = Page(world.api, scope)
        may_look = scope is not None and ("monitor" in scope or "operator" in scope)
        refusal = 401 if scope is None else 403
        for path in (*shown, *told):
            assert page.get(path).status == (200 if may_look else refusal), (scope, path)
        for name in STREAMS:
            with page.stream(name) as stream:
                assert stream.status == (200 if may_look else refusal), (scope, name)
        for path in operators_alone:
            expected = 200 if scope and "operator" in scope else refusal
            assert page.get(path).status == expected, (scope, path)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_the_address_without_a_path_leads_to_the_page(world: World, method: str) -> None:
    answer = world.api.call(method, "/")
    assert (answer.status, answer.headers["location"], answer.body) == (303, "/dashboard", b"")
    assert world.api.call("POST", "/").status == 405


def test_a_bearer_header_is_no_session(world: World) -> None:
    assert world.api.get("/dashboard/locks", user=3, scope="operator").status == 401


def test_without_a_session_the_form_leads_back_to_the_page(world: World) -> None:
    answer = Page(world.api, None).get("/locks?sort=held&search=pay%3A")

    assert answer.status == 401
    assert b'name="next" value="/dashboard/locks?sort=held&amp;search=pay%3A"' in answer.body


def test_an_operator_releases_by_force_and_a_monitor_cannot(world: World) -> None:
    name = "page:forced/1"
    held = lease(world.api, name)
    operator, monitor = Page(world.api, "operator", user_id=41), Page(world.api, "monitor")
    path = "/locks/page%3Aforced%2F1"

    assert b"force-release" not in monitor.get(path).body
    assert monitor.force(name, held["fencing_token"], "because").status == 403
    assert b"force-release" in operator.get(path).body
    assert operator.force(name, held["fencing_token"], "  ").status == 400
    assert operator.force(name, "x", "because").status == 400
    done = operator.force(name, held["fencing_token"], "the deploy hangs")

    assert (done.status, done.headers["location"]) == (303, "/dashboard/locks/page%3Aforced%2F1?done=released")
    assert b"ended by force" in operator.get(path + "?done=released").body
    assert world.api.get(f"/v1/locks/{path[7:]}", user=1, scope="monitor").code == "lock-free"
    log = operator.get("/audit-log").body.decode()
    assert "the deploy hangs" in log
    assert world.rows.run("SELECT actor, action, reason FROM lock_audit WHERE lock_name = %s", name) == [
        ("41", "force-release", "the deploy hangs")
    ]


def test_a_lease_that_has_changed_hands_is_not_released_and_the_page_says_so(world: World) -> None:
    first = lease(world.api, "page:changed")
    world.api.call("DELETE", f"/v1/locks/page%3Achanged/leases/{first['lease_id']}", user=5, scope="locks")
    second = lease(world.api, "page:changed")
    operator = Page(world.api, "operator")

    answer = operator.force("page:changed", first["fencing_token"], "too late")

    assert answer.status == 409
    text = answer.body.decode()
    assert str(first["fencing_token"]) in text
    assert f'value="{second["fencing_token"]}"' in text
    assert "too late" in text
    assert world.api.get("/v1/locks/page%3Achanged", user=1, scope="monitor").status == 200


def test_what_others_have_written_is_text_and_never_markup(world: World) -> None:
    operator = Page(world.api, "operator")
    held = lease(world.api, "page:attack", headers={"X-Request-Id": "<b>evil</b>"})
    operator.force("page:attack", held["fencing_token"], ATTACK)

    pages = [
        operator.get("/audit-log"),
        operator.get("/locks/page%3Aattack"),
        operator.get("/locks?search=%3Cscript%3Ealert(1)%3C/script%3E%22'%3E%3Cimg%20src=x%20onerror=alert(1)%3E"),
        operator.get("/incidents?kind=%3Cscript%3E"),
        operator.get("/locks/%3Cscript%3Ealert(1)%3C%2Fscript%3E"),
        operator.get("/login?because=%3Cscript%3Ealert(1)"),
        operator.post("/login", {"token": "x", "next": f"/dashboard/{ATTACK}"}),
        operator.get("/heatmap?minute=%22%3E%3Cscript%3Ealert(1)"),
    ]

    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in pages[0].body.decode()
    for answer in pages:
        text = answer.body.decode()
        assert "<script>alert" not in text
        assert "<img" not in text
        assert "<b>evil" not in text


def test_lease_ids_and_tokens_are_nowhere(world: World) -> None:
    held = lease(world.api, "page:secret")
    appointment_id, inviter, _ = world.meeting()
    room_token = world.api.enter(appointment_id, inviter).json["room"]["token"]
    operator = Page(world.api, "operator")
    assert operator.token is not None
    wait_until(lambda: b"page:secret" in operator.get("/locks").body, what="the lock in the list")

    seen = [
        operator.get(path).body.decode() for path in (*VIEWS, "/locks/page%3Asecret", f"/appointments/{appointment_id}")
    ]
    seen += [operator.get(f"/exports/{name}.json").body.decode() for name in EXPORTS]
    seen += [operator.get("/exports/lock.csv?name=page%3Asecret").body.decode(), operator.get("/series").body.decode()]
    with operator.stream("locks") as stream:  # of a worker that may have heard of the lock a moment later
        seen += [next_message(stream) for _ in range(3)]

    assert "page:secret" in seen[-1]
    for text in (*seen, world.service.logged(), world.api.get("/metrics").body.decode()):
        for secret in (held["lease_id"], operator.token, operator.token.rpartition(".")[2], room_token):
            assert secret not in text


def test_what_a_spreadsheet_would_run_is_quoted_in_csv_and_whole_in_json(world: World) -> None:
    operator = Page(world.api, "operator")
    held = lease(world.api, "page:formula")
    reason = '=HYPERLINK("http://elsewhere.example")'
    operator.force("page:formula", held["fencing_token"], reason)

    written = operator.get("/exports/audit_log.csv")
    told = operator.get("/exports/audit_log.json").json

    assert written.headers["content-disposition"] == 'attachment; filename="chargeonce-audit-log.csv"'
    rows = [row for row in csv.DictReader(io.StringIO(written.body.decode())) if row["lock_name"] == "page:formula"]
    assert [row["reason"] for row in rows] == ["'" + reason]
    assert [row["reason"] for row in told if row["lock_name"] == "page:formula"] == [reason]


def test_every_table_is_exported_and_says_what_it_cannot(world: World) -> None:
    monitor = Page(world.api, "monitor")

    for name in EXPORTS:
        header = monitor.get(f"/exports/{name}.csv").body.decode().splitlines()[0]
        assert len(header.split(",")) > 2, name
        assert isinstance(monitor.get(f"/exports/{name}.json").json, list)
    assert monitor.get("/exports/locks.xlsx").code == "not-found"
    assert monitor.get("/exports/secrets.csv").code == "not-found"


def test_the_address_holds_the_state_of_a_view(world: World) -> None:
    monitor = Page(world.api, "monitor")

    text = monitor.get("/locks?sort=name&search=page%3A").body.decode()

    assert 'value="page:"' in text
    assert 'href="/dashboard/locks?search=page%3A&amp;sort=held"' in text
    assert 'hx-sse:connect="/dashboard/streams/locks?sort=name&amp;search=page%3A"' in text
    assert 'href="/dashboard/exports/locks.csv?sort=name&amp;search=page%3A"' in text
    assert monitor.get("/locks?cursor=nonsense").status == 400
    assert monitor.get("/hot?minute=2026-13-01T00:00").status == 400
    assert monitor.get("/appointments/1").status == 404


def test_static_files_are_named_by_their_content_and_kept(world: World) -> None:
    text = Page(world.api, "monitor").get("").body.decode()
    found = re.findall(r'(?:src|href)="(/dashboard/static/([0-9a-f]{16})/([^"]+))"', text)

    assert {name for _, _, name in found} >= {
        "htmx.min.js",
        "hx-sse.min.js",
        "uPlot.iife.min.js",
        "page.js",
        "page.css",
    }
    for path, digest, name in found:
        answer = world.api.get(path)
        assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
        assert hashlib.sha256(answer.body).hexdigest()[:16] == digest
        assert world.api.get(path, headers={"If-None-Match": answer.headers["etag"]}).status == 304
        assert world.api.get(path.replace(digest, "0" * 16)).status == 404, name


def test_vendored_files_are_those_that_their_list_names() -> None:
    table = (VENDOR / "README.md").read_text()
    listed = dict(re.findall(r"^\| `([^`]+)` .*`([0-9a-f]{64})` \|$", table, re.MULTILINE))

    files = {path.name for path in VENDOR.iterdir() if path.suffix in (".js", ".css")}

    assert files == set(listed)
    for name, digest in listed.items():
        assert hashlib.sha256((VENDOR / name).read_bytes()).hexdigest() == digest


def test_a_stream_brings_the_view_again_and_ends_with_the_session(world: World) -> None:
    with Page(world.api, "monitor", ttl_s=2).stream("locks?sort=name") as stream:
        assert stream.headers["Content-Type"] == "text/event-stream"
        first, second = next_message(stream), next_message(stream)
        assert "lock-count" in first
        assert "lock-count" in second
        last = list(itertools.islice(iter(lambda: next_message(stream), ""), 6))[-1]

    assert last.startswith("event: signed-out")


def test_streams_are_bounded_and_a_place_is_free_again_when_one_ends(world: World) -> None:
    page = Page(world.api, "monitor")

    with ExitStack() as stack:  # so many that both workers get more than they may have
        statuses = [stack.enter_context(page.stream("incidents")).status for _ in range(40)]

    assert statuses.count(200) == 8
    assert statuses.count(503) == 32
    wait_until(lambda: _opens(page), what="a place for a stream")


def test_streams_end_at_once_when_their_instance_drains(start_service: StartService) -> None:
    running = start_service(workers=1)
    with Page(Api(running.url), "monitor").stream("overview") as stream:
        next_message(stream)
        began_at_s = time.monotonic()
        assert running.stop() == 0
        while next_message(stream):
            pass

    assert time.monotonic() - began_at_s < 10


def _opens(page: Page) -> bool:
    with page.stream("incidents") as stream:
        return stream.status == 200
