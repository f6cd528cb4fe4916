"""What every answer tells a browser to refuse: the API's answers are nothing to show, the page shows only its own."""

from __future__ import annotations

from typing import Final

from aiohttp import web
from multidict import CIMultiDict

PAGE_PATH: Final = "/dashboard"
HTTPS_FOR_S: Final = 365 * 24 * 3600

_ALL: Final = {
    "Server": "chargeonce",  # and not which versions of what
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",  # unless an answer says how long it may be kept
}
API: Final = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    **_ALL,
}
PAGE: Final = {
    "Content-Security-Policy": "; ".join(
        (
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "img-src 'self' data:",
            "connect-src 'self'",
            "font-src 'self'",
            "form-action 'self'",
            "frame-ancestors 'none'",
            "base-uri 'none'",
        )
    ),
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    **_ALL,
}
HTTPS: Final = {"Strict-Transport-Security": f"max-age={HTTPS_FOR_S}"}

# As lines of a head, for the answer that writes its own.
API_LINES: Final = "".join(f"{name}: {value}\r\n" for name, value in API.items())
HTTPS_LINES: Final = API_LINES + "".join(f"{name}: {value}\r\n" for name, value in HTTPS.items())


def is_https(request: web.BaseRequest) -> bool:
    """Whether the browser spoke HTTPS with the proxy in front of us, which is believed. We speak HTTP alone."""
    forwarded = request.headers.get("X-Forwarded-Proto")
    return forwarded is not None and forwarded.partition(",")[0].strip().lower() == "https"


async def secure(request: web.BaseRequest, response: web.StreamResponse) -> None:
    """Called by aiohttp for each answer just before its head is written."""
    add_to(response.headers, request)


def add_to(headers: CIMultiDict[str], request: web.BaseRequest) -> None:
    """Adds what the answer does not say itself."""
    is_page = request.path == PAGE_PATH or request.path.startswith(f"{PAGE_PATH}/")
    for name, value in (PAGE if is_page else API).items():
        headers.setdefault(name, value)
    headers["Server"] = API["Server"]  # aiohttp has put its own there
    if is_https(request):
        headers.update(HTTPS)
