"""Leases over HTTP: each connection acquires one new lock after the other, and releases it at once."""

from __future__ import annotations

import itertools

from .connection import NO_CONTENT, Connection
from .load import Load

TAKEN = b"201"
BODY = b'{"ttl_ms":10000}'


class LeaseLoad(Load):
    """Each wanted answer is a release; its latency began with the acquire. `head`: Host, and an access token."""

    def __init__(self, head: bytes) -> None:
        super().__init__((), {NO_CONTENT})
        self._head = head
        self._tail_of_acquire = b"%bContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (
            head,
            len(BODY),
            BODY,
        )
        self._numbers = itertools.count()
        self._paths: dict[Connection, bytes] = {}

    def answered(self, connection: Connection, answer: bytes) -> None:
        """A lease is released as soon as it is there."""
        status, _, lease_id = answer.partition(b" ")
        if status == TAKEN:
            self.answers[TAKEN] += 1
            connection.send(b"DELETE %b/%b HTTP/1.1\r\n%b\r\n" % (self._paths[connection], lease_id, self._head))
        else:
            super().answered(connection, answer)

    def next_request(self, connection: Connection) -> bytes:
        """An acquire of a name of its own."""
        path = self._paths[connection] = b"/v1/locks/bench%%3A%d/leases" % next(self._numbers)
        return b"POST %b HTTP/1.1\r\n%b" % (path, self._tail_of_acquire)
