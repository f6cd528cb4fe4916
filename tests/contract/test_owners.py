"""Who holds an HTTP lease: its owner, in the client's own words, wherever the holder is; and words that are true."""

from __future__ import annotations

import csv
import io
import json
import re
import uuid
from collections.abc import Mapping
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import redis
import redis_lock

from tests.contract.api import in_background, problem
from tests.contract.conftest import World
from tests.contract.lease_client import USER, LeaseClient, fresh_name, leases_of
from tests.contract.page import Page
from tests.harness import run_cli, wait_until
from tests.lock_process import LockProcess

OWNER = "nightly import (日本), 100 %"
LONG_MS = 50_000
NOT_TOLD = "The client is not told: it works on, and learns of it from the answer 410"


def page_of(name: str) -> str:
    """The path of a lock's page."""
    return f"/locks/{quote(name, safe='')}"


def text_of(body: bytes) -> str:
    """What a reader sees of a page, in one line."""
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", body.decode())).split())


def test_the_owner_is_with_the_lease_and_wherever_its_holder_is(world: World, leases: LeaseClient) -> None:
    name = fresh_name()
    lease = leases.lease(name, owner=OWNER, headers={"X-Request-Id": "r-1"})
    assert (lease["owner"], lease["mode"]) == (OWNER, "exclusive")
    extended = leases.extend(name, lease["lease_id"]).json
    assert (extended["owner"], extended["mode"]) == (OWNER, "exclusive")

    shown = leases.show(name).json["holder"]
    assert (shown["owner"], shown["request_id"]) == (OWNER, "r-1")
    assert problem(leases.ask(name, owner="another"), "lock-busy")["holder"] == shown
    with in_background() as start:
        waiting = start(leases.lease, name, wait_ms=LONG_MS, owner="the next one")
        wait_until(lambda: leases.waiters(name) == 1, what="the next one to wait")
        [waiter] = leases.show(name).json["waiting"]
        assert waiter["owner"] == "the next one"
        path = f"/v1/locks?search={quote(name, safe='')}"

        def listed() -> bool:
            rows = world.api.get(path, user=1, scope="monitor").json["locks"]
            return [row["holder"] for row in rows] == [shown]

        wait_until(listed, what="the list to name it")
        forced = world.api.post(
            f"/v1/locks/{quote(name, safe='')}/force-release",
            user=1,
            scope="operator",
            send={"reason": "it hangs", "fencing_token": lease["fencing_token"]},
        )
        assert forced.json["holder"] == shown
        assert waiting.result()["owner"] == "the next one"
    [(audited,)] = world.rows.run("SELECT holder FROM lock_audit WHERE lock_name = %s", name)
    assert audited == f"{shown['instance']} {shown['host']} {shown['pid']} r-1, over HTTP, owner {OWNER}"


def test_without_an_owner_it_is_null(leases: LeaseClient) -> None:
    name = fresh_name()
    lease = leases.lease(name)
    assert (lease["owner"], leases.show(name).json["holder"]["owner"]) == (None, None)
    assert leases.extend(name, lease["lease_id"]).json["owner"] is None
    assert leases.ask(fresh_name(), owner=None).status == 201


def test_asked_again_with_the_same_lease_id_the_first_owner_stays(leases: LeaseClient) -> None:
    name, lease_id = fresh_name(), uuid.uuid4().hex
    first = leases.ask(name, lease_id=lease_id, owner=OWNER)
    again = leases.ask(name, lease_id=lease_id, owner="another")
    assert (first.status, again.status) == (201, 200)
    assert (first.json["owner"], again.json["owner"]) == (OWNER, OWNER)
    assert leases.show(name).json["holder"]["owner"] == OWNER


@pytest.mark.parametrize("owner", ["", "  ", "x" * 201, "a\nb", "\x1b[31m", "evil\u202etxt", 7, ["a"], {}], ids=ascii)
def test_an_owner_that_could_not_be_shown_is_refused_by_name(leases: LeaseClient, owner: object) -> None:
    name = fresh_name()
    refused = problem(leases.ask(name, owner=owner), "invalid-request")
    assert "owner" in refused["detail"]
    assert leases.show(name).code == "lock-free"


def test_only_the_mode_that_there_is_is_accepted(world: World) -> None:
    def ask(mode: object) -> int:
        body = {"ttl_ms": 1000, "mode": mode}
        return world.api.post(leases_of(fresh_name()), user=USER, scope="locks", send=body).status

    assert (ask("exclusive"), ask("shared"), ask(None)) == (201, 400, 400)


