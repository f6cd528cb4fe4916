"""A Postgres that has panicked, or is about to, brought back."""

from __future__ import annotations

import time
from contextlib import closing, suppress

import psycopg2

from service.child_process import EmbeddedError
from tests.chaos.ground import PostgresServer
from tests.harness import PATIENCE_S

CONNECT_WAIT_S = 2
POLL_S = 0.02
STUCK_S = 10.0


def bring_up(postgres: PostgresServer) -> None:
    """Returns once it takes sessions: it recovers by itself, else it is started anew. Raises EmbeddedError."""
    give_up_at_s = time.monotonic() + PATIENCE_S
    stuck_at_s = time.monotonic() + STUCK_S
    while not takes_sessions(postgres):
        if time.monotonic() > give_up_at_s:
            raise EmbeddedError(f"Postgres takes no sessions for {PATIENCE_S:g} s; see {postgres.log}")
        if time.monotonic() > stuck_at_s:
            # A recovery that has met a full disk may stand still although there is room by now.
            postgres.kill()
            stuck_at_s = time.monotonic() + STUCK_S
        with suppress(EmbeddedError):  # it may end again while it starts
            postgres.start()
        time.sleep(POLL_S)


def takes_sessions(postgres: PostgresServer) -> bool:
    """Whether a new session gets an answer."""
    try:
        with closing(psycopg2.connect(postgres.url, connect_timeout=CONNECT_WAIT_S)) as session:
            session.cursor().execute("SELECT 1")
    except psycopg2.OperationalError:
        return False
    return True
