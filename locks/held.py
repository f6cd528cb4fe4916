"""The leases of this process, and the largest fencing token that it has seen."""

from __future__ import annotations

from collections.abc import Sequence

from locks.errors import TooManyLeases
from locks.lease import Lease

MOST_EXPORTED = 10_000
NO_TOKEN = -1
MOST_FORCED = 1_000


class HeldLeases:
    """By lease id and by lock, from the grant to the answered release."""

    def __init__(self, *, max_leases: int) -> None:
        self.seen_fence = 0
        self.asked_for = 0  # by callers who are not answered yet
        self._max_leases = max_leases
        self._by_id: dict[str, Lease] = {}
        self._by_name: dict[str, Lease] = {}
        # Ids that somebody else goes by now. An old look of its line, answered late, must not take one for nobody's.
        self._exported: dict[str, int] = {}
        # Ids whose grant was ended by force before we heard of it: the answer of its acquire is still on its way.
        self._forced: dict[str, int] = {}

    def check_room(self) -> None:
        """Raises TooManyLeases when there is none for one more."""
        if len(self._by_id) + self.asked_for >= self._max_leases:
            raise TooManyLeases(f"leases that this process holds or asks for already: {self._max_leases}")

    @property
    def all(self) -> Sequence[Lease]:
        """Those that are not being released already."""
        return [lease for lease in self._by_id.values() if not lease.ended]

    @property
    def ending(self) -> Sequence[Lease]:
        """Those whose release is not answered yet."""
        return [lease for lease in self._by_id.values() if lease.ended]

    def holder_of(self, name: str) -> Lease | None:
        """The lease of this process on a lock; None where it has none, or is just releasing it."""
        lease = self._by_name.get(name)
        return None if lease is None or lease.ended else lease

    def known_as(self, name: str, lease_id: str) -> Lease | None:
        """The lease of this process that goes by this id, here or at the server, or whose run was granted under it."""
        lease = self._by_id.get(lease_id) or self._by_name.get(name)
        ids = () if lease is None else (lease.lease_id, lease.known_as, lease.granted_as)
        return lease if lease_id in ids else None

    def knows(self, name: str, lease_id: str) -> bool:
        """Whether a lease of this process goes by this id, or was exported with it."""
        return lease_id in self._exported or self.known_as(name, lease_id) is not None

    def exported_fence(self, lease_id: str) -> int | None:
        """The grant's fence of the lease that was exported with this id; None where none was."""
        return self._exported.get(lease_id)

    def keep(self, lease: Lease) -> Lease | None:
        """It has been granted; returns the one that was held before, which is over although nobody has told us."""
        before = self.holder_of(lease.name)
        if lease.fencing_token > self.seen_fence:
            self.seen_fence = lease.fencing_token
        self._by_id[lease.lease_id] = self._by_name[lease.name] = lease
        return before

    def exported(self, lease: Lease) -> None:
        """It is somebody else's from now on."""
        self._exported[lease.known_as] = lease.grant_fence
        if len(self._exported) > MOST_EXPORTED:
            del self._exported[next(iter(self._exported))]

    def adopts(self, lease_id: str) -> None:
        """It may be ours again, and so to be given back."""
        self._exported.pop(lease_id, None)

    def forced(self, lease_id: str, fencing_token: int) -> None:
        """What was granted under an id that no lease here goes by has been ended by force, to this token."""
        self._forced[lease_id] = fencing_token
        if len(self._forced) > MOST_FORCED:
            del self._forced[next(iter(self._forced))]

    def was_forced(self, lease_id: str, fencing_token: int = 0) -> bool:
        """Whether what was granted under this id, and token, had been ended by force before it was heard of."""
        return fencing_token <= self._forced.get(lease_id, NO_TOKEN)

    def forget(self, lease: Lease) -> None:
        """It has ended."""
        lease.task = None
        self._by_id.pop(lease.lease_id, None)
        if self._by_name.get(lease.name) is lease:
            del self._by_name[lease.name]
