"""What a client outside is told of its lease."""

from __future__ import annotations

from dataclasses import dataclass, field

from locks import clock


@dataclass(frozen=True, slots=True)
class Loan:
    """What a client is told of its lease, which `lease_id` opens; it lasts `lease_ttl_s` from `counted_from_s`."""

    name: str
    lease_id: str = field(repr=False)
    fencing_token: int
    lease_ttl_s: float
    counted_from_s: float  # clock.monotonic_s(), before the command that gave it this time was sent
    owner: str | None = None
    is_new: bool = True  # else it was asked for again, under the id that its client had chosen

    def ends_in_s(self) -> float:
        """Seconds from now; at the server it ends no sooner."""
        return self.counted_from_s + self.lease_ttl_s - clock.monotonic_s()
