"""What is true at the server, held against what the holders count on."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.sim.simulation import Simulation

CLOCK_S = 1e-5  # the server counts in whole milliseconds, its holders don't


class Truth:
    """Writes down each lease that was over at the server before its holder stopped counting on it."""

    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation
        simulation.server.model.on_lock = self._changed

    def _changed(self, key: bytes, before: bytes | None, after: bytes | None, why: str) -> None:
        if before is None or before == after:
            return
        simulation, name, lease_id = self._simulation, key[6:-1].decode(), before.decode()
        now_s = simulation.server.now_s
        for place in simulation.places.values():
            if place.process.is_dead:
                continue
            place.ears.sweep(name)
            lease = place.ears.lease_known_as(name, lease_id)
            if lease is not None and not (after and place.lends[name]):
                ends_s = place.process.true_s(lease.deadline_s)
                if ends_s > now_s + CLOCK_S:
                    simulation.recording.write(
                        "ended_early",
                        now_s,
                        i=place.process.name,
                        life=place.process.life,
                        name=name,
                        fence=lease.fencing_token,
                        why=why,
                        early_ms=round(1000 * (ends_s - now_s), 3),
                    )
