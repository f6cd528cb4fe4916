"""Certificates and passwords that change while we run: what is there at the next connection is used."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import pytest
import redis

from locks import Locker, LockStoreDown
from locks.compat import SafeLock, client
from tests.harness import wait_until_async
from tests.servers.cluster import alone_settings, give_all_slots
from tests.servers.fixtures import HARD_PASSWORD, StartRedis
from tests.servers.kinds import TLS_KIND
from tests.servers.redis_server import AclUser, RedisServer
from tests.servers.tls import Certificates

NAME = "appointment:42"
NEW_PASSWORD = "n€w/" + HARD_PASSWORD
RULES = "~lock* &lock* +@all -@dangerous +role"


async def use(locker: Locker) -> None:
    """The lock can be had."""
    async with locker.hold(NAME, wait_s=10):
        pass


# Certificates


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return Certificates.make(tmp_path)


@pytest.fixture
def mutual_server(start_redis: StartRedis, certificates: Certificates) -> RedisServer:
    """A server that wants a certificate of its clients too."""
    return start_redis(TLS_KIND, certificates=certificates, settings=["tls-auth-clients yes"])


@pytest.fixture
def mutual_url(mutual_server: RedisServer, certificates: Certificates) -> str:
    files = {"ssl_certfile": certificates.certificate, "ssl_keyfile": certificates.key}
    return mutual_server.url + "".join(f"&{word}={quote(str(path))}" for word, path in files.items())


async def test_certificates_that_were_replaced_on_disk_are_used_at_the_next_connection(
    mutual_server: RedisServer, mutual_url: str, certificates: Certificates
) -> None:
    async with Locker.connect(mutual_url, instance_id="test", command_timeout_s=5) as locker:
        await use(locker)
        for _ in range(2):
            Certificates.make(certificates.authority.parent)  # another authority, and what it has signed
            mutual_server.restart()
            await wait_until_async(lambda: up(locker), what="a connection with the new certificates")
            await use(locker)


async def test_certificates_that_are_half_replaced_are_told_and_read_again(
    mutual_server: RedisServer, mutual_url: str, certificates: Certificates, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    async with Locker.connect(mutual_url, instance_id="test", command_timeout_s=5) as locker:
        new = Certificates.make(elsewhere)
        shutil.copy(new.certificate, certificates.certificate)  # the key is still the old one
        mutual_server.kill()
        await wait_until_async(lambda: told(locker, "certificate that cannot be read"), what="what is wrong")
        certificates.authority.unlink()
        await wait_until_async(lambda: told(locker, "No such file"), what="what is wrong now")

        shutil.copy(new.key, certificates.key)
        shutil.copy(new.authority, certificates.authority)
        mutual_server.start()
        await wait_until_async(lambda: up(locker), what="a connection with the new certificates")
        await use(locker)


def test_safe_lock_uses_replaced_certificates_at_its_next_connection(
    mutual_server: RedisServer, mutual_url: str, certificates: Certificates
) -> None:
    with client(mutual_url) as given:
        with SafeLock(given, NAME):
            pass
        Certificates.make(certificates.authority.parent)
        mutual_server.restart()
        with SafeLock(given, NAME):
            pass


# Passwords


@dataclass(slots=True)
class Vault:
    """Gives credentials, which are counted and may change or be withheld."""

    password: str = HARD_PASSWORD
    broken: bool = False
    asked: list[str] = field(default_factory=list)

    def __call__(self) -> tuple[str, ...]:
        if self.broken:
            raise RuntimeError(f"the vault is sealed, and {self.password} in it")
        self.asked.append(self.password)
        return ("locker", self.password)

    async def has_given_the_new_one_twice(self) -> bool:
        return self.asked.count(NEW_PASSWORD) >= 2


@pytest.fixture
def password_file(tmp_path: Path) -> Path:
    path = tmp_path / "of a&b.txt"
    path.write_text(f"{HARD_PASSWORD}\n")
    return path


@pytest.fixture
def locker_server(start_redis: StartRedis) -> RedisServer:
    """A server with a user whose password is changed, and one who changes it."""
    return start_redis(users=[AclUser("operator", "word"), AclUser("locker", HARD_PASSWORD, RULES)])


def change_password(server: RedisServer, change: Callable[[], object]) -> None:
    """Changes the locker's password, there and here, and ends its connections."""
    change()
    server.ask("ACL", "SETUSER", "locker", "resetpass", f">{NEW_PASSWORD}")
    assert server.ask("CLIENT", "KILL", "USER", "locker") >= 1


async def test_a_password_file_is_read_at_each_connection(locker_server: RedisServer, password_file: Path) -> None:
    url = f"redis://locker@127.0.0.1:{locker_server.port}/0?password_file={quote(str(password_file))}"
    async with Locker.connect(url, instance_id="test", command_timeout_s=5) as locker:
        await use(locker)
        change_password(locker_server, lambda: password_file.write_text(NEW_PASSWORD))
        await wait_until_async(lambda: up(locker), what="a connection with the new password")
        await use(locker)


