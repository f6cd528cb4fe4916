"""Who is calling: the bearer token of a request, verified, as a user id and scopes.

Tokens are JWTs (RFC 7519): `sub` is the user id, `exp` is required, `nbf` is honoured, `scope` is a
space-separated list (RFC 8693). PyJWT verifies the signature; the claims are judged here, by the clock that
the request was given.
"""

from __future__ import annotations

import math
import re
import secrets
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import jwt
from jwt.utils import base64url_decode

from service.jwt_keys import Keys, VerificationKey, prepared_secret
from service.strict_json import NotReadable, read_json

NOT_BEARER = "the Authorization header is not of the form 'Bearer <token>', said once"
MAX_HEADER_LENGTH: Final = 8 * 1024
MAX_USER_ID: Final = 2**63 - 1
LOOK_FOR_A_KID_EVERY_S: Final = 1.0

SERVICE: Final = "service"
LOCKS: Final = "locks"
MONITOR: Final = "monitor"
OPERATOR: Final = "operator"
SCOPES: Final = (SERVICE, LOCKS, MONITOR, OPERATOR)
# Scope locks:PREFIX reaches the names that begin with PREFIX.
BOUND: Final = "locks:"
# The service's own locks: an appointment's, and those of its audit and its health.
RESERVED: Final = ("appointment:", "chargeonce:")

# Each part in the one spelling that it has: base64url without padding (RFC 7515, 2).
_TOKEN: Final = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*\.[A-Za-z0-9_-]+")
_USER_ID: Final = re.compile(r"[1-9][0-9]{0,18}")
_PREFIX: Final = re.compile(r"[A-Za-z0-9:_./-]{1,200}")


