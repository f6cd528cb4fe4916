"""What can go wrong with a lock. Each class is one fact."""

from __future__ import annotations

from enum import StrEnum
from typing import Any


class LossReason(StrEnum):
    """Why a lease ended without its holder's release."""

    EXPIRED = "expired"  # its time ran out, and nobody extended it
    TAKEN = "taken"  # another holder has the lock
    DELETED = "deleted"  # the key is gone before its time: reset, DEL, FLUSHALL, a restart without data
    FORCED = "forced"  # an operator ended it
    UNREACHABLE = "unreachable"  # its time ran out while Redis did not answer the renewals


class LocksError(Exception):
    """Anything that this package raises. Every one survives pickle and copy, with its attributes."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (type(self), self.args, self.__dict__)


class LockBusy(LocksError):
    """Another holder kept the lock for as long as the caller was willing to wait."""

    def __init__(self, name: str, *, waited_s: float, expires_in_s: float | None) -> None:
        super().__init__(f"lock {name!r} is held by another after {waited_s:.3f} s of waiting")
        self.name = name
        self.waited_s = waited_s
        self.expires_in_s = expires_in_s


class Dismissed(LocksError):
    """The holder has finished what everybody here wanted to do under the lock: no turn is needed any more."""

    def __init__(self, name: str, *, waited_s: float) -> None:
        super().__init__(f"what {name!r} was waited for is done")
        self.name = name
        self.waited_s = waited_s


class LeaseLost(LocksError):
    """The lease ended before its holder released it; whatever was done since is not protected by it."""

    def __init__(self, name: str, *, reason: LossReason, fencing_token: int) -> None:
        super().__init__(f"lease on {name!r} (fencing token {fencing_token}) was lost: {reason}")
        self.name = name
        self.reason = reason
        self.fencing_token = fencing_token


class HolderChanged(LocksError):
    """The lease that was to be forced out is no longer the current one; nothing was released."""


class HeldByCaller(LocksError):
    """The task that asks holds the lock itself, and keeps it extended: it would wait for itself for ever."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"this task holds the lock {name!r} already, kept extended: with wait_s=None it waits for ever"
        )
        self.name = name


class WrongLoop(LocksError):
    """A Locker is for the event loop that opened it, and was used from another one, or from none."""


class LockStoreDown(LocksError):
    """Redis is out of reach, does not answer in time, or refuses the command."""


class LockStoreRefused(LockStoreDown):
    """Redis answers, but not with what was asked: no permission, no memory, a key of another type."""


class TooManyWaiters(LocksError):
    """This process, or this lock in it, already has as many waiters as it may; nothing was queued."""


class TooManyLeases(LocksError):
    """This process already holds as many leases as it may; nothing was taken."""


class TooManyBorrowed(TooManyLeases):
    """This borrower already has as many leases of this process as one borrower may; nothing was taken."""


def _again(kind: type[LocksError], args: tuple[Any, ...], attributes: dict[str, Any]) -> LocksError:
    # Not by its constructor, which wants other words than the message that `args` has.
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(attributes)
    return error
