"""One Redis or Valkey of a test's own: to be killed, frozen, emptied, and started again on the same port."""

from __future__ import annotations

import os
import ssl
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from signal import SIGCONT, SIGKILL, SIGSTOP, SIGTERM, Signals
from typing import Any
from urllib.parse import quote

from tests.harness import PATIENCE_S, wait_until
from tests.servers.processes import tied, unused_port
from tests.servers.tls import Certificates
from tests.servers.wire import ErrorReply, Wire

POLL_WAIT_S = 1.0


@dataclass(frozen=True, slots=True)
class AclUser:
    """A user of the server's access control list; rules as in ACL SETUSER."""

    name: str
    password: str
    rules: str = "~* &* +@all"


class RedisServer:
    """A server on loopback with all that it owns in one folder; it keeps no data over a restart unless told to.

    settings: lines of its configuration file. users: these and no default user; the first one is the URL's.
    host: an address of this machine. port: None is an unused one.
    """

    def __init__(
        self,
        binary: Path,
        folder: Path,
        *,
        settings: Sequence[str] = (),
        password: str | None = None,
        users: Sequence[AclUser] = (),
        certificates: Certificates | None = None,
        environment: Mapping[str, str] | None = None,
        arguments: Sequence[str] = (),
        host: str = "127.0.0.1",
        port: int | None = None,
    ) -> None:
        assert password is None or not users, "a password is the default user's, and users leave none"
        self.host = host
        self.port = port or unused_port()
        self.folder = folder / f"server-{host}-{self.port}"
        self.log = self.folder / "server.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.password = users[0].password if users else password
        self.username = users[0].name if users else None
        self.certificates = certificates
        self._binary = binary
        self._users = users
        self._settings = settings
        self._environment = environment or {}
        self._arguments = arguments

    @property
    def url(self) -> str:
        """Its address, credentials included, and for TLS also the authority to trust, as redis-py reads them."""
        scheme, query = "redis", ""
        if self.certificates is not None:
            scheme, query = "rediss", f"?ssl_ca_certs={quote(str(self.certificates.authority))}"
        return f"{scheme}://{self.credentials}{self.host}:{self.port}/0{query}"

    @property
    def credentials(self) -> str:
        """'user:password@' as it stands in a URL, quoted; '' without a password."""
        if self.password is None:
            return ""
        return f"{quote(self.username or '', safe='')}:{quote(self.password, safe='')}@"

    def start(self) -> None:
        """Returns once it answers; from the second time on with the configuration as the server has rewritten it."""
        assert self.process is None, "it runs already"
        self.folder.mkdir(exist_ok=True)
        config = self.folder / "server.conf"
        if not config.exists():
            config.write_text("\n".join(self._config_lines()) + "\n")
            config.chmod(0o600)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                tied([str(self._binary), str(config), *self._arguments]),
                cwd=self.folder,
                env={**os.environ, **self._environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        wait_until(self.answers, what=f"{self._binary.name}, see {self.log}")

    def stop(self) -> None:
        """Ends it in order, as an operator's SIGTERM does; harmless twice."""
        self._end_with(SIGTERM)

    def kill(self) -> None:
        """Gone at once, also when frozen, with all that it had only in memory; harmless twice."""
        self._end_with(SIGKILL)

    def restart(self) -> None:
        """Killed and up again on the same port; empty, if its settings keep nothing."""
        self.kill()
        self.start()

    def signal(self, number: Signals) -> None:
        """Sends it a signal."""
        assert self.process is not None
        self.process.send_signal(number)

    def freeze(self) -> None:
        """Stands still from now on, its connections open, until thaw()."""
        self.signal(SIGSTOP)
        wait_until(self._stands_still, what="a frozen server")

    def thaw(self) -> None:
        """Goes on; harmless when it is not frozen."""
        self.signal(SIGCONT)

    def flush(self) -> None:
        """Empties it, as an operator's FLUSHALL does."""
        self.ask("FLUSHALL")

    def ask(self, *words: str | int | bytes) -> Any:
        """One command's plain RESP2 reply, on a connection of its own. Raises ErrorReply, OSError."""
        with self.connect() as wire:
            return wire.ask(*words)

    def connect(self, *, answer_wait_s: float = 5.0) -> Wire:
        """A connection to it, logged in. Raises OSError, ErrorReply."""
        words = [word for word in (self.username, self.password) if word is not None]
        return Wire(self.port, host=self.host, credentials=words, tls=self._tls(), answer_wait_s=answer_wait_s)

    def answers(self) -> bool:
        """Whether it answers now; fails the test when its process has ended by itself."""
        assert self.process is not None
        assert self.process.poll() is None, f"the server did not start: {self.log.read_text()[-2000:]}"
        try:
            with self.connect(answer_wait_s=POLL_WAIT_S) as wire:
                return bool(wire.ask("PING") == "PONG")
        except (OSError, ErrorReply):  # ErrorReply: it is loading
            return False

    def info(self, section: str = "everything") -> dict[str, str]:
        """INFO, field by field."""
        lines = str(self.ask("INFO", section)).splitlines()
        return dict(line.split(":", 1) for line in lines if ":" in line)

    def version(self) -> str:
        """Its version, as 9.1.2: Valkey's own where it is one."""
        info = self.info("server")
        return info.get("valkey_version") or info["redis_version"]

    def _config_lines(self) -> list[str]:
        lines = [f"bind {self.host}", f"dir {self.folder}", "daemonize no"]
        if "--sentinel" not in self._arguments:
            lines += ['save ""', "appendonly no", "repl-diskless-sync yes", "repl-diskless-sync-delay 0"]
        if self.certificates is None:
            lines.append(f"port {self.port}")
        else:
            files = self.certificates
            lines += ["port 0", f"tls-port {self.port}", "tls-auth-clients no"]
            lines += [f"tls-cert-file {files.certificate}", f"tls-key-file {files.key}"]
            lines.append(f"tls-ca-cert-file {files.authority}")
        if self._users:
            lines.append("user default off")
            lines += [f"user {user.name} on >{user.password} {user.rules}" for user in self._users]
        elif self.password is not None:
            lines.append(f"requirepass {self.password}")
        return [*lines, *self._settings]

    def _tls(self) -> ssl.SSLContext | None:
        return None if self.certificates is None else self.certificates.client_context()

    def _stands_still(self) -> bool:
        assert self.process is not None
        # After the program's name, which may hold anything, comes the state: T is stopped.
        return Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"

    def _end_with(self, number: Signals) -> None:
        if self.process is None:
            return
        self.process.send_signal(number)
        try:
            self.process.wait(PATIENCE_S)
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
            self.process = None
