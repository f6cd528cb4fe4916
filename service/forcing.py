"""The use case: write down who wants to end whose lease and why, and only then end it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

import structlog

from db import lock_audit
from db.database import Database
from db.errors import CommitUnknown, DatabaseDown, DatabaseError
from locks import HolderChanged, Locker, LockStoreDown, LockView, Party
from service.holder_words import audited_words
from service.refusals import Overloaded
from service.shared_task import shared_task

log = structlog.get_logger("chargeonce")

Result = TypeVar("Result")


class Books(Protocol):
    """Runs short database work off the event loop."""

    async def write(self, work: Callable[[Database], Result], *, caller: int) -> Result:
        """What `work` returns."""


@dataclass(frozen=True, slots=True)
class ForcedRelease:
    """A lease that is over by force. `holder` is None for a python-redis-lock program, which tells nobody who it is."""

    name: str
    fencing_token: int
    holder: Party | None


class HolderGone(HolderChanged):
    """The lease with this fencing token is not the current one, for there is none: nobody holds the lock."""


class Forcing:
    """Ends leases that are not one's own, each with a row in lock_audit."""

    def __init__(self, locker: Locker, books: Books) -> None:
        self._locker = locker
        self._books = books
        self._under_way: set[asyncio.Task[ForcedRelease]] = set()

    async def force_release(
        self, name: str, *, fencing_token: int, reason: str, actor: str, caller: int
    ) -> ForcedRelease:
        """Ends the lease with this token, 0 for a python-redis-lock program's; begun, it is done whoever hangs up.

        `actor`: who it was, as it is written down; `caller`: whose turn at the database it takes.

        Raises HolderChanged when it is not the current one, HolderGone when nobody holds the lock; DatabaseError or
        Overloaded when it could not be written down, and then nothing is forced; LockStoreDown, ValueError.
        """
        task = shared_task(self._force(name, fencing_token, reason, actor, caller), name="force-release")
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        return await asyncio.shield(task)

    async def _force(self, name: str, fencing_token: int, reason: str, actor: str, caller: int) -> ForcedRelease:
        view = None
        with contextlib.suppress(LockStoreDown):  # then forcing will fail as well, but after it was written down
            view = await self._locker.inspect(name)
        audit_id = await self._note(name, fencing_token, reason, actor, caller, view)
        try:
            if not await self._locker.force_release(name, fencing_token=fencing_token):
                raise HolderGone(f"nobody holds the lock {name!r}")
        except HolderChanged:
            await self._mark(lock_audit.mark_refused, audit_id, caller)
            raise
        except LockStoreDown:
            await self._mark(lock_audit.mark_unknown, audit_id, caller)
            raise
        return ForcedRelease(name, fencing_token, view.holder if view else None)

    async def _note(
        self, name: str, fencing_token: int, reason: str, actor: str, caller: int, view: LockView | None
    ) -> int:
        holder = audited_words(view.holder) if view is not None and view.is_held else None
        try:
            return await self._books.write(
                lambda database: lock_audit.note(
                    database,
                    actor=actor,
                    lock_name=name,
                    reason=reason,
                    holder=holder,
                    fencing_token=fencing_token,
                ),
                caller=caller,
            )
        except CommitUnknown as error:
            raise DatabaseDown("whether it was written down is not known, so nothing was forced") from error

    async def _mark(self, mark: Callable[[Database, int], None], audit_id: int, caller: int) -> None:
        try:
            await self._books.write(lambda database: mark(database, audit_id), caller=caller)
        except (DatabaseError, Overloaded) as error:
            log.error("lock audit not marked", audit_id=audit_id, mark=mark.__name__, reason=str(error))
