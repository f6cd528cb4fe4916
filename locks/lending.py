"""Leases lent to clients outside: whoever shows a lease's id may extend or release it, through any process.

Redis is the truth. The process that granted a lease is its keeper, which only keeps the books: what is held, since
when, and how it ended. Another process that is asked tells the keeper, or becomes it where that one is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from locks.chosen import ChosenIds
from locks.clock import Clock
from locks.errors import Dismissed, LeaseLost, LocksError, LockStoreDown, LossReason, TooManyBorrowed, TooManyLeases
from locks.events import Adopted, Exported, Extended, Listener, Lost, Released
from locks.for_whom import read_for_whom, text_for_client
from locks.held import HeldLeases
from locks.keys import check_name, packed_keys
from locks.lease import LONGEST_LEASE_S, Lease, check_wait_s, milliseconds
from locks.loan import Loan
from locks.node import Node
from locks.request import Spawn
from locks.returns import Returns
from locks.store import LockStore
from locks.turns import turn_command

if TYPE_CHECKING:
    from locks.locker import Locker

# The keeper looks a moment after the end that it knows of; and again, where Redis could not say.
LOOK_SLACK_S, LOOK_AGAIN_S = 0.01, 1.0
# How long it goes unnoticed that a lease has ended sooner than its keeper knows of: Redis' data lost, its clock moved.
LOOK_AT_LEAST_EVERY_S = 10.0


# Whoever leases are counted for, as whoever lends them names them; None: nobody.
Borrower = int | None

_is_lease_id = re.compile(r"[0-9a-f]{32}").fullmatch


class LeaseOver(LocksError):
    """Nothing is held under this lease id any more.

    `reason`: expired, taken, deleted, forced, released, or unknown where nothing is known of such a lease.
    """

    def __init__(self, name: str, *, reason: str) -> None:
        super().__init__(f"the lease on {name!r} is over: {reason}")
        self.name = name
        self.reason = reason


@dataclass(slots=True, eq=False)
class LentLease:
    """A lease in its keeper's books. Times are seconds of Clock.monotonic_s.

    It is over at `deadline_s` as far as the keeper knows, who asks Redis at `look_due_s`.
    """

    name: str
    lease_id: str = field(repr=False)
    fencing_token: int
    acquired_at_s: float
    deadline_s: float
    for_whom: str
    clock: Clock = field(repr=False)
    borrower: Borrower = None
    look_due_s: float = 0.0
    timer: asyncio.TimerHandle | None = field(default=None, repr=False)

    @property
    def held_s(self) -> float:
        """Seconds since it was granted."""
        return self.clock.monotonic_s() - self.acquired_at_s


class Lending:
    """The leases that clients outside hold, as far as this process has to do with them."""

    def __init__(
        self,
        locker: Locker,
        store: LockStore,
        held: HeldLeases,
        returns: Returns,
        emit: Listener,
        *,
        max_leases: int,
        max_leases_per_borrower: int,
        spawn: Spawn,
    ) -> None:
        self._locker = locker
        self._store = store
        self._clock = store.clock
        self._held = held
        self._returns = returns
        self._emit = emit
        self._max_leases = max_leases
        self._max_leases_per_borrower = max_leases_per_borrower
        self._spawn = spawn
        self._kept: dict[tuple[str, str], LentLease] = {}  # by lock and lease id: a client may choose one for several
        self._borrowed: dict[int, int] = {}  # what is kept here for each borrower, or asked for
        self._chosen = ChosenIds(self, locker, store, emit)

    @property
    def all(self) -> Sequence[LentLease]:
        """Those that this process keeps."""
        return list(self._kept.values())

    async def lend(
        self,
        name: str,
        *,
        lease_ttl_s: float,
        wait_s: float,
        request_id: str,
        owner: str | None = None,
        borrower: Borrower = None,
    ) -> Loan:
        """A lease for a client outside, of `borrower`'s share; cancelled, it leaves none behind.

        Raises as Locker.acquire, and TooManyBorrowed.
        """
        for_whom = text_for_client(request_id, owner)
        with self.room_for(borrower):
            lease = await self.acquired(name, lease_ttl_s, wait_s, for_whom)
            counted_from_s = lease.acquired_at_s
            try:
                if lease.is_unconfirmed:
                    counted_from_s = await self._confirmed(lease)
                if lease.ended:
                    raise lease.loss()
            except LeaseLost as error:
                raise LockStoreDown("the lease was lost before it could be handed out") from error
            loan = Loan(
                name, lease.known_as, lease.fencing_token, lease_ttl_s, counted_from_s, owner, clock=self._clock
            )
            self._locker.hand_out(lease)
            self.keep(loan, lease.acquired_at_s, for_whom, borrower)
        return loan

    async def lend_as(
        self,
        name: str,
        lease_id: str,
        *,
        lease_ttl_s: float,
        wait_s: float,
        request_id: str,
        owner: str | None = None,
        borrower: Borrower = None,
    ) -> Loan:
        """A lease under an id that the client chose: asked for again, through any process, it is the same lease.

        It then has lease_ttl_s from now, as if it were extended; its owner stays the one that was named first.
        Cancelled, it leaves no place in line behind; a lease that was granted meanwhile stays the client's. Raises
        LeaseOver for one that is over already, and as lend().
        """
        if _is_lease_id(lease_id) is None:
            raise ValueError("a lease_id is 32 lowercase hex digits")
        for_whom = text_for_client(request_id, owner)
        return await self._chosen.lend(
            name, lease_id, lease_ttl_s=lease_ttl_s, wait_s=wait_s, for_whom=for_whom, borrower=borrower
        )

    async def extend(self, name: str, lease_id: str, *, lease_ttl_s: float, borrower: Borrower = None) -> Loan:
        """Gives the lease `lease_ttl_s` from now; the fencing token stays.

        Where its keeper is gone, this process is from now on, and it counts as `borrower`'s, however many those have.
        Raises LeaseOver, LockStoreDown, ValueError.
        """
        check_name(name)
        lease_ms = milliseconds(lease_ttl_s)
        _check_id(name, lease_id)
        sent_at_s = 0.0

        def command(node: Any) -> str:
            nonlocal sent_at_s
            sent_at_s = self._clock.monotonic_s()
            return self._store.scripts.lent_extend(node, name, lease_id, lease_ms=lease_ms)

        reply = await self._store.run(name, command)
        if isinstance(reply, bytes):
            raise self.over(name, lease_id, reply.decode())
        return self.extended(Loan(name, lease_id, reply[0], lease_ttl_s, sent_at_s, clock=self._clock), reply, borrower)

    def extended(self, loan: Loan, reply: Sequence[Any], borrower: Borrower) -> Loan:
        """The server has given a lease more time; `reply` says since when it is held, for whom, and who keeps it."""
        name, fencing_token, lease_ttl_s = loan.name, loan.fencing_token, loan.lease_ttl_s
        held_us, is_keeper, for_whom, is_chosen = reply[1], reply[2], reply[3].decode(), reply[4]
        kept = self._books_of(name, loan.lease_id, fencing_token, is_chosen=bool(is_chosen))
        if is_keeper and kept is not None:
            self._moved(kept, lease_ttl_s)
        elif is_keeper:
            self._emit(Adopted(name, fencing_token))
            self.keep(loan, self._clock.monotonic_s() - max(0, held_us) / 1_000_000, for_whom, borrower)
        self._emit(Extended(name, fencing_token))
        return replace(loan, owner=read_for_whom(for_whom).owner)

    async def release(self, name: str, lease_id: str) -> None:
        """Gives the lock back, to the next waiter if one stands. Raises LeaseOver, LockStoreDown, ValueError.

        After LockStoreDown, or cancelled, it is owed: sent until it is done, the lease is over, or was given more time.
        """
        command = self._release_command(name, lease_id)
        _check_id(name, lease_id)
        try:
            reply = await self._store.run(name, command)
        except (LockStoreDown, asyncio.CancelledError):
            self._owe(name, lease_id, command)
            raise
        if reply == b"kept":
            raise LockStoreDown("the lease was extended or asked for again after this release was")
        self._answered(name, lease_id, reply)

    def give_back(self, loan: Loan) -> None:
        """Releases without waiting for the answer: the client is gone, and has not heard of it."""
        self._owe(loan.name, loan.lease_id, self._release_command(loan.name, loan.lease_id))

    def count_anew(self) -> None:
        """Timers are late: when every lease is looked at is counted by the clock."""
        for kept in self.all:
            self._look_in(kept, max(0.0, kept.look_due_s - self._clock.monotonic_s()))

    def leave(self) -> None:
        """Closes the books: the clients hold on, and whichever process they ask next becomes the keeper."""
        self._chosen.leave()
        for kept in self.all:
            self._exported(kept)

    def on_message(self, word: str, lease_id: str, rest: Sequence[str]) -> None:
        """What another process has done with a lease that is kept here, or has lent that is waited for here."""
        name = rest[-1]
        if word == "lent":
            self._chosen.lent(name, lease_id)
        kept = self._kept.get((name, lease_id))
        if kept is None:
            return
        if word == "extended":
            self._moved(kept, int(rest[0]) / 1000)
        elif word == "released":
            self._released(kept, handed_over=rest[0] == "1")
        elif word == "ended":
            self._ended(kept, rest[0])
        elif word == "forced" and kept.fencing_token <= int(rest[0]):
            self._ended(kept, word)

    @contextlib.contextmanager
    def room_for(self, borrower: Borrower) -> Iterator[None]:
        """A lease may be asked for, and kept, within. Raises TooManyBorrowed, TooManyLeases."""
        if borrower is not None and self._borrowed.get(borrower, 0) >= self._max_leases_per_borrower:
            raise TooManyBorrowed(
                f"of this process' leases one borrower may have no more than {self._max_leases_per_borrower}"
            )
        if len(self._kept) >= self._max_leases:
            raise TooManyLeases(f"leases that this process keeps already: {self._max_leases}")
        self._count(borrower, 1)
        try:
            yield
        finally:
            self._count(borrower, -1)

    async def acquired(self, name: str, lease_ttl_s: float, wait_s: float, for_whom: str) -> Lease:
        """The lock, for a client outside; raises as Locker.acquire, but for Dismissed."""
        check_wait_s(wait_s)
        ends_at_s = self._clock.monotonic_s() + wait_s
        while True:
            left_s = max(0.0, ends_at_s - self._clock.monotonic_s())
            try:
                return await self._locker.acquire_to_lend(
                    name, lease_ttl_s=lease_ttl_s, wait_s=left_s, for_whom=for_whom
                )
            except Dismissed:
                continue  # what others waited for is done; a client outside waits for the lock itself

    async def _confirmed(self, lease: Lease) -> float:
        """Since when a turn of a run, begun under another's lease, has its own whole time, and the server its id.

        An extension alone would not say that it knows the id that the client is told: it finds a turn by its token.
        """
        asked_at_s = self._clock.monotonic_s()
        lease.known_as = lease.lease_id  # for all that is sent behind
        try:
            await self._store.run(
                lease.name, lambda node: turn_command(self._store, node, lease, before=lease.granted_as)
            )
            await lease.extend(lease.lease_ttl_s)
        except BaseException:
            self._locker.drop(lease)
            raise
        return asked_at_s

    def _release_command(self, name: str, lease_id: str) -> Callable[[Node], str]:
        check_name(name)
        call_id, asked_at_s = self._clock.random_bytes(8).hex(), self._clock.monotonic_s()

        def command(node: Node) -> str:
            age_ms = int(1000 * (self._clock.monotonic_s() - asked_at_s))
            return self._store.scripts.lent_release(node, name, lease_id, call_id=call_id, age_ms=age_ms)

        return command

    def _owe(self, name: str, lease_id: str, command: Callable[[Node], str]) -> None:
        def answered(reply: Any) -> None:
            if reply != b"kept":
                with contextlib.suppress(LeaseOver):
                    self._answered(name, lease_id, reply)

        self._held.adopts(lease_id)  # nobody goes by it any more
        # Not by the books: the client may have extended it through a process that could not tell.
        self._returns.send(name, lease_id, LONGEST_LEASE_S, command, answered)

    def _answered(self, name: str, lease_id: str, reply: Any) -> None:
        """The server's answer to a release. Raises LeaseOver."""
        if reply == b"again":
            self._released(self._kept.get((name, lease_id)), handed_over=False)
            return
        if isinstance(reply, bytes):
            raise self.over(name, lease_id, reply.decode())
        fencing_token, held_us, is_unbooked, handed_over, for_whom, is_chosen = reply
        kept = self._books_of(name, lease_id, fencing_token, is_chosen=bool(is_chosen))
        if kept is None and is_unbooked:
            # Its keeper is gone, and the count of it with that one.
            self._emit(Adopted(name, fencing_token))
            held_s = max(0, held_us) / 1_000_000
            self._emit(Released(name, fencing_token, held_s, True, bool(handed_over), for_whom.decode()))
        self._released(kept, handed_over=bool(handed_over))

    def keep(self, loan: Loan, acquired_at_s: float, for_whom: str, borrower: Borrower) -> None:
        """From now on this process keeps the books of the lease."""
        former = self._kept.get((loan.name, loan.lease_id))
        if former is not None:  # found by two requests at once, or of an earlier grant whose end was not heard of
            self._exported(former)
        kept = LentLease(
            loan.name, loan.lease_id, loan.fencing_token, acquired_at_s, 0.0, for_whom, self._clock, borrower
        )
        self._kept[loan.name, loan.lease_id] = kept
        self._count(borrower, 1)
        self._moved(kept, loan.lease_ttl_s)

    def _moved(self, kept: LentLease, left_s: float) -> None:
        """Its end is at most so far away: counted from now, which is after the server did."""
        kept.deadline_s = self._clock.monotonic_s() + left_s
        self._look_in(kept, min(left_s, LOOK_AT_LEAST_EVERY_S) + LOOK_SLACK_S)

    def _look_in(self, kept: LentLease, wait_s: float) -> None:
        if kept.timer is not None:
            kept.timer.cancel()
        kept.look_due_s = self._clock.monotonic_s() + wait_s
        kept.timer = asyncio.get_running_loop().call_later(wait_s, self._begin_to_look, kept)

    def _begin_to_look(self, kept: LentLease) -> None:
        self._spawn(self._look(kept))

    async def _look(self, kept: LentLease) -> None:
        """The end that is known of has come; the client may have moved it through a process that could not tell."""
        keys = packed_keys(kept.name)
        timer = kept.timer
        try:
            reply = await self._store.run(
                kept.name, lambda node: self._store.scripts.lent_look(node, keys, kept.lease_id)
            )
        except LockStoreDown:
            reply = None
        if self._kept.get((kept.name, kept.lease_id)) is not kept or kept.timer is not timer:
            return
        if reply is None:
            self._look_in(kept, LOOK_AGAIN_S)
        elif isinstance(reply, bytes):
            reason = reply.decode()
            self._ended(kept, "expired" if reason in ("taken", "unknown") else reason)
        elif not reply[1]:
            self._exported(kept)
        else:
            self._moved(kept, reply[0] / 1000 if reply[0] >= 0 else LOOK_AT_LEAST_EVERY_S)

    def over(self, name: str, lease_id: str, reason: str) -> LeaseOver:
        """What to tell whoever asked; what is kept here knows more than a server that has forgotten."""
        kept = self._kept.get((name, lease_id))
        if kept is not None:
            if reason == "unknown":
                reason = "deleted" if self._clock.monotonic_s() < kept.deadline_s else "expired"
            self._ended(kept, reason)
        return LeaseOver(name, reason=reason)

    def _books_of(self, name: str, lease_id: str, fencing_token: int, *, is_chosen: bool) -> LentLease | None:
        """What is kept here of the grant with this token, under which the lock was found; None where nothing is.

        Raises LeaseOver where that is another grant than the one in the books: an acquire carried out late. But an id
        that its client chose may be granted anew once its lease is forgotten; then the books are of the one before.
        """
        kept = self._kept.get((name, lease_id))
        if kept is None or kept.fencing_token == fencing_token:
            return kept
        if is_chosen:
            self._ended(kept, LossReason.EXPIRED)
            return None
        self._owe(name, lease_id, self._release_command(name, lease_id))
        raise self.over(name, lease_id, LossReason.TAKEN)

    def _ended(self, kept: LentLease, reason: str) -> None:
        if reason == "released":
            self._released(kept, handed_over=False)
            return
        self._close(kept)
        loss = LossReason.DELETED if reason == "unknown" else LossReason(reason)
        self._emit(Lost(kept.name, kept.fencing_token, kept.held_s, loss, kept.for_whom))

    def _released(self, kept: LentLease | None, *, handed_over: bool) -> None:
        if kept is not None and (kept.name, kept.lease_id) in self._kept:
            self._close(kept)
            self._emit(Released(kept.name, kept.fencing_token, kept.held_s, True, handed_over, kept.for_whom))

    def _exported(self, kept: LentLease) -> None:
        self._close(kept)
        self._emit(Exported(kept.name, kept.fencing_token, kept.held_s, kept.for_whom))

    def _close(self, kept: LentLease) -> None:
        del self._kept[kept.name, kept.lease_id]
        self._count(kept.borrower, -1)
        if kept.timer is not None:
            kept.timer.cancel()

    def _count(self, borrower: Borrower, by: int) -> None:
        if borrower is not None:
            count = self._borrowed.pop(borrower, 0) + by
            if count:
                self._borrowed[borrower] = count


def _check_id(name: str, lease_id: str) -> None:
    if _is_lease_id(lease_id) is None:
        raise LeaseOver(name, reason="unknown")