def test_the_page_says_who_holds_it_and_what_a_forced_release_means_to_whom(
    world: World, leases: LeaseClient, tmp_path: Path
) -> None:
    named, unnamed, program, ours = (f"{fresh_name()}/{each}" for each in ("named", "unnamed", "program", "ours"))
    leases.lease(named, owner=OWNER)
    leases.lease(unnamed)
    operator = Page(world.api, "operator")
    with redis.Redis.from_url(world.redis_url) as client:
        assert redis_lock.Lock(client, f"{{{program}}}", expire=60).acquire()
    with LockProcess.start(world.redis_url, tmp_path, instance_id="the-holder") as holder:
        holder.wait_for(holder.hold(ours, lease_ttl_s=60.0), "acquired")
        means = {
            named: (f"“{OWNER}” over HTTP, kept by ", NOT_TOLD),
            unnamed: ("a client over HTTP, kept by ", NOT_TOLD),
            program: ("a python-redis-lock program", "The program is not told: it works on as if it held the lock."),
            ours: ("the-holder (host ", "Its process is told at once, and its work under the lock is cancelled."),
        }
        for name, (who, told) in means.items():
            form = text_of(operator.get(f"{page_of(name)}/force-release").body)
            assert f"It is held by {who}" in form, name
            assert told in form
            button = unescape(operator.get(page_of(name)).body.decode())
            assert f'data-holder="{who}' in button, name
            assert f'data-told="{told}' in button
            assert "body is cancelled" not in text_of(operator.get(f"{page_of(name)}?done=released").body)
    shown = text_of(operator.get(page_of(named)).body)
    assert f"Owner {OWNER} over HTTP Kept by " in shown
    search = quote(named, safe="")
    wait_until(
        lambda: f"{OWNER} over HTTP, kept by " in text_of(operator.get(f"/locks?search={search}").body),
        what="the list to name the owner",
    )


def test_the_exports_of_locks_have_their_holders(world: World, leases: LeaseClient) -> None:
    resource = f"test-{uuid.uuid4().hex[:12]}"
    formula = '=HYPERLINK("http://elsewhere.example")'
    owners = {f"{resource}:1": formula, f"{resource}:2": None, f"{resource}:3": OWNER}
    for name, owner in owners.items():
        leases.lease(name, owner=owner, headers={"X-Request-Id": f"request-{name[-1]}"})
    monitor = Page(world.api, "monitor")

    def exported(kind: str) -> list[dict[str, Any]]:
        """The rows; each worker reads what was told for itself, so one may know of it a moment later than another."""
        told: list[list[dict[str, Any]]] = []

        def has_all() -> bool:
            body = monitor.get(f"/exports/locks.{kind}?search={resource}&sort=name").body.decode()
            told.append(json.loads(body) if kind == "json" else list(csv.DictReader(io.StringIO(body))))
            return len(told[-1]) == len(owners)

        wait_until(has_all, what="all of them to be told of")
        return told[-1]

    for told, written in zip(exported("json"), exported("csv"), strict=True):
        holder = leases.show(told["name"]).json["holder"]
        assert {column: told[column] for column in holder} == holder
        assert (holder["owner"], told["kind"]) == (owners[told["name"]], "client")
        for column in ("name", "instance", "host", "pid", "request_id", "kind"):
            assert written[column] == str(told[column]) != "", column
    assert [row["owner"] for row in exported("csv")] == [f"'{formula}", "", OWNER]


def test_past_holds_keep_the_owner(world: World, leases: LeaseClient) -> None:
    name = fresh_name()
    leases.lease(name, ttl_ms=100, owner="<b>evil</b>")
    monitor = Page(world.api, "monitor")
    export = f"/exports/lock.json?name={quote(name, safe='')}"
    wait_until(lambda: bool(monitor.get(export).json), what="its end to be told")

    assert [(row["owner"], row["end"]) for row in monitor.get(export).json] == [("<b>evil</b>", "lost:expired")]
    page = monitor.get(page_of(name)).body.decode()
    assert "&lt;b&gt;evil&lt;/b&gt;" in page
    assert "<b>evil" not in page
    assert "owner<b>evil</b>" in "".join(text_of(monitor.get("/incidents").body).split())  # it may break anywhere


def test_the_terminal_names_the_owner_and_says_what_a_release_meant(
    world: World, environment: Mapping[str, str], leases: LeaseClient
) -> None:
    name = fresh_name()
    lease = leases.lease(name, owner=OWNER, headers={"X-Request-Id": "r-1"})
    holder = leases.show(name).json["holder"]
    words = (
        f"“{OWNER}” over HTTP, kept by {holder['instance']} (host {holder['host']}, pid {holder['pid']}, request r-1)"
    )
    with in_background() as start:
        waiting = start(leases.lease, name, wait_ms=LONG_MS, owner="the next one")
        wait_until(lambda: leases.waiters(name) == 1, what="the next one to wait")
        shown = run_cli("locks", "show", name, environment=environment)
        assert shown.stdout.splitlines()[0] == f"{name} is held by {words}"
        assert "  1. “the next one”, " in shown.stdout
        as_json = run_cli("locks", "show", name, "--json", environment={**environment, "PYTHONIOENCODING": "ascii"})
        assert json.loads(as_json.stdout)["holder"] == holder
        plain = run_cli("locks", "show", name, environment={**environment, "PYTHONIOENCODING": "ascii"})
        assert "nightly import (\\u65e5\\u672c), 100 %" in plain.stdout, "letters that a terminal has not stop nobody"

        def listed() -> bool:
            table = run_cli("locks", "list", "--search", name, environment=environment).stdout
            return any(row.split("\t")[1] == words for row in table.splitlines())

        wait_until(listed, what="the list to name it")
        token = str(lease["fencing_token"])
        released = run_cli("locks", "release", name, "--reason", "it hangs", environment=environment)
        assert f"{name} is held by {words}, for " in released.stdout
        assert NOT_TOLD in released.stdout
        assert token in released.stdout
        assert waiting.result()["owner"] == "the next one"
