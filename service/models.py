"""The shapes of requests and answers. The same models validate, answer, and make the OpenAPI document."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal, NotRequired

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    with_config,
)
from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from locks.for_whom import MAX_OWNER_LENGTH, check_owner

MAX_ID = 2**63 - 1
MAX_COUNT = 1_000_000_000


def _whole_number(value: Any) -> Any:
    """JSON integers and their decimal digits; not 1.0, not true, not "1e3"."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError("must be an integer")
    if isinstance(value, str) and not (value.isascii() and value.isdigit() and len(value) <= 19):
        raise ValueError("must be an integer in decimal digits")
    return value


Id = Annotated[
    int,
    BeforeValidator(_whole_number),
    Field(ge=1, le=MAX_ID),
    WithJsonSchema({"type": "integer", "format": "int64", "minimum": 1, "maximum": MAX_ID}),
]
Count = Annotated[
    int,
    BeforeValidator(_whole_number),
    Field(ge=1, le=MAX_COUNT),
    WithJsonSchema({"type": "integer", "minimum": 1, "maximum": MAX_COUNT}),
]
Status = Literal["open", "ended", "cancelled"]


def told(description: str, example: Any) -> Any:
    """What /openapi.json says of a field, with a value that it may have."""
    return Field(description=description, examples=[example])


class Body(BaseModel):
    """What a client sends; a field that nobody knows is refused rather than ignored."""

    model_config = ConfigDict(extra="forbid")


class Answer(BaseModel):
    """What the service sends."""

    model_config = ConfigDict(extra="forbid", json_schema_mode_override="serialization")


class NewAppointment(Body):
    """Two people who are to meet."""

    user_id: Annotated[Id, told("the inviter", 7)]
    invitee_user_id: Annotated[Id, told("the invitee, somebody else than the inviter", 8)]
    prepare_id: Annotated[Id | None, told("an id of the caller's own, kept and shown", 5)] = None

    @field_validator("invitee_user_id")
    @classmethod
    def _two_people(cls, value: int, info: ValidationInfo) -> int:
        if value == info.data.get("user_id"):
            raise ValueError("must be somebody else than user_id")
        return value


class AppointmentChange(Body):
    """What may be changed of an appointment."""

    status: Annotated[Status, told("only an open appointment can be entered", "ended")]


class NewGrant(Body):
    """Coupons for a user. The same reference again grants nothing more."""

    coupon_id: Annotated[Id, told("which coupon; 1 is champagne", 1)]
    count: Annotated[Count, told("how many are granted", 10)]
    reference: Annotated[
        str,
        told("names this grant: sent again, it grants nothing more", "order-4711"),
        Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]+$"),
    ]


class AgoraTokenRequest(BaseModel):
    """The origin's fields, as JSON or as a form; others are ignored, as they were there."""

    model_config = ConfigDict(extra="ignore")

    appointmentId: Annotated[Id, told("the appointment to enter", 42)]
    otherUserid: Annotated[Id, told("the other participant", 8)]


# Entries and leases are answered with dictionaries, checked by mypy and not at run time: 7 µs an answer instead of 15.


@with_config(extra="forbid")
class ChargeAnswer(TypedDict):
    """The appointment's one charge."""

    id: Annotated[int, told("the charge", 9)]
    payer_id: Annotated[int, told("whose coupons were taken", 7)]
    coupon_id: Annotated[int, told("which coupon was taken", 1)]
    prop_id: Annotated[int, told("what it was taken for; 1 is champagne", 1)]
    count: Annotated[int, told("how many coupons were taken", 3)]
    charged_at: Annotated[datetime, told("when", "2026-11-23T17:38:57.568973Z")]


@with_config(extra="forbid")
class RoomAnswer(TypedDict):
    """The key to the video room: an Agora AccessToken2 for `uid`, with the rights to join and to publish."""

    app_id: Annotated[str, told("the Agora project", "970ca35de60c44645bbae8a215061b33")]
    channel: Annotated[str, told("the room", "appointment-42")]
    uid: Annotated[str, told("the caller, in the room", "7")]
    token: Annotated[str, told("an Agora AccessToken2; a secret of the caller's", "007eJxTYBBbsMMnKq7p9Hf")]
    expires_at: Annotated[datetime, told("when the token ends", "2026-11-23T18:38:57Z")]


