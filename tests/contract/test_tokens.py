"""Access tokens before a running service: keys that are replaced, secrets in files, tokens that nobody should send."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from tests.contract.api import Answer, Api, problem
from tests.contract.conftest import World
from tests.contract.page import COOKIE, FROM_OUR_PAGE
from tests.harness import APP_CERTIFICATE, SECRET, Rows, Service, run_cli, token, wait_until
from tests.tokens import hs256, jwk, jwks, private_pem, public_pem, raw_token, signed

StartService = Callable[..., Service]
OLD, NEW = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())


@pytest.fixture(autouse=True)
def _nothing_went_wrong_inside(world: World) -> Iterator[None]:
    before = world.service.logged().count("request failed")
    yield
    assert world.service.logged().count("request failed") == before


def asked(api: Api, key: Any, kid: str, **more: Any) -> Answer:
    """A user's coupons, with a token that this key has signed."""
    return asked_with(api, token_of(key, kid, **more))


def token_of(key: Any, kid: str, **more: Any) -> str:
    return signed({"sub": "7", "exp": time.time() + 600, **more}, key=key, algorithm="ES256", kid=kid)


def asked_with(api: Api, authorization: str) -> Answer:
    return api.get("/v1/users/7/coupons", headers={"Authorization": authorization})


@pytest.mark.parametrize("kind", ["folder", "set"])
def test_keys_are_replaced_under_a_running_service(start_service: StartService, tmp_path: Path, kind: str) -> None:
    path = tmp_path / kind

    def put(**keys: Any) -> None:
        if kind == "set":
            path.write_text(jwks(*(jwk(key, kid=kid) for kid, key in keys.items())))
            return
        path.mkdir(exist_ok=True)
        for kid, key in keys.items():
            (path / f"{kid}.pem").write_text(public_pem(key))
        for file in path.iterdir():
            if file.stem not in keys:
                file.unlink()

    put(old=OLD)
    service = start_service(
        jwt_secret="", jwt_public_keys=str(path), jwt_audience="us", jwt_issuer="issuer", jwt_leeway_s="5"
    )
    api = Api(service.url)
    meant = {"aud": ["us"], "iss": "issuer"}
    assert asked(api, OLD, "old", **meant).status == 200
    assert asked(api, OLD, "old", **{**meant, "exp": time.time() - 1}).status == 200, "the leeway"
    for wrong in ({}, {"aud": "us"}, {"iss": "issuer"}, {**meant, "aud": "them"}, {**meant, "exp": time.time() - 60}):
        problem(asked(api, OLD, "old", **wrong), "unauthenticated")

    kept = token_of(OLD, "old", **meant)
    put(old=OLD, new=NEW)
    wait_until(lambda: all(asked(api, NEW, "new", **meant).status == 200 for _ in range(10)), what="the new key")
    assert {asked_with(api, kept).status for _ in range(10)} == {200}, "each worker has verified it"

    put(new=NEW)
    wait_until(lambda: all(asked(api, OLD, "old", **meant).status == 401 for _ in range(10)), what="the old key's end")
    # Each worker looks for itself, and ten requests may all have been one worker's.
    wait_until(lambda: all(asked_with(api, kept).status == 401 for _ in range(10)), what="the end of what it verified")
    assert asked(api, NEW, "new", **meant).status == 200
    assert service.stop() == 0


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({}, "holds 0 .pem files"),
        ({"one.pem": private_pem(OLD)}, "one.pem is not a PEM public key"),
        ({"jwks.json": jwks(jwk(OLD, kid="one", d="c2VjcmV0"))}, "'one' is a private key"),
    ],
)
def test_keys_that_cannot_be_used_stop_the_start_with_one_line(
    cli_environment: dict[str, str], tmp_path: Path, files: dict[str, str], told: str
) -> None:
    folder = tmp_path / "keys"
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_text(content)
    path = folder / "jwks.json" if "jwks.json" in files else folder
    environment = cli_environment | {"CHARGEONCE_JWT_SECRET": "", "CHARGEONCE_JWT_PUBLIC_KEYS": str(path)}
    ended = run_cli("serve", "--port", "0", environment=environment)
    (line,) = ended.stderr.splitlines()
    assert ended.returncode == 2
    assert line.startswith("chargeonce: CHARGEONCE_JWT_PUBLIC_KEYS: ")
    assert told in line
    assert "c2VjcmV0" not in line


def test_every_secret_from_a_file(start_service: StartService, tmp_path: Path, rows: Rows, database_url: str,
                                  redis_url: str) -> None:  # fmt: skip
    secrets = {
        "database_url": database_url,
        "redis_url": redis_url,
        "jwt_secret": SECRET,
        "agora_app_certificate": APP_CERTIFICATE,
    }
    files: dict[str, str] = {}
    for name, secret in secrets.items():
        (tmp_path / name).write_text(f"{secret}\n")
        files |= {name: "", f"{name}_file": str(tmp_path / name)}
    rows.grant(1, 5)
    appointment_id = rows.appointment(1, 2)
    service = start_service(**files)
    assert Api(service.url).enter(appointment_id, 1).status == 201
    for words in (("audit",), ("locks", "list"), ("token", "--user", "1")):
        ended = run_cli(*words, environment=service.environment)
        assert ended.returncode == 0, ended.stderr
    assert "unknown setting" not in service.logged()
    for secret in secrets.values():
        assert secret not in service.logged()


