"""The history of a run: one JSON line an event, from every process into one file, on one clock."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import orjson

Event = dict[str, Any]

ROWS_PER_LINE = 5000


def now_ns() -> int:
    """CLOCK_MONOTONIC in nanoseconds: the same for all processes of a machine, so that overlap is measured."""
    return time.monotonic_ns()


class History:
    """Appends events. Each is one write(2), so that what was written stays when its process is killed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def write(self, e: str, t: int | None = None, **fields: Any) -> int:
        """Writes an event of kind `e`, as of `t` (ns; None: now); returns its time."""
        at = now_ns() if t is None else t
        os.write(self._fd, orjson.dumps({"e": e, "t": at, **fields}, option=orjson.OPT_APPEND_NEWLINE))
        return at

    def write_rows(self, table: str, columns: list[str], rows: list[tuple[Any, ...]]) -> None:
        """Writes a table's rows, some thousands a line."""
        for first in range(0, max(1, len(rows)), ROWS_PER_LINE):
            self.write("rows", table=table, columns=columns, rows=rows[first : first + ROWS_PER_LINE])

    def close(self) -> None:
        """Closes the file."""
        os.close(self._fd)


def read_history(path: Path) -> list[Event]:
    """Every event in the order of time. Raises ValueError for a line that is none, with its number.

    The last line may be cut off where the machine went down, and is left out then.
    """
    with path.open("rb") as lines:
        return in_order(_events(lines.read().split(b"\n")))


def in_order(events: Iterable[Event]) -> list[Event]:
    """The events by time; those of the same moment stay as they were written."""
    return sorted(events, key=lambda event: event["t"])


def _events(lines: list[bytes]) -> Iterable[Event]:
    last = len(lines)
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            event = orjson.loads(line)
            if not (isinstance(event, dict) and isinstance(event.get("e"), str) and isinstance(event.get("t"), int)):
                raise ValueError("an event has a kind `e` and a time `t`")
        except ValueError as error:
            if number == last:
                return
            raise ValueError(f"line {number} is no event: {error}") from error
        yield event
