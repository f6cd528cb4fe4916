"""The shapes of requests and answers. The same models validate, answer, and make the OpenAPI document."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

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


class Body(BaseModel):
    """What a client sends; a field that nobody knows is refused rather than ignored."""

    model_config = ConfigDict(extra="forbid")


class Answer(BaseModel):
    """What the service sends."""

    model_config = ConfigDict(extra="forbid", json_schema_mode_override="serialization")


class NewAppointment(Body):
    """Two people who are to meet."""

    user_id: Id = Field(description="the inviter")
    invitee_user_id: Id
    prepare_id: Id | None = None

    @field_validator("invitee_user_id")
    @classmethod
    def _two_people(cls, value: int, info: ValidationInfo) -> int:
        if value == info.data.get("user_id"):
            raise ValueError("must be somebody else than user_id")
        return value


class AppointmentChange(Body):
    """What may be changed of an appointment."""

    status: Status


class NewGrant(Body):
    """Coupons for a user. The same reference again grants nothing more."""

    coupon_id: Id
    count: Count
    reference: str = Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]+$")


class AgoraTokenRequest(BaseModel):
    """The origin's fields, as JSON or as a form; others are ignored, as they were there."""

    model_config = ConfigDict(extra="ignore")

    appointmentId: Id
    otherUserid: Id


# Entries and leases are answered with dictionaries, checked by mypy and not at run time: 7 µs an answer instead of 15.


@with_config(extra="forbid")
class ChargeAnswer(TypedDict):
    """The appointment's one charge."""

    id: int
    payer_id: int
    coupon_id: int
    prop_id: int
    count: int
    charged_at: datetime


@with_config(extra="forbid")
class RoomAnswer(TypedDict):
    """The key to the video room: an Agora AccessToken2 for `uid`, with the rights to join and to publish."""

    app_id: str
    channel: str
    uid: str
    token: str
    expires_at: datetime


@with_config(extra="forbid")
class EntryAnswer(TypedDict):
    """An entry that stands in the tables. `charge` is this one's, the earlier one, or null when the entry is free."""

    appointment_id: int
    user_id: int
    outcome: Literal["charged", "already_charged", "free"]
    charge: ChargeAnswer | None
    entered_at: datetime
    room: RoomAnswer


class EntryListed(Answer):
    """One ENTER row."""

    user_id: int
    entered_at: datetime


class AppointmentAnswer(Answer):
    """An appointment, its charge if there is one, and its entries, oldest first."""

    id: int
    user_id: int
    invitee_user_id: int
    prepare_id: int | None
    status: Status
    is_consume: bool
    charge: ChargeAnswer | None
    entries: list[EntryListed]


class GrantAnswer(Answer):
    """A grant of coupons, and how many of them the user has now."""

    id: int
    user_id: int
    coupon_id: int
    count: int
    reference: str
    granted_at: datetime
    balance: int


class CouponAnswer(Answer):
    """How many of one coupon a user has."""

    coupon_id: int
    count: int


class MovementAnswer(Answer):
    """One grant (count above zero, with its reference) or one charge (below zero, with its appointment)."""

    kind: Literal["grant", "charge"]
    id: int
    coupon_id: int
    count: int
    at: datetime
    reference: str | None
    appointment_id: int | None


class CouponsAnswer(Answer):
    """A user's coupons and a page of movements, newest first. `next_cursor` is null on the last page."""

    user_id: int
    coupons: list[CouponAnswer]
    movements: list[MovementAnswer]
    next_cursor: str | None


TtlMs = Annotated[int, Field(strict=True, ge=100, le=3_600_000, description="how long the lease lasts from now")]


LeaseId = Annotated[str, Field(strict=True, pattern="^[0-9a-f]{32}$")]


Owner = Annotated[str, Field(strict=True, min_length=1, max_length=MAX_OWNER_LENGTH)]


class NewLease(Body):
    """A lease for so long, to be had within wait_ms; at once or not at all when that is absent."""

    ttl_ms: TtlMs
    wait_ms: int = Field(0, strict=True, ge=0, le=60_000)
    mode: Literal["exclusive"] = Field("exclusive", description="nobody else holds the lock meanwhile")
    owner: Owner | None = Field(
        None,
        description=(
            "who holds the lease, in the client's own words: printable, not blank, shown wherever the holder is; "
            "asked again with the same lease_id, the first one stays"
        ),
    )
    lease_id: LeaseId | None = Field(
        None, description="random, chosen by the client: asked again with it after an answer was lost, the same lease"
    )

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

    name: str
    lease_id: str
    fencing_token: int
    ttl_ms: int
    expires_at: datetime
    mode: Literal["exclusive"]
    owner: str | None


