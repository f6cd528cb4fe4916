"""Who we are to a server, and whom we believe: what is in files, or given by a callable, is read at each connection."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

# (password,) or (username, password), or what gives them: it is called in a thread before each connection.
Credentials = tuple[str, ...] | Callable[[], tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Tls:
    """What a URL says of TLS: its files, and what is checked."""

    ca_certs: str | None
    ca_path: str | None
    certificate: str | None
    key: str | None
    verify_mode: ssl.VerifyMode
    checks_name: bool

    def context(self) -> ssl.SSLContext:
        """The files as they are now. Raises ValueError."""
        try:
            context = ssl.create_default_context(cafile=self.ca_certs, capath=self.ca_path)
            if self.certificate is not None:
                # Nobody is asked for a password: one that is encrypted cannot be read.
                context.load_cert_chain(self.certificate, self.key, password="")
        except OSError as error:  # also ssl.SSLError
            raise ValueError(f"the URL names a certificate that cannot be read: {error.strerror or error}") from error
        context.check_hostname = self.checks_name
        context.verify_mode = self.verify_mode
        return context


@dataclass(frozen=True, slots=True)
class PasswordFile:
    """Credentials whose password is the content of a file, without the line's end."""

    username: str
    path: str

    def __call__(self) -> tuple[str, ...]:
        """Reads it. Raises ValueError."""
        try:
            password = Path(self.path).read_text("utf-8").rstrip("\r\n")
        except OSError as error:
            raise ValueError(f"password_file cannot be read: {error.strerror}") from error
        except UnicodeDecodeError:
            raise ValueError("password_file is not UTF-8") from None
        if not password:
            raise ValueError("password_file is empty")
        return (self.username, password) if self.username else (password,)


def called(credentials: Callable[[], tuple[str, ...]]) -> tuple[str, ...]:
    """What it gives, checked. Raises ValueError, without the words of somebody else's error: they may hold a secret."""
    if isinstance(credentials, PasswordFile):
        return credentials()
    try:
        given = credentials()
    except Exception as error:  # whatever somebody else's code may raise: the next connection asks it again
        raise ValueError(f"credentials cannot be had: {type(error).__name__}") from error
    if not isinstance(given, tuple) or len(given) not in (1, 2) or not all(isinstance(each, str) for each in given):
        raise ValueError("credentials are (password,) or (username, password)")
    return given
