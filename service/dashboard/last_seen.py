"""What was last seen of each view, shown for as long as a server that it reads from is away."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from service.problems import Problem, problem_of
from service.refusals import Overloaded

# A read that takes longer is as good as none: a page that hears nothing takes this instance for gone.
READ_WAIT_S = 5.0
KEPT_READS = 50  # of one lock with a crowd a read is some 2 MB
SERVERS: Mapping[str, str] = {"lock_store": "Redis", "database": "Postgres"}
_SERVER_OF = {"lock-store-down": "lock_store", "database-down": "database"}

Values = Mapping[str, Any]
Read = Callable[[], Awaitable[Values]]


@dataclass(frozen=True, slots=True)
class Seen:
    """What a view shows. `values`: as they were at `at_s` (unix seconds), None where nothing has been seen yet.

    `problem`: why they are not of now; None where they are. `away`: the servers that do not answer.
    """

    values: Values | None
    at_s: float
    problem: Problem | None
    away: tuple[str, ...]


class LastSeen:
    """Reads, and remembers what it has read. Who is away takes nothing from the page, but that it is of now."""

    def __init__(self, down_since: Callable[[], Mapping[str, float | None]]) -> None:
        """`down_since`: the dependencies that do not answer."""
        self._down_since = down_since
        self._kept: dict[Hashable, Seen] = {}  # the one that was read longest ago first

    async def look(self, key: Hashable, read: Read, *, now_s: float) -> Seen:
        """What is read now, or else what was last read under this key. Raises what `read` does but for an outage."""
        try:
            async with asyncio.timeout(READ_WAIT_S):
                values = await read()
        except Exception as error:
            problem = problem_of(Overloaded() if isinstance(error, TimeoutError) else error)
            if problem.status != HTTPStatus.SERVICE_UNAVAILABLE:
                raise
            kept = self._kept.get(key)
            away = self._away(_SERVER_OF.get(problem.code))
            return Seen(kept.values if kept else None, kept.at_s if kept else now_s, problem, away)
        seen = Seen(values, now_s, None, self._away(None))
        self._kept.pop(key, None)
        self._kept[key] = seen
        while len(self._kept) > KEPT_READS:
            del self._kept[next(iter(self._kept))]
        return seen

    def _away(self, known: str | None) -> tuple[str, ...]:
        """The names of the servers that do not answer: the one that has just not, and those that health knows of."""
        down = self._down_since()
        return tuple(word for name, word in SERVERS.items() if name == known or name in down)
