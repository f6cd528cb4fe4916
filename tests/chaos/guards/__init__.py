"""The four guards against a double charge, each behind the same route with the same answers.

`entry-log`, `lock-only` and `row-only` are what a competent developer writes, one statement after another;
`lock-and-row` is the product itself. All of them tell what they do through the product's own events.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable

from service.listeners import NOBODY, Listeners
from service.settings import Settings
from service.workers import serve_instance
from tests.chaos.guards.entry_log import EntryLog
from tests.chaos.guards.lock_only import LockOnly
from tests.chaos.guards.row_only import RowOnly
from tests.chaos.guards.serving import serve

GUARDS = ("entry-log", "lock-only", "row-only", "lock-and-row")

# The origin had no unique key: with it, Postgres would refuse what the guard lets through.
_WITHOUT_UNIQUE_KEY = ("ALTER TABLE user_consume DROP CONSTRAINT user_consume_appointment_id_key",)

# What is to be run on a migrated database before a guard is served on it.
SCHEMA_OF_GUARD: dict[str, tuple[str, ...]] = {
    "entry-log": _WITHOUT_UNIQUE_KEY,
    "lock-only": _WITHOUT_UNIQUE_KEY,
    "row-only": _WITHOUT_UNIQUE_KEY,
    "lock-and-row": (),
}


async def serve_guard(
    guard: str,
    settings: Settings,
    *,
    instance_id: str,
    listening: socket.socket,
    until: Callable[[], Awaitable[object]],
    on_ready: Callable[[], None],
    listeners: Listeners = NOBODY,
) -> None:
    """One instance under this guard; the rest is as for the product's serve_instance. Raises KeyError."""
    serve_it = _SERVE[guard]
    await serve_it(
        settings,
        instance_id=instance_id,
        listening=listening,
        until=until,
        on_ready=on_ready,
        listeners=listeners,
    )


_SERVE: dict[str, Callable[..., Awaitable[None]]] = {
    "entry-log": serve(EntryLog.open),
    "lock-only": serve(LockOnly.open),
    "row-only": serve(RowOnly.open),
    "lock-and-row": serve_instance,
}
