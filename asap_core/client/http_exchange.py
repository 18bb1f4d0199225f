"""A request and its response as bytes, on a connection of its own, for drivers on a runtime without an HTTP client.

The request is in HTTP/1.0. A response to it is never chunked (RFC 9112 §6.1), and the connection isn't used again.
"""

import re
from math import inf
from typing import Final
from urllib.parse import urlsplit

from asap_core.client.programs import Expired, Fetch, Received, Stage, Unanswered
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
# RFC 9112 §6.1: "A server MUST NOT send a response containing Transfer-Encoding unless the corresponding request
# indicates HTTP/1.1 (or later minor revisions)."
_CODED: Final = Unanswered(Stage.SENT, "it answered an HTTP/1.0 request with Transfer-Encoding, such as a chunked body")


class HttpExchange:
    """One request in HTTP/1.0, and its response into the reader of the `Fetch`.

    Connect, send what `begin` returns, and give what arrives to `receive` until it returns an outcome. Then close the
    connection. Receive while you send: an answer may come early, before a server has read the whole request. If you
    can't, and sending fails with ConnectionError, still receive what the server answered before it closed.

    `receive` does all the work on what it's given: a third of a second if 64 KiB of gzip become 22 MB. On an event
    loop, call `feed` instead, then `work` until it returns False, with turns for other tasks in between; `outcome` is
    None if more bytes are needed.

    Limit each step that waits (resolving, connecting, sending, receiving) to what `seconds_left` returns.
    """

    __slots__ = ("_asked", "_begun", "_buffer", "_ends", "_left", "_reader", "_received", "outcome")

    def __init__(self, asked: Fetch) -> None:
        self._asked = asked
        self._begun = False
        self._reader = asked.reader
        self._received = Received()
        self.outcome: Received | Unanswered | None = None
        """None if more bytes are needed, or there's work to do."""
        self._buffer = bytearray()
        # Bytes of the body that are still to arrive. None: it ends when the peer closes the connection.
        self._left: int | None = None
        # By the clock of `seconds_left`.
        self._ends: float | None = None

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
        """Take the next bytes of the response, and do all the work on them. Returns None if more are needed.

        data: at most 64 KiB; empty if the peer has closed the connection.
        """
        self.feed(data)
        while self.work():
            pass
        return self.outcome

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the response.

        data: at most 64 KiB; empty if the peer has closed the connection.
        """
        if not data:
            self._close()
        elif isinstance(body := data if self._reader.status else self._read_head(data), bytes):
            self._read_body(body)
        else:
            self.outcome = body

    def work(self) -> bool:
        """Do about a millisecond's work on what was fed. Returns whether there's more to do."""
        if self.outcome is not None or self._reader.work():
            return self.outcome is None
        if self._left == 0:
            self._reader.end()
        if self._left == 0 or not self._reader.wants:
            self.outcome = self._received
        return False

    def seconds_left(self, now: float) -> float:
        """Return how many seconds the next step may take: what is left of `seconds` and of the reader's `patience`.

        The first call starts the time, so make it before the name is resolved.

        now: seconds on a monotonic clock, the same one each time.

        Raises: TimeoutError if none are left. `failed` returns the outcome for it.
        """
        if self._ends is None:
            self._ends = now + self._asked.seconds
        patience = self._reader.patience
        self._ends = min(self._ends, now + (inf if patience is None else patience))
        if self._ends <= now:
            raise TimeoutError
        return self._ends - now

    def failed(self, error: Exception) -> Unanswered | Expired:
        """Return the outcome if resolving, connecting, sending or receiving failed.

        error: any exception of the system or of your runtime. TimeoutError means `Expired`; the system raises it too if
            a peer doesn't answer (ETIMEDOUT). For a time limit that raises another exception, such as `gevent.Timeout`,
            the outcome is `Expired(exchange.stage)`.
        """
        return Expired(self.stage) if isinstance(error, TimeoutError) else Unanswered(self.stage, type(error).__name__)

    def _close(self) -> None:
        if not self._reader.status:
            silent = not self._buffer
            self.outcome = Unanswered(Stage.SENT, "it closed the connection without an answer", silent=silent)
        elif self._left:
            self.outcome = Unanswered(Stage.ANSWERED, "the answer ended early")
        else:
            self._left = 0

    def _read_head(self, data: bytes) -> bytes | Unanswered | None:
        """Read the head, and interim ones (1xx) before it. Returns what follows it, once it is complete."""
        self._buffer += data
        while _END in self._buffer or len(self._buffer) > _MAX_HEAD:
            head, _, rest = bytes(self._buffer).partition(_END)
            line, *lines = head.split(b"\r\n")
            status, fields = _STATUS.fullmatch(line), [field.partition(b":") for field in lines]
            if len(head) > _MAX_HEAD or status is None or not all(map(_is_field, fields)):
                return _NO_HTTP
            if int(status[1]) >= _OK:
                headers = [(name.decode().lower(), value.strip(b" \t").decode("latin-1")) for name, _, value in fields]
                return self._begin(int(status[1]), headers) or rest
            self._buffer[:] = rest
        return None

    def _begin(self, status: int, headers: list[tuple[str, str]]) -> Unanswered | None:
        if any(name == "transfer-encoding" for name, _ in headers):
            return _CODED
        lengths = {value for name, value in headers if name == "content-length"}
        if len(lengths) > 1 or not all(map(_LENGTH.fullmatch, lengths)):
            return _NO_HTTP
        self._left = 0 if status in _BODILESS else next(map(int, lengths), None)
        self._reader.begin(status, headers)
        return None

    def _read_body(self, data: bytes) -> None:
        if self._left is not None:
            data = data[: self._left]
            self._left -= len(data)
        self._reader.feed(data)


def _is_field(field: tuple[bytes, bytes, bytes]) -> bool:
    name, colon, value = field
    return bool(colon) and _is_token(name) is not None and _is_control(value) is None


def _request(asked: Fetch) -> bytes:
    parts, body = urlsplit(asked.url), asked.body or b""
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    fields = {"host": parts.netloc, "content-length": str(len(body)), "connection": "close"} | dict(asked.headers)
    lines = [f"{asked.method} {target} HTTP/1.0", *(f"{name}: {value}" for name, value in fields.items())]
    return "\r\n".join(lines).encode("latin-1") + _END + body
