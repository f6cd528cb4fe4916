"""The page's scripts, styles and icon: read once, named by their content, so that a browser may keep them for ever."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from service.refusals import NotFound

FOLDER = Path(__file__).parent / "static"
TYPES = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
KEPT = "public, max-age=31536000, immutable"


@dataclass(frozen=True, slots=True)
class Asset:
    """One file, as it is and compressed. `digest` is of its content."""

    digest: str
    media_type: str
    body: bytes
    compressed: bytes

    @property
    def etag(self) -> str:
        """As a header has it."""
        return f'"{self.digest}"'


class Assets:
    """Every file of static/ that a browser may have, by its name without folders."""

    def __init__(self) -> None:
        files = [path for path in sorted(FOLDER.rglob("*")) if path.suffix in TYPES]
        self._assets: Mapping[str, Asset] = {path.name: _read(path) for path in files}

    def url(self, name: str) -> str:
        """Where the page finds it; KeyError for a file that is not there."""
        return f"/dashboard/static/{self._assets[name].digest}/{name}"

    async def serve(self, request: web.Request) -> web.Response:
        """The file. An address with another digest is of another version, and not found here."""
        asset = self._assets.get(request.match_info["file"])
        if asset is None or asset.digest != request.match_info["digest"]:
            raise NotFound("there is no such file")
        headers = {
            "Cache-Control": KEPT,
            "ETag": asset.etag,
            "Vary": "Accept-Encoding",
        }
        if asset.etag in request.headers.get("If-None-Match", ""):
            return web.Response(status=304, headers=headers)
        body = asset.body
        if "gzip" in request.headers.get("Accept-Encoding", ""):
            body = asset.compressed
            headers["Content-Encoding"] = "gzip"
        return web.Response(body=body, headers={**headers, "Content-Type": asset.media_type})


def _read(path: Path) -> Asset:
    body = path.read_bytes()
    digest = hashlib.sha256(body).hexdigest()[:16]
    return Asset(digest, TYPES[path.suffix], body, gzip.compress(body, 9, mtime=0))
