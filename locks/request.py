"""A command whose answer goes to a callback: what is on its way is nobody's to cancel."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import hiredis

from locks.errors import LockStoreDown
from locks.node import Node
from locks.store import LockStore

Spawn = Callable[[Coroutine[Any, Any, None]], None]


class Request:
    """A command whose answer goes to a callback, whatever becomes of whoever wanted it."""

    __slots__ = (
        "_command",
        "_name",
        "_node",
        "_on_error",
        "_on_reply",
        "_spawn",
        "_store",
        "sent_again",
        "sent_at_s",
    )

    def __init__(
        self,
        store: LockStore,
        spawn: Spawn,
        name: str,
        on_reply: Callable[[Request, Any], None],
        on_error: Callable[[Request, LockStoreDown], None],
    ) -> None:
        self._store = store
        self._spawn = spawn
        self._name = name
        self._on_reply = on_reply
        self._on_error = on_error
        self.sent_at_s = 0.0
        self.sent_again = False  # behind what has been sent since, as the server would not carry it out before

    def send(self, node: Node, command: str) -> None:
        """On its way with this tick's others. Raises LockStoreDown at once while there is no connection."""
        self._node = node
        self._command = command
        self.sent_at_s = self._store.clock.monotonic_s()
        node.send(command, self)

    def done(self) -> bool:
        """Never before its answer."""
        return False

    def set_result(self, reply: Any) -> None:
        """The connection's answer; one that is an error is first asked about again where that helps."""
        if reply.__class__ is hiredis.ReplyError:
            self.sent_again = True
            self._spawn(self._settle(reply))
        else:
            self._on_reply(self, reply)

    def set_exception(self, error: LockStoreDown) -> None:
        """The connection was lost."""
        self._on_error(self, error)

    async def _settle(self, error: Any) -> None:
        try:
            reply = await self._store.settle(self._name, self._node, self._command, error)
        except LockStoreDown as down:
            self._on_error(self, down)
        else:
            self._on_reply(self, reply)


class Watch(Request):
    """Reads the lock's holder so as to hear of the next change; only the server that was asked will tell of it."""

    def set_result(self, reply: Any) -> None:
        """The holder. An error ends it: what another server answered would be read, and not watched."""
        if reply.__class__ is hiredis.ReplyError:
            self._on_error(self, LockStoreDown(str(reply)))
        else:
            self._on_reply(self, reply)
