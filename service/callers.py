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
from typing import Any, Final, TypeAlias

import jwt
import orjson
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from jwt.algorithms import HMACAlgorithm

MAX_HEADER_LENGTH: Final = 8 * 1024
MAX_USER_ID: Final = 2**63 - 1
MIN_SECRET_BYTES: Final = 32  # RFC 7518, 3.2: an HS256 key is at least as long as its hash
MIN_RSA_BITS: Final = 2048  # RFC 7518, 3.3

SERVICE: Final = "service"
LOCKS: Final = "locks"
MONITOR: Final = "monitor"
OPERATOR: Final = "operator"

_BEARER: Final = re.compile(r"bearer +([A-Za-z0-9._~+/=-]+) *", re.IGNORECASE)
_USER_ID: Final = re.compile(r"[1-9][0-9]{0,18}")

_Key: TypeAlias = bytes | RSAPublicKey | EllipticCurvePublicKey | Ed25519PublicKey


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
        """Whether the scope was granted; an operator may also do what a monitor may."""
        return scope in self.scopes or (scope == MONITOR and OPERATOR in self.scopes)


class Callers:
    """Verifies bearer tokens with one key, and remembers the verified ones until they expire."""

    def __init__(self, *, secret: str | None, public_key: str | None, cache_size: int) -> None:
        """Either secret (HS256) or public_key (PEM: RS256, ES256 or EdDSA, as its kind says).

        Raises ValueError, in one line, for a key that cannot serve.
        """
        if (secret is None) == (public_key is None):
            raise ValueError("exactly one of a secret and a public key is needed")
        if public_key is not None:
            self._key, self._algorithm = _public_key(public_key)
        else:
            assert secret is not None
            self._key, self._algorithm = _secret(secret), "HS256"
        # The key decides the algorithm, never the token: a public key must not be taken for an HMAC secret.
        self._verifier = jwt.PyJWS(algorithms=[self._algorithm])
        if self._algorithm == "HS256":
            self._verifier.unregister_algorithm("HS256")
            self._verifier.register_algorithm("HS256", _PreparedHmac(_PreparedHmac.SHA256))
        self._cache_size = cache_size
        self._verified: OrderedDict[str, _Verified] = OrderedDict()

    def identify(self, authorization: str | None, *, now: float) -> Caller:
        """The caller whom an Authorization header names at this Unix time; raises Unauthenticated."""
        if authorization is None:
            raise Unauthenticated("no access token was sent")
        if len(authorization) > MAX_HEADER_LENGTH:
            raise Unauthenticated(f"the Authorization header is longer than {MAX_HEADER_LENGTH} bytes")
        verified = self._verified.get(authorization)
        if verified is None:
            verified = self._verify(authorization)
            verified.check_time(now)
            self._remember(authorization, verified)
        elif not verified.not_before <= now < verified.expires_at:
            del self._verified[authorization]
            verified.check_time(now)
        return verified.caller

    def _verify(self, authorization: str) -> _Verified:
        bearer = _BEARER.fullmatch(authorization)
        if bearer is None:
            raise Unauthenticated("the Authorization header is not of the form 'Bearer <token>'")
        try:
            payload = self._verifier.decode(bearer[1], self._key, algorithms=[self._algorithm])
        except jwt.InvalidSignatureError as error:
            raise Unauthenticated("the access token's signature is not valid") from error
        except jwt.InvalidAlgorithmError as error:
            raise Unauthenticated(f"the access token is not signed with {self._algorithm}") from error
        except jwt.PyJWTError as error:
            raise Unauthenticated("the access token is malformed") from error
        return _judged(_claims(payload))

    def _remember(self, authorization: str, verified: _Verified) -> None:
        if self._cache_size == 0:
            return
        # The whole header is the key, compared character by character: no two tokens share an entry.
        # OrderedDict, because finding a plain dict's oldest entry walks over all the deleted ones.
        while len(self._verified) >= self._cache_size:
            self._verified.popitem(last=False)
        self._verified[authorization] = verified


def sign_token(secret: str, *, user_id: int, scopes: Iterable[str], ttl_s: float, now: float) -> str:
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
    return jwt.encode(claims, _secret(secret), algorithm="HS256")


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


def _claims(payload: bytes) -> Mapping[str, Any]:
    try:
        claims = orjson.loads(payload)  # refuses NaN, Infinity and numbers too large to be one
    except orjson.JSONDecodeError as error:
        raise Unauthenticated("the access token's claims are not JSON") from error
    if not isinstance(claims, dict):
        raise Unauthenticated("the access token's claims are not a JSON object")
    return claims


def _judged(claims: Mapping[str, Any]) -> _Verified:
    subject = claims.get("sub")
    if not isinstance(subject, str) or not _USER_ID.fullmatch(subject) or int(subject) > MAX_USER_ID:
        raise Unauthenticated("the access token's sub is not a user id")
    scope = claims.get("scope", "")
    if not isinstance(scope, str):
        raise Unauthenticated("the access token's scope is not a string")
    if "aud" in claims:
        # RFC 7519, 4.1.3: who is not named in it must refuse the token, and this service goes by no name.
        raise Unauthenticated("the access token is meant for another audience")
    if "exp" not in claims:
        raise Unauthenticated("the access token has no exp")
    expires_at = _time(claims["exp"], "exp")
    caller = Caller(int(subject), frozenset(filter(None, scope.split(" "))), expires_at)
    return _Verified(caller, not_before=_time(claims.get("nbf", 0), "nbf"), expires_at=expires_at)


def _time(value: object, claim: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Unauthenticated(f"the access token's {claim} is not a time")
    return value


def _secret(secret: str) -> bytes:
    key = secret.encode()
    if len(key) < MIN_SECRET_BYTES:
        raise ValueError(f"must be {MIN_SECRET_BYTES} bytes or more")
    try:
        return HMACAlgorithm(HMACAlgorithm.SHA256).prepare_key(key)
    except jwt.InvalidKeyError as error:
        raise ValueError("is a key of another kind (PEM, SSH, DER or JWK), not an HS256 secret") from error


class _PreparedHmac(HMACAlgorithm):
    """HS256 for a key that _secret has already looked at: PyJWT looks again each time, for 15 µs."""

    def prepare_key(self, key: str | bytes) -> bytes:
        assert isinstance(key, bytes)
        return key


def _public_key(pem: str) -> tuple[_Key, str]:
    try:
        # Environment files hold one line a variable: there a PEM's line ends are written as \\n.
        key = load_pem_public_key(pem.replace("\\n", "\n").encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ValueError("is not a PEM public key") from error
    if isinstance(key, RSAPublicKey):
        if key.key_size < MIN_RSA_BITS:
            raise ValueError(f"is an RSA key of {key.key_size} bits; {MIN_RSA_BITS} or more are needed")
        return key, "RS256"
    if isinstance(key, EllipticCurvePublicKey) and isinstance(key.curve, SECP256R1):
        return key, "ES256"
    if isinstance(key, Ed25519PublicKey):
        return key, "EdDSA"
    raise ValueError("is a public key of an unknown kind; RSA, EC P-256 and Ed25519 are known")
