"""How much of one limited thing may be had at once in this process: by all together, and by each caller."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from service.refusals import Overloaded, TooManyRequests

# No users' ids: whoever is not known, or only by a code; and what the service asks by itself, or for all who look.
ANYONE: Final = 0
OURSELVES: Final = -1


class Limit:
    """So many places in all, of which one caller may have a share, and at least one."""

    def __init__(self, things: str, most: int, *, caller_share: float) -> None:
        """`things`: what has the places, in the plural."""
        self._things = things
        self._most = most
        self._callers_most = callers_most(most, caller_share)
        self._count = 0
        self._by_caller: dict[int, int] = {}  # only of those who have a place

    def enter(self, user_id: int) -> None:
        """Takes a place. Raises Overloaded where there is none, TooManyRequests where this caller has their share."""
        if self._count >= self._most:
            raise Overloaded(f"{self._count} {self._things} are under way already")
        callers = self._by_caller.get(user_id, 0)
        if callers >= self._callers_most:
            raise TooManyRequests(f"{callers} {self._things} of yours are under way: one caller may have no more")
        self._count += 1
        self._by_caller[user_id] = callers + 1

    def leave(self, user_id: int) -> None:
        """Gives a place back."""
        self._count -= 1
        callers = self._by_caller[user_id] - 1
        if callers:
            self._by_caller[user_id] = callers
        else:
            del self._by_caller[user_id]

    @contextmanager
    def place(self, user_id: int) -> Iterator[None]:
        """A place for as long as the block takes. Raises as enter()."""
        self.enter(user_id)
        try:
            yield
        finally:
            self.leave(user_id)


def callers_most(most: int, caller_share: float) -> int:
    """How many of `most` one caller may have."""
    return max(1, int(most * caller_share))
