"""The proxy in front of Postgres that keeps a COMMIT back, for as long as a test needs that moment."""

from __future__ import annotations

import threading

from tests.contract.postgres_proxy import HAS_WRITTEN, CommitCut, PostgresProxy


class HoldingProxy(PostgresProxy):
    """Holds the next COMMIT of a session that has written until let_go; the session's others wait behind it."""

    def __init__(self, database_url: str) -> None:
        super().__init__(database_url)
        self._let_go = threading.Event()
        self._hold_next = False
        self.held = threading.Event()

    def hold_next_commit(self) -> None:
        """From now on; `held` is set once one has come."""
        self.held.clear()
        self._let_go.clear()
        self._hold_next = True

    def let_go(self) -> None:
        """The held one goes on to Postgres; harmless without one."""
        self._hold_next = False
        self._let_go.set()

    def close(self) -> None:
        """Ends all of it."""
        self.let_go()
        super().close()

    def cut_now(self, port: int) -> CommitCut | None:
        """Asked before each COMMIT, which waits for the answer."""
        if self._is_to_be_held(port):
            self.held.set()
            self._let_go.wait()
        return super().cut_now(port)

    def _is_to_be_held(self, port: int) -> bool:
        with self._deciding:
            if not self._hold_next or not self._rows.one(HAS_WRITTEN, port):
                return False
            self._hold_next = False
            return True
