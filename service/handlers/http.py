"""What handlers share: reading what a client sent, and answering with a model."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import orjson
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from multidict import MultiMapping
from pydantic import BaseModel, ValidationError

from db.records import ChargeRecord
from locks.keys import check_name
from service.callers import Caller, Callers
from service.handlers.headers import header_of
from service.handlers.quick_answer import QuickAnswer
from service.models import MAX_ID, ChargeAnswer
from service.refusals import Forbidden, InvalidRequest, NameReserved, TooLarge
from service.shares import Limit
from service.strict_json import NotReadable, RepeatedKey, read_json

Model = TypeVar("Model", bound=BaseModel)
Value = TypeVar("Value")

# Whoever reads nothing for so long is gone, or as good as gone.
EVENT_WAIT_S = 20.0
BODY_WAIT_S = web.AppKey("BODY_WAIT_S", float)
IN_FLIGHT = web.AppKey("IN_FLIGHT", Limit)
USER_ID = web.RequestKey("USER_ID", int)  # whose request it is, and whose place it has
JSON = "application/json"
FORMS = ("application/x-www-form-urlencoded", "multipart/form-data")
MAX_FORM_FIELDS = 20  # each part of a multipart form costs a third of a millisecond
MAX_FORM_BYTES = 16 * 1024  # an access token, or a reason in any script
CUT_SHORT = (web.RequestPayloadError, ConnectionError)
_ID = re.compile(r"[1-9][0-9]{0,18}")


def caller_of(request: web.Request, callers: Callers) -> Caller:
    """Who is calling; the request counts as theirs. Raises Unauthenticated, TooManyRequests, Overloaded."""
    caller = callers.identify(header_of(request, "Authorization"), now=time.time())
    count_for(caller.user_id, request)
    return caller


def count_for(user_id: int, request: web.Request) -> None:
    """From now on it is this user's request that is under way. Raises TooManyRequests, Overloaded."""
    if USER_ID not in request:
        request.app[IN_FLIGHT].enter(user_id)
        request[USER_ID] = user_id


def caller_with(request: web.Request, callers: Callers, scope: str) -> Caller:
    """Who is calling, who must have the scope. Raises as caller_of, and Forbidden."""
    caller = caller_of(request, callers)
    if not caller.may(scope):
        raise Forbidden(scope)
    return caller


def path_id(request: web.Request, name: str) -> int:
    """An id in the path. Raises InvalidRequest."""
    text = request.match_info[name]
    if not _ID.fullmatch(text) or (value := int(text)) > MAX_ID:
        raise InvalidRequest(name, f"must be an integer from 1 to {MAX_ID}")
    return value


def path_name(request: web.Request) -> str:
    """The lock's name in the path, in which a `/` is sent as %2F. Raises InvalidRequest."""
    name = request.match_info["name"]
    try:
        check_name(name)
    except ValueError as error:
        raise InvalidRequest("name", str(error)) from error
    return name


def reached_name(request: web.Request, caller: Caller) -> str:
    """The lock's name in the path, on which the caller may have leases. Raises InvalidRequest, NameReserved."""
    name = path_name(request)
    if not caller.reaches(name):
        raise NameReserved(name)
    return name


def query_value(request: web.Request, name: str, read: Callable[[str], Any], default: Any) -> Any:
    """A query parameter, or the default where there is none. Raises InvalidRequest."""
    texts = request.query.getall(name, [])
    if not texts:
        return default
    if len(texts) > 1:
        raise InvalidRequest(name, "is given twice")
    try:
        return read(texts[0])
    except ValueError as error:
        raise InvalidRequest(name, str(error)) from error


def query_values(request: web.Request) -> dict[str, str]:
    """Every query parameter, whatever its name. Raises InvalidRequest."""
    return _each_once(request.query)


def page_limit(text: str) -> int:
    """How many a page shows. Raises ValueError."""
    if not _ID.fullmatch(text) or not 1 <= int(text) <= 200:
        raise ValueError("must be an integer from 1 to 200")
    return int(text)


async def json_body(request: web.Request, model: type[Model]) -> Model:
    """The body as the model. Raises InvalidRequest, which names the field, or TooLarge."""
    if request.content_type not in (JSON, "application/octet-stream"):
        raise InvalidRequest("Content-Type", f"must be {JSON}")
    return validated(model, _parsed(await _bytes(request)))