def test_a_secret_given_twice_stops_every_command(cli_environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(SECRET)
    environment = cli_environment | {"CHARGEONCE_JWT_SECRET_FILE": str(tmp_path / "secret")}
    for words in (("serve", "--port", "0"), ("token", "--user", "1"), ("audit",), ("locks", "list")):
        ended = run_cli(*words, environment=environment)
        assert ended.returncode == 2, words
        assert ended.stderr == (
            "chargeonce: CHARGEONCE_JWT_SECRET and CHARGEONCE_JWT_SECRET_FILE are both set; choose one\n"
        )


@pytest.mark.parametrize("scope", ["lock", "service,locks", "locks:", "locks:appointment:", "admin"])
def test_token_refuses_a_scope_that_opens_nothing(cli_environment: dict[str, str], scope: str) -> None:
    ended = run_cli("token", "--user", "7", "--scope", f"monitor {scope}", environment=cli_environment)
    assert (ended.returncode, ended.stdout) == (2, "")
    (line,) = ended.stderr.splitlines()
    assert line.startswith("chargeonce: --scope: ")
    assert scope in line


def test_token_prints_one_that_is_meant_for_us(cli_environment: dict[str, str], start_service: StartService) -> None:
    named = {"jwt_audience": "us", "jwt_issuer": "we"}
    environment = cli_environment | {f"CHARGEONCE_{name.upper()}": value for name, value in named.items()}
    printed = run_cli("token", "--user", "7", "--scope", "locks:jobs:", environment=environment).stdout.strip()
    api = Api(start_service(workers=1, **named).url)
    headers = {"Authorization": f"Bearer {printed}"}
    assert api.post("/v1/locks/jobs%3A1/leases", send={"ttl_ms": 100}, headers=headers).status == 201
    problem(api.post("/v1/locks/other/leases", send={"ttl_ms": 100}, headers=headers), "name-reserved")
    problem(api.get("/v1/users/7/coupons", user=7), "unauthenticated")  # one that names no audience


@pytest.mark.parametrize("levels", [33, 500, 985, 1000, 1020, 1100, 2000])
@pytest.mark.parametrize("where", ["claims", "header"])
def test_a_signed_token_that_is_nested_deeply_is_no_token_anywhere(world: World, where: str, levels: int) -> None:
    nested = "[" * levels + "]" * levels
    claims = f'{{"sub":"7","exp":{time.time() + 600},"scope":"operator"'
    header, payload = '{"alg":"HS256"', claims
    if where == "claims":
        payload += f',"more":{nested}'
    else:
        header += f',"more":{nested}'
    authorization = raw_token(f"{header}}}".encode(), f"{payload}}}".encode(), hs256(SECRET.encode()))
    problem(world.api.get("/v1/contention", headers={"Authorization": authorization}), "unauthenticated")
    bearer = authorization.removeprefix("Bearer ")
    for path in ("/dashboard", "/dashboard/series", "/dashboard/exports/locks.csv", "/dashboard/streams/overview"):
        assert world.api.get(path, headers={"Cookie": f"{COOKIE}={bearer}"}).status == 401
    form = {"token": bearer, "next": ""}
    assert world.api.post("/dashboard/login", form=form, headers=FROM_OUR_PAGE).status == 401


@pytest.mark.parametrize("twice", ['"sub":"8"', '"scope":""', '"more":{"a":1,"a":2}'])
def test_claims_that_say_a_key_twice_are_no_token(world: World, twice: str) -> None:
    payload = f'{{"sub":"7","scope":"operator","exp":{time.time() + 600},{twice}}}'
    authorization = raw_token(b'{"alg":"HS256"}', payload.encode(), hs256(SECRET.encode()))
    problem(world.api.get("/v1/contention", headers={"Authorization": authorization}), "unauthenticated")


def test_a_token_has_one_spelling(world: World) -> None:
    good = token(7, "monitor")
    for authorization in (f"Bearer {good}", f"bearer   {good}", f"BEARER {good}  "):
        assert world.api.get("/v1/contention", headers={"Authorization": authorization}).status == 200
    for authorization in (f"Bearer {good}=", f"Bearer {good}==", f"Bearer {good.replace('.', '=.', 1)}"):
        problem(world.api.get("/v1/contention", headers={"Authorization": authorization}), "unauthenticated")


@pytest.mark.parametrize(
    "header", [{"alg": "HS256", "kid": ["x"]}, {"alg": "HS256", "crit": ["x"]}, {"alg": ["HS256"]}]
)
def test_a_header_of_odd_members_is_no_token(world: World, header: dict[str, Any]) -> None:
    payload = json.dumps({"sub": "7", "exp": time.time() + 600}).encode()
    authorization = raw_token(json.dumps(header).encode(), payload, hs256(SECRET.encode()))
    problem(world.api.get("/v1/users/7/coupons", headers={"Authorization": authorization}), "unauthenticated")
