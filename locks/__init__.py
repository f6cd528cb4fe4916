"""Leases on named locks in Redis: fair, fenced, kept extended, and truthful about their loss.

async with Locker.connect("redis://localhost", instance_id="api-3") as locker:
    async with locker.hold("appointment:42", lease_ttl_s=10.0, wait_s=3.0) as lease:
        ...  # under lease.fencing_token; cancelled when the lease is lost
"""

from locks.errors import (
    Dismissed,
    HeldByCaller,
    HolderChanged,
    LeaseLost,
    LockBusy,
    LocksError,
    LockStoreDown,
    LossReason,
    TooManyLeases,
    TooManyWaiters,
    WrongLoop,
)
from locks.hold import Hold, HoldMany
from locks.inspection import LockView, Party, PartyKind, WaitingParty
from locks.lease import Lease
from locks.locker import Locker

__version__ = "0.1.0"

__all__ = [
    "Dismissed",
    "HeldByCaller",
    "Hold",
    "HoldMany",
    "HolderChanged",
    "Lease",
    "LeaseLost",
    "LockBusy",
    "LockStoreDown",
    "LockView",
    "Locker",
    "LocksError",
    "LossReason",
    "Party",
    "PartyKind",
    "TooManyLeases",
    "TooManyWaiters",
    "WaitingParty",
    "WrongLoop",
    "__version__",
]
