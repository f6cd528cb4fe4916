"""Adopt: a lease that another process has exported becomes ours, under an id of our own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from locks.capability import read_export
from locks.errors import LockStoreDown, LossReason
from locks.events import Adopted, Listener
from locks.held import HeldLeases
from locks.keys import packed_keys
from locks.lease import Lease, LeaseKeeper, check_max_hold_s, milliseconds
from locks.lines import Lines
from locks.renewal import Renewal
from locks.store import LockStore


class Adopting:
    """Leases from outside, by the text that they were exported as."""

    def __init__(
        self,
        keeper: LeaseKeeper,
        store: LockStore,
        held: HeldLeases,
        lines: Lines,
        renewal: Renewal,
        emit: Listener,
        *,
        new_lease_id: Callable[[], str],
    ) -> None:
        self._keeper = keeper
        self._store = store
        self._held = held
        self._lines = lines
        self._renewal = renewal
        self._emit = emit
        self._new_lease_id = new_lease_id

    async def adopt(self, text: str, *, keep_extended: bool, max_hold_s: float | None, for_whom: str) -> Lease:
        """As Locker.adopt."""
        name, lease_id, fencing_token, grant_fence, lease_ttl_s = read_export(text)
        keys, lease_ms = packed_keys(name), milliseconds(lease_ttl_s)
        check_max_hold_s(max_hold_s, lease_ttl_s=lease_ttl_s, keep_extended=keep_extended)
        self._held.check_room()
        # Of this call alone: the same text gives nobody a second lease, not even us.
        new_id = self._new_lease_id()
        sent_at_s = self._store.clock.monotonic_s()
        try:
            reply = await self._store.run(
                name,
                lambda node: self._store.scripts.adopt(
                    node,
                    keys,
                    lease_id,
                    new_id=new_id,
                    fencing_token=fencing_token,
                    grant_fence=grant_fence,
                    lease_ms=lease_ms,
                    for_whom=for_whom,
                ),
            )
        except (LockStoreDown, asyncio.CancelledError):
            # Where it is ours by now nobody keeps it; else whoever has the text may still adopt it.
            self._lines.give_back(name, new_id, lease_ttl_s)
            raise
        lease = Lease(
            self._keeper,
            name,
            new_id,
            fencing_token=fencing_token,
            lease_ttl_s=lease_ttl_s,
            sent_at_s=sent_at_s,
            waited_s=0.0,
            stood_in_line=False,
            keep_extended=keep_extended,
            for_whom=for_whom,
        )
        lease.grant_fence = grant_fence
        if not isinstance(reply, int):
            lease.declare_lost(LossReason(reply.decode()))
            raise lease.loss()
        if max_hold_s is not None:
            lease.bound(max_hold_s, from_s=sent_at_s)
        if lease.is_lost:  # the answer took so long
            self._lines.give_back(name, new_id, lease_ttl_s)
            lease.declare_lost(LossReason.EXPIRED)
            raise lease.loss()
        if keep_extended:
            lease.task = asyncio.current_task()
        if (before := self._held.keep(lease)) is not None:
            self._renewal.lose(before, LossReason.TAKEN)
        self._renewal.watch(lease)
        self._emit(Adopted(name, lease.fencing_token))
        return lease
