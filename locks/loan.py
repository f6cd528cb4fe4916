"""What a client outside is told of its lease."""

from __future__ import annotations

from dataclasses import dataclass, field

from locks.clock import Clock


@dataclass(frozen=True, slots=True)
class Loan:
    """What a client is told of its lease, which `lease_id` opens; it lasts `lease_ttl_s` from `counted_from_s`."""

    name: str
    lease_id: str = field(repr=False)
    fencing_token: int
    lease_ttl_s: float
    counted_from_s: float  # Clock.monotonic_s, before the command that gave it this time was sent
    owner: str | None = None
    clock: Clock = field(kw_only=True, repr=False)
    is_new: bool = True  # else it was asked for again, under the id that its client had chosen

    def ends_in_s(self) -> float:
        """Seconds from now; at the server it ends no sooner."""
        return self.counted_from_s + self.lease_ttl_s - self.clock.monotonic_s()
