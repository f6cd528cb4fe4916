"""A Postgres that says nothing any more: a charge ends within its limits, and what it says of itself is true."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest

from db.charging import Charges
from db.database import DatabaseLimits
from db.decisions import ChargeRequest, Outcome
from db.errors import CommitUnknown, DatabaseDown
from db.events import ChargeEvent, Committing
from tests.harness import Rows
from tests.integration.charging_helpers import (
    ANN,
    BOB,
    ENTRANT_PAYS,
    frozen,
    our_backend,
    outcomes_of,
    patient_charges,
    proxied_charges,
    session_ends,
)
from tests.proxy import Proxy, Way

# As short as they may be for what goes well on a slow machine.
QUICK = DatabaseLimits(connect_timeout_s=2.0, statement_timeout_s=1.0, row_lock_timeout_s=1.0)
SOON_S = 30.0  # several times what these limits add up to, and far below the patience of whoever waits for ever


@contextmanager
def soon_and_without_threads() -> Iterator[None]:
    """It takes no longer than its limits, and no thread that was not there before."""
    threads, started_at_s = set(threading.enumerate()), time.monotonic()
    yield
    assert time.monotonic() - started_at_s < SOON_S
    assert {thread for thread in threading.enumerate() if not is_the_loops_own(thread)} <= threads


def is_the_loops_own(thread: threading.Thread) -> bool:
    """Of the loop's pool, in which names are looked up, or of a proxy of the test."""
    return thread.name.startswith("asyncio_") or thread.daemon


class SilentAtCommit:
    """A listener: from COMMIT on nothing goes this way, of this connection or of any other."""

    def __init__(self, way: Way) -> None:
        self._way = way
        self.proxy: Proxy | None = None

    def __call__(self, event: ChargeEvent) -> None:
        if isinstance(event, Committing) and self.proxy is not None:
            self.proxy.swallow(self._way)


@pytest.mark.parametrize("way", list(Way))
async def test_silent_before_the_writes_were_sent_it_is_down_and_nothing_is_written(
    database_url: str, rows: Rows, way: Way
) -> None:
    rows.grant(ANN, 5)
    with proxied_charges(database_url, limits=QUICK) as (proxy, charges):
        await charges.charged_among([1])  # so that there is a connection
        proxy.swallow(way)

        with soon_and_without_threads(), pytest.raises(DatabaseDown):
            await charges.charge_batch([ChargeRequest(rows.appointment(ANN, BOB), ANN)])

    assert rows.run("SELECT 1 FROM appointment_action UNION ALL SELECT 1 FROM user_consume") == []
    assert rows.balance(ANN) == 5


@pytest.mark.parametrize("way", list(Way))
async def test_silent_from_the_commit_on_it_is_unknown_and_asking_again_charges_once(
    database_url: str, rows: Rows, way: Way
) -> None:
    rows.grant(ANN, 5)
    request = ChargeRequest(rows.appointment(ANN, BOB), ANN)
    silence = SilentAtCommit(way)
    with proxied_charges(database_url, limits=QUICK, settle_within_s=0.3, listener=silence) as (proxy, charges):
        silence.proxy = proxy

        with soon_and_without_threads(), pytest.raises(CommitUnknown):
            await charges.charge_batch([request])

    with patient_charges(database_url) as charges:
        (again,) = await charges.charge_waiting([request])
    # What never arrived is not there, and what was only not answered is.
    assert outcomes_of([again]) == [Outcome.CHARGED if way is Way.REQUESTS else Outcome.ALREADY_CHARGED]
    assert rows.number("SELECT count(*) FROM user_consume") == 1
    assert rows.balance(ANN) == 4


async def test_a_database_that_speaks_again_in_time_settles_what_was_silent(database_url: str, rows: Rows) -> None:
    rows.grant(ANN, 5)
    silence = SilentAtCommit(Way.REPLIES)
    with proxied_charges(database_url, limits=QUICK, listener=silence) as (proxy, charges):
        silence.proxy = proxy
        timer = threading.Timer(1.5, proxy.let_through, [Way.REPLIES])
        timer.start()
        verdicts = await charges.charge_batch([ChargeRequest(rows.appointment(ANN, BOB), ANN)])
        timer.join()

    assert outcomes_of(verdicts) == [Outcome.CHARGED]
    assert rows.balance(ANN) == 4


async def test_one_frozen_session_costs_its_time_and_a_new_one_does_the_work(database_url: str, rows: Rows) -> None:
    rows.grant(ANN, 5)
    with closing(Charges(database_url, ENTRANT_PAYS, limits=QUICK)) as charges:
        await charges.charged_among([1])
        pid = our_backend(rows)
        with frozen(pid), soon_and_without_threads():
            verdicts = await charges.charge_batch([ChargeRequest(rows.appointment(ANN, BOB), ANN)])
        assert outcomes_of(verdicts) == [Outcome.CHARGED]
        await session_ends(rows, pid)
    assert rows.number("SELECT count(*) FROM appointment_action") == 1
    assert rows.balance(ANN) == 4


async def test_a_session_that_froze_with_its_commit_is_unknown_while_it_holds_its_rows(
    database_url: str, rows: Rows
) -> None:
    """Nothing was written, and yet it may be: the frozen session has the rows, and the command before it."""
    rows.grant(ANN, 5)
    request = ChargeRequest(rows.appointment(ANN, BOB), ANN)
    stopped: list[int] = []

    def freeze(event: ChargeEvent) -> None:
        if isinstance(event, Committing):
            stopped.append(our_backend(rows))
            os.kill(stopped[0], signal.SIGSTOP)

    charges = Charges(database_url, ENTRANT_PAYS, limits=QUICK, settle_within_s=0.5, listener=freeze)
    with closing(charges):
        try:
            with soon_and_without_threads(), pytest.raises(CommitUnknown):
                await charges.charge_batch([request])
            assert len(stopped) == 1
        finally:
            os.kill(stopped[0], signal.SIGCONT)
        await session_ends(rows, stopped[0])

    with patient_charges(database_url) as charges:
        (again,) = await charges.charge_waiting([request])
    # Awake, it did what it had been told.
    assert outcomes_of([again]) in ([Outcome.ALREADY_CHARGED], [Outcome.CHARGED])
    assert rows.number("SELECT count(*) FROM user_consume") == 1
    assert rows.balance(ANN) == 4
