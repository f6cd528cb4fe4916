"""What an instance may have told of itself, for tests on numbers."""

from __future__ import annotations

from typing import Any

from locks.histogram import LogHistogram
from locks.picture import Picture

NOW_S = 1_000_000.0


def picture(instance_id: str = "api-1", **told: Any) -> Picture:
    """An instance at which nothing goes on, but for what is told."""
    nothing: dict[str, Any] = {
        "instance_id": instance_id, "host": "host", "pid": 11, "version": "1", "started_at": NOW_S, "draining": False,
        "held": 0, "waiting": 0, "oldest_wait_s": 0.0, "oldest_held_s": 0.0, "counts": {}, "totals": {},
        "wait": LogHistogram(), "hold": LogHistogram(), "hot": {}, "waited_for": {},
    }  # fmt: skip
    return Picture(**(nothing | told))
