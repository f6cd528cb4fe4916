"""URL to handler: the whole API on one screen. The router and the OpenAPI document are both made from this."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from aiohttp import web
from pydantic import BaseModel

from service import models
from service.callers import BOUND, LOCKS, MONITOR, OPERATOR, SERVICE
from service.handlers.appointments import AppointmentHandlers
from service.handlers.contention import ContentionHandlers
from service.handlers.coupons import CouponHandlers
from service.handlers.entries import EntryHandlers
from service.handlers.forcing import ForcingHandlers
from service.handlers.leases import LeaseHandlers
from service.handlers.running import RunningHandlers

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

WATCHERS = (MONITOR, OPERATOR)
LENDERS = (LOCKS, f"{BOUND}PREFIX")
ENTRIES = "/v1/appointments/{appointment_id}/entries"
BUSY = ("too-many-requests", "overloaded", "draining")
STORED = (*BUSY, "database-down", "charge-unknown")
CALLED = ("invalid-request", "unauthenticated")
WATCHED = (*CALLED, "forbidden", "too-large", "lock-store-down", *BUSY)
LENT = (*WATCHED, "name-reserved", "lease-lost")
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
    tag: str
    summary: str
    description: str
    answers: Mapping[int, type | str | None]  # a string: a media type that is not JSON; None: no content
    problems: tuple[str, ...] = ()
    body: type[BaseModel] | None = None
    form: bool = False  # the body may also come as a form
    query: Mapping[str, str] = field(default_factory=dict)
    scopes: tuple[str, ...] = ()  # any one of them lets in whoever is no participant
    public: bool = False
    for_anyone: bool = False  # work for whoever it is: bounded apart from that of callers who are known


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
            tag="entries",
            summary="Enter an appointment's room, charged exactly once",
            description="Takes the appointment's lock, charges whoever has to pay in one transaction, and answers "
            "with the key to the room: 201 when this very request charged, 200 when it was charged before or this "
            "caller enters free.",
            answers={201: models.EntryAnswer, 200: models.EntryAnswer},
            problems=ENTRY,
        ),
        Route(
            method="POST",
            path="/agoraToken",
            handler=entries.enter_as_before,
            tag="entries",
            summary="Enter, by the origin's route",
            description="As `POST /v1/appointments/{appointment_id}/entries`; an `otherUserid` who is not the other "
            "participant is an illegal request.",
            body=models.AgoraTokenRequest,
            form=True,
            answers={201: models.EntryAnswer, 200: models.EntryAnswer},
            problems=ENTRY,
        ),
        Route(
            method="POST",
            path="/v1/appointments",
            handler=appointments.create,
            tag="appointments",
            summary="Make an appointment",
            description="It is open, and nobody has paid.",
            scopes=(SERVICE,),
            body=models.NewAppointment,
            answers={201: models.AppointmentAnswer},
            problems=(*CALLED, "forbidden", "too-large", *STORED),
        ),
        Route(
            method="GET",
            path="/v1/appointments/{appointment_id}",
            handler=appointments.show,
            tag="appointments",
            summary="An appointment, for its participants",
            description="With its charge and its entries. Whoever is no participant and has no scope `service` gets "
            "the same answer as for one that does not exist.",
            answers={200: models.AppointmentAnswer},
            problems=(*CALLED, "illegal-request", "not-found", "too-large", *STORED),
        ),
        Route(
            method="PATCH",
            path="/v1/appointments/{appointment_id}",
            handler=appointments.change,
            tag="appointments",
            summary="Open, end or cancel an appointment",
            description="What was charged stays charged, and an appointment that is opened again is not charged again.",
            scopes=(SERVICE,),
            body=models.AppointmentChange,
            answers={200: models.AppointmentAnswer},
            problems=(*CALLED, "forbidden", "not-found", "too-large", *STORED),
        ),
        Route(
            method="POST",
            path="/v1/users/{user_id}/coupons",
            handler=coupons.grant,
            tag="coupons",
            summary="Grant coupons, once a reference",
            description="201 for a new grant; 200 for one that this reference has made before, and nothing more is "
            "granted.",
            scopes=(SERVICE,),
            body=models.NewGrant,
            answers={201: models.GrantAnswer, 200: models.GrantAnswer},
            problems=(*CALLED, "forbidden", "reference-reused", "too-large", *STORED),
        ),
        Route(
            method="GET",
            path="/v1/users/{user_id}/coupons",
            handler=coupons.show,
            tag="coupons",
            summary="A user's coupons and their movements, newest first",
            description="For that user, or with the scope `service`. Grants less charges are the balance.",
            query={"limit": "1 to 200 movements a page, 50 when absent", "cursor": "next_cursor of the page before"},
            answers={200: models.CouponsAnswer},
            problems=(*CALLED, "forbidden", "too-large", *STORED),
        ),
        Route(
            method="POST",
            path="/v1/locks/{name}/leases",
            handler=leases.lend,
            tag="leases",
            summary="A lease on the lock, for any program",
            description="Waits in one line with everybody else for `wait_ms` at most. 200 where a lease with this "
            "`lease_id` stands already: it has `ttl_ms` anew. A client that hangs up while it waits leaves the line.",
            scopes=LENDERS,
            body=models.NewLease,
            answers={201: models.LeaseAnswer, 200: models.LeaseAnswer},
            problems=(*LENT, "lock-busy"),
        ),
        Route(
            method="PUT",
            path="/v1/locks/{name}/leases/{lease_id}",
            handler=leases.extend,
            tag="leases",
            summary="Extend the lease",
            description="It lasts `ttl_ms` from now, and its fencing token stays. Through any instance.",
            scopes=LENDERS,
            body=models.LeaseExtension,
            answers={200: models.LeaseAnswer},
            problems=LENT,
        ),
        Route(
            method="DELETE",
            path="/v1/locks/{name}/leases/{lease_id}",
            handler=leases.release,
            tag="leases",
            summary="Give the lock back",
            description="To the next waiter, if one stands. Through any instance.",
            scopes=LENDERS,
            answers={204: None},
            problems=LENT,
        ),
        Route(
            method="POST",
            path="/v1/locks/{name}/force-release",
            handler=forcing.force_release,
            tag="leases",
            summary="End a lease by force",
            description="The lease with this fencing token, whoever holds it, and no other. Written to `lock_audit` "
            "before it is done.",
            scopes=(OPERATOR,),
            body=models.ForceRelease,
            answers={200: models.ForceReleaseAnswer},
            problems=(*WATCHED, "holder-changed", "database-down"),
        ),
        Route(
            method="GET",
            path="/v1/locks",
            handler=contention.list_locks,
            tag="contention",
            summary="The locks that are held, over all instances",
            description="A page of them. It never shows a lease id.",
            scopes=WATCHERS,
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
            tag="contention",
            summary="Who holds the lock, and who waits, in order",
            description="The holder by instance, host, process and request.",
            scopes=WATCHERS,
            answers={200: models.LockAnswer},
            problems=(*WATCHED, "lock-free"),
        ),
        Route(
            method="GET",
            path="/v1/contention",
            handler=contention.snapshot,
            tag="contention",
            summary="Contention over all instances now",
            description="Rates, percentiles of waits and holds, the locks that are waited for most, and every "
            "instance.",
            scopes=WATCHERS,
            answers={200: models.ContentionAnswer},
            problems=WATCHED,
        ),
        Route(
            method="GET",
            path="/v1/contention/stream",
            handler=contention.stream,
            tag="contention",
            summary="Contention as server-sent events",
            description="As `GET /v1/contention`, once a second, until the client goes or this instance stops.",
            scopes=WATCHERS,
            answers={200: "text/event-stream"},
            problems=WATCHED,
        ),
        Route(
            method="GET",
            path="/livez",
            handler=running.alive,
            tag="running",
            summary="The process is alive",
            description="Its event loop turns, and that is all this says.",
            answers={200: models.AliveAnswer},
            problems=("too-large",),
            public=True,
        ),
        Route(
            method="GET",
            path="/readyz",
            handler=running.ready,
            tag="running",
            summary="This instance may take traffic",
            description="503 while it drains, while Postgres is away, and with `LOCK_OUTAGE=refuse` while Redis is "
            "away. Either answer names each dependency.",
            answers={200: models.ReadyAnswer},
            problems=("too-large", "draining", "database-down", "lock-store-down"),
            public=True,
        ),
        Route(
            method="GET",
            path="/metrics",
            handler=running.metrics,
            tag="running",
            summary="Prometheus metrics, totals over all workers",
            description="Prometheus text. 503 in plain words where the counts would not be whole.",
            answers={200: "text/plain", 503: "text/plain"},
            problems=("too-large",),
            public=True,
        ),
        Route(
            method="GET",
            path="/openapi.json",
            handler=running.openapi,
            tag="running",
            summary="This description",
            description="OpenAPI 3.1, made from what validates and answers.",
            answers={200: "application/json"},
            problems=("too-large",),
            public=True,
        ),
    ]
