from __future__ import annotations

import base64
import hmac
import json
import struct
import warnings
import zlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.rtc_token import JOIN_AND_PUBLISH, VERSION, RoomTokenMint, access_token

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # its __init__ imports modules that it calls deprecated
    from agoraiotools.AccessToken2 import AccessToken, ServiceRtc

VECTORS = json.loads((Path(__file__).parent.parent / "data" / "agora_vectors.json").read_text())
APP_ID = VECTORS["app_id"]
CERTIFICATE = VECTORS["app_certificate"]
NOW = 1_700_000_000.75
TTL_S = 3600


def mint(certificate: str = CERTIFICATE) -> RoomTokenMint:
    return RoomTokenMint(APP_ID, certificate, TTL_S)


def payload_of(token: str) -> bytes:
    assert token.startswith(VERSION)
    return zlib.decompress(base64.b64decode(token.removeprefix(VERSION), validate=True))


def signature_of(token: str) -> bytes:
    return payload_of(token)[2:34]


def parsed(token: str) -> Any:
    reader = AccessToken()
    assert reader.from_string(token)
    return reader


def field(value: Any, name: str) -> Any:
    """A private field of the oracle's classes, which have no accessors."""
    owner = "AccessToken" if isinstance(value, AccessToken) else None
    names = [f"_{owner}__{name}"] if owner else [f"_ServiceRtc__{name}", f"_Service__{name}"]
    return next(getattr(value, each) for each in names if hasattr(value, each))


def oracle_token(channel: str, account: str, *, ttl_s: int, issue_ts: int, salt: int) -> str:
    writer = AccessToken(APP_ID, CERTIFICATE, issue_ts=issue_ts, expire=ttl_s)
    writer._AccessToken__salt = salt
    service = ServiceRtc(channel, account)
    for right in JOIN_AND_PUBLISH:
        service.add_privilege(right, ttl_s)
    writer.add_service(service)
    return str(writer.build())


@pytest.mark.parametrize("vector", VECTORS["access_token_2"], ids=["with-uid", "without-uid"])
def test_the_official_vectors_come_out(vector: dict[str, Any]) -> None:
    token = access_token(
        app_id=APP_ID,
        app_certificate=CERTIFICATE,
        channel=VECTORS["channel"],
        uid=vector["uid"],
        rights={int(right): ttl_s for right, ttl_s in vector["privileges"].items()},
        ttl_s=vector["expire"],
        issue_ts=VECTORS["issue_ts"],
        salt=VECTORS["salt"],
    )
    assert payload_of(token) == payload_of(vector["token"])


def test_the_oracle_reads_back_what_was_minted() -> None:
    minted = mint().mint(channel="appointment-42", user_id=7, now=NOW)
    token = parsed(minted.token)
    (service,) = field(token, "service").values()
    assert field(token, "app_id").decode() == APP_ID
    assert field(token, "issue_ts") == int(NOW)
    assert field(token, "expire") == TTL_S
    assert service.service_type() == ServiceRtc.kServiceType
    assert field(service, "privileges") == {
        ServiceRtc.kPrivilegeJoinChannel: TTL_S,
        ServiceRtc.kPrivilegePublishAudioStream: TTL_S,
        ServiceRtc.kPrivilegePublishVideoStream: TTL_S,
        ServiceRtc.kPrivilegePublishDataStream: TTL_S,
    }
    assert field(service, "channel_name") == b"appointment-42"
    assert field(service, "uid") == b"7"


