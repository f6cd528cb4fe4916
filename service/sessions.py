"""Who is looking at the page: an access token that a browser keeps, and addresses that log in once.

The token is the session: it ends when the token does, no worker has to remember anything, and what it may do is what
its scopes say. An address to log in carries a code that the service has signed; a lock remembers that it was used.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import math
import re
import secrets
from dataclasses import dataclass, field
from typing import Final

import jwt

from locks import LockBusy, Locker
from service.callers import MONITOR, OPERATOR, Caller, Callers, sign_token

LOGIN_CODE_TTL_S: Final = 600
# A session that began with a code. Its user is the one that demo data gives coupons to first.
CODE_SESSION_TTL_S: Final = 8 * 3600
CODE_USER_ID: Final = 1
# What browsers keep in one cookie, less its name and attributes (RFC 6265, 6.1).
MAX_TOKEN_LENGTH: Final = 3800

_CODE: Final = re.compile(r"([0-9]{1,12})\.([A-Za-z0-9_-]{22})\.([A-Za-z0-9_-]{43})")
_PURPOSE: Final = b"chargeonce: log in once: "


class LoginRefused(Exception):
    """This does not log anybody in; the reason is one sentence that may be shown."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Session:
    """Somebody who has logged in, until `expires_at` (unix seconds)."""

    caller: Caller
    expires_at: float
    token: str = field(repr=False)

    @property
    def may_look(self) -> bool:
        """Whether the page may be seen."""
        return self.caller.may(MONITOR)

    @property
    def may_force(self) -> bool:
        """Whether locks may be released by force."""
        return self.caller.may(OPERATOR)


class Sessions:
    """Begins sessions, and knows them again."""

    def __init__(self, callers: Callers, locker: Locker, *, secret: str | None) -> None:
        """Without a secret (where tokens are only verified, with a public key) no code logs in."""
        self._callers = callers
        self._locker = locker
        self._secret = secret

    def of_token(self, token: str, *, now: float) -> Session:
        """The session that this access token is. Raises Unauthenticated, LoginRefused."""
        token = token.strip()
        if len(token) > MAX_TOKEN_LENGTH:
            raise LoginRefused(f"the access token is longer than the {MAX_TOKEN_LENGTH} bytes that a browser keeps")
        caller = self._callers.identify(f"Bearer {token}", now=now)
        # It has just been verified, and this is only to learn when it ends.
        claims = jwt.decode(token, options={"verify_signature": False})
        return Session(caller, float(claims["exp"]), token)

    async def of_code(self, code: str, *, now: float) -> Session:
        """A new session for the first who comes with this code. Raises LoginRefused, LockStoreDown."""
        if self._secret is None:
            raise LoginRefused("log in with an access token: this service has only a public key")
        expires_at = _verified(code, self._secret, now=now)
        name = f"chargeonce:login:{hashlib.sha256(code.encode()).hexdigest()}"
        try:
            lease = await self._locker.acquire(name, lease_ttl_s=expires_at - now + 60.0, wait_s=0)
        except LockBusy:
            raise LoginRefused("this address has logged somebody in already; it works once") from None
        lease.export()  # nobody extends or releases it: it says that the code was used for as long as it would work
        token = sign_token(self._secret, user_id=CODE_USER_ID, scopes=(OPERATOR,), ttl_s=CODE_SESSION_TTL_S, now=now)
        return self.of_token(token, now=now)


def new_login_code(secret: str, *, now: float) -> str:
    """A code that logs an operator in, once, within ten minutes, at any worker that has the same secret."""
    statement = f"{math.ceil(now) + LOGIN_CODE_TTL_S}.{secrets.token_urlsafe(16)}"
    return f"{statement}.{_signature(statement, secret)}"


def _verified(code: str, secret: str, *, now: float) -> float:
    """When the code ends. Raises LoginRefused."""
    found = _CODE.fullmatch(code)
    if found is None or not hmac.compare_digest(found[3], _signature(f"{found[1]}.{found[2]}", secret)):
        raise LoginRefused("this address is not one that logs in")
    expires_at = float(found[1])
    if now >= expires_at:
        raise LoginRefused(f"this address worked for {LOGIN_CODE_TTL_S // 60} minutes, which are over")
    return expires_at


def _signature(statement: str, secret: str) -> str:
    digest = hmac.digest(secret.encode(), _PURPOSE + statement.encode(), "sha256")
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
