"""The commands of section 1 and the settings of section 2: exit statuses, and one clear line for what is wrong."""

from __future__ import annotations

import base64
import hmac
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from service.settings import SettingsError, load_settings
from tests.contract.api import Answer, Api, problem
from tests.harness import SECRET, Rows, Service, clean_environment, run_cli, token

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey
AWAY = "postgresql://nobody:secret-password@127.0.0.1:1/none"


def pem(key: PrivateKey) -> str:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def private_pem(key: PrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


# Each of these is given to `serve` ...
WRONG = [
    ("DATABASE_URL", "mysql://root:hush@localhost/x"),
    ("REDIS_URL", "redis://:hush@localhost:port/0"),
    ("DATA_DIR", "/dev/null"),
    ("HOST", "192.0.2.1"),
    ("PORT", "http"),
    ("JWT_SECRET", "hush-hush"),
    ("JWT_PUBLIC_KEY", "-----BEGIN PUBLIC KEY-----\nhush\n-----END PUBLIC KEY-----\n"),
    ("LEASE_TTL_S", "3"),
]
# ... and these to the same settings in this process, which saves a start each.
WRONG_TOO = [
    ("DATABASE_URL", "postgresql://root:hush@localhost:port/x"),
    ("DATABASE_URL", "postgresql://root:hush@localhost:99999/x"),
    ("DATABASE_URL", "postgresql+psycopg://root:hush@localhost/x"),
    ("DATABASE_URL", "localhost:5432"),
    ("REDIS_URL", "http://:hush@localhost"),
    ("REDIS_URL", "redis://:hush@localhost:99999/0"),
    ("REDIS_URL", "redis://:hush@localhost/zero"),
    ("REDIS_URL", "localhost:6379"),
    *(("PORT", value) for value in ("-1", "65536", "80.5")),
    *(("WORKERS", value) for value in ("0", "-2", "two", "1.5", "100000")),
    ("JWT_SECRET", "x" * 31),
    *(("AGORA_APP_ID", value) for value in ("abc", "g" * 32, "a" * 33)),
    *(("AGORA_APP_CERTIFICATE", value) for value in ("hush-hush", "g" * 32, "a" * 31, "a" * 33)),
    *(("ROOM_TOKEN_TTL_S", value) for value in ("0", "-1", "soon", "1e99")),
    *(("PAYER", value) for value in ("invitee", "Entrant ")),
    *(("DEFAULT_COUPON_COUNT", value) for value in ("-1", "many", "1.5")),
    *(("LEASE_TTL_S", value) for value in ("0", "-1", "nan", "inf", "long", "4.5")),
    *(("LOCK_WAIT_S", value) for value in ("1.5", "0", "-1", "nan", "2", "patience")),
    *(("LOCK_OUTAGE", value) for value in ("ignore", "PROCEED!")),
    *(("INSTANCE_ID", value) for value in ("new\nline", "a b", "x" * 300, "<script>")),
]


@pytest.fixture(scope="module")
def wrong_starts(
    module_database_url: str, redis_url: str, tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[str, str], subprocess.CompletedProcess[str]]:
    """What came of `serve` with each wrong setting, a few at once: most of it is waiting for Python to import."""
    folder = tmp_path_factory.mktemp("wrong")

    def start(wrong: tuple[str, str]) -> subprocess.CompletedProcess[str]:
        name, value = wrong
        settings = {
            "database_url": module_database_url,
            "redis_url": redis_url,
            "port": "0",
            "jwt_secret": SECRET,
            "agora_app_id": "a" * 32,
            "agora_app_certificate": "b" * 32,
            "data_dir": str(folder / "data"),
        }
        if name == "JWT_PUBLIC_KEY":
            del settings["jwt_secret"]
        if name == "DATA_DIR":
            del settings["redis_url"]  # with nothing embedded, the folder is not used
        environment = clean_environment(**{**settings, name.lower(): value})
        try:
            return run_cli("serve", environment=environment)
        except subprocess.TimeoutExpired:  # it serves; its workers notice that their supervisor is gone
            return subprocess.CompletedProcess("serve", 0, "", f"{name}={value} was taken")

    with ThreadPoolExecutor(2) as threads:
        return dict(zip(WRONG, threads.map(start, WRONG), strict=True))


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_a_wrong_setting_stops_the_start_with_one_line_that_names_it(
    wrong_starts: dict[tuple[str, str], subprocess.CompletedProcess[str]], name: str, value: str
) -> None:
    ended = wrong_starts[name, value]
    assert ended.returncode not in (0, -9), ended.stderr
    assert ended.stdout == ""
    lines = ended.stderr.splitlines()
    assert len(lines) == 1, ended.stderr
    assert lines[0].startswith("chargeonce: ")
    assert name in lines[0]
    assert "hush" not in lines[0], "a secret is not shown, not even a wrong one"


@pytest.mark.parametrize(("name", "value"), WRONG_TOO)
def test_a_wrong_setting_is_named_in_one_line(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    for known in [known for known in os.environ if known.startswith("CHARGEONCE_")]:
        monkeypatch.delenv(known)
    monkeypatch.setenv(f"CHARGEONCE_{name}", value)
    with pytest.raises(SettingsError) as refused:
        load_settings()
    assert name in str(refused.value)
    assert "\n" not in str(refused.value)
    assert "hush" not in str(refused.value)


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"jwt_secret": ""}, ["JWT_SECRET"]),
        ({"agora_app_id": ""}, ["AGORA_APP_ID"]),
        ({"agora_app_certificate": ""}, ["AGORA_APP_CERTIFICATE"]),
        ({"jwt_public_key": pem(ec.generate_private_key(ec.SECP256R1()))}, ["JWT_SECRET", "JWT_PUBLIC_KEY"]),
        ({"jwt_secret": pem(ec.generate_private_key(ec.SECP256R1()))}, ["JWT_SECRET"]),
    ],
)
def test_secrets_must_be_there_and_fit_each_other(
    cli_environment: dict[str, str], settings: dict[str, str], names: list[str]
) -> None:
    given = {f"CHARGEONCE_{name.upper()}": value for name, value in settings.items()}
    ended = run_cli("serve", "--port", "0", environment={**cli_environment, **given})
    assert ended.returncode not in (0, -9)
    [line] = ended.stderr.splitlines()
    assert all(name in line for name in names)


