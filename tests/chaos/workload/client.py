"""One HTTP client that writes down what it asked and what it learnt: ok, refused, or unknown."""

from __future__ import annotations

import asyncio
import itertools
import time
from dataclasses import dataclass
from typing import Any

import aiohttp
import orjson

from service.callers import sign_token
from tests.chaos.history import History
from tests.chaos.workload.people import SERVICE_USER

TOKEN_TTL_S = 24 * 3600.0
PATIENCE_S = 6.0
HUNG_UP = "hung up"  # by the client's own will, sooner than an answer can be expected
SCOPES = {SERVICE_USER: ("service", "locks")}


@dataclass(frozen=True, slots=True)
class Answer:
    """`kind` is ok, refused or unknown; `body` is there where there was an answer."""

    op: str
    kind: str
    asked_at: int
    body: dict[str, Any]
    code: str = ""
    retryable: bool = False


class Client:
    """Asks the instances; every question is an operation of the history."""

    def __init__(
        self, session: aiohttp.ClientSession, history: History, base_urls: dict[int, str], *, jwt_secret: str
    ) -> None:
        self.base_urls = base_urls
        self._session = session
        self._history = history
        self._jwt_secret = jwt_secret
        self._tokens: dict[int, str] = {}
        self._numbers = itertools.count(1)

    async def ask(
        self,
        method: str,
        path: str,
        *,
        caller: int,
        instance: int,
        f: str,
        body: dict[str, Any] | None = None,
        patience_s: float = PATIENCE_S,
        **facts: Any,
    ) -> Answer:
        """One request; never raises for what an instance or the network does."""
        op = f"o{next(self._numbers)}"
        headers = {"Authorization": f"Bearer {self._token(caller)}", "X-Request-Id": op}
        asked_at = self._history.write("invoke", op=op, f=f, i=instance, **{"user": caller, **facts})
        try:
            async with self._session.request(
                method,
                self.base_urls[instance] + path,
                headers=headers,
                json=body,
                timeout=aiohttp.ClientTimeout(total=patience_s),
            ) as response:
                status, text = response.status, await response.read()
        except aiohttp.ClientConnectorError:
            self._history.write("refused", op=op, status=0, code="unreachable", charged=False)
            return Answer(op, "refused", asked_at, {}, "unreachable", retryable=True)
        except TimeoutError:
            return self._unknown(op, asked_at, HUNG_UP if patience_s < PATIENCE_S else "no answer in time")
        except aiohttp.ClientError as error:
            return self._unknown(op, asked_at, type(error).__name__)
        except asyncio.CancelledError:
            self._unknown(op, asked_at, HUNG_UP)
            raise
        return self._learnt(op, f, asked_at, status, text)

    def _learnt(self, op: str, f: str, asked_at: int, status: int, text: bytes) -> Answer:
        body: dict[str, Any] = orjson.loads(text) if text else {}
        if status < 300:
            self._history.write("ok", op=op, status=status, **_facts_of(f, body))
            return Answer(op, "ok", asked_at, body)
        code, charged = body.get("code", f"status-{status}"), body.get("charged", "unknown")
        if charged == "unknown" or status == 500:
            return self._unknown(op, asked_at, code)
        self._history.write("refused", op=op, status=status, code=code, charged=charged)
        return Answer(op, "refused", asked_at, body, code, bool(body.get("retryable")))

    def _unknown(self, op: str, asked_at: int, reason: str) -> Answer:
        self._history.write("unknown", op=op, reason=reason)
        return Answer(op, "unknown", asked_at, {}, reason, retryable=True)

    def _token(self, user: int) -> str:
        token = self._tokens.get(user)
        if token is None:
            scopes = SCOPES.get(user, ())
            token = self._tokens[user] = sign_token(
                self._jwt_secret, user_id=user, scopes=scopes, ttl_s=TOKEN_TTL_S, now=time.time()
            )
        return token


def _facts_of(f: str, body: dict[str, Any]) -> dict[str, Any]:
    if f == "enter":
        charge = body.get("charge") or {}
        return {
            "outcome": body["outcome"],
            "charge_id": charge.get("id"),
            "payer": charge.get("payer_id"),
            "count": charge.get("count"),
            "entered_at": body["entered_at"],
        }
    if f in ("lease", "extend"):
        return {"fence": body["fencing_token"], "name": body["name"]}
    return {}
