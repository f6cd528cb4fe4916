"""What is owed to the server: locks and places in line that it did not take back, until it has or their leases end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from locks.errors import LockStoreDown
from locks.keys import packed_keys
from locks.lease import LONGEST_LEASE_S
from locks.node import Node
from locks.request import Request, Spawn
from locks.store import LockStore

MOST_OWED = 10_000
# So many are sent together; while the server refuses them all, the next so many after a pause.
MOST_AT_ONCE = 64
SHORTEST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 1.0
# A lease may be over so much later than its length says: by a run's turns, and by the server's clock.
SLACK_S = 1.0


class OverAt:
    """When the lease of what is owed is over, so that there is nothing left to give back.

    While the server does not answer no lease is over: a frozen one may carry out later what it was asked before.
    """

    __slots__ = ("_lease_ttl_s", "_over_at_s")

    def __init__(self, lease_ttl_s: float) -> None:
        self._lease_ttl_s = lease_ttl_s
        self._over_at_s: float | None = None

    def failed(self, now_s: float, *, is_answered: bool) -> None:
        """The server has refused to take it back, or has not answered."""
        if not is_answered:
            self._over_at_s = None
        elif self._over_at_s is None:
            self._over_at_s = now_s + self._lease_ttl_s + SLACK_S

    def has_come(self, now_s: float) -> bool:
        """Whether it is over."""
        return self._over_at_s is not None and now_s >= self._over_at_s


class Owed:
    """One lock, or place in line, that is to be given back."""

    __slots__ = ("command", "lease_id", "name", "on_reply", "over_at", "was_kept")

    def __init__(
        self,
        name: str,
        lease_id: str,
        lease_ttl_s: float,
        command: Callable[[Node], str],
        on_reply: Callable[[Any], None],
    ) -> None:
        self.name = name
        self.lease_id = lease_id
        self.command = command
        self.on_reply = on_reply
        self.over_at = OverAt(lease_ttl_s)
        self.was_kept = False


class Returns:
    """Gives back without anybody waiting for it, and again until it is done. For one event loop.

    A give-back is idempotent for its lease id, so once more does no harm. `is_in_use`: whether a lock is held here, or
    waited for, under that id again; then it is not owed any more.
    """

    def __init__(self, store: LockStore, *, is_in_use: Callable[[str, str], bool], spawn: Spawn) -> None:
        self._store = store
        self._clock = store.clock
        self._is_in_use = is_in_use
        self._spawn = spawn
        # By lock and lease id, as a client may choose one for several; what is on its way is not in here.
        self._owed: dict[tuple[str, str], Owed] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._pause_s = SHORTEST_PAUSE_S
        self._not_before_s = 0.0
        self._closed = False

    def __len__(self) -> int:
        return len(self._owed)

    def give_back(self, name: str, lease_id: str, lease_ttl_s: float = LONGEST_LEASE_S) -> None:
        """Releases the lock, or leaves the line; travels behind what was sent before."""
        keys, scripts = packed_keys(name), self._store.scripts
        self.send(name, lease_id, lease_ttl_s, lambda node: scripts.give_back(node, keys, lease_id), lambda reply: None)

    def send(
        self,
        name: str,
        lease_id: str,
        lease_ttl_s: float,
        command: Callable[[Node], str],
        on_reply: Callable[[Any], None],
    ) -> None:
        """Gives back by another command than give_back's; `on_reply` hears what came of it."""
        self._send(Owed(name, lease_id, lease_ttl_s, command, on_reply))

    def go_on(self) -> None:
        """A server is back: what is owed is sent, but where just now it was not taken."""
        if self._clock.monotonic_s() >= self._not_before_s:
            self._send_owed()

    def close(self) -> None:
        """Sends once more what is owed, while there is still a connection."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        owed, self._owed = self._owed, {}
        for each in owed.values():
            self._send(each)

    def _send(self, owed: Owed) -> None:
        def answered(request: Request, reply: Any) -> None:
            self._done(owed, reply)

        def failed(request: Request, error: LockStoreDown) -> None:
            self._keep(owed)

        try:
            node = self._store.node_of(owed.name)
            request = Request(self._store, self._spawn, owed.name, answered, failed)
            request.send(node, owed.command(node))
        except LockStoreDown:
            self._keep(owed)

    def _done(self, owed: Owed, reply: Any) -> None:
        if owed.was_kept:
            self._pause_s, self._not_before_s = SHORTEST_PAUSE_S, 0.0
            self._go_on_in(0.0)
        owed.on_reply(reply)

    def _keep(self, owed: Owed) -> None:
        if self._closed:
            return
        owed.over_at.failed(self._clock.monotonic_s(), is_answered=self._has_connection(owed.name))
        owed.was_kept = True
        self._owed[owed.name, owed.lease_id] = owed
        if len(self._owed) > MOST_OWED:
            del self._owed[next(iter(self._owed))]  # the oldest: its lease is the likeliest to be over
        if self._timer is None:
            self._go_on_in(self._pause_s)

    def _go_on_in(self, wait_s: float) -> None:
        if not self._owed or self._closed:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(wait_s, self._send_owed)

    def _send_owed(self) -> None:
        """As many as go together, in the order in which they were tried last; then a pause, unless one is done."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now_s, sent = self._clock.monotonic_s(), 0
        for key, owed in list(self._owed.items()):
            if self._is_needless(owed, now_s):
                del self._owed[key]
            elif self._has_connection(owed.name):
                del self._owed[key]
                self._send(owed)
                sent += 1
                if sent == MOST_AT_ONCE:
                    break
        if sent:
            self._not_before_s = now_s + self._pause_s
            self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
        # Without a connection there is no hurry: go_on is called when it is back.
        self._go_on_in((self._pause_s if sent else LONGEST_PAUSE_S) * self._clock.uniform(0.5, 1.0))

    def _has_connection(self, name: str) -> bool:
        try:
            return self._store.node_of(name).commands.is_up
        except LockStoreDown:
            return False

    def _is_needless(self, owed: Owed, now_s: float) -> bool:
        return owed.over_at.has_come(now_s) or self._is_in_use(owed.name, owed.lease_id)
