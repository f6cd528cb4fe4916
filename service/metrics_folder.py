"""The folder that the processes of one `serve` count in together, each in files of its own: held, and made anew.

Who holds a folder is told by a file lock, which is the same from every process namespace, and goes with its holder.
A cleaner of temporary files may remove a folder that is held, or some of its files; it is made again within a second.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from io import FileIO
from pathlib import Path

from prometheus_client import values
from prometheus_client.multiprocess import mark_process_dead

from service.data_folder import is_alive
from service.scraping import MetricsAway

PREFIX = "chargeonce-metrics-"
REMEMBERED_S = 60.0
GATHERED_WITHIN_S = 8.0  # Prometheus gives up after 10 s where nobody chose


class MetricsFolder:
    """A folder of one's own below `parent`, until it is removed. What nobody holds any more there is removed first."""

    def __init__(self, parent: Path) -> None:
        for left in parent.glob(f"{PREFIX}*"):
            if (lock_fd := _taken(left)) is not None:
                shutil.rmtree(left, ignore_errors=True)
                os.close(lock_fd)
        lock_fd = None
        while lock_fd is None:  # somebody who starts at this moment may have taken it for one that was left
            self.path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
            lock_fd = _taken(self.path)
        self._lock_fd = lock_fd

    def keep(self) -> None:
        """It is there and held, whoever has removed it. Raises OSError."""
        if _is_at(self._lock_fd, self.path):
            return
        self.path.mkdir(mode=0o700, exist_ok=True)
        if (lock_fd := _taken(self.path)) is not None:
            os.close(self._lock_fd)
            self._lock_fd = lock_fd

    def forget_gauges_of(self, pid: int) -> None:
        """What a dead process has said last is not shown any more; what it has counted is."""
        with contextlib.suppress(OSError):  # a cleaner was faster
            mark_process_dead(f"{pid}-*", str(self.path))  # type: ignore[no-untyped-call]

    def remove(self) -> None:
        """It is gone."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock_fd)


class OwnFiles:
    """The files in the folder that this process counts in, from the first Metrics on: make it before that one."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made_again = 0
        self._name = f"{os.getpid()}-0"
        self._open: list[FileIO] = []
        # prometheus_client asks at each step for the process' name. Under another one it goes on in other files, from
        # what these say: meant for forks, and as good for files that are gone.
        values.ValueClass = values.MultiProcessValue(lambda: self._name)  # type: ignore[no-untyped-call]

    def look(self) -> None:
        """Files that somebody has removed are there again, with all that was counted. Raises OSError."""
        if all(_is_at(file.fileno(), Path(file.name)) for file in self._open):
            new = set(self._folder.glob(f"*_{self._name}.db")) - {Path(file.name) for file in self._open}
            self._open += [path.open("rb", buffering=0) for path in new]
        elif self._folder.is_dir():
            self._make_again()

    def _make_again(self) -> None:
        name = f"{os.getpid()}-{self._made_again + 1}"
        made = []
        for old in self._open:
            path = self._folder / Path(old.name).name.replace(f"_{self._name}.db", f"_{name}.db")
            half_made = path.with_suffix(".new")
            old.seek(0)
            half_made.write_bytes(old.read())
            half_made.rename(path)
            made.append(path.open("rb", buffering=0))
        self._made_again += 1
        self._name = name
        for old in self._open:
            Path(old.name).unlink(missing_ok=True)
            old.close()
        self._open = made


class FilesOfAll:
    """The files of every process of this serve, as this one sees them: a scrape gets all of them or none."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._seen_at_s: dict[str, float] = {}  # by kind and pid

    def look(self) -> None:
        """Remembers what is there. What has been missing for a minute was left by a process that is long gone."""
        now_s = time.monotonic()
        known = {name: seen_s for name, seen_s in self._seen_at_s.items() if now_s < seen_s + REMEMBERED_S}
        self._seen_at_s = known | dict.fromkeys(self._names(), now_s)

    def text(self) -> bytes:
        """Every series as totals over all processes; blocks, for any thread. Raises MetricsAway."""
        self._must_be_whole()
        told = metrics_text(self._folder)
        self._must_be_whole()
        return told

    def _must_be_whole(self) -> None:
        names = self._names()
        pids = {name.rpartition("_")[2] for name in self._seen_at_s.keys() - set(names)}
        # In two generations at once: its process is just making them again, and would be counted twice.
        pids |= {name.rpartition("_")[2] for name, files in Counter(names).items() if files > 1}
        if alive := sorted(pid for pid in pids if is_alive(int(pid))):
            raise MetricsAway(f"files in {self._folder} are being made again, by pid {', '.join(alive)}")

    def _names(self) -> list[str]:
        """Of counter_12-0.db it is counter_12, whichever generation."""
        return [path.name.rpartition("-")[0] for path in self._folder.glob("*_*-*.db")]


def metrics_text(folder: Path) -> bytes:
    """Every series as totals over what is in the folder; blocks. Raises MetricsAway."""
    # -P: as workers are started, see there.
    command = [sys.executable, "-P", "-m", "service.metrics_process", str(folder)]
    try:
        gathered = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, check=True, timeout=GATHERED_WITHIN_S
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise MetricsAway(f"{folder} cannot be read, or is being made again: {error}") from error
    return gathered.stdout


def _taken(folder: Path) -> int | None:
    """A descriptor that holds the folder; None when somebody else does, or it is not ours to hold, or gone."""
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_at(fd, folder) and os.fstat(fd).st_uid == os.geteuid():
            return fd
    except BlockingIOError:
        pass
    os.close(fd)
    return None


def _is_at(fd: int, path: Path) -> bool:
    """Whether what is open is still what this path leads to."""
    try:
        return os.path.samestat(os.fstat(fd), path.stat(follow_symlinks=False))
    except OSError:
        return False