@with_config(extra="forbid")
class EntryAnswer(TypedDict):
    """An entry that stands in the tables. `charge` is this one's, the earlier one, or null when the entry is free."""

    appointment_id: Annotated[int, told("the appointment that was entered", 42)]
    user_id: Annotated[int, told("who entered", 7)]
    outcome: Annotated[
        Literal["charged", "already_charged", "free"],
        told("what this very request did; `free`: this caller pays nothing", "charged"),
    ]
    charge: Annotated[
        ChargeAnswer | None,
        Field(description="the one charge of the appointment, by whichever request; null while there is none"),
    ]
    entered_at: Annotated[datetime, told("when", "2026-11-23T17:38:57.568973Z")]
    room: Annotated[RoomAnswer, Field(description="the key to the video room")]


class EntryListed(Answer):
    """One ENTER row."""

    user_id: Annotated[int, told("who entered", 7)]
    entered_at: Annotated[datetime, told("when", "2026-11-23T17:38:57.568973Z")]


class AppointmentAnswer(Answer):
    """An appointment, its charge if there is one, and its entries, oldest first."""

    id: Annotated[int, told("the appointment", 42)]
    user_id: Annotated[int, told("the inviter", 7)]
    invitee_user_id: Annotated[int, told("the invitee", 8)]
    prepare_id: Annotated[int | None, told("as it was made with", 5)]
    status: Annotated[Status, told("only an open appointment can be entered", "open")]
    is_consume: Annotated[bool, told("whether it is charged", True)]
    charge: Annotated[ChargeAnswer | None, Field(description="its one charge; null while there is none")]
    entries: Annotated[list[EntryListed], Field(description="oldest first; of many the newest")]


class GrantAnswer(Answer):
    """A grant of coupons, and how many of them the user has now."""

    id: Annotated[int, told("the grant", 3)]
    user_id: Annotated[int, told("who has got them", 7)]
    coupon_id: Annotated[int, told("which coupon", 1)]
    count: Annotated[int, told("how many were granted", 10)]
    reference: Annotated[str, told("as it was sent", "order-4711")]
    granted_at: Annotated[datetime, told("when", "2026-11-23T17:38:57.568973Z")]
    balance: Annotated[int, told("how many of this coupon the user has now", 10)]


class CouponAnswer(Answer):
    """How many of one coupon a user has."""

    coupon_id: Annotated[int, told("which coupon; 1 is champagne", 1)]
    count: Annotated[int, told("how many of them the user has", 7)]


class MovementAnswer(Answer):
    """One grant (count above zero, with its reference) or one charge (below zero, with its appointment)."""

    kind: Annotated[Literal["grant", "charge"], told("what it was", "charge")]
    id: Annotated[int, told("of the grant or the charge", 9)]
    coupon_id: Annotated[int, told("which coupon", 1)]
    count: Annotated[int, told("how many came, or below zero went", -3)]
    at: Annotated[datetime, told("when", "2026-11-23T17:38:57.568973Z")]
    reference: Annotated[str | None, told("of a grant; null for a charge", None)]
    appointment_id: Annotated[int | None, told("of a charge; null for a grant", 42)]


class CouponsAnswer(Answer):
    """A user's coupons and a page of movements, newest first. `next_cursor` is null on the last page."""

    user_id: Annotated[int, told("whose coupons", 7)]
    coupons: Annotated[list[CouponAnswer], Field(description="what the user has now")]
    movements: Annotated[list[MovementAnswer], Field(description="what came and went, newest first")]
    next_cursor: Annotated[str | None, told("for the query parameter cursor; null on the last page", None)]


TtlMs = Annotated[
    int, told("how long the lease lasts from now, in milliseconds", 30_000), Field(strict=True, ge=100, le=3_600_000)
]


LeaseId = Annotated[str, Field(strict=True, pattern="^[0-9a-f]{32}$")]


Owner = Annotated[str, Field(strict=True, min_length=1, max_length=MAX_OWNER_LENGTH)]


class NewLease(Body):
    """A lease for so long, to be had within wait_ms; at once or not at all when that is absent."""

    ttl_ms: TtlMs
    wait_ms: Annotated[
        int, told("how long to wait for the lock; 0: not at all", 5_000), Field(strict=True, ge=0, le=60_000)
    ] = 0
    mode: Annotated[Literal["exclusive"], told("nobody else holds the lock meanwhile", "exclusive")] = "exclusive"
    owner: Annotated[
        Owner | None,
        told(
            "who holds the lease, in the client's own words: printable, not blank, shown wherever the holder is; "
            "asked again with the same lease_id, the first one stays",
            "nightly report",
        ),
    ] = None
    lease_id: Annotated[
        LeaseId | None,
        told("random, chosen by the client: asked again with it, the same lease", "5f0c3c7a9d1e4b6f8a2d4c6e8f0a1b2c"),
    ] = None

    @field_validator("owner")
    @classmethod
    def _can_be_shown(cls, value: str | None) -> str | None:
        if value is not None:
            check_owner(value)
        return value


