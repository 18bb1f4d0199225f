"""A request and its response as bytes, on a connection of its own, for drivers on a runtime without an HTTP client.

The request is in HTTP/1.0. A response to it is never chunked (RFC 9112 §6.1), and the connection isn't used again.
"""

import re
from typing import Final
from urllib.parse import urlsplit

from asap_core.client.programs import Fetch, Received, Stage, Unanswered
from asap_core.http.fields import CONTROL, TOKEN

_END: Final = b"\r\n\r\n"
# Bytes. Servers and proxies send a few KiB.
_MAX_HEAD: Final = 65_536
_is_control: Final = re.compile(CONTROL.encode("latin-1")).search
_is_token: Final = re.compile(TOKEN.encode("latin-1")).fullmatch
# RFC 9112 §4. 101 isn't among them: nobody asked for another protocol.
_STATUS: Final = re.compile(rb"HTTP/1\.[01] (?!101)([1-5][0-9][0-9])(?: .*)?")
# 18 digits are more than any body has.
_LENGTH: Final = re.compile(r"[0-9]{1,18}")
_OK: Final = 200
# RFC 9110 §15.3.5 and §15.4.5: without a body, whatever their fields say.
_BODILESS: Final = frozenset({204, 304})

_NO_HTTP: Final = Unanswered(Stage.SENT, "what came back isn't an HTTP answer")


class HttpExchange:
    """One request, and its response into the reader of the `Fetch`.

    Connect, send what `begin` returns, and give what arrives to `receive` until it returns an outcome. Then close the
    connection. `stage`, for `Expired` and `Unanswered`: how far the request got.
    """

    __slots__ = ("_asked", "_begun", "_buffer", "_left", "_reader", "_received")

    def __init__(self, asked: Fetch) -> None:
        self._asked = asked
        self._begun = False
        self._reader = asked.reader
        self._received = Received()
        self._buffer = bytearray()
        # Bytes of the body that are still to arrive. None: it ends when the peer closes the connection.
        self._left: int | None = None

    @property
    def stage(self) -> Stage:
        """Whether the request was begun, and whether the head of a response arrived."""
        if self._reader.status:
            return Stage.ANSWERED
        return Stage.SENT if self._begun else Stage.CONNECTING

    def begin(self, address: str | None = None) -> bytes:
        """Return what is to be sent. From now on the server may act on it.

        address: the IP address that is connected to, if it's known.
        """
        self._begun, self._received = True, Received(address)
        return _request(self._asked)

    def receive(self, data: bytes) -> Received | Unanswered | None:
        """Take the next bytes of the response, at most 64 KiB. Returns None if more are needed.

        data: empty if the peer has closed the connection.
        """
        if not data:
            return self._closed()
        body = data if self._reader.status else self._read_head(data)
        return self._read_body(body) if isinstance(body, bytes) else body

    def _closed(self) -> Received | Unanswered:
        if not self._reader.status:
            return Unanswered(Stage.SENT, "it closed the connection without an answer", silent=not self._buffer)
        if self._left is not None:
            return Unanswered(Stage.ANSWERED, "the answer ended early")
        self._reader.end()
        return self._received

    def _read_head(self, data: bytes) -> bytes | Unanswered | None:
        """Read the head, and interim ones (1xx) before it. Returns what follows it, once it is complete."""
        self._buffer += data
        while _END in self._buffer or len(self._buffer) > _MAX_HEAD:
            head, end, rest = bytes(self._buffer).partition(_END)
            line, *lines = head.split(b"\r\n")
            status, fields = _STATUS.fullmatch(line), [field.partition(b":") for field in lines]
            if not end or len(head) > _MAX_HEAD or status is None or not all(map(_is_field, fields)):
                return _NO_HTTP
            if int(status[1]) >= _OK:
                headers = [(name.decode().lower(), value.strip(b" \t").decode("latin-1")) for name, _, value in fields]
                return self._begin(int(status[1]), headers) or rest
            self._buffer[:] = rest
        return None

    def _begin(self, status: int, headers: list[tuple[str, str]]) -> Unanswered | None:
        lengths = {value for name, value in headers if name == "content-length"}
        chunked = any(name == "transfer-encoding" for name, _ in headers)
        if chunked or len(lengths) > 1 or not all(map(_LENGTH.fullmatch, lengths)):
            return _NO_HTTP
        self._left = 0 if status in _BODILESS else next(map(int, lengths), None)
        self._reader.begin(status, headers)
        return None

    def _read_body(self, data: bytes) -> Received | None:
        if self._left is not None:
            data = data[: self._left]
            self._left -= len(data)
        self._reader.feed(data)
        while self._reader.work():
            pass
        if self._left == 0:
            self._reader.end()
        return self._received if self._left == 0 or not self._reader.wants else None


def _is_field(field: tuple[bytes, bytes, bytes]) -> bool:
    name, colon, value = field
    return bool(colon) and _is_token(name) is not None and _is_control(value) is None


def _request(asked: Fetch) -> bytes:
    parts, body = urlsplit(asked.url), asked.body or b""
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    fields = {"host": parts.netloc, "content-length": str(len(body)), "connection": "close"} | dict(asked.headers)
    lines = [f"{asked.method} {target} HTTP/1.0", *(f"{name}: {value}" for name, value in fields.items())]
    return "\r\n".join(lines).encode("latin-1") + _END + body
