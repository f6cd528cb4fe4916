"""Clients that wait for something in a list."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence

from tests.sim.redis.clients import Client
from tests.sim.redis.keyspace import Keyspace
from tests.sim.redis.lists import pop_first
from tests.sim.redis.resp import NIL_ARRAY, ErrorReply, encoded


class Blocking:
    """Who waits for which list, in the order of their coming."""

    def __init__(self, keys: Keyspace) -> None:
        self._keys = keys
        self._waiting: dict[bytes, dict[int, Client]] = {}

    def blpop(self, client: Client, command: Sequence[bytes]) -> bytes:
        """The first item of the first list that has one; else b"", and the client waits."""
        *names, timeout = command[1:]
        wait_ms = wait_ms_of(timeout)
        for key in names:
            item = pop_first(self._keys, key)
            if item is not None:
                self._keys.changed(key)
                return encoded([key, item])
        client.blocked_on = names
        client.timeout_ms = self._keys.now_ms + wait_ms if wait_ms else math.inf
        for key in names:
            self._waiting.setdefault(key, {})[client.number] = client
        return b""

    def serve(self) -> Iterator[Client]:
        """Each list that has got something gives to those who wait for it, the first first; who has got it is told."""
        keys = self._keys
        while keys.pushed:
            key = keys.pushed.pop(0)
            while (waiting := self._waiting.get(key)) and isinstance(keys.get(key), deque):
                client = next(iter(waiting.values()))
                item = pop_first(keys, key)
                assert item is not None
                if keys.dialect.tells_of_served:
                    keys.changed(key)
                self.drop(client)
                client.push(encoded([key, item]))
                yield client

    def end_late(self) -> Iterator[Client]:
        """Those who have waited long enough are told that there was nothing."""
        every = {number: client for waiting in self._waiting.values() for number, client in waiting.items()}
        late = [client for client in every.values() if self._keys.now_ms > client.timeout_ms]
        for client in sorted(late, key=lambda client: (client.timeout_ms, client.number)):
            self.drop(client)
            client.push(NIL_ARRAY)
            yield client

    def drop(self, client: Client) -> None:
        """The client waits no more."""
        for key in client.blocked_on:
            waiting = self._waiting[key]
            waiting.pop(client.number, None)
            if not waiting:
                del self._waiting[key]
        client.blocked_on, client.timeout_ms = (), math.inf

    def clear(self) -> None:
        """Nobody waits any more, and nobody is told."""
        self._waiting.clear()


def wait_ms_of(timeout: bytes) -> int:
    """The milliseconds of a timeout in seconds; 0 is for ever. Raises ErrorReply."""
    try:
        timeout_s = float(timeout)
    except ValueError:
        raise ErrorReply("ERR timeout is not a float or out of range") from None
    if timeout_s < 0:
        raise ErrorReply("ERR timeout is negative")
    return math.ceil(timeout_s * 1000)
