"""Who is measured: ours and the peers, each with the tuning that serves it best. README.md says why these."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

PEERS = ("redis-py", "python-redis-lock", "node-redlock")
NAMES = ("ours", *PEERS)
NODE_PACKAGES = {"redlock": "5.0.0-beta.2", "ioredis": "5.11.1"}
NODE_SCRIPT = Path(__file__).with_name("node_redlock.mjs")
NPM_WITHIN_S = 120


class NotInstalled(Exception):
    """A peer cannot be had on this machine; the message is one line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A program to measure. `peer` is the library, `name` tells its tunings apart."""

    name: str
    peer: str
    command: tuple[str, ...]


def candidates(scene: str, names: list[str], node_script: Path | None) -> list[Candidate]:
    """In the order of the tables. Where tasks meet, those that poll come with two pauses: their default, and 1 ms."""
    node = ("node", str(node_script))
    everybody = [
        _python("ours", "ours"),
        _python("redis-py", "redis_py"),
        _python("python-redis-lock", "python_redis_lock"),
        Candidate(name="node-redlock", peer="node-redlock", command=node),
    ]
    if scene == "hot":
        quick = "--poll-s=0.001"
        everybody += [
            _python("redis-py", "redis_py", quick, label=" 1 ms"),
            Candidate(name="node-redlock 1 ms", peer="node-redlock", command=(*node, quick)),
        ]
    return [
        each for each in everybody if each.peer in names and (each.peer != "node-redlock" or node_script is not None)
    ]


def install_node_redlock(folder: Path) -> Path:
    """The script beside its packages in a folder of its own, as npm gives them. Raises NotInstalled."""
    missing = [program for program in ("node", "npm") if shutil.which(program) is None]
    if missing:
        raise NotInstalled(f"there is no {' and no '.join(missing)} here")
    packages = [f"{name}@{version}" for name, version in NODE_PACKAGES.items()]
    flags = ["--no-audit", "--no-fund", "--no-update-notifier", "--ignore-scripts", "--loglevel=error"]
    try:
        done = subprocess.run(
            ["npm", "install", "--prefix", str(folder), *flags, *packages],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=NPM_WITHIN_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise NotInstalled(f"npm install did not end within {NPM_WITHIN_S} s") from error
    if done.returncode != 0:
        raise NotInstalled(f"npm install failed: {' '.join(done.stderr.split())[-300:]}")
    return Path(shutil.copy(NODE_SCRIPT, folder))


def _python(peer: str, module: str, *words: str, label: str = "") -> Candidate:
    return Candidate(
        name=f"{peer}{label}", peer=peer, command=(sys.executable, "-m", f"tests.bench.locks.{module}", *words)
    )
