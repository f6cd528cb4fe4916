"""What every answer tells a browser to refuse; and headers that are nonsense, which is no error of ours."""

from __future__ import annotations

import json
import socket
import uuid
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from tests.contract.api import Answer, answer_of, problem
from tests.contract.conftest import World
from tests.contract.page import COOKIE, FROM_OUR_PAGE, Page
from tests.contract.route_table import route_table
from tests.contract.test_dashboard import POLICY
from tests.contract.test_scopes import BODIES, LEASE_ID
from tests.harness import bearer, token

ALL_SCOPES = "service locks monitor operator"
FOR_ALL = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "cross-origin-resource-policy": "same-origin",
    "server": "chargeonce",
}
API = {
    **FOR_ALL,
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
}
PAGE = {**FOR_ALL, "content-security-policy": POLICY, "cross-origin-opener-policy": "same-origin"}
KEPT = "public, max-age=31536000, immutable"
HIGH_BYTES = "\xff\xfe\x80"
LONG = "a" * 7000

# Every header that somebody here reads, with values that nobody would send.
NONSENSE: Mapping[str, tuple[str, ...]] = {
    "Origin": ("http://[::1", "http://[", "http://[v1.x]:99999999", HIGH_BYTES, LONG),
    "Host": ("[::1", "http://[", "", HIGH_BYTES, "a:b:c", "h:99999999"),
    "X-Forwarded-Proto": ("", ",,,", HIGH_BYTES, "https" * 99),
    "X-Forwarded-For": ("[::1",),
    "Forwarded": ('for=[;;="',),
    "X-Forwarded-Host": ("[",),
    "Sec-Fetch-Site": (HIGH_BYTES, ""),
    "Referer": ("http://[",),
    "Cookie": (
        ";;;=",
        f"{COOKIE}",
        f'{COOKIE}="\\',
        f"{COOKIE}={HIGH_BYTES}",
        LONG,
        'chargeonce_theme="\\777"',
        f"$Version=1; {COOKIE}=x; $Path=/",
        "=" * 99,
    ),
    "Authorization": ("", "Bearer", "Bearer a.b.c", HIGH_BYTES, f"Bearer {LONG}", "Digest =", "Bearer e30.e30."),
    "Accept": (";;q=,", HIGH_BYTES),
    "Accept-Encoding": ("gzip;q=nonsense", HIGH_BYTES),
    "Accept-Charset": ("x",),
    "Accept-Language": ("-",),
    "If-None-Match": ('"', HIGH_BYTES, "*"),
    "If-Match": ('"',),
    "If-Modified-Since": ("yesterday", "Mon, 99 Foo 99999 99:99:99 GMT"),
    "If-Range": ('"',),
    "If-Unmodified-Since": (HIGH_BYTES,),
    "Range": ("bytes=9-1", "bytes=a-", "lines=1", f"bytes={'9' * 500}-"),
    "Last-Event-ID": (HIGH_BYTES, "-1"),
    "Expect": ("nonsense", HIGH_BYTES),
    "Content-Type": (
        "application/json; charset=nonsense",
        "application/json; charset=\xff",
        "application/x-www-form-urlencoded; charset=nonsense",
        ";",
        "",
        "multipart/form-data",
        "multipart/form-data; boundary=",
        HIGH_BYTES,
        f'multipart/form-data; boundary="{LONG}"',
        "application/x-www-form-urlencoded; charset=utf-16",
        "application/x-www-form-urlencoded; charset=zlib_codec",
        "text/plain; charset*0=a; =b",
    ),
    "Content-Encoding": ("nonsense", "gzip", "br", HIGH_BYTES),
    "Content-Length": ("x", "-1", "9" * 500),
    "Transfer-Encoding": ("nonsense",),
    "Connection": ("\xff, ,",),
    "Upgrade": ("websocket", "h2c"),
    "TE": ("x",),
    "Trailer": ("Content-Length",),
    "X-Request-Id": (HIGH_BYTES, LONG),
    "traceparent": ("00-0-0-0",),
    "tracestate": (HIGH_BYTES,),
    "Date": ("never",),
}


def filled(path: str, world: World) -> str:
    """An address of the route, each of its own."""
    names = {"appointment_id": world.rows.appointment(world.person(), world.person()), "user_id": world.person()}
    more = {"name": f"headers:{uuid.uuid4().hex[:8]}", "lease_id": LEASE_ID, "view": "locks", "table": "locks.csv"}
    return path.format(**names, **more, digest="0", file="page.css")


