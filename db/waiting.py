"""No wait for Postgres is without an end: its own limits are of no use when it is frozen, or silently out of reach."""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg2
from psycopg2.extensions import POLL_OK, POLL_READ

_this_thread = threading.local()


def wait_for_answer(raw: Any, deadline_s: float) -> None:
    """Blocks until what a connection was asked has come back. Raises psycopg2.Error, also at the deadline."""
    while (state := raw.poll()) != POLL_OK:
        left_s = deadline_s - time.monotonic()
        if left_s <= 0:
            raise psycopg2.OperationalError("no answer from Postgres in time")
        poller = select.poll()  # select() itself ends at file descriptor 1,023
        poller.register(raw.fileno(), select.POLLIN if state == POLL_READ else select.POLLOUT)
        poller.poll(left_s * 1000)


def bound_waits(within_s: float) -> None:
    """From now on no thread of this process waits longer than this for an answer of Postgres.

    psycopg2 has one such callback for all connections of a process; those of db/connection.py see to themselves.
    """
    psycopg2.extensions.set_wait_callback(
        lambda raw: wait_for_answer(raw, time.monotonic() + (getattr(_this_thread, "within_s", None) or within_s))
    )


def bound_waits_of_this_thread(within_s: float) -> None:
    """`bound_waits` for one thread alone, whose work may take longer than that of the others."""
    _this_thread.within_s = within_s


@contextmanager
def waits_bounded(within_s: float) -> Iterator[None]:
    """`bound_waits_of_this_thread` for the block alone. Nothing where the process has not bounded its waits."""
    before = getattr(_this_thread, "within_s", None)
    _this_thread.within_s = within_s
    try:
        yield
    finally:
        _this_thread.within_s = before
