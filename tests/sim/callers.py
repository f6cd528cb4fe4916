"""Callers of a Locker, of whom the history is to know: for how long they would wait, when they are answered, and when
their bodies begin and end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any

from locks.lease import Lease
from tests.sim.recording import ASK

if TYPE_CHECKING:
    from tests.sim.simulation import Place

ACQUIRED = "acquired"


async def acquired(place: Place, name: str, *, wait_s: float | None = None, **how: Any) -> Lease:
    """As Locker.acquire."""
    with _asking(place, name, wait_s):
        return await place.locker.acquire(name, wait_s=wait_s, **how)


async def forces(place: Place, name: str) -> None:
    """An operator ends somebody's lease: what he has seen may have changed by then. Raises as Locker.force_release."""
    view = await place.locker.inspect(name)
    if view is not None and view.is_held:
        fence = view.fencing_token or 0
        place.recording.point(place.process, "forcing", name=name, fence=fence)
        await place.locker.force_release(name, fencing_token=fence)


class Holding:
    """As Locker.hold."""

    def __init__(
        self,
        place: Place,
        name: str,
        *,
        lease_ttl_s: float,
        wait_s: float | None = None,
        max_hold_s: float | None = None,
    ) -> None:
        self._place, self._name, self._wait_s = place, name, wait_s
        self._limits = {"kept_s": lease_ttl_s} if max_hold_s is None else {"max_hold_s": max_hold_s}
        self._hold = place.locker.hold(name, lease_ttl_s=lease_ttl_s, wait_s=wait_s, max_hold_s=max_hold_s)
        self._lease: Lease | None = None

    async def __aenter__(self) -> Lease:
        with _asking(self._place, self._name, self._wait_s):
            self._lease = await self._hold.__aenter__()
        _tell_body(self._place, "body_began", [self._lease], **self._limits)
        return self._lease

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._lease is not None
        _tell_body(self._place, "body_ended", [self._lease])
        await self._hold.__aexit__(kind, error, trace)


class HoldingMany:
    """As Locker.hold_many. Its patience is for all together, so the history is not told of it."""

    def __init__(self, place: Place, names: Sequence[str], *, lease_ttl_s: float, wait_s: float | None = None) -> None:
        self._place, self._names, self._limits = place, names, {"kept_s": lease_ttl_s}
        self._hold = place.locker.hold_many(names, lease_ttl_s=lease_ttl_s, wait_s=wait_s)
        self._leases: list[Lease] = []

    async def __aenter__(self) -> list[Lease]:
        self._place.invokes(*self._names)
        self._leases = await self._hold.__aenter__()
        _tell_body(self._place, "body_began", self._leases, **self._limits)
        return self._leases

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _tell_body(self._place, "body_ended", self._leases)
        await self._hold.__aexit__(kind, error, trace)


@contextmanager
def _asking(place: Place, name: str, wait_s: float | None) -> Iterator[None]:
    """Somebody asks within, and is answered at the end."""
    recording, process = place.recording, place.process
    ask, asked_s = recording.new_ask(), process.own_s(process.now_s)
    recording.point(process, "invoked", name=name, ask=ask, wait_s=wait_s)
    ASK.set(ask)
    outcome = ACQUIRED
    try:
        yield
    except BaseException as error:
        outcome = type(error).__name__
        raise
    finally:
        ASK.set(None)
        waited_s = process.own_s(process.now_s) - asked_s
        recording.point(process, "answered", name=name, ask=ask, outcome=outcome, waited_s=waited_s)


def _tell_body(place: Place, p: str, leases: Sequence[Lease], **facts: Any) -> None:
    """`kept_s`: how long the lease is that is kept for as long as the body lasts; `max_hold_s`: for no longer."""
    for lease in leases:
        place.recording.point(place.process, p, name=lease.name, fence=lease.fencing_token, **facts)
