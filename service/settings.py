"""Every address and every limit, and the only reader of the environment.

Each setting is CHARGEONCE_<NAME>. Limits that are not set follow from those that are; those that are set are checked
against each other before the first request.
"""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path
from typing import Annotated, Literal, Self, get_args
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, StringConstraints, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from db.connecting import read_url
from locks.address import SCHEMES, place_of

PREFIX = "CHARGEONCE_"
MIN_SECRET_BYTES = 32
FILE = "_FILE"  # after a secret's name: where it is read from
MAX_SECRET_BYTES = 64 * 1024
METRICS_FOLDER = "PROMETHEUS_MULTIPROC_DIR"  # prometheus_client's own

# What libpq reads by itself. The first say where a database is and how its sessions are set, which an address says in
# full; the others who we are and how the connection is guarded, where the address leaves that open.
LIBPQ_PLACE = re.compile(
    "PG(HOST|HOSTADDR|PORT|DATABASE|SERVICE|SERVICEFILE|SYSCONFDIR|OPTIONS|APPNAME|CONNECT_TIMEOUT|CLIENTENCODING"
    "|TARGETSESSIONATTRS|LOADBALANCEHOSTS|DATESTYLE|TZ|GEQO|MINPROTOCOLVERSION|MAXPROTOCOLVERSION)"
)
LIBPQ_GUARD = re.compile("PG(USER|PASSWORD|PASSFILE|REQUIRE[A-Z]+|CHANNELBINDING|(SSL|GSS|KRB)[A-Z]+)")

Seconds = Annotated[float, Field(gt=0, le=3600, allow_inf_nan=False)]


class SettingsError(Exception):
    """A setting that cannot be used; the message names it and fits on one line."""


AgoraKey = Annotated[str, StringConstraints(strip_whitespace=True, pattern=r"^[0-9A-Fa-f]{32}$")]