async def json_or_form_body(request: web.Request, model: type[Model]) -> Model:
    """The body as the model, from JSON or from a form of either kind. Raises as json_body."""
    if request.content_type not in FORMS:
        return await json_body(request, model)
    return validated(model, await _fields(request, request))


async def form_fields(request: web.Request) -> dict[str, str]:
    """The fields of a form of the page. Raises InvalidRequest or TooLarge."""
    if request.content_type != FORMS[0]:
        raise InvalidRequest("Content-Type", f"must be {FORMS[0]}")
    return await _fields(request, request.clone(client_max_size=MAX_FORM_BYTES))


async def _fields(request: web.Request, form: web.BaseRequest) -> dict[str, str]:
    """A form's fields, without files; `form`: the request, with its limits."""
    try:
        async with asyncio.timeout(request.app[BODY_WAIT_S]):
            fields = await form.post()
    except web.HTTPRequestEntityTooLarge as error:
        raise TooLarge("the form is too large, or has too many fields") from error
    except TimeoutError as error:
        raise InvalidRequest("body", f"did not arrive within {request.app[BODY_WAIT_S]:g} s") from error
    except (ValueError, LookupError, AssertionError, RuntimeError, HttpProcessingError, *CUT_SHORT) as error:
        # LookupError: a charset that nobody knows; HttpProcessingError: a part whose headers are none.
        raise InvalidRequest("body", "is not a readable form") from error
    return {name: value for name, value in _each_once(fields).items() if isinstance(value, str)}


def _each_once(given: MultiMapping[Value]) -> dict[str, Value]:
    for name in given:
        if len(given.getall(name)) > 1:
            raise InvalidRequest(name, "is given twice")
    return dict(given.items())


def validated(model: type[Model], value: Any) -> Model:
    """The value as the model. Raises InvalidRequest, which names the field."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "body"
        raise InvalidRequest(field, first["msg"].removeprefix("Value error, ")) from error


def answer(model: BaseModel, status: int = 200) -> web.Response:
    """The model as JSON."""
    return web.Response(
        body=model.__pydantic_serializer__.to_json(model),
        status=status,
        headers={"Content-Type": JSON},
    )


def answer_dict(value: Mapping[str, Any], status: int = 200) -> web.Response:
    """The value as JSON, times in UTC with a Z."""
    return QuickAnswer(
        body=as_json(value),
        status=status,
        headers={"Content-Type": JSON},
    )


def as_json(value: Mapping[str, Any]) -> bytes:
    """Times in UTC with a Z."""
    return orjson.dumps(value, option=orjson.OPT_UTC_Z)


async def write_event(request: web.Request, response: web.StreamResponse, event: bytes) -> None:
    """Writes to the request's open stream. Raises ConnectionResetError where nobody reads it any more."""
    try:
        async with asyncio.timeout(EVENT_WAIT_S):
            await response.write(event)
    except TimeoutError as error:
        if request.transport is not None:
            request.transport.abort()  # else the stream's end would wait for its reader
        raise ConnectionResetError("nobody reads any more") from error


def charge_answer(charge: ChargeRecord | None) -> ChargeAnswer | None:
    """A charge as it is shown."""
    if charge is None:
        return None
    return {
        "id": charge.id,
        "payer_id": charge.payer_id,
        "coupon_id": charge.coupon_id,
        "prop_id": charge.prop_id,
        "count": charge.count,
        "charged_at": charge.charged_at,
    }


async def _bytes(request: web.Request) -> bytes:
    try:
        async with asyncio.timeout(request.app[BODY_WAIT_S]):
            return await request.read()
    except web.HTTPRequestEntityTooLarge as error:
        raise TooLarge("the body is too large") from error
    except TimeoutError as error:
        raise InvalidRequest("body", f"did not arrive within {request.app[BODY_WAIT_S]:g} s") from error
    except CUT_SHORT as error:
        raise InvalidRequest("body", "did not arrive whole, or cannot be unpacked") from error


def _parsed(body: bytes) -> Any:
    try:
        return read_json(body)
    except RepeatedKey as error:
        raise InvalidRequest(error.key, "is given twice") from error
    except NotReadable as error:
        raise InvalidRequest("body", str(error)) from error
