"""What a run tells its workload."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.chaos.workload.people import Appointments

# Shares of operations.
MIX = {"crowd": 0.55, "wide": 0.25, "again": 0.12, "poor": 0.08}


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """For the workload's process and for those that it starts."""

    history: str
    front: str  # the file of Front
    ports: dict[str, int]  # instance -> where it serves
    database_url: str
    redis_url: str | None  # for python-redis-lock programs; None: there are none
    jwt_secret: str
    seed: int
    duration_s: float
    clients: int
    rate: float  # operations a second, at most
    lease_ttl_s: float
    mix: dict[str, float]
    fenced_register: bool = True

    @property
    def appointments(self) -> Appointments:
        """What there is to enter."""
        return Appointments.for_duration(self.duration_s)

    def save(self, path: Path) -> None:
        """Where the workload reads it; it holds a secret."""
        path.touch(mode=0o600)
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def load(cls, path: Path) -> Config:
        """What save() wrote."""
        return cls(**json.loads(path.read_text()))
