"""The page /dashboard as a browser asks for it, without a browser: cookies, forms and streams by hand."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPResponse
from typing import Any
from urllib.parse import quote

from tests.contract.api import Answer, Api
from tests.harness import token

COOKIE = "chargeonce_session"
FROM_OUR_PAGE = {"Sec-Fetch-Site": "same-origin"}
VIEWS = (
    "",
    "/locks",
    "/locks/page%3Atest",
    "/hot",
    "/heatmap",
    "/incidents",
    "/instances",
    "/charges",
    "/audit-log",
)
EXPORTS = ("locks", "hot", "heatmap", "incidents", "instances", "charges", "audit_log")
STREAMS = ("overview", "locks", "hot", "heatmap", "incidents", "instances", "charges", "audit_log")


class Page:
    """Somebody with a session, or without one."""

    def __init__(self, api: Api, scope: str | None, *, ttl_s: float = 600, user_id: int = 17) -> None:
        self.api = api
        self.token = None if scope is None else token(user_id, scope, ttl_s=ttl_s)

    def get(self, path: str, **headers: str) -> Answer:
        """A page below /dashboard."""
        return self.api.get(f"/dashboard{path}", headers={**self._cookie(), **headers})

    def head(self, path: str, on: HTTPConnection | None = None) -> Answer:
        """The same without its body."""
        return self.api.call("HEAD", f"/dashboard{path}", headers=self._cookie(), on=on)

    def post(self, path: str, fields: dict[str, object], headers: dict[str, str] | None = None) -> Answer:
        """A form, by default as our own page sends it."""
        sent = FROM_OUR_PAGE if headers is None else headers
        return self.api.post(f"/dashboard{path}", form=fields, headers={**self._cookie(), **sent})

    def force(self, name: str, fencing_token: object, reason: str, headers: dict[str, str] | None = None) -> Answer:
        """The form that releases by force."""
        path = f"/locks/{quote(name, safe='')}/force-release"
        return self.post(path, {"fencing_token": fencing_token, "reason": reason}, headers)

    @contextmanager
    def stream(self, path: str) -> Iterator[HTTPResponse]:
        """An open stream, its head read."""
        with self.api.connection_closing() as connection:
            connection.request("GET", f"/dashboard/streams/{path}", headers=self._cookie())
            yield connection.getresponse()

    def _cookie(self) -> dict[str, str]:
        return {} if self.token is None else {"Cookie": f"{COOKIE}={self.token}"}


def next_message(stream: HTTPResponse) -> str:
    """One event with its lines, up to the empty one; "" at the stream's end."""
    lines = []
    while line := stream.readline().decode():
        if line == "\n":
            break
        lines.append(line)
    return "".join(lines)


def cookie_of(answer: Answer) -> dict[str, str]:
    """The session cookie's attributes in lower case, its value under its name; {} where none is set."""
    found = re.match(rf'{COOKIE}="?([^";]*)"?;?(.*)', answer.headers.get("set-cookie", ""), re.DOTALL)
    if not found:
        return {}
    attributes = [part.strip().partition("=") for part in found[2].split(";")]
    return {COOKIE: found[1], **{name.lower(): value for name, _, value in attributes if name}}


def lease(api: Api, name: str, *, ttl_ms: int = 60_000, wait_ms: int = 0, **more: Any) -> dict[str, Any]:
    """A lease over HTTP."""
    send = {"ttl_ms": ttl_ms, "wait_ms": wait_ms}
    answer = api.post(f"/v1/locks/{quote(name, safe='')}/leases", user=5, scope="locks", send=send, **more)
    assert answer.status == 201, answer
    members: dict[str, Any] = answer.json
    return members