@given(
    channel=st.text(st.characters(exclude_categories=["Cs"]), max_size=300),
    user_id=st.integers(1, 2**63 - 1),
    ttl_s=st.integers(1, 86_400),
    issue_ts=st.integers(1, 2**32 - 1),
    salt=st.integers(0, 2**32 - 1),
)
def test_the_oracle_given_the_same_values_makes_the_same_payload(
    channel: str, user_id: int, ttl_s: int, issue_ts: int, salt: int
) -> None:
    ours = access_token(
        app_id=APP_ID,
        app_certificate=CERTIFICATE,
        channel=channel,
        uid=str(user_id),
        rights=dict.fromkeys(JOIN_AND_PUBLISH, ttl_s),
        ttl_s=ttl_s,
        issue_ts=issue_ts,
        salt=salt,
    )
    theirs = oracle_token(channel, str(user_id), ttl_s=ttl_s, issue_ts=issue_ts, salt=salt)
    assert payload_of(ours) == payload_of(theirs)
    assert parsed(ours)


def test_the_mint_and_the_function_with_everything_stated_agree() -> None:
    minted = mint().mint(channel="appointment-42", user_id=7, now=NOW)
    stated = access_token(
        app_id=APP_ID,
        app_certificate=CERTIFICATE,
        channel="appointment-42",
        uid="7",
        rights=dict.fromkeys(JOIN_AND_PUBLISH, TTL_S),
        ttl_s=TTL_S,
        issue_ts=int(NOW),
        salt=field(parsed(minted.token), "salt"),
    )
    assert stated == minted.token


def test_rights_are_packed_in_ascending_order_however_they_are_given() -> None:
    def token(rights: dict[int, int]) -> str:
        return access_token(
            app_id=APP_ID,
            app_certificate=CERTIFICATE,
            channel="c",
            uid="7",
            rights=rights,
            ttl_s=60,
            issue_ts=1,
            salt=1,
        )

    assert token({4: 60, 1: 60}) == token({1: 60, 4: 60})


def test_the_signature_is_the_one_that_the_certificate_makes() -> None:
    token = mint().mint(channel="appointment-42", user_id=7, now=NOW).token
    salt = struct.pack("<I", field(parsed(token), "salt"))
    inner = hmac.new(struct.pack("<I", int(NOW)), CERTIFICATE.encode(), "sha256").digest()
    key = hmac.new(salt, inner, "sha256").digest()
    assert signature_of(token) == hmac.new(key, payload_of(token)[34:], "sha256").digest()


def test_another_certificate_makes_another_signature_over_the_same_body() -> None:
    def token(certificate: str) -> str:
        return access_token(
            app_id=APP_ID,
            app_certificate=certificate,
            channel="c",
            uid="7",
            rights={1: 60},
            ttl_s=60,
            issue_ts=1,
            salt=1,
        )

    right, wrong = token(CERTIFICATE), token("f" * 32)
    assert payload_of(right)[34:] == payload_of(wrong)[34:]
    assert signature_of(right) != signature_of(wrong)


def test_a_token_expires_its_lifetime_after_the_second_it_was_issued_in() -> None:
    minted = mint().mint(channel="appointment-42", user_id=7, now=NOW)
    assert minted.expires_at == datetime.fromtimestamp(int(NOW) + TTL_S, UTC)
    assert minted.expires_at.tzinfo is UTC


def test_a_channel_of_any_script_survives() -> None:
    minted = mint().mint(channel="Zimmer-ÄÖ-会议室-🎥", user_id=7, now=NOW)
    (service,) = field(parsed(minted.token), "service").values()
    assert field(service, "channel_name").decode() == "Zimmer-ÄÖ-会议室-🎥"


def test_the_largest_user_id_is_its_own_uid() -> None:
    minted = mint().mint(channel="c", user_id=2**63 - 1, now=NOW)
    (service,) = field(parsed(minted.token), "service").values()
    assert field(service, "uid") == str(2**63 - 1).encode()


def test_no_two_tokens_share_a_salt() -> None:
    one = mint()
    tokens = [one.mint(channel="c", user_id=7, now=NOW).token for _ in range(1000)]
    # 1,000 draws of 32 bits repeat once in 8,600 runs; twice in one run never.
    assert len({field(parsed(token), "salt") for token in tokens}) >= 999
