"""Mutants of the order of lock and commit, in a whole instance that is asked over HTTP."""

from __future__ import annotations

import asyncio
import socket

import aiohttp
import pytest

from db.events import ChargeEvent, Committed
from locks.events import Acquired, LockEvent, Releasing
from service.listeners import Listeners
from service.settings import load_settings
from service.workers import serve_instance
from tests.chaos.mutants import MUTANTS
from tests.chaos.mutants.in_child import in_child
from tests.harness import APP_CERTIFICATE, APP_ID, SECRET, Rows, bearer
from tests.integration.charging_helpers import ANN, BOB


async def told_of_one_entry(database_url: str, redis_url: str) -> list[str]:
    """What a whole instance tells of an entry, in order."""
    told: list[str] = []

    def hear(event: LockEvent | ChargeEvent) -> None:
        if isinstance(event, Acquired | Releasing | Committed):
            told.append(type(event).__name__)

    rows = Rows(database_url)
    rows.grant(ANN, 5)
    path = f"/v1/appointments/{rows.appointment(ANN, BOB)}/entries"
    settings = load_settings(
        database_url=database_url,
        redis_url=redis_url,
        jwt_secret=SECRET,
        agora_app_id=APP_ID,
        agora_app_certificate=APP_CERTIFICATE,
        audit_interval_s=0,
    )
    ready, stop = asyncio.Event(), asyncio.Event()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        serving = asyncio.create_task(
            serve_instance(
                settings,
                instance_id="mutant",
                listening=listening,
                until=stop.wait,
                on_ready=ready.set,
                listeners=Listeners(hear, hear),
            )
        )
        await ready.wait()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        async with aiohttp.ClientSession(url) as client, client.post(path, headers=bearer(ANN)) as answer:
            assert answer.status == 201, await answer.text()
        stop.set()
        await serving
    return told


@pytest.mark.parametrize(
    ("name", "told"),
    [
        (None, ["Acquired", "Committed", "Releasing"]),
        ("no-guard", ["Committed"]),
        ("entry-log", ["Committed"]),
        ("release-before-commit", ["Acquired", "Releasing", "Committed"]),
    ],
)
def test_a_whole_instance_holds_the_lock_over_its_commit_and_these_mutants_do_not(
    name: str | None, told: list[str], database_url: str, redis_url: str
) -> None:
    assert in_child(MUTANTS[name] if name else None, told_of_one_entry, database_url, redis_url) == told