class Settings(BaseSettings):
    """What an operator can choose. Secrets are SecretStr, so that no log or error shows them."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_ignore_empty=True, extra="ignore", frozen=True, hide_input_in_errors=True
    )

    # Where things are. None means embedded: our own Postgres and Valkey in data_dir.
    database_url: SecretStr | None = None
    redis_url: SecretStr | None = None
    data_dir: Path = Path(".chargeonce")
    host: str = "127.0.0.1"
    port: int = Field(8080, ge=0, le=65535)
    workers: int = Field(2, ge=1, le=256)
    instance_id: str = Field("", max_length=200, pattern=r"^[A-Za-z0-9._:-]*$")

    # Who may call, and the keys of the video rooms.
    jwt_secret: SecretStr | None = None
    jwt_public_key: SecretStr | None = None
    jwt_public_keys: Path | None = None  # a folder of PEM files, or a JSON Web Key Set
    jwt_audience: str | None = None
    jwt_issuer: str | None = None
    jwt_leeway_s: float = Field(0.0, ge=0, le=300, allow_inf_nan=False)
    agora_app_id: AgoraKey | None = None
    agora_app_certificate: SecretStr | None = None
    room_token_ttl_s: int = Field(3600, ge=1, le=86400)
    caller_cache_size: int = Field(10_000, ge=0, le=10_000_000)

    # What an entry costs, and who pays.
    payer: Literal["entrant", "inviter"] = "entrant"
    default_coupon_count: int = Field(1, ge=0, le=1_000_000_000)

    # The lock.
    lease_ttl_s: Seconds = Field(2.0, ge=0.1)
    lock_wait_s: Seconds = 3.0
    lock_outage: Literal["proceed", "refuse"] = "proceed"
    lock_command_timeout_s: Seconds | None = None
    max_waiters: int = Field(10_000, ge=1, le=1_000_000)
    max_waiters_per_lock: int = Field(10_000, ge=1, le=1_000_000)
    max_leases: int = Field(100_000, ge=1, le=10_000_000)
    outage_charges: int = Field(8, ge=1, le=1000)
    outage_waiting: int = Field(200, ge=0, le=100_000)

    # The charge.
    charge_lanes: int = Field(2, ge=1, le=64)
    charge_batch_size: int = Field(64, ge=1, le=1000)
    charge_solo_lanes: int = Field(2, ge=1, le=64)
    charge_repeat_lanes: int = Field(2, ge=1, le=64)
    charged_cache_size: int = Field(20_000, ge=2, le=10_000_000)
    max_waiting_charges: int = Field(2000, ge=1, le=1_000_000)
    charge_timeout_s: Seconds = 5.0
    read_threads: int = Field(2, ge=1, le=64)
    statement_timeout_s: Seconds = 2.0
    row_lock_timeout_s: Seconds = 1.5  # longer than Postgres needs to find a deadlock, 1 s
    idle_in_transaction_timeout_s: Seconds = 2.0
    database_connect_timeout_s: Seconds = 2.0

    # HTTP.
    max_body_bytes: int = Field(64 * 1024, ge=1024, le=16 * 1024 * 1024)
    body_wait_s: Seconds = 10.0
    max_requests_in_flight: int = Field(4000, ge=1, le=1_000_000)
    max_lease_waits: int | None = Field(None, ge=1, le=1_000_000)
    max_streams: int = Field(100, ge=1, le=100_000)
    max_exports: int = Field(4, ge=1, le=1000)
    max_unauthenticated: int = Field(100, ge=1, le=1_000_000)
    caller_share: float = Field(0.5, gt=0, le=1, allow_inf_nan=False)
    max_listed_entries: int = Field(1000, ge=1, le=100_000)
    drain_timeout_s: Seconds = 15.0
    health_interval_s: Seconds = 0.5

    # The audit in the background; 0: none.
    audit_interval_s: float = Field(300.0, ge=0, le=86400, allow_inf_nan=False)
    audit_statement_timeout_s: Seconds = 60.0

    # Traces, by OpenTelemetry's own OTEL_* variables.
    tracing: Literal["off", "otlp"] = "off"
    tracing_sample_ratio: float = Field(1.0, ge=0, le=1)

    # Metrics: what keeps a worker's /metrics below 150 kB, whatever names clients make up.
    max_metric_resources: int = Field(50, ge=1, le=1000)

    # Logs.
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["auto", "json", "console"] = "auto"

    @field_validator("database_url")
    @classmethod
    def _postgres_address(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            read_url(value.get_secret_value())
        return value

    @field_validator("redis_url")
    @classmethod
    def _redis_only(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None:
            return None
        url = value.get_secret_value()
        scheme = url.partition("://")[0]
        if scheme not in SCHEMES:
            raise ValueError(f"must start with {', '.join(each + '://' for each in SCHEMES)}")
        if scheme in ("redis", "rediss"):
            _scheme(value)
            if not re.fullmatch(r"/?[0-9]*", urlsplit(url).path):
                raise ValueError("must end with a database's number: redis://host:port/0")
        try:
            place_of(url)
        except OSError as error:
            raise ValueError(f"names a certificate that cannot be read: {error.strerror}") from None
        return value

    @field_validator("agora_app_certificate")
    @classmethod
    def _certificate_is_hex(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None:
            return None
        certificate = value.get_secret_value().strip()
        if not re.fullmatch(r"[0-9A-Fa-f]{32}", certificate):
            raise ValueError("must be 32 hex digits")
        return SecretStr(certificate)

    @field_validator("jwt_secret")
    @classmethod
    def _secret_is_long_enough(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and len(value.get_secret_value().encode()) < MIN_SECRET_BYTES:
            raise ValueError(f"must be {MIN_SECRET_BYTES} bytes or more")
        return value

    @model_validator(mode="after")
    def _limits_fit_each_other(self) -> Self:
        if len(chosen := key_settings(self)) > 1:
            raise ValueError(f"{chosen[0]} and {chosen[1]} are both set; choose one")
        _below(self, "lease_ttl_s", "lock_wait_s")
        if self.lock_command_timeout_s is not None:
            _below(self, "lock_command_timeout_s", "lease_ttl_s")
        if self.max_lease_waits is not None and self.max_lease_waits >= self.max_requests_in_flight:
            raise ValueError(
                f"MAX_LEASE_WAITS ({self.max_lease_waits}) must be smaller than"
                f" MAX_REQUESTS_IN_FLIGHT ({self.max_requests_in_flight})"
            )
        _below(self, "row_lock_timeout_s", "charge_timeout_s")
        _below(self, "statement_timeout_s", "charge_timeout_s")
        return self

    @property
    def embedded_database(self) -> bool:
        """Whether Postgres is our own child process."""
        return self.database_url is None

    @property
    def embedded_redis(self) -> bool:
        """Whether Valkey is our own child process."""
        return self.redis_url is None

    @property
    def command_timeout_s(self) -> float:
        """How long a Redis command may go unanswered; a quarter of the lease where nobody chose."""
        return self.lock_command_timeout_s or min(0.5, self.lease_ttl_s / 4)

    @property
    def lease_waits(self) -> int:
        """How many clients may wait for leases at once; so many that there is room for others, where nobody chose."""
        return self.max_lease_waits or min(1000, max(1, self.max_requests_in_flight // 2))

    @property
    def whole_request_s(self) -> float:
        """How long an entry may take in all: what is in front of us should wait longer."""
        return self.lock_wait_s + self.charge_timeout_s + 2.0

    def worker_instance_id(self, number: int) -> str:
        """The name shown wherever a holder is: <host>-<pid>, or the chosen one, numbered when there are several."""
        if not self.instance_id:
            return f"{socket.gethostname()}-{os.getpid()}"
        return self.instance_id if self.workers == 1 else f"{self.instance_id}-{number}"


def load_settings(**flags: object) -> Settings:
    """Settings from the environment; flags that are not None win. Raises SettingsError, which names the setting."""
    chosen = {name: value for name, value in flags.items() if value is not None} | _from_files()
    try:
        return Settings(**chosen)  # type: ignore[arg-type]
    except ValidationError as error:
        raise SettingsError(_one_line(error)) from None


def resolved(settings: Settings, **found: str | None) -> Settings:
    """The settings with what was found or generated for those that nobody set."""
    update: dict[str, object] = {}
    for name, value in found.items():
        if value is not None and getattr(settings, name) is None:
            update[name] = value if name == "agora_app_id" else SecretStr(value)
    return settings.model_copy(update=update)


def key_settings(settings: Settings) -> list[str]:
    """Those set of the settings that say how tokens are verified: one is needed, and more than one are too many."""
    names = ("jwt_secret", "jwt_public_key", "jwt_public_keys")
    return [name.upper() for name in names if getattr(settings, name) is not None]


def require_secrets(settings: Settings) -> None:
    """Raises SettingsError when something is missing that is generated only beside embedded servers."""
    if not key_settings(settings):
        raise SettingsError(
            f"{PREFIX}JWT_SECRET (or JWT_PUBLIC_KEY, or JWT_PUBLIC_KEYS) must be set where the servers are not embedded"
        )
    for name in ("agora_app_id", "agora_app_certificate"):
        if getattr(settings, name) is None:
            raise SettingsError(f"{PREFIX}{name.upper()} must be set where the servers are not embedded")


def unknown_settings() -> list[str]:
    """CHARGEONCE_ variables that nothing reads: most likely misspelt, so the start warns of them."""
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    known |= {PREFIX + name.upper() + FILE for name in _secrets()}
    return sorted(name for name in os.environ if name.startswith(PREFIX) and name not in known)


def take_out_libpq_variables(settings: Settings) -> str | None:
    """Sees to it that no PG* variable leads elsewhere than the address does. What an operator should know of it."""
    taken = sorted(filter(LIBPQ_PLACE.fullmatch, os.environ))
    guarding = sorted(filter(LIBPQ_GUARD.fullmatch, os.environ))
    for name in [*taken, *guarding] if settings.embedded_database else taken:
        del os.environ[name]
    if settings.embedded_database or not (taken or guarding):
        return None
    effects = [
        f"{', '.join(names)} {effect}"
        for names, effect in ((taken, "ignored"), (guarding, "used where the address leaves it open"))
        if names
    ]
    return f"beside {PREFIX}DATABASE_URL: {'; '.join(effects)}"


def environment_for_child(resolved: Settings) -> dict[str, str]:
    """The environment that makes a child process read these very settings."""
    child = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    for name in Settings.model_fields:
        value = getattr(resolved, name)
        if value is not None and value != "":
            child[PREFIX + name.upper()] = value.get_secret_value() if isinstance(value, SecretStr) else str(value)
    return child


def count_in(folder: Path) -> None:
    """From now on this process and its children count in files of this folder."""
    os.environ[METRICS_FOLDER] = str(folder)


def metrics_folder() -> Path:
    """Where this process counts, as its supervisor has said."""
    return Path(os.environ[METRICS_FOLDER])


def _secrets() -> list[str]:
    return [name for name, field in Settings.model_fields.items() if SecretStr in get_args(field.annotation)]


def _from_files() -> dict[str, object]:
    """The secrets that CHARGEONCE_<NAME>_FILE says the files of. Raises SettingsError."""
    found: dict[str, object] = {}
    for name in _secrets():
        setting = PREFIX + name.upper()
        if path := os.environ.get(setting + FILE):
            if os.environ.get(setting):
                raise SettingsError(f"{setting} and {setting}{FILE} are both set; choose one")
            found[name] = _secret_in(path, setting + FILE)
    return found


def _secret_in(path: str, setting: str) -> SecretStr:
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_SECRET_BYTES + 1)
        secret = content.decode().rstrip("\r\n")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise SettingsError(f"{setting}: {path} cannot be read: {reason}") from None
    if not secret or len(content) > MAX_SECRET_BYTES:
        raise SettingsError(f"{setting}: {path} is {'larger than a secret' if secret else 'empty'}")
    return SecretStr(secret)


def _scheme(url: SecretStr) -> str:
    try:
        parts = urlsplit(url.get_secret_value())
        assert parts.port != 0
    except (ValueError, AssertionError):
        raise ValueError("is not a readable address: scheme://user:password@host:port/name") from None
    return parts.scheme if parts.netloc or parts.path not in ("", "/") else ""


def _below(settings: Settings, smaller: str, larger: str) -> None:
    if getattr(settings, smaller) >= getattr(settings, larger):
        raise ValueError(
            f"{smaller.upper()} ({getattr(settings, smaller):g}) must be shorter than"
            f" {larger.upper()} ({getattr(settings, larger):g})"
        )


def _one_line(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    message = first["msg"].removeprefix("Value error, ")
    if first["loc"]:
        return f"{PREFIX}{str(first['loc'][0]).upper()}: {message}"
    return PREFIX + message
