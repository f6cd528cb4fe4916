"""Room tokens: Agora AccessToken2, the right to join one video room and publish in it for a while.

A token is '007' + base64(zlib(signature + body)), little endian, strings led by their u16 length:
body = app id, u32 issued at, u32 lifetime, u32 salt, u16 service count, then per service its u16 type, its
rights (u16 count, then u16 right and u32 lifetime each), the channel and the uid. Layout and test vectors:
AgoraIO/Tools, DynamicKey/AgoraDynamicKey/python3. Ours and not agoraiotools', because every entry pays
for it, and theirs costs up to five times as much.
"""

from __future__ import annotations

import hmac
import zlib
from binascii import b2a_base64
from collections.abc import Mapping
from datetime import UTC, datetime
from struct import Struct
from typing import Final, NamedTuple

from service.random_bytes import RandomBytes

VERSION: Final = "007"

JOIN_CHANNEL: Final = 1
PUBLISH_AUDIO: Final = 2
PUBLISH_VIDEO: Final = 3
PUBLISH_DATA: Final = 4
JOIN_AND_PUBLISH: Final = (JOIN_CHANNEL, PUBLISH_AUDIO, PUBLISH_VIDEO, PUBLISH_DATA)

_SERVICE_RTC: Final = 1
_SALT_BYTES: Final = 4
_STORED: Final = b"\x78\x01\x01"  # the header, and that the first block is the last one, and stored

_u16: Final = Struct("<H").pack
_u32: Final = Struct("<I").pack
_u32_big: Final = Struct(">I").pack
_right: Final = Struct("<HI").pack


class RoomToken(NamedTuple):
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
        self._random = RandomBytes()
        self._second = self._new_second(0)

    def mint(self, *, channel: str, user_id: int, now: float) -> RoomToken:
        """The right to join this channel and publish in it as uid str(user_id), from now (Unix time)."""
        issue_ts = int(now)
        second = self._second
        if second.issue_ts != issue_ts:
            second = self._second = self._new_second(issue_ts)
        salt = self._random.take(_SALT_BYTES)
        body = b"".join((second.head, salt, self._rights, _packed(channel), _packed(str(user_id))))
        return RoomToken(_sealed(second.key, salt, body), second.expires_at)

    def _new_second(self, issue_ts: int) -> _Second:
        return _Second(
            issue_ts,
            _key_of_second(self._certificate, issue_ts),
            self._head + _u32(issue_ts) + _u32(self._ttl_s),
            datetime.fromtimestamp(issue_ts + self._ttl_s, UTC),
        )


class _Second(NamedTuple):
    """What all tokens of one second share."""

    issue_ts: int
    key: bytes
    head: bytes
    expires_at: datetime


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
    head = _packed(app_id) + _u32(issue_ts) + _u32(ttl_s)
    body = head + _u32(salt) + _packed_rights(rights) + _packed(channel) + _packed(uid)
    return _sealed(_key_of_second(app_certificate.encode(), issue_ts), _u32(salt), body)


def _key_of_second(certificate: bytes, issue_ts: int) -> bytes:
    return hmac.digest(_u32(issue_ts), certificate, "sha256")


def _sealed(key_of_second: bytes, salt: bytes, body: bytes) -> str:
    key = hmac.digest(salt, key_of_second, "sha256")
    signature = hmac.digest(key, body, "sha256")
    content = _u16(len(signature)) + signature + body
    return VERSION + b2a_base64(_stored(content), newline=False).decode("ascii")


def _stored(content: bytes) -> bytes:
    """A zlib stream (RFC 1950) of one stored block (RFC 1951, 3.2.4), of at most 65,535 bytes.

    Compressing what is mostly a signature saves a tenth of its length, and costs more than all the rest together.
    """
    length = len(content)
    return b"".join((_STORED, _u16(length), _u16(length ^ 0xFFFF), content, _u32_big(zlib.adler32(content))))


def _packed_rights(rights: Mapping[int, int]) -> bytes:
    each = b"".join(_right(right, rights[right]) for right in sorted(rights))
    return _u16(1) + _u16(_SERVICE_RTC) + _u16(len(rights)) + each


def _packed(text: str) -> bytes:
    encoded = text.encode()
    return _u16(len(encoded)) + encoded
