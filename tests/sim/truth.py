"""What is true at the server, held against what the holders count on, and what anybody knows of."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from locks.for_whom import read_for_whom
from tests.sim.recording import ns

if TYPE_CHECKING:
    from tests.sim.network import Connection
    from tests.sim.simulation import Place, Simulation

CLOCK_S = 1e-5  # the server counts in whole milliseconds, its holders don't


class Grant(NamedTuple):
    """The last change of a lock's holder: when, and by whose command; None: where it was not one of ours."""

    at_s: float
    asked_by: Connection | None


class Truth:
    """Writes down each lease that was over at the server before its holder stopped counting on it, each that ran out
    there and that nobody knew of any more, and from when to when each lock was free and no line stood for it; and how
    much each process asked for in each second."""

    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation
        self._grants: dict[str, Grant] = {}
        self._lines: set[str] = set()  # the locks for which one stands, or did, and nobody has looked since
        self._free_since_s = dict.fromkeys(simulation.circumstances.names, 0.0)
        simulation.server.model.on_lock = self._changed
        simulation.server.model.on_queue = self._line_changed

    def end(self) -> None:
        """The run is over."""
        simulation, server = self._simulation, self._simulation.server
        for name in list(self._free_since_s):
            self._free_no_more(name)
        lockers = {place.process.name for place in simulation.places.values()}
        for who, second in sorted({*server.asked, *server.dialed}):
            if who in lockers:
                numbers = {"commands": server.asked[who, second], "connections": server.dialed[who, second]}
                simulation.recording.write("asked", float(second), i=who, **numbers)

    def _free_no_more(self, name: str) -> None:
        since_s = self._free_since_s.pop(name, None)
        if since_s is not None:
            self._simulation.recording.write("free", self._simulation.server.now_s, name=name, since=ns(since_s))

    def _line_changed(self, key: bytes, there: bool) -> None:
        name = _name_in(key)
        if there:
            self._lines.add(name)
            self._free_no_more(name)
        else:
            self._lines.discard(name)
            if name not in self._grants:
                self._free_since_s[name] = self._simulation.server.now_s

    def _changed(self, key: bytes, before: bytes | None, after: bytes | None, why: str) -> None:
        if before == after:
            return
        name, server = _name_in(key), self._simulation.server
        granted = self._grants.pop(name, None)
        if after is not None:
            asked_by = server.works_for
            is_heard = asked_by is not None and not asked_by.is_closing()
            self._grants[name] = Grant(server.now_s, asked_by if is_heard else None)
        if before is None:
            self._free_no_more(name)
            return
        over_at_s = server.now_s
        if why == "expired":
            over_at_s = min(over_at_s, server.lock_ends_s(name, before.decode()))
        if after is None and name not in self._lines:
            self._free_since_s[name] = server.now_s
        self._look_at_holder(name, before.decode(), after, over_at_s, why)
        if why == "expired" and granted is not None and granted.asked_by is not None:
            self._look_whose_it_was(name, before.decode(), granted.asked_by, granted.at_s, over_at_s)

    def _look_at_holder(self, name: str, lease_id: str, after: bytes | None, over_at_s: float, why: str) -> None:
        for place in self._living():
            place.ears.sweep(name)
            lease = place.ears.lease_known_as(name, lease_id)
            if lease is None or (after and after.decode() in place.chosen_ids):
                continue
            ends_s = place.process.true_s(lease.deadline_s)
            if ends_s > over_at_s + CLOCK_S:
                early_ms = round(1000 * (ends_s - over_at_s), 3)
                self._write(
                    place, "ended_early", over_at_s, name, fence=lease.fencing_token, why=why, early_ms=early_ms
                )

    def _look_whose_it_was(
        self, name: str, lease_id: str, asked_by: Connection, granted_at_s: float, over_at_s: float
    ) -> None:
        """A lock whose lease has run out: the process that had it was granted it by a command of its own, over a
        connection that it still had."""
        value, _ = self._simulation.server.model.peek(f"lock-grant:{{{name}}}".encode())
        if not isinstance(value, bytes):
            return
        _, _, granted_id, _, instance, _, _, for_whom = value.decode().split("\t")
        if granted_id != lease_id or read_for_whom(for_whom).is_lent:  # a client outside may know that one
            return
        living = list(self._living())
        if any(_knows(place, name, lease_id) for place in living):
            return
        for place in living:
            if place.process is asked_by.process and instance == place.process.name:
                self._write(place, "ran_out", over_at_s, name, granted=ns(granted_at_s))

    def _living(self) -> list[Place]:
        return [place for place in self._simulation.places.values() if not place.process.is_dead]

    def _write(self, place: Place, e: str, at_s: float, name: str, **facts: object) -> None:
        process = place.process
        self._simulation.recording.write(e, at_s, i=process.name, life=process.life, name=name, **facts)


def _name_in(key: bytes) -> str:
    return key[key.index(b"{") + 1 : -1].decode()


def _knows(place: Place, name: str, lease_id: str) -> bool:
    """Whether a process has a lease under this id, has handed one out, or waits for one; or is on its way out."""
    locker = place.locker
    return (
        place.is_closing
        or locker._closed
        or locker._held.knows(name, lease_id)
        or lease_id in locker._lines._by_lease_id
    )