class ForceRelease(Body):
    """Which lease is to be ended, 0 for a python-redis-lock program's, and why."""

    reason: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=500)]
    fencing_token: int = Field(strict=True, ge=0, le=MAX_ID)

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

    instance: str
    host: str
    pid: int
    request_id: str
    owner: str | None = Field(description="who holds, in the words of whoever acquired; null where nothing was said")


class ForceReleaseAnswer(Answer):
    """A lease that is over. `holder` is null for a python-redis-lock program."""

    name: str
    released: Literal[True]
    fencing_token: int
    holder: PartyAnswer | None


class LockListed(Answer):
    """A lock that is held. A python-redis-lock program is held by nobody we know: holder and token are null."""

    name: str
    holder: PartyAnswer | None
    held_ms: int | None
    expires_in_ms: int | None
    fencing_token: int | None
    waiters: int
    by_python_redis_lock: bool


class LocksAnswer(Answer):
    """A page of held locks. `total`: all that match; `next_cursor` is null on the last page."""

    locks: list[LockListed]
    total: int
    next_cursor: str | None


class WaiterAnswer(Answer):
    """A caller that waits. Of those that are not the first of their process request and owner are not known."""

    instance: str
    host: str
    pid: int
    request_id: str | None
    owner: str | None
    waited_ms: int | None


class LockAnswer(LockListed):
    """A held lock, and its waiters in the order in which they came."""

    waiting: list[WaiterAnswer]


class BucketAnswer(Answer):
    """How many took up to `le_ms`, and longer than the bucket before; null: longer than any bound."""

    le_ms: float | None
    count: int


class TimesAnswer(Answer):
    """Times within the window. A percentile is an upper bound: that of the bucket that it lies in, which is a factor of
    1.41 wide. Of times above the last bound, 104,857.6 ms, it is that bound.
    """

    count: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    buckets: list[BucketAnswer]


class RatesAnswer(Answer):
    """How often a second, of what ended within the window: who waits now is in none of them."""

    acquired_per_s: float
    contended_per_s: float
    released_per_s: float
    gave_up_per_s: float
    lost_per_s: float
    charged_per_s: float
    entered_per_s: float


class InstanceAnswer(Answer):
    """One instance at its last sign of life, `age_ms` ago."""

    instance: str
    host: str
    pid: int
    version: str
    started_at: datetime
    draining: bool
    age_ms: int
    held: int
    waiting: int
    oldest_wait_ms: int
    rates: RatesAnswer
    lost_leases: int


class HotLockAnswer(Answer):
    """A lock that was waited for: `waits` that ended within the window or go on, and how long, so far.

    `waiting`: those that go on, the oldest of them for `oldest_wait_ms`.
    """

    name: str
    waits: int
    total_wait_ms: float
    longest_wait_ms: float
    waiting: int
    oldest_wait_ms: int


class ContentionAnswer(Answer):
    """All instances together. `wait`, `hottest` and `contention_ratio` are of the attempts to acquire that ended within
    the window and of those that go on (`waiting`), each counted once, at the time that it has waited so far; `rates`
    and `hold` of what ended. `lost_leases`, `takeovers`, `forced_releases` and `duplicates_prevented` count since the
    living instances began.
    """

    at: datetime
    window_s: float
    held: int
    waiting: int
    oldest_wait_ms: int
    oldest_held_ms: int
    contention_ratio: float
    rates: RatesAnswer
    wait: TimesAnswer
    hold: TimesAnswer
    hottest: list[HotLockAnswer]
    lost_leases: dict[str, int]
    takeovers: int
    forced_releases: int
    duplicates_prevented: dict[str, int]
    instances: list[InstanceAnswer]


class AliveAnswer(Answer):
    """The process is there."""

    status: Literal["alive"]


class ReadyAnswer(Answer):
    """This instance takes traffic; `dependencies` says up, down or unknown for each."""

    status: Literal["ready"]
    instance: str
    dependencies: dict[str, Literal["up", "down"]]


class ProblemAnswer(BaseModel):
    """Why a request was refused (RFC 9457). `charged` says whether this very request charged."""

    model_config = ConfigDict(extra="allow")

    type: str
    title: str
    status: int
    detail: str
    code: str
    request_id: str
    retryable: bool
    charged: bool | Literal["unknown"]
