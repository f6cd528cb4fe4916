"""What a run tells its workload."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.chaos.workload.people import JOBS, Appointments

# Shares of operations.
MIX = {"crowd": 0.55, "wide": 0.25, "again": 0.12, "poor": 0.08}
LEASE_CLIENTS = 3
OVERSLEEPS = 0.10


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """For the workload's process and for those that it starts."""

    history: str
    front: str  # the file of Front
    base_urls: dict[str, str]  # instance -> where it serves
    database_url: str
    redis_url: str | None  # for python-redis-lock programs; None: there are none
    jwt_secret: str
    seed: int
    duration_s: float
    clients: int
    rate: float  # operations a second, at most
    lease_ttl_s: float
    mix: dict[str, float]
    lease_clients: int = LEASE_CLIENTS
    oversleeps: float = OVERSLEEPS  # of them write after their lease is over, not knowing it
    jobs: tuple[str, ...] = JOBS  # the locks that leases over HTTP are taken of
    register: str = "fenced"  # "unfenced", or "none": there is no register
    sits: bool = True  # sessions of strangers hold rows now and then
    chosen: dict[str, Any] | None = None  # people, hot, wide: the appointments, where they are not those of SEED

    @property
    def appointments(self) -> Appointments:
        """What there is to enter."""
        if self.chosen is None:
            return Appointments.for_duration(self.duration_s)
        people = {int(id_): (inviter, invitee) for id_, (inviter, invitee) in self.chosen["people"].items()}
        return Appointments.of(people, hot=self.chosen["hot"], wide=self.chosen["wide"])

    def save(self, path: Path) -> None:
        """Where the workload reads it; it holds a secret."""
        path.touch(mode=0o600)
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def load(cls, path: Path) -> Config:
        """What save() wrote."""
        return cls(**json.loads(path.read_text()))
