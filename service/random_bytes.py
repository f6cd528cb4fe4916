"""Random bytes, asked of the system for many users at once: each question costs more than the bytes do."""

from __future__ import annotations

import os

_BYTES_AT_ONCE = 4096


class RandomBytes:
    """Unpredictable bytes of os.urandom, each given out once. For one thread."""

    def __init__(self) -> None:
        self._bytes = b""
        self._at = 0

    def take(self, count: int) -> bytes:
        """The next `count`, at most 4,096."""
        at, end = self._at, self._at + count
        if end > len(self._bytes):
            self._bytes, at, end = os.urandom(_BYTES_AT_ONCE), 0, count
        self._at = end
        return self._bytes[at:end]
