"""Which server is the master, as the Sentinels see it."""

from __future__ import annotations

import contextlib
from collections import Counter

from locks.address import Address, Sentinels
from locks.asking import answers_of
from locks.clock import Clock
from locks.dialing import Names
from locks.errors import LockStoreDown
from locks.link import ask_once


class Master:
    """Whom the Sentinels name."""

    def __init__(self, place: Sentinels, names: Names, *, timeout_s: float, clock: Clock) -> None:
        self._place = place
        self._names = names
        self._timeout_s = timeout_s
        self._clock = clock

    async def locate(self) -> Address:
        """Where most of those who answer soon see the master: one that is cut off may name an old one for long."""
        ((place, _),) = (await self._named()).most_common(1)
        return self._place.data.at(*place)

    async def has_moved(self, connected: Address) -> bool:
        """Whether more than half of all Sentinels name another master, which may be so while the old one lives."""
        ((place, count),) = (await self._named()).most_common(1)
        return place != (connected.host, connected.port) and count * 2 > len(self._place.sentinels)

    async def _named(self) -> Counter[tuple[str, int]]:
        """Each host and port that is named, by how many. Raises LockStoreDown where none is."""
        named: Counter[tuple[str, int]] = Counter()
        async with contextlib.aclosing(answers_of(self._asked(each) for each in self._place.sentinels)) as answers:
            async for place in answers:
                named[place] += 1
                if named[place] * 2 > len(self._place.sentinels):
                    break
        return named

    async def _asked(self, sentinel: Address) -> tuple[str, int]:
        service = self._place.service
        question = ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", service)
        reply = await ask_once(
            sentinel, *question, command_timeout_s=self._timeout_s, clock=self._clock, names=self._names
        )
        if not isinstance(reply, list):
            raise LockStoreDown(f"Sentinel at {sentinel.host}:{sentinel.port} knows no {service!r}: {reply}")
        host, port = reply
        return host.decode(), int(port)
