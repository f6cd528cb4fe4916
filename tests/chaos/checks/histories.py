"""A history written by hand: each line one event, a millisecond after the one before unless it says when."""

from __future__ import annotations

from typing import Any

from tests.chaos.checks.evidence import Event

MS = 1_000_000

COLUMNS = {
    "user_consume": ["id", "appointment_id", "user_id", "other_user_id", "count", "lock_fence", "created_at"],
    "appointment_action": ["id", "appointment_id", "user_id", "created_at"],
    "appointment_info": ["id", "user_id", "invitee_user_id", "status", "is_consume", "lock_fence"],
    "user_coupon": ["user_id", "count"],
    "coupon_grant": ["user_id", "count", "reference"],
    "chaos_register": ["name", "fence", "value", "op"],
    "chaos_register_log": ["n", "name", "fence", "op", "accepted"],
}
LEASE_TTL_S = 0.6


class HandWritten:
    """A history of one lease of 0.6 s and any number of everything else. Times are given in ms."""

    def __init__(self, **run: Any) -> None:
        """`run`: what else the event `run` says."""
        self._events: list[Event] = []
        self._now_ms = 0.0
        self.event("run", version=1, lease_ttl_s=LEASE_TTL_S, instances=3, **run)

    @property
    def events(self) -> list[Event]:
        """What was written, in the order of time."""
        return sorted(self._events, key=lambda event: event["t"])

    def event(self, e: str, *, at_ms: float | None = None, **facts: Any) -> HandWritten:
        """Any event."""
        self._now_ms = self._now_ms + 1 if at_ms is None else at_ms
        self._events.append({"e": e, "t": round(self._now_ms * MS), **facts})
        return self

    def enter(self, op: str, appointment: int, user: int, *, at_ms: float | None = None, **facts: Any) -> HandWritten:
        """Somebody asks to be let in."""
        return self.event("invoke", at_ms=at_ms, op=op, f="enter", appointment=appointment, user=user, **facts)

    def charged(
        self, op: str, *, charge_id: int, payer: int, count: int = 1, at_ms: float | None = None
    ) -> HandWritten:
        """The answer: charged."""
        told = {"charge_id": charge_id, "payer": payer, "count": count}
        return self.event("ok", at_ms=at_ms, op=op, status=201, outcome="charged", **told)

    def already(self, op: str, *, at_ms: float | None = None, **facts: Any) -> HandWritten:
        """The answer: already charged."""
        return self.event("ok", at_ms=at_ms, op=op, status=200, outcome="already_charged", **facts)

    def refused(self, op: str, code: str, *, charged: bool | str = False, at_ms: float | None = None) -> HandWritten:
        """The answer: refused."""
        return self.event("refused", at_ms=at_ms, op=op, status=409, code=code, charged=charged)

    def unknown(self, op: str, *, at_ms: float | None = None) -> HandWritten:
        """No answer."""
        return self.event("unknown", at_ms=at_ms, op=op, reason="timeout")

    def point(self, p: str, i: int | str, *, at_ms: float | None = None, life: int = 1, **facts: Any) -> HandWritten:
        """A point of an instance, or of a client that holds leases."""
        return self.event("point", at_ms=at_ms, p=p, i=i, life=life, **facts)

    def hold(
        self, i: int, name: str, fence: int, *, from_ms: float, to_ms: float, life: int = 1, **released: Any
    ) -> HandWritten:
        """A lock is acquired, and released 1 ms after to_ms, when the release was sent."""
        self.point("acquired", i, at_ms=from_ms, life=life, name=name, fence=fence, queued=False, waited_s=0.0)
        self.point("releasing", i, at_ms=to_ms, life=life, name=name, fence=fence)
        facts = {"still_ours": True, "handed_over": False, **released}
        return self.point("released", i, at_ms=to_ms + 1, life=life, name=name, fence=fence, **facts)

    def leased(
        self,
        i: str,
        name: str,
        fence: int,
        *,
        from_ms: float,
        to_ms: float,
        until_ms: float,
        life: int = 1,
        **acquired: Any,
    ) -> HandWritten:
        """A lock is acquired, and released, under a lease that ends by its holder's clock at until_ms."""
        facts: dict[str, Any] = {"life": life, "name": name, "fence": fence, "until": round(until_ms * MS)}
        released = {"still_ours": acquired.pop("still_ours", True), "handed_over": False}
        self.point("acquired", i, at_ms=from_ms, **facts, **{"queued": False, "waited_s": 0.001, **acquired})
        self.point("releasing", i, at_ms=to_ms, **facts)
        return self.point("released", i, at_ms=to_ms + 0.2, life=life, name=name, fence=fence, **released)

    def fault(
        self, id: int, kind: str, scope: str, *, from_ms: float, to_ms: float, point: str | None = None, **more: Any
    ) -> HandWritten:
        """A fault, targeted where it has a point."""
        targeted = point is not None
        self.event("fault", at_ms=from_ms, id=id, kind=kind, scope=scope, targeted=targeted, point=point, **more)
        return self.event("healed", at_ms=to_ms, id=id, kind=kind)

    def table(self, table: str, *rows: list[Any]) -> HandWritten:
        """A final table, or a further part of it."""
        return self.event("rows", table=table, columns=COLUMNS[table], rows=list(rows))

    def charge_row(
        self, id: int, appointment: int, payer: int, *, count: int = 1, fence: int | None = None
    ) -> HandWritten:
        """A row of user_consume."""
        return self.table("user_consume", [id, appointment, payer, payer + 1, count, fence, "2026-01-01T00:00:00Z"])

    def entry_rows(self, *pairs: tuple[int, int]) -> HandWritten:
        """Rows of appointment_action."""
        rows = [[n, appointment, user, "2026-01-01T00:00:00Z"] for n, (appointment, user) in enumerate(pairs)]
        return self.table("appointment_action", *rows)

    def appointment_row(self, id: int, *, is_consume: bool, fence: int | None = None) -> HandWritten:
        """A row of appointment_info."""
        return self.table("appointment_info", [id, 1, 2, 1, is_consume, fence])
