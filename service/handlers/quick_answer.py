"""An answer that leaves in one piece: head and body in one write, without the dozen calls that aiohttp makes of it."""

from __future__ import annotations

from aiohttp import HttpVersion11, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.helpers import rfc822_formatted_time
from aiohttp.http_writer import StreamWriter

from service.handlers.security_headers import API_LINES, HTTPS_LINES, is_https


class QuickAnswer(web.Response):
    """With a body, or of a status that has none.

    A client that is not to be kept, or speaks HTTP/1.0, gets aiohttp's own way of answering.
    """

    _writer: StreamWriter | None = None
    _security = API_LINES

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        """Only notes where the answer goes."""
        writer = request._payload_writer
        if (
            self._keep_alive is False
            or not request.keep_alive
            or request.version != HttpVersion11
            or not isinstance(writer, StreamWriter)
        ):
            return await super().prepare(request)
        self._keep_alive = True
        if is_https(request):
            self._security = HTTPS_LINES
        self._writer = self._payload_writer = writer
        return writer

    async def write_eof(self, data: bytes = b"") -> None:
        """Writes it. Raises ClientConnectionResetError."""
        writer = self._writer
        if writer is None:
            await super().write_eof(data)
            return
        body = self._body
        if body is None:  # 204: a Content-Length is not allowed there (RFC 9110, 8.6)
            body, length = b"", ""
        else:
            assert isinstance(body, bytes)
            length = f"Content-Length: {len(body)}\r\n"
        head = (
            f"HTTP/1.1 {self._status} {self._reason}\r\n"
            f"{''.join([f'{name}: {value}{_END}' for name, value in self._headers.items()])}"
            f"{self._security}{length}Date: {rfc822_formatted_time()}\r\n\r\n"
        )
        writer._write(head.encode("latin-1") + body)
        self._eof_sent = True
        self._body_length = writer.output_size
        self._writer = self._payload_writer = None
        await writer.drain()


_END = "\r\n"
