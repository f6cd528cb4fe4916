"""What special worlds need of the machine: root, programs, names that say whose they are; and why it is not there."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

PATIENCE_S = 20.0
SYSTEM_FOLDERS = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"

_numbers = itertools.count(1)
_OWNED = re.compile(r"^[a-z]+(\d+)-\d+$")


def why_without(*programs: str) -> str | None:
    """Which of these programs is missing, as a reason; None when all are there."""
    missing = [program for program in programs if _path_of(program) is None]
    return f"there is no {' and no '.join(missing)} here" if missing else None


def why_not_root(*programs: str) -> str | None:
    """Why this cannot run here: not Linux, not root, or one of these programs is missing; None when it can."""
    if sys.platform != "linux":
        return "it needs Linux"
    if os.geteuid() != 0:
        return "it needs root"
    return why_without(*programs)


def run(*command: str | Path, text: str = "") -> str:
    """A system program's output. Raises RuntimeError with its complaint when it fails or does not end."""
    path = _path_of(str(command[0]))
    try:
        done = subprocess.run(
            [path or str(command[0]), *command[1:]],
            input=text,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=True,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RuntimeError(f"{command[0]}: {error}") from error
    except subprocess.CalledProcessError as error:
        raise RuntimeError(f"{' '.join(map(str, command))}: {error.stderr.strip()}") from error
    return done.stdout


def own_name(prefix: str) -> str:
    """A new name with this process's number in it, of at most 15 characters as a network interface allows."""
    return f"{prefix}{os.getpid()}-{next(_numbers)}"


def is_orphan(name: str, prefix: str) -> bool:
    """Whether this is an own_name(prefix) of a process that is gone, killed before it could clean up."""
    owner = _OWNED.match(name) if name.startswith(prefix) else None
    return owner is not None and not Path(f"/proc/{owner[1]}").exists()


def _path_of(program: str) -> str | None:
    return shutil.which(program, path=f"{os.environ.get('PATH', os.defpath)}:{SYSTEM_FOLDERS}")
