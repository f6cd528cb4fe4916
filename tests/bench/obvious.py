"""The obvious implementation, as a competent developer writes it first: per request one lock, one connection, one
statement at a time.

It charges exactly once: redis-py's lock in front, `FOR UPDATE` and `is_consume` behind. It runs on uvloop and hiredis,
writes no access log, and checks no more than it must, so that it is not slower than it has to be.

`python -m tests.bench.obvious` is one worker; every worker listens on the same port. It reads CHARGEONCE_ variables.
"""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
import sqlalchemy as sa
import uvloop
from agoraiotools.RtcTokenBuilder2 import Role_Publisher, RtcTokenBuilder
from aiohttp import web
from redis.asyncio import Redis
from redis.exceptions import LockError

from db.tables import (
    CHAMPAGNE,
    ActionType,
    AppointmentStatus,
    appointment_action,
    appointment_info,
    coupon_price,
    user_consume,
    user_coupon,
)
from tests.harness import driver_url

THREADS = 16
LEASE_TTL_S = 10
LOCK_WAIT_S = 3
ROOM_TOKEN_TTL_S = 3600


OF_PAYER = sa.and_(user_coupon.c.user_id == sa.bindparam("payer_id"), user_coupon.c.coupon_id == CHAMPAGNE)
THIS_APPOINTMENT = appointment_info.c.id == sa.bindparam("appointment_id")

# Built once. Building them anew for each request, as many do, takes half as much CPU again from this side.
SELECT_APPOINTMENT = sa.select(appointment_info).where(THIS_APPOINTMENT).with_for_update()
SELECT_CHARGE = sa.select(user_consume).where(user_consume.c.appointment_id == sa.bindparam("appointment_id"))
SELECT_COUPONS = sa.select(user_coupon.c.count).where(OF_PAYER).with_for_update()
SELECT_PRICE = sa.select(coupon_price.c.count).where(coupon_price.c.other_user_id == sa.bindparam("other_user_id"))
TAKE_COUPONS = sa.update(user_coupon).where(OF_PAYER).values(count=user_coupon.c.count - sa.bindparam("taken"))
INSERT_CHARGE = sa.insert(user_consume).returning(user_consume)
MARK_CONSUMED = sa.update(appointment_info).where(THIS_APPOINTMENT).values(is_consume=True)
INSERT_ENTRY = sa.insert(appointment_action).returning(appointment_action.c.created_at)


class Refused(Exception):
    """The entry is refused; nothing was written."""

    def __init__(self, status: int, code: str) -> None:
        super().__init__(code)
        self.status = status
        self.code = code


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    engine: sa.Engine
    threads: ThreadPoolExecutor
    redis: Redis
    jwt_secret: str
    agora_app_id: str
    agora_app_certificate: str


PARTS: web.AppKey[Parts] = web.AppKey("parts", Parts)


async def enter(request: web.Request) -> web.Response:
    """POST /v1/appointments/{appointment_id}/entries"""
    parts = request.app[PARTS]
    try:
        user_id = caller(request, parts.jwt_secret)
        appointment_id = int(request.match_info["appointment_id"])
        async with parts.redis.lock(f"appointment:{appointment_id}", timeout=LEASE_TTL_S, blocking_timeout=LOCK_WAIT_S):
            status, answer = await asyncio.get_running_loop().run_in_executor(
                parts.threads, charge_once, parts.engine, appointment_id, user_id
            )
    except Refused as refusal:
        return web.json_response({"code": refusal.code, "status": refusal.status}, status=refusal.status)
    except LockError:
        return web.json_response({"code": "charge-in-progress", "status": 409}, status=409)
    answer["room"] = room(parts, appointment_id, user_id)
    return web.json_response(answer, status=status)


def caller(request: web.Request, jwt_secret: str) -> int:
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    if scheme != "Bearer":
        raise Refused(401, "unauthenticated")
    try:
        claims = jwt.decode(token, jwt_secret, algorithms=["HS256"], options={"require": ["sub", "exp"]})
    except jwt.InvalidTokenError as error:
        raise Refused(401, "unauthenticated") from error
    return int(claims["sub"])


