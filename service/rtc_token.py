"""Room tokens: Agora AccessToken2, the right to join one video room and publish in it for a while.

A token is '007' + base64(zlib(signature + body)), little endian, strings led by their u16 length:
body = app id, u32 issued at, u32 lifetime, u32 salt, u16 service count, then per service its u16 type, its
rights (u16 count, then u16 right and u32 lifetime each), the channel and the uid. Layout and test vectors:
AgoraIO/Tools, DynamicKey/AgoraDynamicKey/python3. Ours and not agoraiotools', because every entry pays
for it, and theirs costs up to five times as much.
"""

from __future__ import annotations

import hmac
import secrets
import zlib
from binascii import b2a_base64
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from struct import Struct
from typing import Final

VERSION: Final = "007"

JOIN_CHANNEL: Final = 1
PUBLISH_AUDIO: Final = 2
PUBLISH_VIDEO: Final = 3
PUBLISH_DATA: Final = 4
JOIN_AND_PUBLISH: Final = (JOIN_CHANNEL, PUBLISH_AUDIO, PUBLISH_VIDEO, PUBLISH_DATA)

_SERVICE_RTC: Final = 1
_SALT_BITS: Final = 32

_u16: Final = Struct("<H").pack
_u32: Final = Struct("<I").pack
_three_u32: Final = Struct("<III").pack
_right: Final = Struct("<HI").pack


@dataclass(frozen=True, slots=True)
class RoomToken:
    """What a client shows to join a room, and when it stops opening the door (aware, UTC)."""

    token: str
    expires_at: datetime


class RoomTokenMint:
    """Mints tokens of one Agora project, all with one lifetime."""

    def __init__(self, app_id: str, app_certificate: str, ttl_s: int) -> None:
        self._certificate = app_certificate.encode()
        self._head = _packed(app_id)
        self._rights = _packed_rights(dict.fromkeys(JOIN_AND_PUBLISH, ttl_s))
        self._ttl_s = ttl_s

    def mint(self, *, channel: str, user_id: int, now: float) -> RoomToken:
        """The right to join this channel and publish in it as uid str(user_id), from now (Unix time)."""
        issue_ts = int(now)
        salt = secrets.randbits(_SALT_BITS)
        body = (
            self._head
            + _three_u32(issue_ts, self._ttl_s, salt)
            + self._rights
            + _packed(channel)
            + _packed(str(user_id))
        )
        token = _sealed(self._certificate, issue_ts=issue_ts, salt=salt, body=body)
        return RoomToken(token, datetime.fromtimestamp(issue_ts + self._ttl_s, UTC))


def access_token(
    *,
    app_id: str,
    app_certificate: str,
    channel: str,
    uid: str,
    rights: Mapping[int, int],
    ttl_s: int,
    issue_ts: int,
    salt: int,
) -> str:
    """The same with everything stated: equal arguments, equal token. rights maps a right to its seconds."""
    body = (
        _packed(app_id) + _three_u32(issue_ts, ttl_s, salt) + _packed_rights(rights) + _packed(channel) + _packed(uid)
    )
    return _sealed(app_certificate.encode(), issue_ts=issue_ts, salt=salt, body=body)


def _sealed(certificate: bytes, *, issue_ts: int, salt: int, body: bytes) -> str:
    key = hmac.digest(_u32(salt), hmac.digest(_u32(issue_ts), certificate, "sha256"), "sha256")
    signature = hmac.digest(key, body, "sha256")
    # The smallest window and memory: zlib's start-up, 256 KiB, can cost more than all the rest together.
    deflate = zlib.compressobj(1, zlib.DEFLATED, 9, 1)
    packed = deflate.compress(_u16(len(signature)) + signature + body) + deflate.flush()
    return VERSION + b2a_base64(packed, newline=False).decode("ascii")


def _packed_rights(rights: Mapping[int, int]) -> bytes:
    each = b"".join(_right(right, rights[right]) for right in sorted(rights))
    return _u16(1) + _u16(_SERVICE_RTC) + _u16(len(rights)) + each


def _packed(text: str) -> bytes:
    encoded = text.encode()
    return _u16(len(encoded)) + encoded
