"""Callers take turns at a bounded number of places: one who asks for much waits for it, and nobody else does."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque


class Turns:
    """Places, and who waits for one: each caller's in their order, a caller after the other. For one event loop."""

    def __init__(self, places: int) -> None:
        self._places = self._free = places
        # Only callers who wait, the next one first; an OrderedDict, as a plain dict walks over all it has deleted.
        self._waiting: OrderedDict[int, deque[asyncio.Future[None]]] = OrderedDict()

    @property
    def taken_count(self) -> int:
        """How many places are taken."""
        return self._places - self._free

    @property
    def waiting_count(self) -> int:
        """How many wait for a place."""
        return sum(map(len, self._waiting.values()))

    async def take(self, caller: int, *, wait_s: float) -> None:
        """Takes a place, which is to be given back. Raises TimeoutError; whoever is cancelled has none either."""
        if self._free:  # then nobody waits
            self._free -= 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(caller, deque()).append(turn)
        try:
            await asyncio.wait([turn], timeout=wait_s)
        except asyncio.CancelledError:
            if turn.done():  # in the same moment
                self.give_back()
            else:
                self._forget(caller, turn)
            raise
        if not turn.done():
            self._forget(caller, turn)
            raise TimeoutError(f"no turn within {wait_s:g} s")

    def give_back(self) -> None:
        """The place is whose turn it is, or free."""
        if not self._waiting:
            self._free += 1
            return
        caller, turns = self._waiting.popitem(last=False)
        turns.popleft().set_result(None)
        if turns:
            self._waiting[caller] = turns  # behind all others

    def _forget(self, caller: int, turn: asyncio.Future[None]) -> None:
        turns = self._waiting[caller]
        turns.remove(turn)
        if not turns:
            del self._waiting[caller]