class LeaseExtension(Body):
    """A lease's new time, counted from now."""

    ttl_ms: TtlMs


@with_config(extra="forbid")
class LeaseAnswer(TypedDict):
    """A lease. `lease_id` opens it, and is to be kept secret; write `fencing_token` beside what the lease protects."""

    name: Annotated[str, told("the lock", "report:2026")]
    lease_id: Annotated[
        str, told("opens the lease: whoever has it can extend and release it", "5f0c3c7a9d1e4b6f8a2d4c6e8f0a1b2c")
    ]
    fencing_token: Annotated[
        int, told("rises with every lease on this lock: write it beside what the lock protects", 1042)
    ]
    ttl_ms: Annotated[int, told("as it was asked for", 30000)]
    expires_at: Annotated[
        datetime, told("when the lease ends; never after its end in Redis", "2026-11-23T17:38:57.568973Z")
    ]
    mode: Annotated[Literal["exclusive"], told("nobody else holds the lock meanwhile", "exclusive")]
    owner: Annotated[
        str | None,
        told("the owner, in the words of whoever acquired the lock; null where nothing was said", "nightly report"),
    ]


class ForceRelease(Body):
    """Which lease is to be ended, 0 for a python-redis-lock program's, and why."""

    reason: Annotated[
        str,
        told("why; it is written to lock_audit", "its worker hangs"),
        StringConstraints(strip_whitespace=True, min_length=1, max_length=500),
    ]
    fencing_token: Annotated[
        int,
        told("of the lease that is to end; 0: a python-redis-lock program's", 1042),
        Field(strict=True, ge=0, le=MAX_ID),
    ]

    @field_validator("reason")
    @classmethod
    def _can_be_read(cls, value: str) -> str:
        if not value.isprintable():
            raise ValueError("must be printable")
        return value


class PartyAnswer(Answer):
    """Who holds a lock: the instance, its process, the request for which it does, and the owner where one was named.

    A lease over HTTP is held by a program outside: then the instance is the one that keeps the books of it.
    """

    instance: Annotated[str, told("its name", "api-1-17")]
    host: Annotated[str, told("its machine", "api-1")]
    pid: Annotated[int, told("its process", 17)]
    request_id: Annotated[
        str, told("of the request for which it does; empty where there is none", "e73576edece31dd6ac72f565")
    ]
    owner: Annotated[
        str | None,
        told("the owner, in the words of whoever acquired the lock; null where nothing was said", "nightly report"),
    ]


class ForceReleaseAnswer(Answer):
    """A lease that is over. `holder` is null for a python-redis-lock program."""

    name: Annotated[str, told("the lock", "report:2026")]
    released: Annotated[Literal[True], told("it is over", True)]
    fencing_token: Annotated[int, told("of the lease that is over", 1042)]
    holder: Annotated[PartyAnswer | None, Field(description="who holds it; null: a python-redis-lock program")]


class LockListed(Answer):
    """A lock that is held. A python-redis-lock program is held by nobody we know: holder and token are null."""

    name: Annotated[str, told("the lock", "report:2026")]
    holder: Annotated[PartyAnswer | None, Field(description="who holds it; null: a python-redis-lock program")]
    held_ms: Annotated[int | None, told("for how long; null where nobody knows", 1240)]
    expires_in_ms: Annotated[
        int | None, told("when the lease ends, if it is not extended; null where nobody knows", 28760)
    ]
    fencing_token: Annotated[int | None, told("of the lease", 1042)]
    waiters: Annotated[int, told("how many callers wait", 2)]
    by_python_redis_lock: Annotated[bool, told("whether a python-redis-lock program holds it", False)]


class LocksAnswer(Answer):
    """A page of held locks. `total`: all that match; `next_cursor` is null on the last page."""

    locks: Annotated[list[LockListed], Field(description="this page")]
    total: Annotated[int, told("how many match, on all pages", 1)]
    next_cursor: Annotated[str | None, told("for the query parameter cursor; null on the last page", None)]