def charge_once(engine: sa.Engine, appointment_id: int, user_id: int) -> tuple[int, dict[str, Any]]:
    """Charges whoever enters first. Returns the HTTP status and the answer without its room; raises Refused."""
    with engine.begin() as connection:
        appointment = connection.execute(SELECT_APPOINTMENT, {"appointment_id": appointment_id}).one_or_none()
        if appointment is None or user_id not in (appointment.user_id, appointment.invitee_user_id):
            raise Refused(403, "illegal-request")
        if appointment.status != AppointmentStatus.OPEN:
            raise Refused(409, "appointment-not-open")
        if appointment.is_consume:
            status, outcome = 200, "already_charged"
            charge = connection.execute(SELECT_CHARGE, {"appointment_id": appointment_id}).one()
        else:
            status, outcome = 201, "charged"
            charge = new_charge(connection, appointment, user_id)
        entered_at = connection.execute(
            INSERT_ENTRY, {"appointment_id": appointment_id, "user_id": user_id, "type": ActionType.ENTER}
        ).scalar_one()
    return status, {
        "appointment_id": appointment_id,
        "user_id": user_id,
        "outcome": outcome,
        "charge": {
            "id": charge.id,
            "payer_id": charge.user_id,
            "coupon_id": charge.coupon_id,
            "prop_id": charge.prop_id,
            "count": charge.count,
            "charged_at": charge.created_at.isoformat(),
        },
        "entered_at": entered_at.isoformat(),
    }


def new_charge(connection: sa.Connection, appointment: sa.Row[Any], user_id: int) -> sa.Row[Any]:
    other_user_id = appointment.invitee_user_id if user_id == appointment.user_id else appointment.user_id
    available = connection.execute(SELECT_COUPONS, {"payer_id": user_id}).scalar_one_or_none()
    price = connection.execute(SELECT_PRICE, {"other_user_id": other_user_id}).scalar_one_or_none()
    count = 1 if price is None else price
    if (available or 0) < count:
        raise Refused(402, "insufficient-coupons")
    connection.execute(TAKE_COUPONS, {"payer_id": user_id, "taken": count})
    values = {"appointment_id": appointment.id, "user_id": user_id, "other_user_id": other_user_id, "count": count}
    charge = connection.execute(INSERT_CHARGE, values | {"coupon_id": CHAMPAGNE, "prop_id": CHAMPAGNE}).one()
    connection.execute(MARK_CONSUMED, {"appointment_id": appointment.id})
    return charge


def room(parts: Parts, appointment_id: int, user_id: int) -> dict[str, str]:
    channel = f"appointment-{appointment_id}"
    token = RtcTokenBuilder.build_token_with_user_account(
        parts.agora_app_id,
        parts.agora_app_certificate,
        channel,
        str(user_id),
        Role_Publisher,
        ROOM_TOKEN_TTL_S,
        ROOM_TOKEN_TTL_S,
    )
    return {
        "app_id": parts.agora_app_id,
        "channel": channel,
        "uid": str(user_id),
        "token": token,
        "expires_at": (datetime.now(UTC) + timedelta(seconds=ROOM_TOKEN_TTL_S)).isoformat(),
    }


async def ready(request: web.Request) -> web.Response:
    """GET /readyz"""
    await request.app[PARTS].redis.ping()
    return web.json_response({"status": "ready"})


def main() -> None:
    app = web.Application()
    app[PARTS] = Parts(
        engine=sa.create_engine(driver_url(os.environ["CHARGEONCE_DATABASE_URL"]), pool_size=THREADS, max_overflow=0),
        threads=ThreadPoolExecutor(THREADS),
        redis=Redis.from_url(os.environ["CHARGEONCE_REDIS_URL"]),
        jwt_secret=os.environ["CHARGEONCE_JWT_SECRET"],
        agora_app_id=os.environ["CHARGEONCE_AGORA_APP_ID"],
        agora_app_certificate=os.environ["CHARGEONCE_AGORA_APP_CERTIFICATE"],
    )
    app.router.add_post("/v1/appointments/{appointment_id}/entries", enter)
    app.router.add_get("/readyz", ready)
    web.run_app(
        app,
        host="127.0.0.1",
        port=int(os.environ["CHARGEONCE_PORT"]),
        reuse_port=True,
        access_log=None,
        print=lambda _text: None,
        loop=uvloop.new_event_loop(),
    )


if __name__ == "__main__":
    main()
