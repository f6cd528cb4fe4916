"""One connection, as the server knows it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence


class Client:
    """`push` gets what the server sends unasked, and the end of what blocked; it only takes note of it."""

    __slots__ = ("blocked_on", "caching", "channels", "number", "push", "redirect", "timeout_ms", "tracks", "waiting")

    def __init__(self, number: int, push: Callable[[bytes], None]) -> None:
        self.number = number
        self.push = push
        self.channels: dict[bytes, None] = {}
        self.tracks = self.caching = False
        self.redirect = 0
        self.blocked_on: Sequence[bytes] = ()
        self.timeout_ms: float = math.inf
        self.waiting: list[list[bytes]] = []  # commands that came while it was blocked