class WaiterAnswer(Answer):
    """A caller that waits. Of those that are not the first of their process request and owner are not known."""

    instance: Annotated[str, told("its name", "api-2-18")]
    host: Annotated[str, told("its machine", "api-2")]
    pid: Annotated[int, told("its process", 18)]
    request_id: Annotated[
        str | None, told("of the request that waits; null where it is not known", "0b1d6ac72f565e73576edece")
    ]
    owner: Annotated[
        str | None,
        told("the owner, in the words of whoever acquired the lock; null where nothing was said", "nightly report"),
    ]
    waited_ms: Annotated[int | None, told("for how long; null where nobody knows", 320)]


class LockAnswer(LockListed):
    """A held lock, and its waiters in the order in which they came."""

    waiting: Annotated[list[WaiterAnswer], Field(description="in the order in which they came")]


class BucketAnswer(Answer):
    """How many took up to `le_ms`, and longer than the bucket before; null: longer than any bound."""

    le_ms: Annotated[float | None, told("the upper bound; null: none", 10.0)]
    count: Annotated[int, told("how many", 12)]


class TimesAnswer(Answer):
    """Times within the window. A percentile is an upper bound: that of the bucket that it lies in, which is a factor of
    1.41 wide. Of times above the last bound, 104,857.6 ms, it is that bound.
    """

    count: Annotated[int, told("how many there were", 12)]
    p50_ms: Annotated[float, told("half took at most so long", 10.0)]
    p90_ms: Annotated[float, told("nine in ten took at most so long", 10.0)]
    p99_ms: Annotated[float, told("99 in 100 took at most so long", 10.0)]
    buckets: Annotated[list[BucketAnswer], Field(description="from the shortest to the longest")]


class RatesAnswer(Answer):
    """How often a second, of what ended within the window: who waits now is in none of them."""

    acquired_per_s: Annotated[float, told("leases that were had", 210.5)]
    contended_per_s: Annotated[float, told("of these, those that were waited for", 12.0)]
    released_per_s: Annotated[float, told("leases that were given back", 210.0)]
    gave_up_per_s: Annotated[float, told("waits that were over before the lock was had", 0.0)]
    lost_per_s: Annotated[float, told("leases that were lost", 0.0)]
    charged_per_s: Annotated[float, told("entries that charged", 180.0)]
    entered_per_s: Annotated[float, told("entries of all kinds", 340.0)]


class InstanceAnswer(Answer):
    """One instance at its last sign of life, `age_ms` ago."""

    instance: Annotated[str, told("its name", "api-1-17")]
    host: Annotated[str, told("its machine", "api-1")]
    pid: Annotated[int, told("its process", 17)]
    version: Annotated[str, told("of the service", "0.1.0")]
    started_at: Annotated[datetime, told("when", "2026-11-23T17:38:57.568973Z")]
    draining: Annotated[bool, told("whether it is about to stop", False)]
    age_ms: Annotated[int, told("how long ago its last sign of life was", 240)]
    held: Annotated[int, told("leases that it holds", 3)]
    waiting: Annotated[int, told("callers of it that wait", 2)]
    oldest_wait_ms: Annotated[int, told("how long the first of them has waited", 320)]
    rates: Annotated[RatesAnswer, Field(description="how often a second")]
    lost_leases: Annotated[int, told("since it began", 0)]


class HotLockAnswer(Answer):
    """A lock that was waited for: `waits` that ended within the window or go on, and how long, so far.

    `waiting`: those that go on, the oldest of them for `oldest_wait_ms`.
    """

    name: Annotated[str, told("the lock", "appointment:42")]
    waits: Annotated[int, told("how often it was waited for", 12)]
    total_wait_ms: Annotated[float, told("all of these waits together", 1840.5)]
    longest_wait_ms: Annotated[float, told("the longest of them", 320.0)]
    waiting: Annotated[int, told("callers that wait now", 2)]
    oldest_wait_ms: Annotated[int, told("how long the first of those who wait now has waited", 320)]