class Unauthenticated(Exception):
    """Nobody whom we can name is calling; the reason is one sentence that may be shown to the caller."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Caller:
    """A user, and what the token grants beyond entering their own appointments, until it expires (unix seconds)."""

    user_id: int
    scopes: frozenset[str]
    expires_at: float = field(default=math.inf, compare=False)

    def may(self, scope: str) -> bool:
        """Whether the scope was granted, `locks` for some names at least; an operator is a monitor too."""
        return (
            scope in self.scopes
            or (scope == MONITOR and OPERATOR in self.scopes)
            or (scope == LOCKS and bool(self._prefixes()))
        )

    def reaches(self, name: str) -> bool:
        """Whether this caller may have leases on the lock of this name."""
        return not name.startswith(RESERVED) and (LOCKS in self.scopes or name.startswith(self._prefixes()))

    def _prefixes(self) -> tuple[str, ...]:
        # An empty one would begin every name: it binds to nothing.
        return tuple(scope.removeprefix(BOUND) for scope in self.scopes if scope.startswith(BOUND) and scope != BOUND)


class Callers:
    """Verifies bearer tokens, and remembers the verified ones until they expire or the keys change."""

    def __init__(
        self,
        keys: Keys,
        *,
        cache_size: int,
        audience: str | None = None,
        issuer: str | None = None,
        leeway_s: float = 0.0,
    ) -> None:
        """A token's `aud` must have the audience in it, and its `iss` be the issuer, where there is one.

        leeway_s: how far another's clock may be from ours.
        """
        self._keys = keys
        self._looked_at = -math.inf
        self._look_every_s = keys.look_every_s
        self._audience, self._issuer, self._leeway_s = audience, issuer, leeway_s
        self._cache_size = cache_size
        self._verified: OrderedDict[str, _Verified] = OrderedDict()

    def identify(self, authorization: str | None, *, now: float) -> Caller:
        """The caller whom an Authorization header names at this Unix time; raises Unauthenticated."""
        if authorization is None:
            raise Unauthenticated("no access token was sent")
        if len(authorization) > MAX_HEADER_LENGTH:
            raise Unauthenticated(f"the Authorization header is longer than {MAX_HEADER_LENGTH} bytes")
        if not 0 <= now - self._looked_at < self._look_every_s:
            self._look(now)
        if authorization[:7].lower() != "bearer ":
            raise Unauthenticated(NOT_BEARER)
        token = authorization[7:].strip(" ")
        verified = self._verified.get(token)
        if verified is None:
            verified = self._verify(token, now)
            verified.check_time(now)
            self._remember(token, verified)
        elif not verified.not_before <= now < verified.expires_at:
            del self._verified[token]
            verified.check_time(now)
        return verified.caller

    def _verify(self, token: str, now: float) -> _Verified:
        if not _TOKEN.fullmatch(token):
            raise Unauthenticated(NOT_BEARER)
        key = self._key_of(token, now)
        try:
            payload = key.payload(token)
        except jwt.InvalidSignatureError as error:
            raise Unauthenticated("the access token's signature is not valid") from error
        except jwt.InvalidAlgorithmError as error:
            raise Unauthenticated(f"the access token is not signed with {key.algorithm}") from error
        except jwt.PyJWTError as error:
            raise Unauthenticated("the access token is malformed") from error
        return self._judged(_object(payload, "claims"))

    def _key_of(self, token: str, now: float) -> VerificationKey:
        try:
            header = base64url_decode(token.partition(".")[0])
        except ValueError as error:
            raise Unauthenticated("the access token is malformed") from error
        kid = _object(header, "header").get("kid")
        if not isinstance(kid, str | None):
            raise Unauthenticated("the access token's kid is not a string")
        key = self._keys.find(kid)
        if key is None and now - self._looked_at >= LOOK_FOR_A_KID_EVERY_S:
            self._look(now)
            key = self._keys.find(kid)
        if key is None:
            raise Unauthenticated("the access token names no key (kid) that is known here")
        return key

    def _look(self, now: float) -> None:
        self._looked_at = now
        if self._keys.look():
            self._verified.clear()  # what a key has verified goes with it

    def _judged(self, claims: Mapping[str, Any]) -> _Verified:
        subject = claims.get("sub")
        if not isinstance(subject, str) or not _USER_ID.fullmatch(subject) or int(subject) > MAX_USER_ID:
            raise Unauthenticated("the access token's sub is not a user id")
        scope = claims.get("scope", "")
        if not isinstance(scope, str):
            raise Unauthenticated("the access token's scope is not a string")
        if not self._is_meant_for_us(claims):
            raise Unauthenticated("the access token is meant for another audience")
        if self._issuer is not None and claims.get("iss") != self._issuer:
            raise Unauthenticated("the access token is of another issuer")
        if "exp" not in claims:
            raise Unauthenticated("the access token has no exp")
        expires_at = _time(claims["exp"], "exp") + self._leeway_s
        not_before = _time(claims.get("nbf", 0), "nbf") - self._leeway_s
        caller = Caller(int(subject), frozenset(filter(None, scope.split(" "))), expires_at)
        return _Verified(caller, not_before, expires_at)

    def _is_meant_for_us(self, claims: Mapping[str, Any]) -> bool:
        # RFC 7519, 4.1.3: who is not named in it must refuse the token. Without an audience this service has no name.
        if self._audience is None:
            return "aud" not in claims
        named = claims.get("aud")
        return self._audience in (named if isinstance(named, list) else [named])

    def _remember(self, token: str, verified: _Verified) -> None:
        if self._cache_size == 0:
            return
        # The whole token is the key, compared character by character: no two tokens share an entry.
        # OrderedDict, because finding a plain dict's oldest entry walks over all the deleted ones.
        while len(self._verified) >= self._cache_size:
            self._verified.popitem(last=False)
        self._verified[token] = verified


def sign_token(
    secret: str,
    *,
    user_id: int,
    scopes: Iterable[str],
    ttl_s: float,
    now: float,
    audience: str | None = None,
    issuer: str | None = None,
) -> str:
    """An HS256 token, valid from now for ttl_s rounded up to whole seconds.

    Raises ValueError for a secret or a user id that cannot serve.
    """
    if not 1 <= user_id <= MAX_USER_ID:
        raise ValueError(f"a user id is a number from 1 to {MAX_USER_ID}")
    claims = {
        "sub": str(user_id),
        "scope": " ".join(scopes),
        "iat": math.floor(now),
        "exp": math.ceil(now + ttl_s),
        "jti": secrets.token_urlsafe(12),  # two of one second are two: signed out, each ends alone
    }
    claims |= {name: value for name, value in (("aud", audience), ("iss", issuer)) if value is not None}
    return jwt.encode(claims, prepared_secret(secret), algorithm="HS256")


def check_scope(scope: str) -> None:
    """Raises ValueError, in one line, for a scope that opens nothing."""
    if scope in SCOPES:
        return
    if not scope.startswith(BOUND):
        raise ValueError(f"there is no scope {scope!r}; there are {', '.join(SCOPES)} and {BOUND}PREFIX")
    prefix = scope.removeprefix(BOUND)
    if not _PREFIX.fullmatch(prefix):
        raise ValueError(f"{scope!r} has no PREFIX that a lock's name begins with: 1 to 200 of A-Z a-z 0-9 : _ . / -")
    if prefix.startswith(RESERVED):
        raise ValueError(f"{scope!r} reaches nothing: names that begin with {' or '.join(RESERVED)} are reserved")


@dataclass(frozen=True, slots=True)
class _Verified:
    caller: Caller
    not_before: float
    expires_at: float

    def check_time(self, now: float) -> None:
        if now >= self.expires_at:
            raise Unauthenticated("the access token has expired")
        if now < self.not_before:
            raise Unauthenticated("the access token is not valid yet")


def _object(text: bytes, what: str) -> Mapping[str, Any]:
    try:
        value = read_json(text)
    except NotReadable as error:
        # Not in its own words: a signed key may be a secret of whoever has signed it.
        raise Unauthenticated(f"the access token's {what} cannot be read, or says a key twice") from error
    if not isinstance(value, dict):
        raise Unauthenticated(f"the access token's {what} is not a JSON object")
    return value


def _time(value: object, claim: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Unauthenticated(f"the access token's {claim} is not a time")
    return value
