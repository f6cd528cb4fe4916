"""The keys that verify access tokens. The key decides the algorithm, never the token.

Either one, which tokens need not name: an HS256 secret, or a public key as PEM. Or several with names (`kid`), from a
folder of PEM files or from a JSON Web Key Set (RFC 7517), which are read again while the service runs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Protocol, TypeAlias

import jwt
import structlog
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from jwt.algorithms import HMACAlgorithm

from service.strict_json import NotReadable, read_json

MIN_SECRET_BYTES: Final = 32  # RFC 7518, 3.2: an HS256 key is at least as long as its hash
MIN_RSA_BITS: Final = 2048  # RFC 7518, 3.3
MAX_KEYS: Final = 100
MAX_FILE_BYTES: Final = 256 * 1024
LOOK_EVERY_S: Final = 10.0

# By kty and crv (RFC 7518, 6 and RFC 8037, 2). Keys of other kinds are for others, and left alone (RFC 7517, 5).
_ALGORITHMS: Final = {("RSA", None): "RS256", ("EC", "P-256"): "ES256", ("OKP", "Ed25519"): "EdDSA"}

_Key: TypeAlias = bytes | RSAPublicKey | EllipticCurvePublicKey | Ed25519PublicKey

log = structlog.get_logger("chargeonce")


class VerificationKey:
    """A key, and the one algorithm that it verifies."""

    def __init__(self, key: _Key, algorithm: str) -> None:
        self._key = key
        self.algorithm: Final = algorithm
        # It knows no other algorithm: a public key must not be taken for an HMAC secret.
        self._verifier = jwt.PyJWS(algorithms=[algorithm])
        if algorithm == "HS256":
            self._verifier.unregister_algorithm("HS256")
            self._verifier.register_algorithm("HS256", _PreparedHmac(_PreparedHmac.SHA256))

    def payload(self, token: str) -> bytes:
        """What this key has signed. Raises jwt.PyJWTError."""
        payload: bytes = self._verifier.decode(token, self._key, algorithms=[self.algorithm])
        return payload


class Keys(Protocol):
    """Where a token's key is found."""

    look_every_s: float

    def find(self, kid: str | None) -> VerificationKey | None:
        """The key that a token of this `kid` is verified with."""

    def look(self) -> bool:
        """Reads the keys again; whether they are others than before."""


class OneKey:
    """One key for all tokens, whatever `kid` they have."""

    look_every_s = math.inf

    def __init__(self, key: VerificationKey) -> None:
        self._key = key

    def find(self, kid: str | None) -> VerificationKey | None:
        """It."""
        return self._key

    def look(self) -> bool:
        """It stays."""
        return False


class KeyFiles:
    """Keys by `kid`: each PEM file of a folder, named by its file, or each key of a JSON Web Key Set."""

    look_every_s = LOOK_EVERY_S

    def __init__(self, path: Path) -> None:
        """Raises ValueError, in one line."""
        self._path = path
        self._contents = _contents(path)
        self._keys = _parsed(path, self._contents)
        self._warned_of: str | None = None

    def find(self, kid: str | None) -> VerificationKey | None:
        """The key of this name; of an only key the name may be left out."""
        if kid is None and len(self._keys) == 1:
            return next(iter(self._keys.values()))
        return None if kid is None else self._keys.get(kid)

    def look(self) -> bool:
        """Reads the files again. While they cannot be used the keys stay, which is warned of once."""
        try:
            contents = _contents(self._path)
            if contents == self._contents:
                self._warned_of = None
                return False
            keys = _parsed(self._path, contents)
        except ValueError as error:
            if self._warned_of != str(error):
                self._warned_of = str(error)
                log.warning("verification keys not read again, the old ones stay", reason=str(error))
            return False
        self._contents, self._keys, self._warned_of = contents, keys, None
        log.info("verification keys read again", kids=sorted(keys))
        return True


def secret_key(secret: str) -> VerificationKey:
    """An HS256 secret. Raises ValueError, in one line, for one that cannot serve."""
    return VerificationKey(prepared_secret(secret), "HS256")


def prepared_secret(secret: str) -> bytes:
    """The secret's bytes. Raises ValueError, in one line, for one that cannot serve."""
    key = secret.encode()
    if len(key) < MIN_SECRET_BYTES:
        raise ValueError(f"must be {MIN_SECRET_BYTES} bytes or more")
    try:
        return HMACAlgorithm(HMACAlgorithm.SHA256).prepare_key(key)
    except jwt.InvalidKeyError as error:
        raise ValueError("is a key of another kind (PEM, SSH, DER or JWK), not an HS256 secret") from error