class ContentionAnswer(Answer):
    """All instances together. `wait`, `hottest` and `contention_ratio` are of the attempts to acquire that ended within
    the window and of those that go on (`waiting`), each counted once, at the time that it has waited so far; `rates`
    and `hold` of what ended. `lost_leases`, `takeovers`, `forced_releases` and `duplicates_prevented` count since the
    living instances began.
    """

    at: Annotated[datetime, told("when this was so", "2026-11-23T17:38:57.568973Z")]
    window_s: Annotated[float, told("over how long rates and times are taken", 60.0)]
    held: Annotated[int, told("leases held now", 3)]
    waiting: Annotated[int, told("callers that wait now", 2)]
    oldest_wait_ms: Annotated[int, told("how long the first of them has waited", 320)]
    oldest_held_ms: Annotated[int, told("how long the oldest lease has been held", 1240)]
    contention_ratio: Annotated[float, told("the share of leases that were waited for", 0.057)]
    rates: Annotated[RatesAnswer, Field(description="how often a second")]
    wait: Annotated[TimesAnswer, Field(description="how long locks were waited for")]
    hold: Annotated[TimesAnswer, Field(description="how long leases were held")]
    hottest: Annotated[list[HotLockAnswer], Field(description="the locks that were waited for most")]
    lost_leases: Annotated[dict[str, int], told("by reason", {"expired": 1, "taken": 0})]
    takeovers: Annotated[int, told("leases that were had after a dead holder's had run out", 1)]
    forced_releases: Annotated[int, told("leases that an operator ended", 0)]
    duplicates_prevented: Annotated[
        dict[str, int],
        told("entries that were kept from charging again, by what kept them", {"lock": 3, "is_consume": 17}),
    ]
    instances: Annotated[list[InstanceAnswer], Field(description="those that live")]


class AliveAnswer(Answer):
    """The process is there."""

    status: Annotated[Literal["alive"], told("it answers, and that is all", "alive")]


class ReadyAnswer(Answer):
    """This instance takes traffic; `dependencies` says up, down or unknown for each."""

    status: Annotated[Literal["ready"], told("send it traffic", "ready")]
    instance: Annotated[str, told("who says so", "api-1-17")]
    dependencies: Annotated[
        dict[str, Literal["up", "down"]],
        told("what it needs, and whether it has it", {"database": "up", "lock_store": "up"}),
    ]


@with_config(extra="forbid")
class ProblemAnswer(TypedDict):
    """Why a request was refused (RFC 9457). `charged` says whether this very request charged."""

    type: Annotated[str, told("names the kind of refusal", "urn:chargeonce:problem:lock-busy")]
    title: Annotated[str, told("the kind in words", "Somebody else holds the lock")]
    status: Annotated[int, told("the HTTP status", 409)]
    detail: Annotated[str, told("what it was this time", "another holds the lock 'report:2026'")]
    code: Annotated[str, told("the kind, for programs", "lock-busy")]
    request_id: Annotated[str, told("as in X-Request-Id", "e73576edece31dd6ac72f565")]
    retryable: Annotated[bool, told("whether the same request may succeed later", True)]
    charged: Annotated[bool | Literal["unknown"], told("whether this request charged; `unknown`: ask again", False)]
    field: NotRequired[Annotated[str, told("invalid-request: what cannot be read", "ttl_ms")]]
    required: NotRequired[Annotated[int, told("insufficient-coupons: what the entry costs", 3)]]
    available: NotRequired[Annotated[int, told("insufficient-coupons: what the payer has", 1)]]
    coupon_id: NotRequired[Annotated[int, told("insufficient-coupons: of which coupon", 1)]]
    appointment_status: NotRequired[Annotated[Status, told("appointment-not-open: what it is instead", "ended")]]
    holder: NotRequired[Annotated[PartyAnswer | None, Field(description="lock-busy: who holds it; null: not known")]]
    expires_in_ms: NotRequired[Annotated[int | None, told("lock-busy: when the lease ends; null: not known", 28_760)]]
    waiters: NotRequired[Annotated[int, told("lock-busy: how many callers wait", 2)]]
    reason: NotRequired[
        Annotated[str, told("lease-lost: expired, taken, deleted, forced, released, unknown", "expired")]
    ]
    instance: NotRequired[Annotated[str, told("/readyz: who says so", "api-1-17")]]
    dependencies: NotRequired[
        Annotated[dict[str, Literal["up", "down"]], told("/readyz: what it needs", {"database": "down"})]
    ]


# What a refusal says beyond the members that all have.
MEMBERS_OF_CODES = {
    "invalid-request": ("field",),
    "insufficient-coupons": ("required", "available", "coupon_id"),
    "appointment-not-open": ("appointment_status",),
    "lock-busy": ("holder", "expires_in_ms", "waiters"),
    "lease-lost": ("reason",),
}
