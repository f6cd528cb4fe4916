"""Who is looking at the page: an access token that a browser keeps, or what an address that logs in once has begun.

What the browser keeps is the session: it says itself what it may do and when it ends, and no worker has to remember it.
Only what is over sooner is remembered, in a table: sessions that are signed out, and codes that were used.
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

from service.callers import MONITOR, OPERATOR, Callers
from service.shares import ANYONE
from service.spent import SpentTokens

LOGIN_CODE_TTL_S: Final = 600
CODE_SESSION_TTL_S: Final = 8 * 3600
# What browsers keep in one cookie, less its name and attributes (RFC 6265, 6.1).
MAX_TOKEN_LENGTH: Final = 3800

# What we sign besides access tokens: when it ends, and a number that is random. No access token looks like it.
_SIGNED: Final = re.compile(r"([0-9]{1,12})\.([A-Za-z0-9_-]{22})\.([A-Za-z0-9_-]{43})")
_CODE: Final = b"chargeonce: log in once: "
_SESSION: Final = b"chargeonce: look at the page: "


class LoginRefused(Exception):
    """This does not log anybody in; the reason is one sentence that may be shown."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """Somebody who has logged in, until `expires_at` (unix seconds). `user_id`: None where a code began it."""

    user_id: int | None
    may_look: bool
    may_force: bool
    expires_at: float
    token: str = field(repr=False)

    @property
    def who(self) -> str:
        """As the page shows it."""
        return "by address" if self.user_id is None else f"user {self.user_id}"

    @property
    def counts_as(self) -> int:
        """Whose share it takes: that of all whom a code let in is one."""
        return self.user_id or ANYONE

    @property
    def digest(self) -> bytes:
        """What is written down at sign-out: of what is signed, because one signature can be spelt in several ways."""
        return _digest(_SESSION, self.token.rpartition(".")[0])


class Sessions:
    """Begins sessions, knows them again, and ends them."""

    def __init__(self, callers: Callers, spent: SpentTokens, *, secret: str | None) -> None:
        """Without a secret (where tokens are only verified, with a public key) no code logs in."""
        self._callers = callers
        self._spent = spent
        self._secret = secret

    def of_token(self, token: str, *, now: float) -> Session:
        """The session that this token is, unless it is signed out. Raises Unauthenticated, LoginRefused."""
        token = token.strip()
        if len(token) > MAX_TOKEN_LENGTH:
            raise LoginRefused(f"the access token is longer than the {MAX_TOKEN_LENGTH} bytes that a browser keeps")
        if self._secret is not None and (expires_at := _end_of(token, _SESSION, self._secret)) is not None:
            if now >= expires_at:
                raise LoginRefused("the session has expired")
            return Session(user_id=None, may_look=True, may_force=False, expires_at=expires_at, token=token)
        caller = self._callers.identify(f"Bearer {token}", now=now)
        return Session(
            user_id=caller.user_id,
            may_look=caller.may(MONITOR),
            may_force=caller.may(OPERATOR),
            expires_at=caller.expires_at,
            token=token,
        )

    async def of_code(self, code: str, *, now: float) -> Session:
        """A new session, which may only look, for the first who comes with this code.

        Raises LoginRefused; DatabaseError or Overloaded where it could not be written that the code is used.
        """
        if self._secret is None:
            raise LoginRefused("log in with an access token: this service has only a public key")
        expires_at = _end_of(code, _CODE, self._secret)
        if expires_at is None:
            raise LoginRefused("this address is not one that logs in")
        if now >= expires_at:
            raise LoginRefused(f"this address worked for {LOGIN_CODE_TTL_S // 60} minutes, which are over")
        digest = _digest(_CODE, code.rpartition(".")[0])
        if not await self._spent.spend(digest, expires_at=expires_at, caller=ANYONE):
            raise LoginRefused("this address has logged somebody in already; it works once")
        return self.of_token(_signed(_SESSION, self._secret, ends_at=now + CODE_SESSION_TTL_S), now=now)

    async def sign_out(self, session: Session) -> None:
        """The session is none any more, in any worker or instance. Raises DatabaseError, Overloaded."""
        await self._spent.spend(session.digest, expires_at=session.expires_at, caller=session.counts_as)

    async def is_signed_out(self, session: Session, *, at_most_s: float = 0.0) -> bool:
        """Whether it was, as of so long ago at most. Raises DatabaseError or Overloaded where nobody can say."""
        return await self._spent.is_spent(session.digest, at_most_s=at_most_s)


def new_login_code(secret: str, *, now: float) -> str:
    """A code that lets somebody look, once, within ten minutes, at any worker that has the same secret."""
    return _signed(_CODE, secret, ends_at=now + LOGIN_CODE_TTL_S)


def _signed(purpose: bytes, secret: str, *, ends_at: float) -> str:
    statement = f"{math.ceil(ends_at)}.{secrets.token_urlsafe(16)}"
    return f"{statement}.{_signature(purpose, statement, secret)}"


def _end_of(text: str, purpose: bytes, secret: str) -> float | None:
    """When what _signed has made ends; None for anything else."""
    found = _SIGNED.fullmatch(text)
    if found is None or not hmac.compare_digest(found[3], _signature(purpose, f"{found[1]}.{found[2]}", secret)):
        return None
    return float(found[1])


def _signature(purpose: bytes, statement: str, secret: str) -> str:
    digest = hmac.digest(secret.encode(), purpose + statement.encode(), "sha256")
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def _digest(purpose: bytes, statement: str) -> bytes:
    return hashlib.sha256(purpose + statement.encode()).digest()
