"""Which appointments are charged, as far as this process knows: those need no lock, and is_consume never goes back."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from db.charging import Charges
from db.errors import DatabaseError


class ChargedAppointments:
    """Remembers the newest, `size` at most, and looks in the database for those whose lock is waited for."""

    def __init__(self, charges: Charges, *, size: int, on_found: Callable[[int], None]) -> None:
        self._charges = charges
        self._half = max(1, size // 2)
        self._on_found = on_found
        # Two generations: what has not been heard of while the newer one filled is forgotten with the older one.
        self._newer: set[int] = set()
        self._older: set[int] = set()
        self._asked: set[int] = set()
        self._looking: asyncio.Task[None] | None = None

    def __contains__(self, appointment_id: int) -> bool:
        return appointment_id in self._newer or appointment_id in self._older

    def add(self, appointment_id: int) -> None:
        """It is charged: somebody has read so, or has done it."""
        self._newer.add(appointment_id)
        if len(self._newer) >= self._half:
            self._newer, self._older = set(), self._newer

    def forget(self, appointment_id: int) -> None:
        """It is not charged after all: the database is another one, or an older state of it."""
        self._newer.discard(appointment_id)
        self._older.discard(appointment_id)

    def look(self, appointment_id: int) -> None:
        """Finds out in the background whether it is charged; `on_found` hears of it if so."""
        self._asked.add(appointment_id)
        if self._looking is None:
            self._looking = asyncio.get_running_loop().create_task(self._look(), name="charged-look")

    async def close(self) -> None:
        """Looks no more."""
        if self._looking is not None:
            self._looking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._looking

    async def _look(self) -> None:
        """One question at a time, for all who have come meanwhile."""
        try:
            while self._asked:
                asked, self._asked = self._asked, set()
                with contextlib.suppress(DatabaseError):  # then the lock's own way tells
                    for appointment_id in await self._charges.charged_among(asked):
                        self.add(appointment_id)
                        self._on_found(appointment_id)
        finally:
            self._looking = None
