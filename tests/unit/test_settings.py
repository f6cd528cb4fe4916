"""The settings of contract section 2: their defaults, their limits against each other, and one line for a wrong one."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from pydantic import SecretStr

from service.settings import (
    Settings,
    SettingsError,
    environment_for_child,
    load_settings,
    require_secrets,
    resolved,
    unknown_settings,
)

SECRET = "hunter2"  # stands in every secret below, and may stand in no message
LONG_SECRET = f"{SECRET} is longer than the 32 bytes it needs"
HEX = "970CA35de60c44645bbae8a215061b33"


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.upper().startswith("CHARGEONCE_")]:
        monkeypatch.delenv(name)


def put(monkeypatch: pytest.MonkeyPatch, **settings: str) -> None:
    """Sets CHARGEONCE_<NAME> for each."""
    for name, value in settings.items():
        monkeypatch.setenv(f"CHARGEONCE_{name.upper()}", value)


def refusal(monkeypatch: pytest.MonkeyPatch, **settings: str) -> str:
    """The message that these settings stop the start with."""
    put(monkeypatch, **settings)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return str(caught.value)


def test_every_default_is_the_contracts() -> None:
    settings = load_settings()

    assert settings.database_url is None
    assert settings.redis_url is None
    assert settings.embedded_database
    assert settings.embedded_redis
    assert settings.data_dir == Path(".chargeonce")
    assert (settings.host, settings.port, settings.workers) == ("127.0.0.1", 8080, 2)
    assert (settings.jwt_secret, settings.jwt_public_key) == (None, None)
    assert settings.jwt_public_keys is None
    assert (settings.jwt_audience, settings.jwt_issuer, settings.jwt_leeway_s) == (None, None, 0)
    assert (settings.agora_app_id, settings.agora_app_certificate) == (None, None)
    assert settings.room_token_ttl_s == 3600
    assert settings.payer == "entrant"
    assert settings.default_coupon_count == 1
    assert settings.lease_ttl_s == 2
    assert settings.lock_wait_s == 3
    assert settings.lock_outage == "proceed"
    assert settings.max_body_bytes == 64 * 1024
    assert settings.worker_instance_id(1) == f"{socket.gethostname()}-{os.getpid()}"


def test_the_default_limits_fit_each_other() -> None:
    settings = load_settings()

    assert settings.command_timeout_s < settings.lease_ttl_s < settings.lock_wait_s
    assert settings.row_lock_timeout_s < settings.charge_timeout_s
    assert settings.whole_request_s > settings.lock_wait_s + settings.charge_timeout_s


def test_each_setting_is_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    put(
        monkeypatch,
        database_url=f"postgresql://chargeonce:{SECRET}@db/chargeonce",
        redis_url=f"rediss://:{SECRET}@cache:6380/3",
        data_dir="/var/lib/chargeonce",
        host="0.0.0.0",
        port="9000",
        workers="4",
        jwt_secret=LONG_SECRET,
        agora_app_id=HEX,
        agora_app_certificate=HEX[::-1],
        room_token_ttl_s="60",
        payer="inviter",
        default_coupon_count="0",
        lease_ttl_s="0.6",
        lock_wait_s="0.7",
        lock_outage="refuse",
        instance_id="api-3",
    )

    settings = load_settings()

    assert settings.database_url == SecretStr(f"postgresql://chargeonce:{SECRET}@db/chargeonce")
    assert settings.redis_url == SecretStr(f"rediss://:{SECRET}@cache:6380/3")
    assert settings.data_dir == Path("/var/lib/chargeonce")
    assert (settings.host, settings.port, settings.workers) == ("0.0.0.0", 9000, 4)
    assert settings.jwt_secret == SecretStr(LONG_SECRET)
    assert settings.agora_app_id == HEX
    assert settings.agora_app_certificate == SecretStr(HEX[::-1])
    assert (settings.room_token_ttl_s, settings.payer, settings.default_coupon_count) == (60, "inviter", 0)
    assert (settings.lease_ttl_s, settings.lock_wait_s, settings.lock_outage) == (0.6, 0.7, "refuse")
    assert [settings.worker_instance_id(number) for number in (1, 2)] == ["api-3-1", "api-3-2"]


def test_flags_win_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    put(monkeypatch, port="9000", workers="4")

    settings = load_settings(port=9001, workers=None)

    assert (settings.port, settings.workers) == (9001, 4)


def test_a_lone_worker_bears_the_chosen_name_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    put(monkeypatch, instance_id="api-3", workers="1")

    assert load_settings().worker_instance_id(1) == "api-3"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DATABASE_URL", f"mysql://root:{SECRET}@db/x"),
        ("DATABASE_URL", f"postgresql+asyncpg://root:{SECRET}@db/x"),
        ("DATABASE_URL", SECRET),
        ("REDIS_URL", f"redis+sentinel://:{SECRET}@h1:1,h2:2"),
        ("REDIS_URL", f"redis+sentinel://:{SECRET}@h1:0,h2:2/service"),
        ("REDIS_URL", f"redis+cluster://:{SECRET}@h:1/3"),
        ("REDIS_URL", f"redis+cluster://:{SECRET}@"),
        ("REDIS_URL", f"rediss://:{SECRET}@h:1/0?ssl_ca_certs=/nowhere/ca.pem"),
        ("REDIS_URL", f"http://:{SECRET}@h:1"),
        ("REDIS_URL", SECRET),
        ("PORT", "eighty"),
        ("PORT", "65536"),
        ("PORT", "-1"),
        ("WORKERS", "0"),
        ("WORKERS", "1.5"),
        ("JWT_SECRET", SECRET),
        ("AGORA_APP_ID", "not hex"),
        ("AGORA_APP_ID", HEX + "0"),
        ("AGORA_APP_CERTIFICATE", SECRET),
        ("AGORA_APP_CERTIFICATE", HEX + SECRET),
        ("ROOM_TOKEN_TTL_S", "0"),
        ("PAYER", "invitee"),
        ("DEFAULT_COUPON_COUNT", "-1"),
        ("LEASE_TTL_S", "0"),
        ("LEASE_TTL_S", "0.09"),
        ("LEASE_TTL_S", "nan"),
        ("LOCK_WAIT_S", "-3"),
        ("LOCK_WAIT_S", "inf"),
        ("LOCK_OUTAGE", "hope"),
        ("INSTANCE_ID", "two words"),
        ("MAX_WAITERS", "0"),
        ("MAX_LEASE_WAITS", "0"),
        ("CHARGE_LANES", "0"),
        ("CHARGE_TIMEOUT_S", "soon"),
        ("MAX_BODY_BYTES", "1"),
        ("LOG_LEVEL", "loud"),
        ("JWT_LEEWAY_S", "-1"),
        ("JWT_LEEWAY_S", "301"),
    ],
)
def test_a_wrong_setting_is_named_in_one_line_without_a_secret(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    line = refusal(monkeypatch, **{name.lower(): value})

    assert line.startswith(f"CHARGEONCE_{name}: ")
    assert "\n" not in line
    assert SECRET not in line


@pytest.mark.parametrize(
    "url",
    [
        "redis://localhost",
        "rediss://user:password@redis:6380/2",
        "redis+sentinel://:password@h1:26379,h2:26379/service/1?sentinel_password=other",
        "redis+cluster://h1:6379,h2:6379",
    ],
)
def test_every_kind_of_lock_store_is_taken(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    put(monkeypatch, redis_url=url)

    settings = load_settings()

    assert settings.redis_url is not None
    assert settings.redis_url.get_secret_value() == url


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("LEASE_TTL_S", {"lease_ttl_s": "3", "lock_wait_s": "3"}),
        ("LEASE_TTL_S", {"lease_ttl_s": "5"}),
        ("LEASE_TTL_S", {"lock_wait_s": "1"}),
        ("LOCK_COMMAND_TIMEOUT_S", {"lock_command_timeout_s": "2"}),
        ("ROW_LOCK_TIMEOUT_S", {"row_lock_timeout_s": "5"}),
        ("STATEMENT_TIMEOUT_S", {"statement_timeout_s": "6"}),
        ("MAX_LEASE_WAITS", {"max_lease_waits": "500", "max_requests_in_flight": "500"}),
        ("JWT_SECRET", {"jwt_secret": LONG_SECRET, "jwt_public_key": "a key"}),
        ("JWT_SECRET", {"jwt_secret": LONG_SECRET, "jwt_public_keys": "/a/folder"}),
        ("JWT_PUBLIC_KEY", {"jwt_public_key": SECRET, "jwt_public_keys": "/a/folder"}),
    ],
)
def test_limits_that_do_not_fit_each_other_stop_the_start(
    monkeypatch: pytest.MonkeyPatch, name: str, settings: dict[str, str]
) -> None:
    line = refusal(monkeypatch, **settings)

    assert line.startswith(f"CHARGEONCE_{name} ")
    assert "\n" not in line
    assert SECRET not in line


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg2"])
def test_postgres_urls_are_accepted(monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    put(monkeypatch, database_url=f"{scheme}://u@h/d")

    assert load_settings().database_url == SecretStr(f"{scheme}://u@h/d")


@pytest.mark.parametrize("name", sorted(name for name in Settings.model_fields))
def test_an_empty_string_counts_as_unset(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    before = load_settings()

    put(monkeypatch, **{name: ""})

    assert load_settings() == before


def test_secrets_show_in_no_representation(monkeypatch: pytest.MonkeyPatch) -> None:
    put(
        monkeypatch,
        database_url=f"postgresql://u:{SECRET}@h/d",
        redis_url=f"redis://:{SECRET}@h",
        jwt_secret=LONG_SECRET,
        agora_app_certificate=HEX,
    )
    settings = load_settings()

    for shown in (repr(settings), str(settings), settings.model_dump_json()):
        assert SECRET not in shown
        assert HEX not in shown


def test_a_child_reads_the_very_same_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    put(
        monkeypatch,
        data_dir=str(tmp_path / "with a space"),
        jwt_public_key="-----BEGIN PUBLIC KEY-----\nMCow\n-----END PUBLIC KEY-----\n",
        lease_ttl_s="0.1",
        lock_wait_s="0.30000000000000004",
        lock_command_timeout_s="0.05",
        body_wait_s="30",
        payer="inviter",
        instance_id="api-3",
        agora_app_id=HEX,
    )
    parent = resolved(
        load_settings(port=0, workers=3),
        database_url=f"postgresql://u:{SECRET}@h/d?application_name=a%20b",
        redis_url="redis://h:1/0",
        agora_app_id="0" * 32,  # given already, so what was found does not count
        agora_app_certificate=HEX,
    )
    put(monkeypatch, port="1", database_url="mysql://stale", mispelt="1")

    child = environment_for_child(parent)
    for name in [name for name in os.environ if name.startswith("CHARGEONCE_")]:
        monkeypatch.delenv(name)
    for name, value in child.items():
        monkeypatch.setenv(name, value)

    assert load_settings() == parent
    assert unknown_settings() == []
    assert parent.agora_app_id == HEX


def test_a_childs_environment_keeps_what_is_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://proxy")

    assert environment_for_child(load_settings())["HTTP_PROXY"] == "http://proxy"


def test_misspelt_settings_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    put(monkeypatch, lease_ttl="2", wokers="3", port="8081")

    assert unknown_settings() == ["CHARGEONCE_LEASE_TTL", "CHARGEONCE_WOKERS"]


def test_secrets_that_nobody_generates_must_be_given(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("jwt_secret", LONG_SECRET), ("agora_app_id", HEX), ("agora_app_certificate", HEX)):
        with pytest.raises(SettingsError, match=f"CHARGEONCE_{name.upper()}"):
            require_secrets(load_settings())
        put(monkeypatch, **{name: value})
    require_secrets(load_settings())


def test_the_secrets_length_counts_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    put(monkeypatch, jwt_secret="ä" * 16)

    assert load_settings().jwt_secret == SecretStr("ä" * 16)


def test_space_around_an_agora_key_is_no_part_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    put(monkeypatch, agora_app_id=f" {HEX}\n", agora_app_certificate=f"{HEX}\n")

    settings = load_settings()

    assert (settings.agora_app_id, settings.agora_app_certificate) == (HEX, SecretStr(HEX))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DATABASE_URL", f"postgresql://u:{SECRET}@h:port/d"),
        ("DATABASE_URL", f"postgresql://u:se@{SECRET}@127.0.0.1/d"),
        ("REDIS_URL", f"redis://:{SECRET}@h:port/0"),
    ],
)
def test_an_address_that_cannot_be_read_is_named_in_one_line(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    line = refusal(monkeypatch, **{name.lower(): value})

    assert line.startswith(f"CHARGEONCE_{name}: ")
    assert SECRET not in line


# By each field's own kind, so that a secret that is added is one of them.
SECRETS = {
    "database_url": f"postgresql://u:{SECRET}@h/d",
    "redis_url": f"redis://:{SECRET}@h:1/0",
    "jwt_secret": LONG_SECRET,
    "jwt_public_key": f"-----BEGIN PUBLIC KEY-----\n{SECRET}\n-----END PUBLIC KEY-----",
    "agora_app_certificate": HEX,
}


def test_every_secret_is_tried_below() -> None:
    assert {name for name, field in Settings.model_fields.items() if "SecretStr" in str(field.annotation)} == set(
        SECRETS
    )


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_may_come_in_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, end: str) -> None:
    file = tmp_path / "secret"
    file.write_bytes(f"{SECRETS[name]}{end}".encode())
    put(monkeypatch, **{f"{name}_file": str(file)})

    settings = load_settings()

    assert getattr(settings, name) == SecretStr(SECRETS[name])
    assert unknown_settings() == []


@pytest.mark.parametrize("name", SECRETS)
def test_a_child_gets_the_secret_and_not_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    file = tmp_path / "secret"
    file.write_text(SECRETS[name])
    put(monkeypatch, **{f"{name}_file": str(file)})
    parent = load_settings()

    child = environment_for_child(parent)
    file.unlink()
    monkeypatch.delenv(f"CHARGEONCE_{name.upper()}_FILE")
    for variable, value in child.items():
        monkeypatch.setenv(variable, value)

    assert f"CHARGEONCE_{name.upper()}_FILE" not in child
    assert load_settings() == parent


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_and_its_file_are_not_both_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    file = tmp_path / "secret"
    file.write_text(SECRETS[name])

    line = refusal(monkeypatch, **{name: SECRETS[name], f"{name}_file": str(file)})

    assert line == f"CHARGEONCE_{name.upper()} and CHARGEONCE_{name.upper()}_FILE are both set; choose one"


@pytest.mark.parametrize(
    ("content", "told"),
    [(None, "No such file"), (b"", "empty"), (b"\n", "empty"), (b"\xff", "not UTF-8"), (b"x" * 100_000, "larger than")],
)
def test_a_file_that_has_no_secret_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes | None, told: str
) -> None:
    file = tmp_path / "secret"
    if content is not None:
        file.write_bytes(content)

    line = refusal(monkeypatch, jwt_secret_file=str(file))

    assert line.startswith(f"CHARGEONCE_JWT_SECRET_FILE: {file} ")
    assert told in line
    assert "\n" not in line


def test_a_folder_is_no_secret(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert "Is a directory" in refusal(monkeypatch, redis_url_file=str(tmp_path))


def test_a_wrong_secret_in_a_file_is_told_as_any_other(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text(SECRET)

    line = refusal(monkeypatch, jwt_secret_file=str(file))

    assert line.startswith("CHARGEONCE_JWT_SECRET: must be 32 bytes")
    assert SECRET not in line


def test_an_empty_name_of_a_file_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    put(monkeypatch, jwt_secret_file="", jwt_secret=LONG_SECRET)

    assert load_settings().jwt_secret == SecretStr(LONG_SECRET)


def test_only_secrets_come_in_files(monkeypatch: pytest.MonkeyPatch) -> None:
    put(monkeypatch, port_file="/run/port")

    assert unknown_settings() == ["CHARGEONCE_PORT_FILE"]


def test_verification_keys_are_enough_of_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    put(monkeypatch, jwt_public_keys="/a/folder", agora_app_id=HEX, agora_app_certificate=HEX)

    require_secrets(load_settings())
