"""The headers of a request, of which each says one thing."""

from __future__ import annotations

from aiohttp import web


def header_of(request: web.BaseRequest, name: str) -> str | None:
    """The header's value, None where there is none.

    Sent twice it is one value with a comma (RFC 9110, 5.3), as a proxy may have written it: none of two is chosen.
    """
    values = request.headers.getall(name, ())
    if len(values) > 1:
        return ", ".join(values)
    return values[0] if values else None
