"""Access tokens of every make for tests: good ones, and ones that only somebody who holds the key could break so."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from typing import Any

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from service.callers import Callers
from service.jwt_keys import OneKey, secret_key

SECRET = "a secret of thirty-two bytes, no fewer"
NOW = 1_700_000_000.0


def signed(claims: dict[str, Any], *, key: Any = SECRET, algorithm: str = "HS256", **header: Any) -> str:
    """The Authorization header of a token."""
    return "Bearer " + jwt.encode(claims, key, algorithm=algorithm, headers=header or None)


def claims(**changes: Any) -> dict[str, Any]:
    """Good claims, with changes; None removes one."""
    changed = {"sub": "7", "exp": NOW + 60} | changes
    return {name: value for name, value in changed.items() if value is not None}


def raw_token(header: bytes, payload: bytes, sign: Callable[[bytes], bytes]) -> str:
    """The Authorization header of a token whose parts are any bytes."""
    signing_input = b".".join(base64.urlsafe_b64encode(part).rstrip(b"=") for part in (header, payload))
    signature = base64.urlsafe_b64encode(sign(signing_input)).rstrip(b"=")
    return "Bearer " + (signing_input + b"." + signature).decode()


def hs256(secret: bytes) -> Callable[[bytes], bytes]:
    """Signs with HS256."""
    algorithm = jwt.get_algorithm_by_name("HS256")
    return lambda signing_input: algorithm.sign(signing_input, secret)


def public_pem(private: Any) -> str:
    """The public half."""
    encoded: bytes = private.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return encoded.decode()


def private_pem(private: Any) -> str:
    """The whole key."""
    encoded: bytes = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return encoded.decode()


def jwk(private: Any, **members: Any) -> dict[str, Any]:
    """The public half as a JSON Web Key, with more members; None removes one."""
    kinds = {rsa.RSAPrivateKey: "RS256", ec.EllipticCurvePrivateKey: "ES256", ed25519.Ed25519PrivateKey: "EdDSA"}
    (algorithm,) = (algorithm for kind, algorithm in kinds.items() if isinstance(private, kind))
    entry = json.loads(jwt.get_algorithm_by_name(algorithm).to_jwk(private.public_key()))
    return {name: value for name, value in {**entry, **members}.items() if value is not None}


def jwks(*keys: Mapping[str, Any]) -> str:
    """A JSON Web Key Set."""
    return json.dumps({"keys": keys})


def with_secret(cache_size: int = 100, **more: Any) -> Callers:
    """Callers who have the secret."""
    return Callers(OneKey(secret_key(SECRET)), cache_size=cache_size, **more)
