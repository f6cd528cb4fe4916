"""A run: several turns of one process, granted at once because nobody else came before those who wait here.

A turn begins without asking the server, under the run's lease, with a token that the grant has set aside for it. The
server learns of it behind: a turn that lasts makes itself the holder; one that is over in a moment is not worth a
command.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

from locks.errors import LockStoreDown, LossReason
from locks.keys import packed_keys
from locks.lease import Lease, margin_s, milliseconds
from locks.node import Node
from locks.request import Request, Spawn
from locks.store import LockStore

# So long may a turn be on without the server's knowing whose it is.
TELL_S = 0.001

Lose = Callable[[Lease, LossReason], None]


class Turns:
    """What a run needs of its process."""

    def __init__(self, store: LockStore, *, spawn: Spawn, lose: Lose) -> None:
        self.store = store
        self.spawn = spawn
        self.lose = lose


class Run:
    """`lease`: of the turn that is on now; `last_fence`: the token of the last one. Times: Clock.monotonic_s.

    No turn begins after `begins_until_s`, since the run's lease, which ends at `ends_at_s`, would not cover it.
    """

    def __init__(
        self,
        turns: Turns,
        lease: Lease,
        *,
        turns_left: int,
        last_fence: int,
        begins_until_s: float,
        ends_at_s: float,
        is_confirmed: bool,
    ) -> None:
        self._turns = turns
        self._timer: asyncio.TimerHandle | None = None
        self.lease = lease
        self.turns_left = turns_left
        self.last_fence = last_fence
        self.begins_until_s = begins_until_s
        self.ends_at_s = ends_at_s
        lease.grant_fence = last_fence
        self.is_confirmed = is_confirmed  # else its lease is a claim, too short for whoever wants a whole lease at once

    @property
    def next_fence(self) -> int:
        """The token of the turn after this one."""
        return self.last_fence - self.turns_left + 1

    def goes_on_from(self, lease: Lease, now_s: float) -> bool:
        """Whether another turn may follow this lease."""
        return self.lease is lease and self.turns_left > 0 and now_s < self.begins_until_s

    def turn(self, lease: Lease) -> None:
        """The next turn is on, under this lease.

        Its id is told at once where its predecessor's has left the process, or may: an id is a capability.
        """
        before, self.lease = self.lease, lease
        self.turns_left -= 1
        lease.known_as, lease.grant_fence, lease.granted_as = before.known_as, self.last_fence, before.granted_as
        lease.may_outlast = before.may_outlast or before.unanswered > 0 or before.lease_ttl_s > lease.lease_ttl_s
        if not (before.is_for_body and lease.is_for_body):
            self.tell()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(TELL_S, self._tell_in_time)

    def tell(self) -> None:
        """Makes the turn that is on the holder; where there is no connection, the lease's extension will do it."""
        with contextlib.suppress(LockStoreDown):
            _Telling(self, self._turns, self.lease).send()

    def told(self, lease: Lease, *, sent_at_s: float) -> None:
        """The server is asked for this turn's lease, and then the run has no more time than that, which may be less."""
        self.ends_at_s = min(self.ends_at_s, self._end_of(lease, sent_at_s))

    def confirm(self, lease: Lease, *, sent_at_s: float) -> None:
        """The server has this turn, whose lease it gave all of its time by a command that was sent then."""
        lease.confirmed(sent_at_s=sent_at_s)
        self.ends_at_s = max(self.ends_at_s, self._end_of(lease, sent_at_s))
        self.is_confirmed = True

    def _end_of(self, lease: Lease, sent_at_s: float) -> float:
        run_s = self._turns.store.scripts.limits.run_ms / 1000
        return sent_at_s + lease.lease_ttl_s + run_s - margin_s(lease.lease_ttl_s)

    def _tell_in_time(self) -> None:
        self._timer = None
        if not self.lease.ended and self.lease.known_as != self.lease.lease_id:
            self.tell()


class _Telling:
    """Makes a lease the server's, and whole."""

    def __init__(self, run: Run, turns: Turns, lease: Lease) -> None:
        self._run = run
        self._turns = turns
        self._lease = lease
        self._before = lease.known_as

    def send(self) -> None:
        """Raises LockStoreDown at once while there is no connection."""
        store, name = self._turns.store, self._lease.name
        node = store.node_of(name)
        request = Request(store, self._turns.spawn, name, self._answered, self._failed)
        request.send(node, self._command(node))
        self._run.told(self._lease, sent_at_s=request.sent_at_s)
        self._lease.known_as = self._lease.lease_id  # for all that is sent behind
        self._lease.unanswered += 1
        node.commands.flush()  # the body may block the loop before this tick ends

    def _command(self, node: Node) -> str:
        return turn_command(self._turns.store, node, self._lease, before=self._before)

    def _answered(self, request: Request, reply: Any) -> None:
        self._lease.unanswered -= 1
        if self._lease.ended:
            return
        if isinstance(reply, int):
            self._run.confirm(self._lease, sent_at_s=request.sent_at_s)
        else:
            self._turns.lose(self._lease, LossReason(reply.decode()))

    def _failed(self, request: Request, error: LockStoreDown) -> None:
        self._turns.spawn(self._again(request))

    async def _again(self, request: Request) -> None:
        # Unknown is not confirmed, so the run's end stands. Once more does no harm.
        with contextlib.suppress(LockStoreDown):
            self._answered(request, await self._turns.store.run(self._lease.name, self._command))


def turn_command(store: LockStore, node: Node, lease: Lease, *, before: str) -> str:
    """Makes the lease, a turn of a run, the holder under its own id; `before`: the id of the turn before it."""
    return store.scripts.turn(
        node,
        packed_keys(lease.name),
        before,
        next_lease_id=lease.lease_id,
        lease_ms=milliseconds(lease.lease_ttl_s),
        last_fence=lease.grant_fence,
        turns_left=lease.grant_fence - lease.fencing_token,
        for_whom=lease.for_whom,
    )