def ask(world: World, method: str, path: str, url: str, headers: Mapping[str, str]) -> Answer:
    """One request with a token and a session; of a stream only the head."""
    given = {**bearer(7, ALL_SCOPES), "Cookie": f"{COOKIE}={token(7, ALL_SCOPES)}", **FROM_OUR_PAGE}
    if {"Origin", "Host", "X-Forwarded-Proto"} & set(headers):
        del given["Sec-Fetch-Site"]
        given["Origin"] = world.api.url
    body = None
    with world.api.connection_closing() as connection:
        if method != "GET" and method != "HEAD":
            is_form = path.startswith("/dashboard")
            body = b"theme=dark&reason=x&fencing_token=1" if is_form else _json(method, path)
            given["Content-Type"] = "application/x-www-form-urlencoded" if is_form else "application/json"
        sent = {**given, **headers}
        connection.putrequest(method, url, skip_host="Host" in sent, skip_accept_encoding=True)
        for name, value in sent.items():
            connection.putheader(name, value.encode("latin-1"))
        if body is not None and not {"Content-Length", "Transfer-Encoding"} & set(headers):
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        response = connection.getresponse()
        if response.getheader("Content-Type") == "text/event-stream":
            names = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, names, b"")
        return answer_of(response)


def _json(method: str, path: str) -> bytes:
    return json.dumps(BODIES.get((method, path), {})).encode()


def test_headers_that_are_nonsense_are_no_error_of_ours_on_any_route(world: World) -> None:
    routes = [(method, path, filled(path, world)) for method, path in route_table(world) if method != "HEAD"]
    headers = [(name, value) for name, values in NONSENSE.items() for value in values]
    cases = [(method, path, url, header) for header in headers for method, path, url in routes]
    with ThreadPoolExecutor(8) as pool:  # some answers wait on purpose
        asked = [pool.submit(ask, world, method, path, url, dict([header])) for method, path, url, header in cases]
    answered = {}
    for (method, path, _, (name, value)), each in zip(cases, asked, strict=True):
        answer = each.result()
        answered[method, path, f"{name}: {value[:60]!r}"] = answer.status
        wrong = missing(answer, path)
        assert not wrong or answer.status == 400, (method, path, name, value, wrong)
    assert {route: status for route, status in answered.items() if status >= 500} == {}
    assert "request failed" not in world.service.logged()


def test_every_route_has_the_headers_whatever_it_answers(world: World) -> None:
    seen = set()
    for method, path in route_table(world):
        url = filled(path, world)
        for headers in ({}, {"Authorization": "x", "Cookie": "x"}, {"Sec-Fetch-Site": "cross-site"}):
            answer = ask(world, method, path, url, headers)
            assert missing(answer, path) == {}, (method, path, headers)
            assert "strict-transport-security" not in answer.headers
            over_tls = ask(world, method, path, url, {**headers, "X-Forwarded-Proto": "https"})
            assert over_tls.headers["strict-transport-security"] == "max-age=31536000", (method, path)
            seen.add(answer.status)
    assert seen >= {200, 201, 303, 400, 401, 403, 404, 410}


def missing(answer: Answer, path: str) -> dict[str, str | None]:
    """Those headers that are not as they should be."""
    wanted = dict(PAGE if path.startswith("/dashboard") else API)
    return {name: answer.headers.get(name) for name, value in wanted.items() if answer.headers.get(name) != value} | (
        {}
        if answer.headers.get("cache-control") == "no-store"
        else {"cache-control": answer.headers.get("cache-control")}
    )


def test_entries_static_files_and_what_is_no_route_have_them_too(world: World) -> None:
    appointment_id, inviter, _ = world.meeting()
    text = Page(world.api, "monitor").get("").body.decode()
    static = text.partition('<link rel="stylesheet" href="')[2].partition('"')[0]

    for answer in (
        world.api.enter(appointment_id, inviter),
        world.api.enter(appointment_id, inviter),
        world.api.enter(appointment_id, inviter, headers={"Connection": "close"}),
        world.api.get("/nowhere"),
        world.api.call("PUT", "/livez"),
        world.api.post("/v1/appointments", body=b"x" * 70_000),
        world.api.post("/nowhere", headers={"Expect": "nonsense"}),
    ):
        assert missing(answer, "") == {}, answer
    unreadable = world.api.post("/nowhere", headers={"Expect": HIGH_BYTES})
    assert (unreadable.status, missing(unreadable, "")) == (400, {})
    entered = world.api.enter(appointment_id, inviter, headers={"X-Forwarded-Proto": "https"})
    assert entered.headers["strict-transport-security"] == "max-age=31536000"
    file = world.api.get(static)
    for answer in (file, world.api.get(static, headers={"If-None-Match": file.headers["etag"]})):
        assert missing(answer, "/dashboard") == {"cache-control": KEPT}
    assert missing(world.api.get("/dashboard/nowhere"), "/dashboard") == {}


@pytest.mark.parametrize(
    "sent", [b"nonsense\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"GET / HTTP/1.1\r\nHost : x\r\n\r\n"]
)
def test_what_is_no_http_is_refused_with_them(world: World, sent: bytes) -> None:
    with closing(socket.create_connection((world.api.host, world.api.port), timeout=30)) as client:
        client.sendall(sent)
        answered = b""
        while part := client.recv(65536):
            answered += part
    head, _, body = answered.decode().partition("\r\n\r\n")
    status, *lines = head.split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    answer = Answer(int(status.split()[1]), headers, body.encode())
    assert missing(answer, "") == {}
    problem(answer, "invalid-request")
