"""Client tracking: who has read what, and who is told of its next change."""

from __future__ import annotations

from collections.abc import Iterable

from tests.sim.redis.clients import Client
from tests.sim.redis.resp import encoded

CHANNEL = b"__redis__:invalidate"


class Tracking:
    """Tells once of each key that was read after CLIENT CACHING YES, to another client in Pub/Sub mode."""

    def __init__(self, clients: dict[int, Client]) -> None:
        self._clients = clients
        self._watched: dict[bytes, dict[int, None]] = {}
        self._late: list[bytes] = []
        self.current: Client | None = None  # whose command it is; what it changes itself it hears of at its end

    def remember(self, client: Client, keys: Iterable[bytes]) -> None:
        """The client has read them."""
        for key in keys:
            self._watched.setdefault(key, {})[client.number] = None

    def changed(self, key: bytes) -> None:
        """Tells whoever has read it."""
        if not self._watched:
            return
        numbers = self._watched.pop(key, None)
        if numbers is None:
            return
        for number in sorted(numbers, key=_in_memory):
            client = self._clients.get(number)
            if client is None or not client.tracks:
                continue
            if client is self.current:
                self._late.append(key)
            else:
                self._tell(client, [key])

    def tell_late(self) -> None:
        """The current client's own changes."""
        if self._late:
            late, self._late = self._late, []
            assert self.current is not None
            for key in late:
                self._tell(self.current, [key])

    def forget(self) -> None:
        """The table was full: all that is watched is told of as changed."""
        for key in list(self._watched):
            self.changed(key)

    def clear(self) -> None:
        """Nothing is watched any more, and nobody is told."""
        self._watched.clear()

    def flushed(self) -> None:
        """All keys are gone: everybody who tracks is told, whatever was read."""
        self._watched.clear()
        for client in list(self._clients.values()):
            if client.tracks:
                self._tell(client, None)

    def _tell(self, client: Client, keys: list[bytes] | None) -> None:
        to = self._clients.get(client.redirect)
        if to is not None and to.channels:
            to.push(encoded([b"message", CHANNEL, keys]))


def _in_memory(number: int) -> bytes:
    """The server keeps the numbers in a tree by their bytes in memory."""
    return number.to_bytes(8, "little")