def public_key(pem: str) -> VerificationKey:
    """RS256, ES256 or EdDSA, as the PEM's kind says. Raises ValueError, in one line, for one that cannot serve."""
    try:
        # Environment files hold one line a variable: there a PEM's line ends are written as \\n.
        key = load_pem_public_key(pem.replace("\\n", "\n").encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ValueError("is not a PEM public key") from error
    return _of_its_kind(key)


def _of_its_kind(key: object) -> VerificationKey:
    if isinstance(key, RSAPublicKey):
        if key.key_size < MIN_RSA_BITS:
            raise ValueError(f"is an RSA key of {key.key_size} bits; {MIN_RSA_BITS} or more are needed")
        return VerificationKey(key, "RS256")
    if isinstance(key, EllipticCurvePublicKey) and isinstance(key.curve, SECP256R1):
        return VerificationKey(key, "ES256")
    if isinstance(key, Ed25519PublicKey):
        return VerificationKey(key, "EdDSA")
    raise ValueError("is a public key of an unknown kind; RSA, EC P-256 and Ed25519 are known")


def _contents(path: Path) -> Mapping[Path, bytes]:
    """The files as they are now. Raises ValueError, in one line."""
    try:
        if path.is_dir():
            # What begins with a dot is being written, or is how a mounted folder is kept.
            files = sorted(file for file in path.glob("*.pem") if not file.name.startswith("."))
            if not 1 <= len(files) <= MAX_KEYS:
                raise ValueError(f"the folder {path} holds {len(files)} .pem files; 1 to {MAX_KEYS} are read")
        else:
            files = [path]
        return {file: _read(file) for file in files}
    except OSError as error:
        raise ValueError(f"{error.filename} cannot be read: {error.strerror}") from None


def _read(file: Path) -> bytes:
    if file.exists() and not file.is_file():
        raise ValueError(f"{file} is not a file")  # a pipe would be waited for
    with file.open("rb") as opened:
        content = opened.read(MAX_FILE_BYTES + 1)
    if len(content) > MAX_FILE_BYTES:
        raise ValueError(f"{file} is larger than {MAX_FILE_BYTES} bytes")
    return content


def _parsed(path: Path, contents: Mapping[Path, bytes]) -> Mapping[str, VerificationKey]:
    if path in contents:
        try:
            return _of_set(read_json(contents[path]))
        except NotReadable as error:
            raise ValueError(f"{path} is no JSON Web Key Set: {error}") from None
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
    keys = {}
    for file, content in contents.items():
        try:
            keys[file.stem] = public_key(content.decode())
        except ValueError as error:
            told = "is not a PEM public key" if isinstance(error, UnicodeDecodeError) else str(error)
            raise ValueError(f"{file} {told}") from None
    return keys


def _of_set(found: Any) -> Mapping[str, VerificationKey]:
    listed = found.get("keys") if isinstance(found, dict) else None
    if not isinstance(listed, list) or not all(isinstance(each, dict) for each in listed):
        raise NotReadable('it is {"keys": [{…}, …]}')
    if len(listed) > MAX_KEYS:
        raise ValueError(f"has {len(listed)} keys; {MAX_KEYS} at most are read")
    keys: dict[str, VerificationKey] = {}
    for number, entry in enumerate(listed, 1):
        kid = entry.get("kid")
        called = f"the key {kid[:100]!r}" if isinstance(kid, str) else f"key number {number}"
        if entry.get("kty") == "oct" or "k" in entry:
            raise ValueError(f"{called} is a symmetric key, which everybody who verifies could sign with")
        if "d" in entry:
            raise ValueError(f"{called} is a private key; only public ones belong here")
        if not _is_for_us(entry):
            continue
        if not isinstance(kid, str) or not kid:
            raise ValueError(f"{called} has no kid")
        if kid in keys:
            raise ValueError(f"{called} is there twice")
        try:
            keys[kid] = _of_its_kind(jwt.PyJWK(entry).key)
        except jwt.PyJWTError:
            raise ValueError(f"{called} cannot be read") from None
        except ValueError as error:
            raise ValueError(f"{called} {error}") from None
    if not keys:
        raise ValueError("has no key that verifies RS256, ES256 or EdDSA")
    return keys


def _is_for_us(entry: Mapping[str, Any]) -> bool:
    """Whether it verifies signatures, by an algorithm of ours; of what others may it says nothing."""
    kind, curve = entry.get("kty"), entry.get("crv")
    if not isinstance(kind, str) or not isinstance(curve, str | None):
        return False
    algorithm = _ALGORITHMS.get((kind, curve))
    operations = entry.get("key_ops", ["verify"])
    return (
        algorithm is not None
        and entry.get("alg", algorithm) == algorithm
        and entry.get("use", "sig") == "sig"
        and isinstance(operations, list)
        and "verify" in operations
    )


class _PreparedHmac(HMACAlgorithm):
    """HS256 for a key that prepared_secret has already looked at: PyJWT looks again each time, for 15 µs."""

    def prepare_key(self, key: str | bytes) -> bytes:
        assert isinstance(key, bytes)
        return key
