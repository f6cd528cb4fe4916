"""docker-compose.yml, deploy/ and .ci/run, judged without a Docker engine: by schema, and against the settings."""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import typer
import yaml

from service.settings import PREFIX, Settings, load_settings

ROOT = Path(__file__).parent.parent.parent
SCHEMA = json.loads((ROOT / "tests/data/compose-spec.json").read_text())
COMPOSE_TEXT = (ROOT / "docker-compose.yml").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load(COMPOSE_TEXT)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
HAPROXY_TEXT = (ROOT / "deploy/haproxy.cfg").read_text()
SYSTEM_PACKAGES = ROOT / "deploy/system-packages.sh"
CI_RUN = ROOT / ".ci/run"

# What an operator has to choose; a long one with nothing that a URL would read.
CHOSEN = {
    "POSTGRES_PASSWORD": "p0stgres",
    "VALKEY_PASSWORD": "valkey0",
    "CHARGEONCE_JWT_SECRET": "0123456789abcdef" * 4,
    "CHARGEONCE_AGORA_APP_ID": "0123456789abcdef" * 2,
    "CHARGEONCE_AGORA_APP_CERTIFICATE": "0123456789abcdef" * 2,
}
VARIABLE = re.compile(r"\$\{(?P<name>[A-Z_]+)(?P<operator>:\?|:-)(?P<rest>[^}]*)\}")
IMAGE_OF_OURS = "chargeonce:local"
MAX_LEASE_WAIT_S = 60.0  # the longest wait_ms that the lease API takes
IMAGES = {"haproxy": "haproxy", "postgres": "postgres", "valkey": "valkey/valkey"}


def interpolated(value: str) -> str:
    """What Compose makes of a value when the operator chose CHOSEN."""

    def replace(match: re.Match[str]) -> str:
        if match["operator"] == ":-":
            return CHOSEN.get(match["name"], match["rest"])
        return CHOSEN[match["name"]]

    return VARIABLE.sub(replace, value)


def environment_of(service: str) -> dict[str, str]:
    """The environment of one of our containers: the image's, then Compose's."""
    image = dockerfile_environment() if SERVICES[service].get("image") == IMAGE_OF_OURS else {}
    return image | {name: interpolated(value) for name, value in SERVICES[service].get("environment", {}).items()}


def settings_of(service: str, monkeypatch: pytest.MonkeyPatch) -> Settings:
    for name in list(os.environ):
        if name.startswith(PREFIX):
            monkeypatch.delenv(name)
    for name, value in environment_of(service).items():
        if name.startswith(PREFIX):
            monkeypatch.setenv(name, value)
    return load_settings()


def ours() -> list[str]:
    return [name for name, service in SERVICES.items() if service.get("image") == IMAGE_OF_OURS]


