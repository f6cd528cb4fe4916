"""What the tests of the charging transaction share: charges on real connections, rows that others hold, what breaks."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import TypeVar

import psycopg2

from db.charging import Charges, Entry, Verdict
from db.database import DatabaseLimits
from db.decisions import Outcome, Payer, Refusal, Rules
from db.events import ChargeEvent, Listener, ignore
from service.charging import Charging
from service.shares import Limit
from tests.harness import PATIENCE_S, Rows, wait_until_async
from tests.proxy import Proxy, postgres_proxy

Result = TypeVar("Result")

ANN, BOB, EVE = 11, 22, 66
ENTRANT_PAYS = Rules(Payer.ENTRANT, default_price=1)
OURS = "application_name = 'chargeonce' AND datname = current_database()"

# They wait as long as a crowd on two processors takes.
PATIENT = DatabaseLimits(
    connect_timeout_s=PATIENCE_S,
    statement_timeout_s=PATIENCE_S,
    row_lock_timeout_s=PATIENCE_S,
    idle_in_transaction_timeout_s=PATIENCE_S,
)


def patient_charges(database_url: str, *, rules: Rules = ENTRANT_PAYS, listener: Listener = ignore) -> closing[Charges]:
    """Charges for `with`, that wait as long as it takes."""
    return closing(Charges(database_url, rules, limits=PATIENT, listener=listener))


def one_lane(charges: Charges, *, batch_size: int = 64, max_waiting: int = 1000) -> Charging:
    """The queues before them, of which each has one lane; nobody listens. For one event loop."""
    return Charging(
        charges,
        lanes=1,
        solo_lanes=1,
        repeat_lanes=1,
        batch_size=batch_size,
        places=Limit("charges", max_waiting, caller_share=1.0),
        timeout_s=PATIENCE_S,
        on_batch=lambda size: None,
        on_entries=lambda entries: None,
    )


@contextmanager
def proxied_charges(
    database_url: str,
    *,
    limits: DatabaseLimits = PATIENT,
    settle_within_s: float = PATIENCE_S,
    listener: Listener = ignore,
) -> Iterator[tuple[Proxy, Charges]]:
    """Charges that reach the database through a proxy."""
    proxy, url = postgres_proxy(database_url)
    charges = Charges(url, ENTRANT_PAYS, limits=limits, settle_within_s=settle_within_s, listener=listener)
    with proxy, closing(charges):
        yield proxy, charges


def in_own_loop(database_url: str, work: Callable[[Charges], Awaitable[Result]], *, listener: Listener) -> Result:
    """Work for a thread of its own, whose listener may block: it stops nobody else's event loop."""

    async def run() -> Result:
        with patient_charges(database_url, listener=listener) as charges:
            return await work(charges)

    return asyncio.run(run())


class Gate:
    """A listener that stops the transaction, and its whole event loop, at an event until it is opened."""

    def __init__(self, event_type: type) -> None:
        self._event_type = event_type
        self.reached = threading.Event()
        self.open = threading.Event()

    def __call__(self, event: ChargeEvent) -> None:
        if isinstance(event, self._event_type):
            self.reached.set()
            assert self.open.wait(PATIENCE_S)


@contextmanager
def holding(database_url: str, appointment_id: int) -> Iterator[None]:
    """Another session holds the appointment's row."""
    with _locking(database_url, "appointment_info WHERE id = %s", appointment_id):
        yield


@contextmanager
def holding_coupons(database_url: str, user_id: int) -> Iterator[None]:
    """Another session holds the user's coupons, so whoever is to charge this user waits."""
    with _locking(database_url, "user_coupon WHERE user_id = %s", user_id):
        yield


@contextmanager
def _locking(database_url: str, rows: str, value: int) -> Iterator[None]:
    with closing(psycopg2.connect(database_url)) as other:
        other.cursor().execute(f"SELECT 1 FROM {rows} FOR UPDATE", (value,))
        yield
        other.rollback()


async def lock_waiters(rows: Rows, count: int = 1) -> None:
    """Returns once so many sessions of this database wait for a lock."""
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"

    async def enough_wait() -> bool:
        return rows.number(waiting) >= count

    await wait_until_async(enough_wait, what=f"{count} sessions that wait for a lock")


async def happened(event: threading.Event) -> None:
    """Returns once another thread has set it."""
    assert await asyncio.to_thread(event.wait, PATIENCE_S)


def outcomes_of(verdicts: Sequence[Verdict]) -> list[Outcome | type[Refusal]]:
    """What became of each."""
    return [verdict.outcome if isinstance(verdict, Entry) else type(verdict) for verdict in verdicts]


def kill_backends(rows: Rows) -> None:
    """Ends our sessions that are in a transaction, and waits until they are gone."""
    in_transaction = f"state LIKE 'idle in transaction%%' AND {OURS}"
    rows.run(f"SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE {in_transaction}", ())


@contextmanager
def frozen(pid: int) -> Iterator[None]:
    """The session's process does nothing meanwhile, and its connections stay open."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def our_backend(rows: Rows) -> int:
    """The process of the only session that charges."""
    return rows.number(f"SELECT pid FROM pg_stat_activity WHERE {OURS}")


async def session_ends(rows: Rows, pid: int) -> None:
    """Returns once the server has ended the session."""

    async def has_ended() -> bool:
        return not rows.run("SELECT 1 FROM pg_stat_activity WHERE pid = %s", pid)

    await wait_until_async(has_ended, what="the session's end")


def lose_the_flag(rows: Rows, appointment_id: int) -> None:
    """A charge stands in user_consume, and is_consume does not say so."""
    rows.run(
        "INSERT INTO user_consume (appointment_id, user_id, other_user_id, coupon_id, prop_id, count)"
        " VALUES (%s, %s, %s, 1, 1, 1)",
        appointment_id,
        ANN,
        BOB,
    )


def deadlocks(rows: Rows) -> int:
    """How many deadlocks Postgres has ended in this database."""
    rows.run("SELECT pg_stat_force_next_flush()")
    return rows.number("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
