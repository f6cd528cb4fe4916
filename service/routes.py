"""URL to handler: the whole API on one screen. The router and the OpenAPI document are both made from this."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from aiohttp import web
from pydantic import BaseModel

from service import models
from service.handlers.appointments import AppointmentHandlers
from service.handlers.contention import ContentionHandlers
from service.handlers.coupons import CouponHandlers
from service.handlers.entries import EntryHandlers
from service.handlers.forcing import ForcingHandlers
from service.handlers.leases import LeaseHandlers
from service.handlers.running import RunningHandlers

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

ENTRIES = "/v1/appointments/{appointment_id}/entries"
BUSY = ("overloaded", "draining")
STORED = (*BUSY, "database-down", "charge-unknown")
CALLED = ("invalid-request", "unauthenticated")
WATCHED = (*CALLED, "forbidden", "too-large", "lock-store-down", *BUSY)
ENTRY = (
    *CALLED,
    "insufficient-coupons",
    "illegal-request",
    "appointment-not-open",
    "charge-in-progress",
    "too-large",
    "lock-store-down",
    *STORED,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One operation: where it is, who answers, and all it can answer."""

    method: str
    path: str
    handler: Handler
    summary: str
    answers: Mapping[int, type | str | None]  # a string: a media type that is not JSON; None: no content
    problems: tuple[str, ...] = ()
    body: type[BaseModel] | None = None
    form: bool = False  # the body may also come as a form
    query: Mapping[str, str] = field(default_factory=dict)
    public: bool = False
    has_head: bool = True  # a GET that also answers HEAD


def routes(
    entries: EntryHandlers,
    appointments: AppointmentHandlers,
    coupons: CouponHandlers,
    contention: ContentionHandlers,
    leases: LeaseHandlers,
    forcing: ForcingHandlers,
    running: RunningHandlers,
) -> list[Route]:
    """Every route of this service."""
    return [
        Route(
            method="POST",
            path=ENTRIES,
            handler=entries.enter,
            summary="Enter an appointment's room, charged exactly once",
            answers={201: models.EntryAnswer, 200: models.EntryAnswer},
            problems=ENTRY,
        ),
        Route(
            method="POST",
            path="/agoraToken",
            handler=entries.enter_as_before,
            summary="Enter, by the origin's route",
            body=models.AgoraTokenRequest,
            form=True,
            answers={201: models.EntryAnswer, 200: models.EntryAnswer},
            problems=ENTRY,
        ),
        Route(
            method="POST",
            path="/v1/appointments",
            handler=appointments.create,
            summary="Make an appointment (scope service)",
            body=models.NewAppointment,
            answers={201: models.AppointmentAnswer},
            problems=(*CALLED, "forbidden", "too-large", *STORED),
        ),
        Route(
            method="GET",
            path="/v1/appointments/{appointment_id}",
            handler=appointments.show,
            summary="An appointment, for its participants (or scope service)",
            answers={200: models.AppointmentAnswer},
            problems=(*CALLED, "illegal-request", "not-found", "too-large", *STORED),
        ),
        Route(
            method="PATCH",
            path="/v1/appointments/{appointment_id}",
            handler=appointments.change,
            summary="Open, end or cancel an appointment (scope service)",
            body=models.AppointmentChange,
            answers={200: models.AppointmentAnswer},
            problems=(*CALLED, "forbidden", "not-found", "too-large", *STORED),
        ),
        Route(
            method="POST",
            path="/v1/users/{user_id}/coupons",
            handler=coupons.grant,
            summary="Grant coupons, once a reference (scope service)",
            body=models.NewGrant,
            answers={201: models.GrantAnswer, 200: models.GrantAnswer},
            problems=(*CALLED, "forbidden", "reference-reused", "too-large", *STORED),
        ),
        Route(
            method="GET",
            path="/v1/users/{user_id}/coupons",
            handler=coupons.show,
            summary="A user's coupons and their movements, newest first (or scope service)",
            query={"limit": "1 to 200 movements a page, 50 when absent", "cursor": "next_cursor of the page before"},
            answers={200: models.CouponsAnswer},
            problems=(*CALLED, "forbidden", "too-large", *STORED),
        ),
        Route(
            method="POST",
            path="/v1/locks/{name}/leases",
            handler=leases.lend,
            summary="A lease on the lock, for any program (scope locks)",
            body=models.NewLease,
            answers={201: models.LeaseAnswer, 200: models.LeaseAnswer},
            problems=(*WATCHED, "lock-busy", "lease-lost"),
        ),
        Route(
            method="PUT",
            path="/v1/locks/{name}/leases/{lease_id}",
            handler=leases.extend,
            summary="Extend the lease; its fencing token stays (scope locks)",
            body=models.LeaseExtension,
            answers={200: models.LeaseAnswer},
            problems=(*WATCHED, "lease-lost"),
        ),
        Route(
            method="DELETE",
            path="/v1/locks/{name}/leases/{lease_id}",
            handler=leases.release,
            summary="Give the lock back, to the next waiter if one stands (scope locks)",
            answers={204: None},
            problems=(*WATCHED, "lease-lost"),
        ),
        Route(
            method="POST",
            path="/v1/locks/{name}/force-release",
            handler=forcing.force_release,
            summary="End the lease with this fencing token, whoever holds it; written to lock_audit (scope operator)",
            body=models.ForceRelease,
            answers={200: models.ForceReleaseAnswer},
            problems=(*WATCHED, "holder-changed", "database-down"),
        ),
        Route(
            method="GET",
            path="/v1/locks",
            handler=contention.list_locks,
            summary="The locks that are held, over all instances (scope monitor)",
            query={
                "sort": "waiters (most first, when absent), held (longest first) or name",
                "limit": "1 to 200 locks a page, 100 when absent",
                "cursor": "next_cursor of the page before",
                "search": "a part of the name",
            },
            answers={200: models.LocksAnswer},
            problems=WATCHED,
        ),
        Route(
            method="GET",
            path="/v1/locks/{name}",
            handler=contention.show_lock,
            summary="Who holds the lock, and who waits, in order (scope monitor)",
            answers={200: models.LockAnswer},
            problems=(*WATCHED, "lock-free"),
        ),
        Route(
            method="GET",
            path="/v1/contention",
            handler=contention.snapshot,
            summary="Contention over all instances now (scope monitor)",
            answers={200: models.ContentionAnswer},
            problems=WATCHED,
        ),
        Route(
            method="GET",
            path="/v1/contention/stream",
            handler=contention.stream,
            summary="The same as server-sent events, once a second (scope monitor)",
            answers={200: "text/event-stream"},
            problems=WATCHED,
        ),
        Route(
            method="GET",
            path="/livez",
            handler=running.alive,
            summary="The process is alive",
            answers={200: models.AliveAnswer},
            problems=("too-large",),
            public=True,
        ),
        Route(
            method="GET",
            path="/readyz",
            handler=running.ready,
            summary="This instance may take traffic",
            answers={200: models.ReadyAnswer},
            problems=("too-large", "draining", "database-down", "lock-store-down"),
            public=True,
        ),
        Route(
            method="GET",
            path="/metrics",
            handler=running.metrics,
            summary="Prometheus metrics, totals over all workers",
            answers={200: "text/plain"},
            problems=("too-large",),
            public=True,
        ),
        Route(
            method="GET",
            path="/openapi.json",
            handler=running.openapi,
            summary="This description",
            answers={200: "application/json"},
            problems=("too-large",),
            public=True,
        ),
    ]
