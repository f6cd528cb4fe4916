"""What anybody may know of a lock: who holds it, who waits; never the lease id, which is a capability."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from locks.for_whom import read_for_whom


class PartyKind(StrEnum):
    """What sort of program holds or waits, and so how it hears that its lease was ended by force."""

    LOCKER = "locker"  # a process with a Locker: it is told at once
    CLIENT = "client"  # a client outside, by its keeper: it hears of it when it next asks for its lease
    SAFE_LOCK = "safe-lock"  # a program with a SafeLock: it hears of it when it next extends or releases


@dataclass(frozen=True, slots=True)
class Party:
    """Who holds, or waits: one process, the request for which it does, and the owner where one was named.

    For a client outside the process is the one that keeps the books of its lease, or waits in line for it.
    """

    instance_id: str
    host: str
    pid: int
    request_id: str
    owner: str | None = None
    kind: PartyKind = PartyKind.LOCKER


@dataclass(frozen=True, slots=True)
class WaitingParty:
    """A process that stands in line with its first waiter. `waiter_count`: how many it had at its last sign of life.

    `later_s`: how much later the next ones came, as far as it has told.
    """

    party: Party
    waited_s: float
    waiter_count: int
    later_s: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class WaitingCaller:
    """One caller that waits. Of those that are not the first of their process request and owner are not known, and of
    those far back in a long line of one process neither is since when.
    """

    instance_id: str
    host: str
    pid: int
    request_id: str | None
    waited_s: float | None
    owner: str | None = None


@dataclass(frozen=True, slots=True)
class LockView:
    """One lock at one moment of the server's.

    `held_s` goes by the fencing token, which is the time of the grant; after a clock was set back it begins late.
    `holder` is None while the lock is free between two holders, and for a python-redis-lock program, of which only
    `expires_in_s` is known: None there means that it has no expiry and ends only by its release or by force.
    """

    name: str
    is_held: bool
    by_python_redis_lock: bool
    holder: Party | None
    fencing_token: int | None
    held_s: float | None
    lease_ttl_s: float | None
    expires_in_s: float | None
    waiting: tuple[WaitingParty, ...]

    @property
    def waiter_count(self) -> int:
        """Callers that wait, over all processes."""
        return sum(each.waiter_count for each in self.waiting)

    @property
    def waiters(self) -> list[WaitingCaller]:
        """The callers themselves, who has waited longest first."""
        callers = [caller for process in self.waiting for caller in _callers(process)]
        return sorted(callers, key=lambda caller: -caller.waited_s if caller.waited_s is not None else 0.0)


def view_of(name: str, reply: list[Any]) -> LockView | None:
    """The inspect script's reply; None when nobody holds the lock and nobody waits."""
    if not reply:
        return None
    remaining_ms, now_us, fence, lease_ms, who = reply[:5]
    is_held, is_ours = remaining_ms != -2, bool(who)
    waiting = []
    for at in range(5, len(reply), 4):
        age_us, later, waiter_count, waiter = reply[at : at + 4]
        later_s = tuple(int(after_us) / 1_000_000 for after_us in later.split(b",")) if later else ()
        waiting.append(WaitingParty(_party(waiter), max(0.0, age_us / 1_000_000), waiter_count, later_s))
    return LockView(
        name,
        is_held=is_held,
        by_python_redis_lock=is_held and not is_ours,
        holder=_party(who) if is_ours else None,
        fencing_token=fence if is_ours else None,
        held_s=max(0.0, (now_us - fence) / 1_000_000) if is_ours else None,
        lease_ttl_s=lease_ms / 1000 if is_ours else None,
        expires_in_s=remaining_ms / 1000 if remaining_ms >= 0 else None,
        waiting=tuple(waiting),
    )


def party_of(instance_id: str, host: str, pid: int, for_whom: str) -> Party:
    """A process with a Locker, and for whom it holds or waits."""
    request_id, owner, is_lent = read_for_whom(for_whom)
    return Party(instance_id, host, pid, request_id, owner, PartyKind.CLIENT if is_lent else PartyKind.LOCKER)


def _callers(process: WaitingParty) -> Iterator[WaitingCaller]:
    who = process.party
    yield WaitingCaller(who.instance_id, who.host, who.pid, who.request_id, process.waited_s, who.owner)
    known = [max(0.0, process.waited_s - later_s) for later_s in process.later_s[: process.waiter_count - 1]]
    unknown = [None] * (process.waiter_count - 1 - len(known))
    for waited_s in (*known, *unknown):
        yield WaitingCaller(who.instance_id, who.host, who.pid, None, waited_s)


def _party(who: bytes) -> Party:
    channel, instance_id, host, pid, for_whom = who.decode().split("\t")
    party = party_of(instance_id, host, int(pid), for_whom)
    # Only Lockers have a channel on which they can be told.
    return party if channel else replace(party, kind=PartyKind.SAFE_LOCK)
