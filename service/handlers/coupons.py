"""Coupons: granted by services, once a reference; seen by their owner."""

from __future__ import annotations

from aiohttp import web

from db.coupons import coupons_of, decode_cursor, encode_cursor, grant_coupons, movements_of
from db.database import Database
from service.callers import SERVICE, Callers
from service.handlers.http import answer, caller_of, caller_with, json_body, page_limit, path_id, query_value
from service.models import CouponAnswer, CouponsAnswer, GrantAnswer, MovementAnswer, NewGrant
from service.reading import Reading
from service.refusals import Forbidden

MOVEMENTS_PER_PAGE = 50


class CouponHandlers:
    """Everything under /v1/users/{user_id}/coupons."""

    def __init__(self, reading: Reading, callers: Callers) -> None:
        self._reading = reading
        self._callers = callers

    async def grant(self, request: web.Request) -> web.Response:
        """201 for a new grant, 200 for one that this reference has made before."""
        caller = caller_with(request, self._callers, SERVICE)
        user_id = path_id(request, "user_id")
        body = await json_body(request, NewGrant)
        grant = await self._reading.write(
            lambda database: grant_coupons(
                database, user_id=user_id, coupon_id=body.coupon_id, count=body.count, reference=body.reference
            ),
            caller=caller.user_id,
        )
        shown = GrantAnswer(
            id=grant.id,
            user_id=grant.user_id,
            coupon_id=grant.coupon_id,
            count=grant.count,
            reference=grant.reference,
            granted_at=grant.granted_at,
            balance=grant.balance,
        )
        return answer(shown, 200 if grant.repeated else 201)

    async def show(self, request: web.Request) -> web.Response:
        """What the user has, and a page of what came and went."""
        caller = caller_of(request, self._callers)
        user_id = path_id(request, "user_id")
        if caller.user_id != user_id and not caller.may(SERVICE):
            raise Forbidden(SERVICE)
        limit = query_value(request, "limit", page_limit, MOVEMENTS_PER_PAGE)
        before = query_value(request, "cursor", decode_cursor, None)

        def read(database: Database) -> CouponsAnswer:
            coupons = coupons_of(database, user_id)
            movements, next_cursor = movements_of(database, user_id, limit=limit, before=before)
            return CouponsAnswer(
                user_id=user_id,
                coupons=[CouponAnswer(coupon_id=coupon.coupon_id, count=coupon.count) for coupon in coupons],
                movements=[MovementAnswer.model_validate(item, from_attributes=True) for item in movements],
                next_cursor=encode_cursor(next_cursor) if next_cursor else None,
            )

        return answer(await self._reading.run(read, caller=caller.user_id))
