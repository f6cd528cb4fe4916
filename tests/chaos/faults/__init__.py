"""The kinds of faults, by name. Each says what it does, begins, lasts, and heals; whoever fires it writes it down."""

from tests.chaos.faults import network, postgres, processes, redis
from tests.chaos.faults.kinds import FaultKind, FaultMissed

__all__ = ["KINDS", "FaultKind", "FaultMissed"]

KINDS: dict[str, FaultKind] = {
    kind.name: kind for kind in (*processes.KINDS, *redis.KINDS, *postgres.KINDS, *network.KINDS)
}