@pytest.mark.parametrize("kind", ["one server", "sentinel", "cluster"])
async def test_credentials_are_asked_for_at_each_connection(kind: str, start_redis: StartRedis) -> None:
    settings = alone_settings() if kind == "cluster" else []
    users = [AclUser("operator", "word"), AclUser("locker", HARD_PASSWORD, RULES)]
    locker_server = start_redis(users=users, settings=settings)
    vault = Vault()
    url = f"redis://127.0.0.1:{locker_server.port}/0"
    if kind == "sentinel":
        watching = [
            f"sentinel monitor mymaster 127.0.0.1 {locker_server.port} 1",
            "sentinel auth-user mymaster operator",
            "sentinel auth-pass mymaster word",
        ]
        sentinel = start_redis(settings=watching, arguments=["--sentinel"])
        url = f"redis+sentinel://127.0.0.1:{sentinel.port}/mymaster"
    if kind == "cluster":
        give_all_slots(locker_server)
        url = f"redis+cluster://127.0.0.1:{locker_server.port}"
    async with Locker.connect(url, instance_id="test", command_timeout_s=5, credentials=vault) as locker:
        await use(locker)
        change_password(locker_server, lambda: setattr(vault, "password", NEW_PASSWORD))
        await wait_until_async(vault.has_given_the_new_one_twice, what="both connections anew")
        await wait_until_async(lambda: up(locker), what="a connection with the new password")
        await use(locker)
    asked_for_slots = 1 if kind == "cluster" else 0
    assert vault.asked.count(HARD_PASSWORD) == 2 + asked_for_slots


async def test_a_vault_that_fails_is_asked_again_and_its_words_are_not_told(locker_server: RedisServer) -> None:
    vault = Vault(broken=True)
    url = f"redis://127.0.0.1:{locker_server.port}/0"
    locker = Locker(url, instance_id="test", credentials=vault)
    await locker.open()
    try:
        await wait_until_async(lambda: told(locker, "credentials cannot be had: RuntimeError"), what="what is wrong")
        assert HARD_PASSWORD not in locker._servers.last_error
        vault.broken = False
        await wait_until_async(lambda: up(locker), what="a connection")
        await use(locker)
    finally:
        await locker.close()


@pytest.mark.parametrize("given", ["word", b"word", (), ("a", "b", "c"), ("locker", None), (b"locker", b"word"), None])
async def test_credentials_of_another_shape_are_told(redis_server: RedisServer, given: object) -> None:
    with pytest.raises(LockStoreDown, match=r"credentials are \(password,\) or \(username, password\)"):
        async with Locker.connect(redis_server.url, instance_id="test", credentials=lambda: given):  # type: ignore[arg-type, return-value]
            pass


async def test_sentinels_and_their_data_servers_have_password_files_of_their_own(
    start_redis: StartRedis, tmp_path: Path
) -> None:
    data, guard = tmp_path / "data.txt", tmp_path / "guard.txt"
    data.write_text(HARD_PASSWORD)
    guard.write_text("guard-word")
    master = start_redis(password=HARD_PASSWORD)
    watching = [
        f"sentinel monitor mymaster 127.0.0.1 {master.port} 1",
        f"sentinel auth-pass mymaster {HARD_PASSWORD}",
    ]
    sentinel = start_redis(settings=watching, password="guard-word", arguments=["--sentinel"])
    files = f"password_file={quote(str(data))}&sentinel_password_file={quote(str(guard))}"
    url = f"redis+sentinel://127.0.0.1:{sentinel.port}/mymaster?{files}"
    async with Locker.connect(url, instance_id="test", command_timeout_s=5) as locker:
        await use(locker)
        guard.write_text("another")
        sentinel.ask("ACL", "SETUSER", "default", "resetpass", ">another")
        sentinel.password = "another"
        master.ask("CLIENT", "KILL", "TYPE", "normal")
        await wait_until_async(lambda: up(locker), what="a connection after a question with the new password")
        await use(locker)


def test_safe_lock_asks_the_clients_credential_provider_at_each_connection(locker_server: RedisServer) -> None:
    class Provider(redis.CredentialProvider):
        password = HARD_PASSWORD

        def get_credentials(self) -> tuple[str, str]:
            return "locker", self.password

    provider = Provider()
    # SafeLock makes a client of its own like this one, since this one may wait for ever.
    with redis.Redis(port=locker_server.port, credential_provider=provider, socket_timeout=None) as given:
        with SafeLock(given, NAME):
            pass
        change_password(locker_server, lambda: setattr(provider, "password", NEW_PASSWORD))
        with SafeLock(given, NAME):
            pass


async def up(locker: Locker) -> bool:
    return await locker.up_within(0.1)


async def told(locker: Locker, words: str) -> bool:
    return words in locker._servers.last_error
