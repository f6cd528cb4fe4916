"""What people see while a crowd waits: numbers that count who waits now, and a sentence that says because of whom."""

from __future__ import annotations

import asyncio
import html
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import aiohttp
import pytest

from tests.contract.api import held_row, in_background, waits_for_row
from tests.contract.conftest import World, a_world_apart
from tests.contract.conftest import module_database_url as module_database_url
from tests.contract.page import Page, lease, next_message
from tests.harness import bearer, wait_until

CROWD = 300
LOCK = "jobs:nightly/7"
PATH = "/v1/locks/jobs%3Anightly%2F7"
LEASES, LOCK_PAGE = f"{PATH}/leases", "/dashboard/locks/jobs%3Anightly%2F7"
HELD_MS = 60_000
LEAST_S = 2.0
# An instance tells once a second; whoever reads may hear of it so much later.
TOLD_LATE_S = 1.5


@pytest.fixture(scope="module")
def world(module_database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A service with a Valkey of its own, whose entries are patient."""
    settings = {
        "max_lease_waits": str(2 * CROWD),
        "lock_wait_s": "40",
        "row_lock_timeout_s": "40",
        "statement_timeout_s": "40",
        "charge_timeout_s": "50",
    }
    with a_world_apart(tmp_path_factory.mktemp("load"), module_database_url, settings) as world:
        yield world


def contention(world: World) -> Any:
    """GET /v1/contention."""
    answer = world.api.get("/v1/contention", user=1, scope="monitor")
    assert answer.status == 200, answer
    return answer.json


def story(page: str) -> str:
    """The sentence on top, with its links."""
    found = re.search(r'id="story">(.*?)</div>', page, re.DOTALL)
    assert found, page
    return " ".join(html.unescape(found[1]).split())


def tile(page: str, name: str) -> str:
    """What a tile says."""
    found = re.search(rf'id="tile-{name}">(.*?)</div>', page, re.DOTALL)
    assert found, page
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", found[1])).split())


@contextmanager
def crowd(world: World) -> Iterator[None]:
    """So many wait for the lock, each a caller of its own and for as long as it may, until the block's end."""

    async def wait(client: aiohttp.ClientSession, user_id: int) -> None:
        send = {"ttl_ms": HELD_MS, "wait_ms": HELD_MS}
        async with client.post(LEASES, json=send, headers=bearer(user_id, "locks")) as answer:
            await answer.read()

    async def all_of_them() -> None:
        connector, timeout = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(None)
        async with aiohttp.ClientSession(world.api.url, connector=connector, timeout=timeout) as client:
            await asyncio.gather(*[wait(client, 1000 + number) for number in range(CROWD)])

    with asyncio.Runner() as runner, in_background() as start:
        loop = runner.get_loop()
        waiting = loop.create_task(all_of_them())
        start(lambda: loop.run_until_complete(asyncio.wait([waiting])))
        try:
            wait_until(lambda: contention(world)["waiting"] == CROWD, what="the crowd")
            yield
        finally:
            loop.call_soon_threadsafe(waiting.cancel)


def test_a_crowd_that_waits_is_in_every_number_and_in_the_sentence(world: World) -> None:
    held = lease(world.api, LOCK, ttl_ms=HELD_MS, headers={"X-Request-Id": "nightly-1"})
    holder = world.api.get(PATH, user=1, scope="monitor").json["holder"]
    monitor, began_at_s = Page(world.api, "monitor"), time.monotonic()
    with crowd(world):
        came_within_s, seen = time.monotonic() - began_at_s, list[Any]()

        def has_lasted() -> bool:
            seen[:] = [contention(world)]
            lasted_ms = (came_within_s + TOLD_LATE_S + LEAST_S) * 1000
            is_fresh = all(each["age_ms"] < TOLD_LATE_S * 1000 for each in seen[0]["instances"])
            return is_fresh and seen[0]["waiting"] == CROWD and seen[0]["oldest_wait_ms"] >= lasted_ms

        wait_until(has_lasted)
        (now,) = seen
        assert now["contention_ratio"] > 0.9
        assert now["wait"]["count"] >= CROWD
        assert now["wait"]["p50_ms"] >= LEAST_S * 1000
        assert now["wait"]["p99_ms"] <= 1.5 * now["oldest_wait_ms"]
        hottest = now["hottest"][0]
        assert (hottest["name"], hottest["waits"], hottest["waiting"]) == (LOCK, CROWD, CROWD)
        assert hottest["oldest_wait_ms"] == now["oldest_wait_ms"] == round(hottest["longest_wait_ms"])
        assert hottest["total_wait_ms"] >= CROWD * LEAST_S * 1000

        page = monitor.get("").body.decode()
        said = story(page)
        assert re.search(rf"{CROWD} callers wait for {LOCK}, the first for [\d.]+ s: ", said)
        who = re.escape(f"{holder['instance']} (host {holder['host']}, pid {holder['pid']}, request nightly-1)")
        assert re.search(f": a client over HTTP, kept by {who} has held it for ", said)
        assert f'href="{LOCK_PAGE}"' in said
        assert "force-release" not in said  # a monitor may not
        assert tile(page, "health").startswith("Health ill")
        for name in ("p50", "p99"):
            assert re.search(r"≤ [\d.]+ s", tile(page, name))
        assert "Contention 0 %" not in tile(page, "contention")
        with Page(world.api, "operator").stream("overview") as stream:
            assert f'href="{LOCK_PAGE}/force-release"' in next_message(stream)
        assert f'id="hot-{LOCK}"' in monitor.get("/hot").body.decode()
        wait_until(lambda: 'class="cell' in monitor.get("/heatmap?range=1h").body.decode(), what="a cell of the minute")

    released = world.api.call("DELETE", f"{LEASES}/{held['lease_id']}", user=5, scope="locks")
    assert released.status == 204, released
    wait_until(lambda: "All is well" in story(monitor.get("").body.decode()))
    wait_until(lambda: contention(world)["waiting"] == 0)
    after = contention(world)
    assert after["contention_ratio"] <= 1.0
    assert after["wait"]["count"] < 2 * CROWD  # who waited is counted once


def test_somebody_elses_transaction_that_has_the_row_is_in_the_sentence(world: World) -> None:
    id_, inviter, invitee = world.meeting()
    with held_row(world.database_url, id_) as let_go, in_background() as start:
        entries = [start(world.api.enter, id_, inviter)]
        wait_until(lambda: waits_for_row(world.rows))
        entries += [start(world.api.enter, id_, invitee) for _ in range(3)]

        def said() -> bool:
            text = story(Page(world.api, "monitor").get("").body.decode())
            return bool(
                re.search(
                    rf"3 callers wait for appointment:{id_}, .*; in Postgres a transaction of .* has its row", text
                )
            )

        wait_until(said)
        let_go()
        assert sorted(answer.result().status for answer in entries) == [200, 200, 200, 201]
