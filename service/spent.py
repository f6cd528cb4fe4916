"""Which sessions are signed out, and which codes used, in all workers and instances: written in Postgres, asked there.

Whoever asks while a look is under way shares the next one, and a look answers for everything that was asked for lately,
so that open pages cost a query or two a second, however many they are.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import OrderedDict
from typing import Final

import structlog

from db.errors import DatabaseDown, DatabaseError
from db.spent_tokens import spend, spent_among
from service.reading import Reading
from service.refusals import Overloaded
from service.shared_task import shared_task
from service.shares import OURSELVES

LOOK_WAIT_S: Final = 1.0  # a page waits no longer for a Postgres that hangs
ASKED_LATELY_S: Final = 3.0
KEPT_SPENT: Final = 10_000

log = structlog.get_logger("chargeonce.sessions")


class SpentTokens:
    """What is spent, by its digest. For one event loop."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self._spent: OrderedDict[bytes, None] = OrderedDict()  # known here, and so also while Postgres is away
        self._asked: dict[bytes, float] = {}
        self._looked: dict[bytes, float] = {}
        self._under_way: asyncio.Task[None] | None = None
        self._next: asyncio.Task[None] | None = None
        self._is_away = False

    async def spend(self, digest: bytes, *, expires_at: float, caller: int) -> bool:
        """Writes that it is spent; True for the one call of all that did. Raises DatabaseError, Overloaded."""
        is_first = await self._reading.write(
            lambda database: spend(database, digest, expires_at=expires_at), caller=caller
        )
        self._remember(digest)
        return is_first

    async def is_spent(self, digest: bytes, *, at_most_s: float) -> bool:
        """Whether it was spent, as of so long ago at most. Raises DatabaseError or Overloaded where nobody can say."""
        if digest not in self._spent:
            now_s = time.monotonic()
            self._asked[digest] = now_s
            if now_s - self._looked.get(digest, -math.inf) >= at_most_s:
                await self._look()
        return digest in self._spent

    async def _look(self) -> None:
        if self._next is None:
            self._next = shared_task(self._look_after(self._under_way), name="spent-tokens")
        try:
            await asyncio.wait_for(asyncio.shield(self._next), LOOK_WAIT_S)
        except TimeoutError as error:
            raise DatabaseDown(f"no answer within {LOOK_WAIT_S:g} s") from error

    async def _look_after(self, other: asyncio.Task[None] | None) -> None:
        """One look at a time: a Postgres that hangs must not take one thread after the other."""
        if other is not None:
            await asyncio.wait([other])
        self._under_way, self._next = self._next, None
        began_at_s = time.monotonic()
        self._asked = {digest: at_s for digest, at_s in self._asked.items() if began_at_s - at_s < ASKED_LATELY_S}
        asked = tuple(self._asked)
        try:
            found = await self._reading.run(lambda database: spent_among(database, asked), caller=OURSELVES)
        except (DatabaseError, Overloaded) as error:
            self._note(error)
            raise
        self._note(None)
        self._looked = dict.fromkeys(asked, began_at_s)
        for digest in found:
            self._remember(digest)

    def _remember(self, digest: bytes) -> None:
        self._spent[digest] = None
        if len(self._spent) > KEPT_SPENT:
            self._spent.popitem(last=False)

    def _note(self, error: Exception | None) -> None:
        """One line when it begins, not one a look."""
        if error is not None and not self._is_away:
            log.warning(
                "cannot look whether sessions are signed out: pages are shown, nothing is forced", reason=str(error)
            )
        self._is_away = error is not None
