"""Refusals as answers: one table, and the one place where an exception becomes an HTTP status (RFC 9457)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Any, Literal

import orjson
import structlog
from aiohttp import web

from db.answers import is_told_by_server
from db.coupons import BalanceTooLarge, ReferenceReused, UnknownCoupon, UnstorableReference
from db.decisions import AppointmentNotOpen, IllegalRequest, InsufficientCoupons
from db.errors import CommitUnknown, Conflict, DatabaseDown, DatabaseError, IdTaken, TimedOut
from locks import HolderChanged, LockStoreDown, TooManyLeases, TooManyWaiters
from locks.errors import TooManyBorrowed
from locks.lending import LeaseOver
from service.callers import Unauthenticated
from service.handlers.security_headers import add_to
from service.random_bytes import RandomBytes
from service.refusals import (
    ChargeInProgress,
    ChargeUnknown,
    Draining,
    Forbidden,
    InvalidRequest,
    LeaseRefused,
    LockFree,
    MethodNotAllowed,
    NameReserved,
    NotFound,
    Overloaded,
    TooLarge,
    TooManyRequests,
)

log = structlog.get_logger("chargeonce.http")

RETRY_AFTER_S = 1


@dataclass(frozen=True, slots=True)
class Problem:
    """How one kind of refusal is answered."""

    code: str
    status: HTTPStatus
    title: str
    retryable: bool = False
    charged: bool | Literal["unknown"] = False
    retry_after_s: int | None = None


BAD = HTTPStatus.BAD_REQUEST
AWAY = HTTPStatus.SERVICE_UNAVAILABLE


def _away(code: str, title: str, charged: bool | Literal["unknown"] = False) -> Problem:
    return Problem(code, AWAY, title, retryable=True, charged=charged, retry_after_s=RETRY_AFTER_S)


# A bug answers 500. What it did not finish it may have charged, so nobody is told otherwise.
BUG = Problem(
    "internal-error", HTTPStatus.INTERNAL_SERVER_ERROR, "Something is wrong with the service", True, "unknown"
)

SHARE_USED_UP = Problem(
    "too-many-requests",
    HTTPStatus.TOO_MANY_REQUESTS,
    "This caller's share is used up",
    retryable=True,
    retry_after_s=RETRY_AFTER_S,
)

PROBLEMS: Mapping[type[BaseException], Problem] = {
    InvalidRequest: Problem("invalid-request", BAD, "The request cannot be read"),
    UnknownCoupon: Problem("invalid-request", BAD, "The request cannot be read"),
    UnstorableReference: Problem("invalid-request", BAD, "The request cannot be read"),
    BalanceTooLarge: Problem("invalid-request", BAD, "The request cannot be read"),
    Unauthenticated: Problem("unauthenticated", HTTPStatus.UNAUTHORIZED, "No valid access token"),
    Forbidden: Problem("forbidden", HTTPStatus.FORBIDDEN, "The access token does not allow this"),
    NameReserved: Problem("name-reserved", HTTPStatus.FORBIDDEN, "The access token does not reach this lock"),
    InsufficientCoupons: Problem("insufficient-coupons", HTTPStatus.PAYMENT_REQUIRED, "Not enough coupons"),
    IllegalRequest: Problem("illegal-request", HTTPStatus.FORBIDDEN, "No such appointment of yours"),
    NotFound: Problem("not-found", HTTPStatus.NOT_FOUND, "There is no such thing"),
    LockFree: Problem("lock-free", HTTPStatus.NOT_FOUND, "Nobody holds the lock"),
    MethodNotAllowed: Problem("method-not-allowed", HTTPStatus.METHOD_NOT_ALLOWED, "Not with this method"),
    AppointmentNotOpen: Problem("appointment-not-open", HTTPStatus.CONFLICT, "The appointment is not open"),
    ReferenceReused: Problem("reference-reused", HTTPStatus.CONFLICT, "The reference was used for another grant"),
    ChargeInProgress: Problem(
        "charge-in-progress", HTTPStatus.CONFLICT, "Another entry is under way", retryable=True, retry_after_s=1
    ),
    LeaseRefused: Problem("lock-busy", HTTPStatus.CONFLICT, "Somebody else holds the lock", True, retry_after_s=1),
    LeaseOver: Problem("lease-lost", HTTPStatus.GONE, "The lease is over"),
    HolderChanged: Problem("holder-changed", HTTPStatus.CONFLICT, "Somebody else holds the lock by now"),
    TooLarge: Problem("too-large", HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "The body is too large"),
    TooManyRequests: SHARE_USED_UP,
    TooManyBorrowed: SHARE_USED_UP,
    Overloaded: _away("overloaded", "Too much is under way"),
    TooManyWaiters: _away("overloaded", "Too much is under way"),
    TooManyLeases: _away("overloaded", "Too much is under way"),
    TimedOut: _away("overloaded", "Too much is under way"),
    Conflict: _away("overloaded", "Too much is under way"),
    Draining: _away("draining", "This instance is about to stop"),
    DatabaseDown: _away("database-down", "The database is out of reach"),
    LockStoreDown: _away("lock-store-down", "The lock store is out of reach"),
    ChargeUnknown: _away("charge-unknown", "Whether this was charged is not known yet", "unknown"),
    CommitUnknown: _away("charge-unknown", "Whether this was written is not known yet", "unknown"),
    # A statement failed that should not, before COMMIT: nothing was written.
    DatabaseError: replace(BUG, charged=False),
    IdTaken: replace(BUG, title="An id is taken", charged=False),
}


def problem_of(error: BaseException) -> Problem:
    """The row of the table for this error, or for the nearest class it comes from."""
    for kind in type(error).__mro__:
        if kind in PROBLEMS:
            return PROBLEMS[kind]
    return BUG


def is_bug(error: BaseException) -> bool:
    """Whether somebody has to look at it: it is logged, whatever the caller is told."""
    return problem_of(error).code == BUG.code


def detail_of(error: BaseException) -> str:
    """What its client is told of it. What a server has said, and what a bug was, is for the log."""
    title = problem_of(error).title
    if is_told_by_server(error) or (is_bug(error) and not isinstance(error, IdTaken)):
        return title
    if isinstance(error, LockStoreDown):
        return "Redis does not answer, or does not do what locks need; the log of the service says why"
    return str(error) or title


def problem_answer(error: BaseException, request_id: str, **more: Any) -> web.Response:
    """The answer to a request that ended with this error."""
    problem = problem_of(error)
    body = {
        "type": "about:blank" if is_bug(error) else f"urn:chargeonce:problem:{problem.code}",
        "title": problem.title,
        "status": int(problem.status),
        "detail": detail_of(error),
        "code": problem.code,
        "request_id": request_id,
        "retryable": problem.retryable,
        "charged": problem.charged,
        **_members(error),
        **more,
    }
    return web.Response(
        status=problem.status,
        body=orjson.dumps(body),
        headers={"Content-Type": "application/problem+json", **_headers(error, problem)},
    )


def _members(error: BaseException) -> dict[str, Any]:
    """What a refusal says beyond the members that all have."""
    match error:
        case InvalidRequest():
            return {"field": error.field}
        case UnknownCoupon():
            return {"field": "coupon_id"}
        case UnstorableReference():
            return {"field": "reference"}
        case BalanceTooLarge():
            return {"field": "count"}
        case InsufficientCoupons():
            return {"required": error.required, "available": error.available, "coupon_id": error.coupon_id}
        case LeaseRefused():
            return {"holder": error.holder, "expires_in_ms": error.expires_in_ms, "waiters": error.waiters}
        case LeaseOver():
            return {"reason": error.reason}
        case AppointmentNotOpen():
            return {"appointment_status": error.status.name.lower()}
        case _:
            return {}


def _headers(error: BaseException, problem: Problem) -> dict[str, str]:
    match error:
        case Unauthenticated():
            return {"WWW-Authenticate": 'Bearer realm="chargeonce"'}
        case MethodNotAllowed():
            return {"Allow": ", ".join(error.allowed)}
        case ChargeInProgress() | LeaseRefused():
            return {"Retry-After": str(max(1, math.ceil(error.retry_after_s)))}
        case _:
            return {} if problem.retry_after_s is None else {"Retry-After": str(problem.retry_after_s)}


class ProblemRunner(web.AppRunner):
    """aiohttp's runner, but what is no HTTP at all is refused in the same form as everything else."""

    async def _make_server(self) -> web.Server:
        made = await super()._make_server()
        return _Server(
            made.request_handler,
            request_factory=made.request_factory,
            loop=made._loop,
            handler_cancellation=made.handler_cancellation,
            **made._kwargs,
        )


class _Server(web.Server):
    def __call__(self) -> web.RequestHandler:
        return _Connection(self, loop=self._loop, **self._kwargs)


class _Connection(web.RequestHandler):
    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Called by aiohttp for what it cannot parse; closes the connection."""
        if request.writer.output_size > 0:
            raise ConnectionError("an answer is on its way already") from exc
        request_id = new_request_id()
        error: BaseException = InvalidRequest("request", "is not HTTP that can be read")
        # Where there is no route, aiohttp would repeat what is expected, and cannot if that is no text.
        unreadable = isinstance(exc, UnicodeEncodeError) and "Expect" in request.headers
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR and not unreadable:
            error = exc or RuntimeError(message)
            log.error("request failed", request_id=request_id, exc_info=error)
        response = problem_answer(error, request_id)
        response.headers["X-Request-Id"] = request_id
        add_to(response.headers, request)
        response.force_close()
        return response


_random = RandomBytes()


def new_request_id() -> str:
    """An id for a request whose client sent none."""
    return _random.take(12).hex()