@pytest.mark.parametrize(
    ("words", "settings", "names"),
    [
        (["serve", "--port", "0"], {"jwt_public_keys": "/no/such/file"}, "JWT_PUBLIC_KEYS: /no/such/file"),
        (["serve", "--port", "0"], {"jwt_public_key": "nonsense"}, "JWT_PUBLIC_KEY: is not a PEM"),
        (["serve", "--port", "0"], {"jwt_secret": "ssh-rsa " + "A" * 40}, "JWT_SECRET: is a key of another kind"),
        (["seed", "--users", "1"], {}, "an appointment needs 2 users"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_before_an_embedded_server_is_started(
    tmp_path: Path, words: list[str], settings: dict[str, str], names: str
) -> None:
    ended = run_cli(*words, environment=clean_environment(data_dir=str(tmp_path / "data"), **settings))

    assert ended.returncode in (1, 2)
    [line] = ended.stderr.splitlines()
    assert names in line
    assert not (tmp_path / "data" / "postgres").exists()


def test_the_version_is_told_whatever_the_settings_are(tmp_path: Path) -> None:
    said = f"chargeonce {version('chargeonce')}\n"
    wrong = clean_environment(port="none", data_dir="/dev/null", jwt_secret="short")

    assert run_cli("--version", environment=wrong).stdout == said  # python -m service
    command = Path(sys.executable).with_name("chargeonce")
    installed = subprocess.run([command, "--version"], env=wrong, cwd=tmp_path, capture_output=True, text=True)

    assert (installed.returncode, installed.stdout, installed.stderr) == (0, said, "")
    assert list(tmp_path.iterdir()) == []


def test_every_command_says_what_it_does_and_what_does_not_exist_is_named() -> None:
    environment = clean_environment()
    helped = run_cli("--help", environment=environment).stdout
    for command in ("serve", "migrate", "seed", "token", "audit", "locks list", "locks show", "locks release"):
        ended = run_cli(*command.split(), "--help", environment=environment)
        assert (ended.returncode, ended.stderr) == (0, ""), command
        assert command.split()[0] in helped
    unknown = run_cli("serv", environment=environment)
    assert (unknown.returncode, unknown.stdout) == (2, "")
    assert "No such command 'serv'" in unknown.stderr


def test_one_of_a_thing_is_told_in_the_singular(cli_environment: dict[str, str], rows: Rows) -> None:
    ended = run_cli("seed", "--appointments", "1", "--users", "2", "--coupons", "5", environment=cli_environment)
    assert ended.stdout.startswith("added 1 appointment, coupons for 2 users and "), ended
    appointment = rows.one("SELECT id FROM appointment_info")
    rows.run("INSERT INTO appointment_action (appointment_id, user_id, type) VALUES (%s, 1, 1)", appointment)
    last = run_cli("audit", environment=cli_environment).stdout.splitlines()[-1]
    assert last == "looked at 1 appointment, 0 charges, 1 entry, 2 users"


def test_a_port_in_use_stops_the_start(cli_environment: dict[str, str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = run_cli("serve", "--port", str(port), environment=cli_environment)
    assert ended.returncode == 1
    [line] = ended.stderr.splitlines()
    assert str(port) in line
    assert "CHARGEONCE_PORT" in line


def test_flags_win_over_settings(start_service: Callable[..., Service]) -> None:
    service = start_service(workers=1, port="1")  # the harness says --port 0
    assert Api(service.url).get("/livez").status == 200
    assert len(service.worker_pids()) == 1


def test_a_database_without_the_schema_stops_the_start_and_says_what_to_do(
    cli_environment: dict[str, str], empty_database_url: str
) -> None:
    environment = {**cli_environment, "CHARGEONCE_DATABASE_URL": empty_database_url}
    ended = run_cli("serve", "--port", "0", environment=environment)
    assert ended.returncode == 1
    [line] = ended.stderr.splitlines()
    assert "chargeonce migrate" in line


def test_a_misspelt_setting_is_warned_of(start_service: Callable[..., Service]) -> None:
    assert "CHARGEONCE_LEASE_TLT_S" in start_service(workers=1, lease_tlt_s="1").logged()


def test_migrate_brings_the_schema_to_head_and_says_what_it_did(
    cli_environment: dict[str, str], empty_database_url: str
) -> None:
    environment = {**cli_environment, "CHARGEONCE_DATABASE_URL": empty_database_url}
    first, second = run_cli("migrate", environment=environment), run_cli("migrate", environment=environment)
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert first.stdout.startswith("applied ")
    assert second.stdout.startswith("nothing to do")
    assert run_cli("audit", environment=environment).returncode == 0


def test_seed_is_idempotent(cli_environment: dict[str, str], rows: Rows) -> None:
    words = ("seed", "--appointments", "7", "--users", "5", "--coupons", "9")
    first = run_cli(*words, environment=cli_environment)
    counted = {table: rows.one(f"SELECT count(*) FROM {table}") for table in ("appointment_info", "coupon_grant")}
    assert (first.returncode, counted) == (0, {"appointment_info": 7, "coupon_grant": 5})
    assert (rows.balance(1), rows.balance(5), rows.balance(6)) == (9, 9, 0)
    second = run_cli(*words, environment=cli_environment)
    assert second.returncode == 0
    assert "added 0 appointments" in second.stdout
    assert rows.one("SELECT count(*) FROM appointment_info") == 7
    assert run_cli("audit", environment=cli_environment).returncode == 0


def test_token_prints_a_token_that_the_service_takes(cli_environment: dict[str, str]) -> None:
    ended = run_cli("token", "--user", "7", "--scope", "service locks", "--ttl-s", "90", environment=cli_environment)
    assert ended.returncode == 0
    claims = jwt.decode(ended.stdout.strip(), SECRET, algorithms=["HS256"], options={"require": ["exp", "sub"]})
    assert (claims["sub"], claims["scope"]) == ("7", "service locks")
    assert 0 < claims["exp"] - time.time() <= 91


@pytest.mark.parametrize(
    "words", [["--user", "0"], ["--user", "-5"], ["--user", "x"], [], ["--user", "7", "--ttl-s", "0"]]
)
def test_token_refuses_what_is_no_user(cli_environment: dict[str, str], words: list[str]) -> None:
    ended = run_cli("token", *words, environment=cli_environment)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    "harm",
    [
        "UPDATE user_coupon SET count = count + 1",
        "UPDATE appointment_info SET is_consume = true",
        "DELETE FROM coupon_grant",
    ],
)
def test_audit_finds_what_is_broken(cli_environment: dict[str, str], rows: Rows, harm: str) -> None:
    rows.grant(11, 5)
    rows.appointment(11, 22)
    rows.run(harm)
    words = run_cli("audit", environment=cli_environment)
    assert words.returncode == 1
    assert "BROKEN" in words.stdout
    as_json = run_cli("audit", "--json", environment=cli_environment)
    assert as_json.returncode == 1
    report = json.loads(as_json.stdout)
    assert report["holds"] is False
    assert any(invariant["broken_count"] and invariant["examples"] for invariant in report["invariants"])


def test_audit_and_migrate_say_when_the_database_is_away(cli_environment: dict[str, str]) -> None:
    environment = {**cli_environment, "CHARGEONCE_DATABASE_URL": AWAY}
    for words, status in ((("audit",), 2), (("audit", "--json"), 2), (("migrate",), 1), (("seed",), 1)):
        ended = run_cli(*words, environment=environment)
        assert (ended.returncode, ended.stdout) == (status, ""), words
        assert len(ended.stderr.splitlines()) == 1
        assert "secret-password" not in ended.stderr


def test_audit_cannot_look_at_a_database_without_the_schema(
    cli_environment: dict[str, str], empty_database_url: str
) -> None:
    ended = run_cli("audit", environment={**cli_environment, "CHARGEONCE_DATABASE_URL": empty_database_url})
    assert ended.returncode == 2
    assert len(ended.stderr.splitlines()) == 1


KEYS: dict[str, Callable[[], PrivateKey]] = {
    "RS256": lambda: rsa.generate_private_key(public_exponent=65537, key_size=2048),
    "ES256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate,
}


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
def test_tokens_may_be_signed_with_a_private_key(
    start_service: Callable[..., Service], rows: Rows, algorithm: str
) -> None:
    key, stranger = KEYS[algorithm](), KEYS[algorithm]()
    public = pem(key).replace("\n", "\\n") if algorithm == "ES256" else pem(key)  # as an environment file has it
    rows.grant(11, 5)
    id_ = rows.appointment(11, 22)
    api = Api(start_service(workers=1, jwt_secret="", jwt_public_key=public).url)
    claims = {"sub": "11", "exp": time.time() + 600}

    def enter(signed: str) -> Answer:
        return api.post(f"/v1/appointments/{id_}/entries", headers={"Authorization": f"Bearer {signed}"})

    for wrong in (
        jwt.encode(claims, private_pem(stranger), algorithm=algorithm),
        token(11),
        forged_with_the_public_key(pem(key), claims),
    ):
        problem(enter(wrong), "unauthenticated")
    assert enter(jwt.encode(claims, private_pem(key), algorithm=algorithm)).status == 201


def forged_with_the_public_key(public_pem: str, claims: dict[str, object]) -> str:
    """An HS256 token whose secret is what everybody may know: the oldest trick of all."""

    def packed(value: bytes) -> str:
        return base64.urlsafe_b64encode(value).decode().rstrip("=")

    head = f"{packed(json.dumps({'alg': 'HS256'}).encode())}.{packed(json.dumps(claims).encode())}"
    return f"{head}.{packed(hmac.digest(public_pem.encode(), head.encode(), 'sha256'))}"
