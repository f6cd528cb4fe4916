"""A charging queue on a real Postgres, for the tests that look at what it does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from db.charging import Charges
from db.database import DatabaseLimits
from db.decisions import ChargeRequest
from db.events import Listener, ignore
from locks import Lease
from locks.clock import SYSTEM
from service.charging import Charging
from service.pending_charge import PendingCharge, TimedEntry
from service.shares import Limit
from tests.harness import PATIENCE_S, Rows, wait_until_async
from tests.integration.charging_helpers import ANN, BOB, ENTRANT_PAYS

# At what a run counts: a queue that has answered, a caller who has heard it.
OnEntries = Callable[[Sequence[TimedEntry]], None]


@dataclass
class Bench:
    """A charging queue, and what it did."""

    charging: Charging
    charges: Charges
    places: Limit
    batch_sizes: list[int] = field(default_factory=list)
    entered: list[list[TimedEntry]] = field(default_factory=list)

    def enter(self, appointment_id: int, user_id: int = ANN, lease: Lease | None = None) -> asyncio.Task[TimedEntry]:
        """A caller who has submitted by now, and awaits."""
        return listening(self.charging.submit(ChargeRequest(appointment_id, user_id), lease, guarded_by="lock"))

    def enter_again(self, appointment_id: int, user_id: int = ANN) -> asyncio.Task[TimedEntry]:
        """The same, for what is charged."""
        again = ChargeRequest(appointment_id, user_id)
        return listening(self.charging.enter_again(again, lock_wait_s=0.0, guarded_by="is_consume"))

    async def batches(self, count: int) -> None:
        """Returns once so many transactions have begun."""

        async def enough() -> bool:
            return len(self.batch_sizes) >= count

        await wait_until_async(enough, what=f"{count} batches")


OpenBench = Callable[..., Bench]


@asynccontextmanager
async def benches(database_url: str, rows: Rows) -> AsyncIterator[OpenBench]:
    """Makes queues: open_bench(lanes=1, listener=..., url=...); ANN has a thousand coupons."""
    rows.grant(ANN, 1000)
    opened: list[Bench] = []

    def open_one(
        *,
        lanes: int = 1,
        solo_lanes: int = 1,
        repeat_lanes: int = 1,
        batch_size: int = 64,
        places: int = 1000,
        caller_share: float = 1.0,
        timeout_s: float = PATIENCE_S,
        statement_timeout_s: float = PATIENCE_S,
        row_lock_timeout_s: float = PATIENCE_S,
        listener: Listener = ignore,
        on_entries: OnEntries = lambda entered: None,
        url: str = database_url,
    ) -> Bench:
        limits = DatabaseLimits(
            statement_timeout_s=statement_timeout_s,
            row_lock_timeout_s=row_lock_timeout_s,
            idle_in_transaction_timeout_s=PATIENCE_S,
        )
        charges = Charges(url, ENTRANT_PAYS, limits=limits, settle_within_s=0.3, listener=listener)
        sizes: list[int] = []
        entered: list[list[TimedEntry]] = []

        def count(some: Sequence[TimedEntry]) -> None:
            entered.append(list(some))
            on_entries(some)

        limit = Limit("charges", places, caller_share=caller_share)
        charging = Charging(
            charges,
            lanes=lanes,
            solo_lanes=solo_lanes,
            repeat_lanes=repeat_lanes,
            batch_size=batch_size,
            places=limit,
            timeout_s=timeout_s,
            on_batch=sizes.append,
            on_entries=count,
        )
        opened.append(Bench(charging, charges, limit, sizes, entered))
        return opened[-1]

    yield open_one
    for bench in opened:
        await bench.charging.close()
        assert bench.places._by_caller == {}, "whatever became of a charge, it has left its place"


def listening(charge: PendingCharge) -> asyncio.Task[TimedEntry]:
    """A caller who awaits it."""

    async def awaited() -> TimedEntry:
        return await charge

    return asyncio.create_task(awaited())


def meetings(rows: Rows, count: int) -> list[int]:
    """New appointments of ANN and BOB."""
    return [rows.appointment(ANN, BOB) for _ in range(count)]


class NoKeeper:
    """A lease that nobody extends, releases or finishes."""

    clock = SYSTEM

    async def extend(self, lease: Lease, lease_ttl_s: float) -> None:
        raise NotImplementedError

    async def release(self, lease: Lease) -> bool:
        raise NotImplementedError

    def finish(self, lease: Lease) -> None:
        raise NotImplementedError

    def export(self, lease: Lease) -> str:
        raise NotImplementedError


def lease_for(lease_ttl_s: float, *, waited_s: float = 0.0) -> Lease:
    """A lease that was granted just now."""
    return Lease(
        NoKeeper(),
        "test",
        "id",
        fencing_token=1,
        lease_ttl_s=lease_ttl_s,
        sent_at_s=time.monotonic(),
        waited_s=waited_s,
        stood_in_line=False,
        keep_extended=False,
        for_whom="",
    )
