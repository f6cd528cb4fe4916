"""Postgres with TLS: the embedded one, which has none, behind a door; and the machine's own, where one is installed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import ssl
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self
from urllib.parse import quote

import psycopg2
import sqlalchemy as sa

from tests.harness import PATIENCE_S, wait_until
from tests.servers.processes import tied, unused_port
from tests.servers.tls import Certificates

SSL_REQUEST = (8).to_bytes(4) + (80877103).to_bytes(4)  # the first that a client of Postgres sends which wants TLS
PASSWORD = "hush-p@ssword"


class TlsDoor:
    """Speaks TLS with clients of Postgres, and plainly with the server behind it; who asks for no TLS is sent away."""

    def __init__(self, database_url: str, certificates: Certificates) -> None:
        behind = sa.make_url(database_url)
        assert behind.host is not None
        assert behind.port is not None
        self._behind = (behind.host, behind.port)
        self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._context.load_cert_chain(certificates.certificate, certificates.key)
        self.port = unused_port()
        self.url = behind.set(host="127.0.0.1", port=self.port).render_as_string(hide_password=False)
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="tls-door")

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(PATIENCE_S)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(PATIENCE_S)

    async def _serve(self) -> None:
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._pass_on, "127.0.0.1", self.port)
        self._ready.set()
        await self._over.wait()
        server.close()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError), contextlib.closing(writer):
            if await reader.readexactly(len(SSL_REQUEST)) != SSL_REQUEST:
                return
            writer.write(b"S")
            await writer.start_tls(self._context)
            behind_reader, behind_writer = await asyncio.open_connection(*self._behind)
            with contextlib.closing(behind_writer):
                await asyncio.gather(_copy(reader, behind_writer), _copy(behind_reader, writer))


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while chunk := await reader.read(65536):
        writer.write(chunk)
        await writer.drain()
    writer.close()


def postgres_with_tls() -> Path | None:
    """The programs of a Postgres of this machine that was built with TLS, such as Debian's."""
    for folder in sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True):
        told = subprocess.run([folder / "pg_config", "--configure"], capture_output=True, text=True, check=False)
        if "openssl" in told.stdout and (folder / "initdb").exists():
            return folder
    return None


@contextmanager
def own_tls_postgres(programs: Path, certificates: Certificates) -> Iterator[str]:
    """A server of its own with an empty database, which takes nobody without TLS; its URL."""
    user = "nobody" if os.geteuid() == 0 else None  # Postgres does not run as root
    port = unused_port()
    with tempfile.TemporaryDirectory(prefix="tls-postgres-") as place:
        folder = Path(place)
        for name, content in {
            "server.pem": certificates.certificate.read_bytes(),
            "server.key": certificates.key.read_bytes(),
            "password": PASSWORD.encode(),
        }.items():
            (folder / name).touch(mode=0o600)
            (folder / name).write_bytes(content)
        if user is not None:
            for path in (folder, *folder.iterdir()):
                os.chown(path, *_ids_of(user))
        data = folder / "data"
        make: list[str | Path] = [
            programs / "initdb",
            "-D",
            data,
            "-U",
            "locker",
            "--auth=scram-sha-256",
            "--encoding=UTF8",
            "--locale=C",
            "--no-sync",
            f"--pwfile={folder / 'password'}",
        ]
        subprocess.run(make, user=user, cwd=folder, check=True, capture_output=True)
        (data / "pg_hba.conf").write_text("hostssl all all 127.0.0.1/32 scram-sha-256\n")
        settings = {
            "port": port,
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "ssl": "on",
            "ssl_cert_file": folder / "server.pem",
            "ssl_key_file": folder / "server.key",
            "fsync": "off",
        }
        flags = [flag for name, value in settings.items() for flag in ("-c", f"{name}={value}")]
        with (folder / "log").open("wb") as log:
            server = subprocess.Popen(
                tied([str(programs / "postgres"), "-D", str(data), *flags]), user=user, cwd=folder, stderr=log
            )
        url = f"postgresql://locker:{quote(PASSWORD, safe='')}@127.0.0.1:{port}/postgres"
        try:
            wait_until(lambda: _answers(url), what=f"Postgres with TLS, see {folder / 'log'}")
            yield url
        finally:
            server.terminate()
            try:
                server.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def _answers(url: str) -> bool:
    try:
        psycopg2.connect(url, sslmode="require").close()
    except psycopg2.OperationalError:
        return False
    return True


def _ids_of(user: str) -> tuple[int, int]:
    found = pwd.getpwnam(user)
    return found.pw_uid, found.pw_gid