def dockerfile() -> list[tuple[str, str]]:
    """Instructions and their arguments, in order, continued lines joined."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "deploy/Dockerfile").read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in lines if line.strip()]


def final_stage() -> list[tuple[str, str]]:
    instructions = dockerfile()
    last_from = max(index for index, (name, _) in enumerate(instructions) if name == "FROM")
    return instructions[last_from:]


def final(instruction: str) -> str:
    return next(arguments for name, arguments in reversed(final_stage()) if name == instruction)


def dockerfile_environment() -> dict[str, str]:
    pairs = [pair for name, arguments in final_stage() if name == "ENV" for pair in arguments.split()]
    return dict(pair.split("=", 1) for pair in pairs)


def in_build_context(path: str) -> bool:
    """Whether .dockerignore lets a path of the project into the build: the last matching line wins."""
    inside = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.strip()
        if not pattern or pattern.startswith("#"):
            continue
        kept = pattern.startswith("!")
        parts = path.split("/")
        ancestors = ["/".join(parts[: length + 1]) for length in range(len(parts))]
        names = pattern.removeprefix("!").removeprefix("**/")
        anywhere = "**/" in pattern
        if any(fnmatch.fnmatchcase(each.rsplit("/", 1)[-1] if anywhere else each, names) for each in ancestors):
            inside = kept
    return inside


def seconds(text: str) -> float:
    """10s, 500ms, 1m or 1m30s in seconds."""
    units = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
    parts = re.findall(r"(\d+(?:\.\d+)?)(ms|s|m|h)", text)
    assert "".join(number + unit for number, unit in parts) == text, f"{text!r} is no duration"
    return sum(float(number) * units[unit] for number, unit in parts)


def haproxy_seconds(directive: str) -> float:
    (value,) = re.findall(rf"^\s*{directive}\s+(\S+)$", HAPROXY_TEXT, flags=re.MULTILINE)
    return seconds(value)


def flag(command: list[str], name: str) -> str:
    return command[command.index(name) + 1]


class TestCompose:
    def test_the_file_fits_the_compose_specification(self) -> None:
        jsonschema.Draft202012Validator(SCHEMA).validate(COMPOSE)

    def test_the_schema_finds_mistakes(self) -> None:
        broken = yaml.safe_load(COMPOSE_TEXT)
        broken["services"]["api"]["stop_grace_perod"] = "30s"
        with pytest.raises(jsonschema.ValidationError, match="stop_grace_perod"):
            jsonschema.Draft202012Validator(SCHEMA).validate(broken)

    def test_every_variable_either_has_a_default_or_says_what_is_missing(self) -> None:
        # YAML comments aside; $$ is a dollar sign that Compose leaves alone.
        text = re.sub(r"^\s*#.*$|\$\$", "", COMPOSE_TEXT, flags=re.MULTILINE)
        assert re.findall(r"\$", text) == ["$"] * len(VARIABLE.findall(text))
        assert all(match["rest"] for match in VARIABLE.finditer(text))
        required = {match["name"] for match in VARIABLE.finditer(text) if match["operator"] == ":?"}
        assert required == set(CHOSEN)

    def test_no_secret_is_written_down(self) -> None:
        for service in SERVICES.values():
            for name, value in service.get("environment", {}).items():
                if re.search("PASSWORD|SECRET|CERTIFICATE|AUTH|_URL", name):
                    assert ":?" in value, f"{name} has a value that nobody chose"

    def test_every_variable_of_ours_is_a_setting(self) -> None:
        settings = {PREFIX + name.upper() for name in Settings.model_fields}
        named = set(re.findall(rf"{PREFIX}[A-Z_]+", COMPOSE_TEXT)) | {
            name for name in dockerfile_environment() if name.startswith(PREFIX)
        }
        assert named
        assert named <= settings

    @pytest.mark.parametrize("service", ours())
    def test_our_settings_load_and_nothing_is_embedded(self, service: str, monkeypatch: pytest.MonkeyPatch) -> None:
        settings = settings_of(service, monkeypatch)
        assert not settings.embedded_database
        assert not settings.embedded_redis

    def test_the_api_has_its_keys_and_listens_for_others(self, monkeypatch: pytest.MonkeyPatch) -> None:
        settings = settings_of("api", monkeypatch)
        assert settings.jwt_secret
        assert settings.agora_app_id
        assert settings.agora_app_certificate
        assert settings.host == "0.0.0.0"

    def test_the_defaults_written_here_are_the_settings_own(self) -> None:
        for match in VARIABLE.finditer(COMPOSE_TEXT):
            if match["operator"] == ":-":
                field = Settings.model_fields[match["name"].removeprefix(PREFIX).lower()]
                assert match["rest"] == str(field.default), match["name"]

    def test_three_instances_are_migrated_before_they_start(self) -> None:
        api = SERVICES["api"]
        assert api["deploy"]["replicas"] == 3
        assert api["depends_on"]["migrate"]["condition"] == "service_completed_successfully"
        assert SERVICES["migrate"]["depends_on"]["postgres"]["condition"] == "service_healthy"
        assert SERVICES["migrate"]["restart"] == "no"

    def test_what_stays_up_has_a_health_check_and_what_is_waited_for_exists(self) -> None:
        for name, service in SERVICES.items():
            assert ("healthcheck" in service) == (name != "migrate"), name
            for other, condition in service.get("depends_on", {}).items():
                assert other in SERVICES
                if condition["condition"] == "service_healthy":
                    assert "healthcheck" in SERVICES[other]

    def test_health_checks_time_out_before_the_next_one(self) -> None:
        for service in SERVICES.values():
            check = service.get("healthcheck")
            if check:
                assert seconds(check["timeout"]) <= seconds(check["interval"])

    @pytest.mark.parametrize("service", ours())
    def test_every_command_is_one_of_ours(self, service: str) -> None:
        from service.__main__ import app

        group = typer.main.get_command(app)
        commands = set(group.commands)  # type: ignore[attr-defined]
        assert SERVICES[service]["command"][0] in commands
        assert json.loads(final("CMD"))[0] in commands

    def test_images_are_those_that_were_meant(self) -> None:
        images = {name: service["image"] for name, service in SERVICES.items() if name in IMAGES}
        assert {name: image.split(":")[0] for name, image in images.items()} == IMAGES
        assert images["postgres"] == "postgres:18"
        assert images["valkey"] == "valkey/valkey:9"

    def test_volumes_lie_where_the_images_keep_their_data(self) -> None:
        mounts = {
            name: [mount.split(":")[1] for mount in service.get("volumes", [])] for name, service in SERVICES.items()
        }
        assert mounts["postgres"] == ["/var/lib/postgresql"]  # not …/data: postgres:18 moved it
        assert mounts["valkey"] == ["/data"]

    def test_every_mount_is_a_declared_volume_or_a_file_that_is_there(self) -> None:
        for service in SERVICES.values():
            for mount in service.get("volumes", []):
                source = mount.split(":")[0]
                if source.startswith("."):
                    assert (ROOT / source).is_file()
                    assert mount.endswith(":ro")
                else:
                    assert source in COMPOSE["volumes"]

    def test_only_haproxy_is_published(self) -> None:
        assert [name for name, service in SERVICES.items() if "ports" in service] == ["haproxy"]
        assert COMPOSE["networks"]["back"]["internal"]
        assert SERVICES["postgres"]["networks"] == SERVICES["valkey"]["networks"] == ["back"]
        assert SERVICES["haproxy"]["networks"] == ["front"]

    def test_everything_runs_on_a_read_only_root_without_new_privileges(self) -> None:
        for name, service in SERVICES.items():
            assert service["read_only"], name
            assert service["security_opt"] == ["no-new-privileges:true"], name
            assert not service.get("privileged"), name

    def test_a_drain_is_never_cut_short(self, monkeypatch: pytest.MonkeyPatch) -> None:
        settings = settings_of("api", monkeypatch)
        assert seconds(SERVICES["api"]["stop_grace_period"]) > settings.drain_timeout_s
        assert haproxy_seconds("hard-stop-after") > settings.drain_timeout_s
        assert seconds(SERVICES["haproxy"]["stop_grace_period"]) > haproxy_seconds("hard-stop-after")

    def test_leases_survive_a_restart_and_are_never_evicted(self) -> None:
        command = SERVICES["valkey"]["command"]
        assert command[0] == "valkey-server"
        assert flag(command, "--appendonly") == "yes"
        assert flag(command, "--maxmemory-policy") == "noeviction"
        assert flag(command, "--requirepass") == SERVICES["valkey"]["environment"]["REDISCLI_AUTH"]

    def test_postgres_has_a_connection_for_every_thread_of_every_worker(self, monkeypatch: pytest.MonkeyPatch) -> None:
        settings = settings_of("api", monkeypatch)
        threads = settings.charge_lanes + settings.charge_solo_lanes + settings.read_threads + settings.outage_charges
        needed = threads * settings.workers * SERVICES["api"]["deploy"]["replicas"]
        (limit,) = [each for each in SERVICES["postgres"]["command"] if each.startswith("max_connections=")]
        assert int(limit.split("=")[1]) > needed + 10  # Postgres keeps some for the superuser; somebody runs psql


class TestPorts:
    def test_the_published_port_is_the_one_that_haproxy_binds(self) -> None:
        (published,) = SERVICES["haproxy"]["ports"]
        assert published.split(":")[1] in re.findall(r"^\s*bind :(\d+)$", HAPROXY_TEXT, flags=re.MULTILINE)
        assert published.split(":")[0] == "8080"

    def test_haproxy_finds_the_api_on_the_port_that_it_listens_on(self, monkeypatch: pytest.MonkeyPatch) -> None:
        ((slots, host, port),) = re.findall(r"server-template \S+ (\d+) (\w+):(\d+) ", HAPROXY_TEXT)
        assert int(port) == settings_of("api", monkeypatch).port
        assert host in SERVICES
        assert int(slots) >= SERVICES[host]["deploy"]["replicas"]
        assert final("EXPOSE") == port

    def test_the_api_is_asked_for_its_health_on_its_own_port(self, monkeypatch: pytest.MonkeyPatch) -> None:
        port = settings_of("api", monkeypatch).port
        assert f"http://127.0.0.1:{port}/readyz" in SERVICES["api"]["healthcheck"]["test"][-1]

    def test_the_health_check_is_a_program_that_python_accepts(self) -> None:
        kind, program, option, code = SERVICES["api"]["healthcheck"]["test"]
        assert (kind, program, option) == ("CMD", "python", "-c")
        compile(code, "healthcheck", "exec")

    def test_haproxys_own_health_is_asked_where_it_answers(self) -> None:
        port, path = re.findall(r"http://127\.0\.0\.1:(\d+)(/\w+)", SERVICES["haproxy"]["healthcheck"]["test"][-1])[0]
        assert f"bind :{port}\n    monitor-uri {path}\n" in HAPROXY_TEXT

    @pytest.mark.parametrize(
        ("setting", "host", "default_port"), [("database_url", "postgres", 5432), ("redis_url", "valkey", 6379)]
    )
    def test_addresses_name_a_service_its_port_and_its_password(
        self, setting: str, host: str, default_port: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        url = getattr(settings_of("api", monkeypatch), setting).get_secret_value()
        password = CHOSEN[f"{host.upper()}_PASSWORD"]
        assert host in SERVICES
        assert f":{password}@{host}:{default_port}/" in url
        check = " ".join(SERVICES[host]["healthcheck"]["test"])
        assert f"-p {default_port}" in check

    def test_the_database_and_its_user_are_those_that_postgres_makes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        database_url = settings_of("api", monkeypatch).database_url
        assert database_url is not None
        made = environment_of("postgres")
        assert database_url.get_secret_value() == (
            f"postgresql://{made['POSTGRES_USER']}:{made['POSTGRES_PASSWORD']}@postgres:5432/{made['POSTGRES_DB']}"
        )


class TestHaproxy:
    def test_haproxy_accepts_its_configuration(self) -> None:
        haproxy = shutil.which("haproxy", path=os.environ["PATH"] + ":/usr/local/sbin:/usr/sbin")
        if haproxy is None and os.environ.get("CI") != "true":
            pytest.skip("haproxy is not installed (deploy/system-packages.sh installs it)")
        assert haproxy, "haproxy is not installed"
        checked = subprocess.run(
            [haproxy, "-c", "-f", str(ROOT / "deploy/haproxy.cfg")], capture_output=True, text=True, timeout=30
        )
        assert checked.returncode == 0, checked.stderr
        assert "WARNING" not in checked.stderr

    @pytest.mark.parametrize("timeout", ["timeout client", "timeout server"])
    def test_no_request_is_cut_off_within_its_budget(self, timeout: str, monkeypatch: pytest.MonkeyPatch) -> None:
        budget_s = settings_of("api", monkeypatch).whole_request_s
        assert haproxy_seconds(timeout) > budget_s
        assert haproxy_seconds(timeout) > MAX_LEASE_WAIT_S + 5

    def test_an_instance_gets_traffic_only_while_it_is_ready(self) -> None:
        assert "option httpchk" in HAPROXY_TEXT
        assert "http-check send meth GET uri /readyz" in HAPROXY_TEXT
        assert "http-check expect status 200" in HAPROXY_TEXT

    @pytest.mark.parametrize(("status", "charged"), [(502, "unknown"), (503, False), (504, "unknown")])
    def test_what_no_instance_answered_is_a_problem_of_ours(self, status: int, charged: bool | str) -> None:
        from service.problems import PROBLEMS, problem_answer
        from service.refusals import Overloaded

        (body,) = re.findall(rf"http-error status {status} .*lf-string '(.*?)'", HAPROXY_TEXT)
        problem = json.loads(re.sub(r"%\[[^]]*\]", "some-id", body))
        ours = json.loads(problem_answer(Overloaded(), "some-id").body)  # type: ignore[arg-type]
        assert problem.keys() == ours.keys()
        assert problem["status"] == status
        assert problem["charged"] == charged
        assert (problem["code"], problem["charged"]) in {(each.code, each.charged) for each in PROBLEMS.values()}

    @pytest.mark.parametrize(
        ("status", "code", "retryable"),
        [(404, "not-found", False), (408, "invalid-request", False), (429, "too-many-requests", True)],
    )
    def test_what_it_refuses_itself_is_a_problem_of_ours(self, status: int, code: str, retryable: bool) -> None:
        from service.problems import problem_answer
        from service.refusals import NotFound

        (body,) = re.findall(rf"http-error status {status} .*lf-string '(.*?)'", HAPROXY_TEXT)
        problem = json.loads(re.sub(r"%\[[^]]*\]", "some-id", body))
        assert problem.keys() == json.loads(problem_answer(NotFound(), "some-id").body).keys()  # type: ignore[arg-type]
        told = {name: problem[name] for name in ("type", "status", "code", "retryable", "charged")}
        type_ = f"urn:chargeonce:problem:{code}"
        assert told == {"type": type_, "status": status, "code": code, "retryable": retryable, "charged": False}

    def test_no_instance_is_sent_more_than_it_takes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        (most,) = re.findall(r"default-server .* maxconn (\d+)", HAPROXY_TEXT)
        assert int(most) <= settings_of("api", monkeypatch).max_requests_in_flight

    def test_haproxy_and_the_api_agree_on_what_a_sane_request_id_is(self) -> None:
        from service.app import _SANE_REQUEST_ID

        assert f"-m reg ^{_SANE_REQUEST_ID.pattern}$ }}" in HAPROXY_TEXT

    def test_a_request_that_reached_an_instance_is_not_sent_to_another(self) -> None:
        assert re.findall(r"retry-on (.*)", HAPROXY_TEXT) == ["conn-failure"]


class TestImage:
    def test_it_does_not_run_as_root(self) -> None:
        user, group = final("USER").split(":")
        assert int(user) > 0
        assert int(group) > 0

    def test_it_starts_the_command_that_the_project_installs(self) -> None:
        (command,) = json.loads(final("ENTRYPOINT"))
        scripts = (ROOT / "pyproject.toml").read_text().split("[project.scripts]")[1]
        assert re.search(rf"^{command} = ", scripts, flags=re.MULTILINE)
        for service in ours():
            assert "entrypoint" not in SERVICES[service]

    def test_everything_that_is_copied_is_there_and_in_the_build_context(self) -> None:
        copied = [
            source
            for name, arguments in dockerfile()
            if name == "COPY" and "--from" not in arguments
            for source in arguments.split()[:-1]
        ]
        assert {"pyproject.toml", "constraints.txt", "db", "locks", "service"} <= set(copied)
        for source in copied:
            assert (ROOT / source).exists(), source
            assert in_build_context(source), source

    def test_the_build_context_holds_nothing_else(self) -> None:
        for path in (".git", ".venv", ".chargeonce", ".env", "tests", "docs", "deploy", "service/__pycache__"):
            assert not in_build_context(path), path
        assert in_build_context("locks/scripts/acquire.lua")

    def test_it_installs_the_tested_versions_and_nothing_for_tests(self) -> None:
        (install,) = [arguments for name, arguments in dockerfile() if "pip install" in arguments]
        assert "--constraint constraints.txt" in install
        assert install.endswith(" .")
        assert "dev" not in install

    def test_it_is_the_one_that_compose_builds(self) -> None:
        for service in ours():
            build = SERVICES[service]["build"]
            assert (ROOT / build["context"] / build["dockerfile"]) == ROOT / "deploy/Dockerfile"

    def test_what_it_writes_goes_where_writing_is_allowed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        writable = [mount.split(":")[0] for mount in SERVICES["api"]["tmpfs"]]
        assert str(settings_of("api", monkeypatch).data_dir.parent) in writable


@pytest.mark.parametrize("path", ["docker-compose.yml", "deploy", ".ci", ".dockerignore"])
def test_no_registry_of_packages_is_named(path: str) -> None:
    files = [ROOT / path] if (ROOT / path).is_file() else [each for each in (ROOT / path).rglob("*") if each.is_file()]
    assert files
    for file in files:
        assert not re.search(r"pypi|index-url|npmjs|find-links", file.read_text(), flags=re.IGNORECASE), file


class TestSystemPackages:
    """The script, with apt-get and id replaced, and one package made missing."""

    @staticmethod
    def run(
        folder: Path, *, missing: bool, root: bool, apt: str = "exit 0", ci: bool = False
    ) -> subprocess.CompletedProcess[str]:
        bin_folder = folder / "bin"
        bin_folder.mkdir()
        for name, body in {
            "redis-server": "exit 0",
            "haproxy": "exit 0",
            "promtool": "exit 0",
            "chromium": "exit 0",
            "id": f"echo {0 if root else 1000}",
            "apt-get": f'echo "$@" >>{folder}/apt.log\ntest -x {folder}/policy-rc.d || exit 9\n{apt}',
        }.items():
            program = bin_folder / name
            program.write_text(f"#!/bin/sh\n{body}\n")
            program.chmod(0o755)
        text = SYSTEM_PACKAGES.read_text().replace("/usr/sbin/policy-rc.d", str(folder / "policy-rc.d"))
        if missing:
            text = text.replace("redis-server redis-server", "no-such-command redis-server")
        script = folder / "system-packages.sh"
        script.write_text(text)
        environment = {"PATH": f"{bin_folder}:{os.environ['PATH']}", "CI": "true" if ci else ""}
        return subprocess.run(["sh", str(script)], capture_output=True, text=True, env=environment, timeout=30)

    def test_nothing_is_done_where_nothing_is_missing(self, tmp_path: Path) -> None:
        done = self.run(tmp_path, missing=False, root=True, ci=True)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert not (tmp_path / "apt.log").exists()

    @pytest.mark.parametrize(("ci", "returncode"), [(False, 0), (True, 1)])
    def test_an_ordinary_user_is_told_what_is_skipped_and_why(self, tmp_path: Path, ci: bool, returncode: int) -> None:
        done = self.run(tmp_path, missing=True, root=False, ci=ci)
        assert (done.returncode, done.stdout) == (returncode, "")
        sentence = "system-packages: redis-server is not installed (only root may install it); skipped: the tests"
        assert done.stderr.startswith(sentence)
        assert len(done.stderr.splitlines()) == 1
        assert not (tmp_path / "apt.log").exists()

    def test_root_installs_what_is_missing_and_no_service_starts_meanwhile(self, tmp_path: Path) -> None:
        apt = f'[ "$1" = update ] || {{ cd {tmp_path}/bin && cp redis-server no-such-command; }}'
        done = self.run(tmp_path, missing=True, root=True, apt=apt, ci=True)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == "system-packages: apt-get will install on this machine: redis-server\n"
        calls = (tmp_path / "apt.log").read_text().splitlines()
        assert calls[0].startswith("update")
        assert calls[1].startswith("install")
        assert calls[1].endswith(" redis-server")
        assert not (tmp_path / "policy-rc.d").exists()

    @pytest.mark.parametrize(("ci", "returncode"), [(False, 0), (True, 1)])
    def test_a_failed_installation_is_an_error_only_where_nothing_may_be_skipped(
        self, tmp_path: Path, ci: bool, returncode: int
    ) -> None:
        done = self.run(tmp_path, missing=True, root=True, apt="exit 100", ci=ci)
        assert done.returncode == returncode
        assert done.stdout.startswith("system-packages: apt-get will install"), "it is said before it is done"
        assert "redis-server is not installed (apt-get failed); skipped" in done.stderr
        assert not (tmp_path / "policy-rc.d").exists()

    def test_a_policy_of_the_machine_itself_stays(self, tmp_path: Path) -> None:
        policy = tmp_path / "policy-rc.d"
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
        self.run(tmp_path, missing=True, root=True)
        assert policy.exists()


class TestScripts:
    @pytest.mark.parametrize(("script", "shell"), [(SYSTEM_PACKAGES, "sh"), (CI_RUN, "bash")])
    def test_each_is_a_program_that_its_shell_accepts(self, script: Path, shell: str) -> None:
        assert script.stat().st_mode & stat.S_IXUSR
        assert script.read_text().splitlines()[0].endswith((f"/{shell}", f" {shell}"))
        checked = subprocess.run([shell, "-n", str(script)], capture_output=True, text=True, timeout=30)
        assert (checked.returncode, checked.stderr) == (0, "")

    def test_ci_stops_at_the_first_failure_and_runs_targets_that_exist(self) -> None:
        text = CI_RUN.read_text()
        assert "set -euo pipefail" in text
        targets = set(re.findall(r"^make (\w+)\b", text, flags=re.MULTILINE))
        assert targets == {"check", "test"}
        for target in targets:
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)

    def test_what_ci_runs_again_is_there(self) -> None:
        for folder in re.findall(r"(tests/\w+)", CI_RUN.read_text()):
            assert (ROOT / folder).is_dir(), folder
