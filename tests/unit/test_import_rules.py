"""Who may import whom: locks/ and db/ know neither each other nor service/, which alone composes them."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
FOLDERS = ("locks", "db", "service")

# Beside the standard library. service/ composes, so it may import anything but tests.
MAY_IMPORT = {
    "locks": {"locks", "redis", "hiredis", "redis_lock"},
    "db": {"db", "sqlalchemy", "psycopg2", "alembic"},
}

# What only some modules may import. asterisks reach below a folder.
KEPT_IN = {
    "aiohttp": (
        "service/handlers/*",
        "service/dashboard/*",
        "service/app.py",
        "service/routes.py",
        "service/problems.py",
        "service/workers.py",
    ),
    "pydantic_settings": ("service/settings.py",),
}

# What a process cannot compute, locks/ has from a Locker's clock, so that a simulation can stand in for it.
CLOCK = "locks/clock.py"
CLOCKS_MODULES = {"time", "datetime", "random", "_random", "secrets", "uuid"}
CLOCKS_NAMES = {"getpid", "getppid", "urandom", "getrandom", "RAND_bytes"}
# Who may go by this machine's clock: a Locker, its listener, which is made before it, and who has none.
NAMES_SYSTEM = (
    "locks/locker.py",
    "locks/seen.py",
    "locks/compat.py",
    "locks/sync_lease.py",
    "locks/sync_returns.py",
)

ENVIRONMENT = {"environ", "environb", "getenv", "getenvb", "putenv", "unsetenv"}
READS_ENVIRONMENT = "service/settings.py"


@dataclass(frozen=True)
class Import:
    line: int
    module: str


def violations(path: str, source: str) -> list[str]:
    """What a module breaks, as 'path:line: sentence'; path is relative to the project, with slashes."""
    tree = ast.parse(source, path)
    folder = path.split("/")[0]
    found = [
        f"{path}:{each.line}: {broken}"
        for each in imports(path, tree)
        for broken in broken_by(path, folder, each.module)
    ]
    if folder == "locks" and path != CLOCK:
        found += [f"{path}:{line}: only {CLOCK} asks for {name}" for line, name in clock_reads(tree)]
        if path not in NAMES_SYSTEM:
            found += [f"{path}:{line}: goes by its Locker's clock, not by SYSTEM" for line in system_reads(tree)]
    if path != READS_ENVIRONMENT:
        found += [f"{path}:{line}: only {READS_ENVIRONMENT} reads the environment" for line in environment_reads(tree)]
    return found


def broken_by(path: str, folder: str, module: str) -> Iterator[str]:
    top = module.split(".")[0]
    if top == "tests":
        yield "nothing imports tests"
    elif folder in MAY_IMPORT and top not in MAY_IMPORT[folder] and top not in sys.stdlib_module_names:
        yield f"{folder}/ may not import {top}"
    if folder == "locks" and path != CLOCK and top in CLOCKS_MODULES:
        yield f"only {CLOCK} asks for {top}"
    if top in KEPT_IN and not any(fnmatchcase(path, pattern) for pattern in KEPT_IN[top]):
        yield f"{top} stays in {', '.join(KEPT_IN[top])}"


def imports(path: str, tree: ast.AST) -> Iterator[Import]:
    """Every imported module, wherever it stands: in a function, under TYPE_CHECKING, or by import_module("name")."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (Import(node.lineno, name.name) for name in names)
            case ast.ImportFrom(level=0, module=str(module)):
                yield Import(node.lineno, module)
            case ast.ImportFrom(level=level, module=module, names=names):
                package = path.split("/")[:-level]
                within = [module] if module else [name.name for name in names]
                # A relative import that climbs out of its folder names whatever lies beside it.
                yield from (Import(node.lineno, ".".join([*package, each])) for each in within)
            case ast.Call(
                func=ast.Name(id="import_module" | "__import__") | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                yield Import(node.lineno, name)


def environment_reads(tree: ast.AST) -> Iterator[int]:
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(attr=name) if name in ENVIRONMENT:
                yield node.lineno
            case ast.ImportFrom(module="os" | "posix", names=names) if {each.name for each in names} & {
                *ENVIRONMENT,
                "*",
            }:
                yield node.lineno


def clock_reads(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(), attr=name) if name in CLOCKS_NAMES:
                yield node.lineno, name
            case ast.ImportFrom(module="os" | "posix", names=names):
                taken = {each.name for each in names} & {*CLOCKS_NAMES, "*"}
                yield from ((node.lineno, name) for name in sorted(taken))


def system_reads(tree: ast.AST) -> Iterator[int]:
    for node in ast.walk(tree):
        match node:
            case ast.ImportFrom(names=names) if any(each.name == "SYSTEM" for each in names):
                yield node.lineno
            case ast.Attribute(attr="SYSTEM"):
                yield node.lineno


def modules(folder: str) -> list[str]:
    return sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("path", [path for folder in FOLDERS for path in modules(folder)])
def test_the_rules_hold_in(path: str) -> None:
    assert violations(path, (ROOT / path).read_text()) == []


@pytest.mark.parametrize("folder", FOLDERS)
def test_each_folder_has_modules_to_judge(folder: str) -> None:
    assert len(modules(folder)) > 1


def test_no_package_beside_the_three_goes_unjudged() -> None:
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py") if not path.parent.name.startswith(".")}
    assert packages - {"tests"} == set(FOLDERS)


@pytest.mark.parametrize(
    ("path", "source", "sentence"),
    [
        ("locks/locker.py", "import sqlalchemy", "locks/ may not import sqlalchemy"),
        ("locks/locker.py", "from db import tables", "locks/ may not import db"),
        ("locks/locker.py", "import asyncio, service.settings", "locks/ may not import service"),
        ("locks/locker.py", "from ..db import tables", "locks/ may not import db"),
        ("locks/locker.py", "from .. import db", "locks/ may not import db"),
        ("locks/locker.py", "def f():\n    import structlog", "locks/ may not import structlog"),
        ("locks/locker.py", "if TYPE_CHECKING:\n    from db.tables import T", "locks/ may not import db"),
        ("locks/locker.py", "importlib.import_module('db.tables')", "locks/ may not import db"),
        ("locks/locker.py", "__import__('db')", "locks/ may not import db"),
        ("locks/locker.py", "import aiohttp", "locks/ may not import aiohttp"),
        ("locks/deep/er.py", "from ...service import app", "locks/ may not import service"),
        ("db/charging.py", "import redis.asyncio", "db/ may not import redis"),
        ("db/charging.py", "from locks import Locker", "db/ may not import locks"),
        ("db/charging.py", "from service.settings import Settings", "db/ may not import service"),
        ("db/migrations/versions/0001.py", "import pydantic", "db/ may not import pydantic"),
        ("service/entering.py", "from aiohttp import web", "aiohttp stays in"),
        ("service/handler/x.py", "import aiohttp.web", "aiohttp stays in"),
        ("service/app.py", "from pydantic_settings import BaseSettings", "pydantic_settings stays in"),
        ("service/app.py", "from tests.bench import load", "nothing imports tests"),
        ("service/app.py", "from ..tests import bench", "nothing imports tests"),
        ("db/charging.py", "import tests.unit", "nothing imports tests"),
        ("service/embedded.py", "os.environ['PATH']", "reads the environment"),
        ("service/child_process.py", "import os\nos.getenv('PATH')", "reads the environment"),
        ("service/embedded.py", "import os as o\no.environ.get('PATH')", "reads the environment"),
        ("service/embedded.py", "from os import environ as e", "reads the environment"),
        ("service/embedded.py", "from os import *", "reads the environment"),
        ("locks/locker.py", "from os import getenv", "reads the environment"),
        ("db/database.py", "f = os.putenv", "reads the environment"),
        ("locks/line.py", "import time", "only locks/clock.py asks for time"),
        ("locks/line.py", "def f():\n    from time import monotonic", "only locks/clock.py asks for time"),
        ("locks/link.py", "import random as r", "only locks/clock.py asks for random"),
        ("locks/deep/er.py", "from secrets import token_hex", "only locks/clock.py asks for secrets"),
        ("locks/seen.py", "import datetime, uuid", "only locks/clock.py asks for uuid"),
        ("locks/locker.py", "import os\nos.getpid()", "only locks/clock.py asks for getpid"),
        ("locks/capability.py", "from os import urandom as u", "only locks/clock.py asks for urandom"),
        ("locks/capability.py", "from os import *", "only locks/clock.py asks for *"),
        ("locks/line.py", "from locks.clock import SYSTEM", "goes by its Locker's clock"),
        ("locks/line.py", "from locks import clock\nclock.SYSTEM.monotonic_s()", "goes by its Locker's clock"),
    ],
)
def test_a_module_that_breaks_a_rule_is_found(path: str, source: str, sentence: str) -> None:
    found = violations(path, source)
    assert any(sentence in each for each in found), found
    assert all(each.startswith(f"{path}:") for each in found)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("locks/locker.py", "import asyncio\nfrom redis.asyncio import Redis\nimport hiredis, redis_lock"),
        ("locks/locker.py", "from . import keys\nfrom .lease import Lease\nfrom locks.events import Event"),
        ("db/migrations/versions/0001.py", "from alembic import op\nimport sqlalchemy as sa\nfrom db import tables"),
        ("db/charging.py", "import psycopg2.errors\nfrom ..db import tables"),
        ("service/entering.py", "import locks, db, structlog\nfrom service import settings"),
        ("service/app.py", "from aiohttp import web"),
        ("service/handlers/entries.py", "from aiohttp import web"),
        ("service/settings.py", "import os\nos.environ['X']\nfrom pydantic_settings import BaseSettings"),
        ("service/app.py", "import os\nos.getpid()\nimport latests"),
        ("locks/clock.py", "import os, random, time\nSYSTEM = Clock(time.time, os.getpid)"),
        ("locks/line.py", "from locks.clock import Clock\nself._lines.now_s()\nasyncio.get_running_loop().time()"),
        ("locks/compat.py", "import os\nfrom locks.clock import SYSTEM\nos.register_at_fork()"),
        ("service/app.py", "import os, secrets, time\nos.getpid()"),
        ("service/app.py", "environment = 1\nimport_module(name)"),
    ],
)
def test_a_module_that_keeps_the_rules_is_left_alone(path: str, source: str) -> None:
    assert violations(path, source) == []
