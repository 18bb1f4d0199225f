"""Reads the body of a response, or a file, in small steps: decodes it, bounds it, and gives it to a parser.

A driver calls `begin` once, if there's a response. Then it gives each chunk to `feed` and calls `work` until that
returns False, with turns for other tasks in between. If `wants` is false, it may stop, and the response counts as
whole. Otherwise it calls `end` at the end of the body. Nothing here raises, whatever the bytes: `failed` says what was
wrong.
"""

from collections import deque
from collections.abc import Callable, Collection, Iterable
from typing import Final, Generic, Protocol, TypeVar, assert_never

from attrs import evolve

from asap_core.errors import BadReply, InvalidDocument
from asap_core.http.messages import BadCoding, Body, BodyTooLarge, Codings, Gzip

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

# RFC 9110 §8.4.1.3: "A recipient SHOULD consider \"x-gzip\" to be equivalent to \"gzip\"."
_GZIP: Final[Codings] = {b"gzip": Gzip, b"x-gzip": Gzip}
# Bytes given to a parser at once: it needs a millisecond for them.
PIECE: Final = 8_192
# Compressed bytes taken at once. What they become is decompressed a block at a time.
_CODED_PIECE: Final = 1_024
# The body of an error response follows its head at once. Without it, the status is reported.
_ERROR_SECONDS: Final = 5.0
# A body that nobody needs is read only so that the connection can be used again: a new one costs a round trip or two.
_REDIRECTION: Final = range(300, 400)
_DRAIN_SECONDS: Final = 0.2
_DRAIN_BYTES: Final = 65_536


class DocumentParser(Protocol[T_co]):
    """Reads one document piece by piece, so that a large one doesn't hold up other tasks."""

    def feed(self, data: bytes) -> None:
        """Take the next bytes. Raises `InvalidDocument`."""
        ...

    def close(self) -> T_co:
        """Return the complete document. Raises `InvalidDocument`."""
        ...


class WholeParser(Generic[T]):
    """Reads a small document at once, when it's complete."""

    def __init__(self, read: Callable[[bytes], T]) -> None:
        self._read = read
        self._data = bytearray()

    def feed(self, data: bytes) -> None:
        """See `DocumentParser`."""
        self._data += data

    def close(self) -> T:
        """See `DocumentParser`."""
        return self._read(bytes(self._data))


class BodyReader:
    """Reads one body.

    limit: the most bytes, decoded.
    codings: further content codings, such as br, with their decoders.
    parser: gets the body of a response with one of `statuses`, piece by piece. Otherwise it's collected in `body`.
    statuses: those whose body must be readable. A body with another status is used if it can be read.
    drain: whether the body of another status isn't used at all. That of a redirect never is.
    """

    __slots__ = (
        "_body", "_coded", "_codings", "_decoded", "_drain", "_empty", "_ended", "_left", "_limit", "_parser", "_queue",
        "_statuses", "body", "failed", "headers", "optional", "status",
    )  # fmt: skip

    def __init__(
        self,
        limit: int,
        *,
        codings: Codings | None = None,
        parser: DocumentParser[object] | None = None,
        statuses: Collection[int] = range(200, 300),
        drain: bool = False,
    ) -> None:
        self._limit = limit
        self._codings = codings or {}
        self._parser = parser
        self._statuses = statuses
        self._drain = drain
        # None: the body isn't used.
        self._body: Body | None = Body(limit=limit)
        self._left = _DRAIN_BYTES
        self._coded = False
        self._empty = True
        self._ended = False
        self._queue: deque[bytes] = deque()
        self._decoded: deque[bytes] = deque()
        self.status = 0
        """The status of the response; 0 until `begin`."""
        self.headers: tuple[tuple[str, str], ...] = ()
        """The fields of the response, with names in lower case."""
        self.optional = False
        """Whether the response is usable without its body."""
        self.failed: InvalidDocument | BodyTooLarge | BadCoding | None = None
        """What is wrong with a body that must be readable."""
        self.body = b""
        """The body, once it's complete, unless the parser got it. Empty if it's optional and can't be read."""

    # --- for drivers -------------------------------------------------------------------------------------------------

    def begin(self, status: int, headers: Iterable[tuple[str, str]], *, decoded: bool = False) -> None:
        """Take the head of the response; not that of an interim response (1xx).

        decoded: whether the driver's HTTP library decodes the body, so that Content-Encoding no longer applies.
        """
        self.status, self.headers = status, tuple((name.lower(), value) for name, value in headers)
        self.optional = status not in self._statuses
        if self.optional:
            self._parser = None
        if self.optional and (self._drain or status in _REDIRECTION):
            self._body = None
        elif not decoded:
            self._read_codings()

    def feed(self, data: bytes) -> None:
        """Take the next chunk of the body, as it came over the wire."""
        if self._body is None:
            self._left -= len(data)
        elif data and self.failed is None:
            self._empty = False
            piece = _CODED_PIECE if self._coded else len(data) if self._parser is None else PIECE
            self._queue.extend(data[at : at + piece] for at in range(0, len(data), piece))

    def work(self) -> bool:
        """Do about a millisecond's work on what was fed. Returns whether there's more to do."""
        try:
            self._work()
        except (InvalidDocument, BodyTooLarge, BadCoding) as error:
            self._fail(error)
        return bool(self._decoded or self._queue) or self._undecoded

    def end(self) -> None:
        """Take the end of the body, and do the rest of the work. Not called if the body is cut off."""
        while self.work():
            pass
        self._ended = True
        if self._body is None or self.failed is not None:
            return
        try:
            # A missing body isn't a truncated compressed one. A parser has got everything already.
            self.body = b"" if self._empty else self._body.end()
        except BadCoding as error:
            self._fail(error)

    @property
    def wants(self) -> bool:
        """Whether more of the body is wanted. If not, a driver stops reading, and closes the connection."""
        return self._left > 0 if self._body is None else self.failed is None

    @property
    def complete(self) -> bool:
        """Whether the body was read to its end, or as far as it's wanted."""
        return self._ended or not self.wants

    @property
    def patience(self) -> float | None:
        """Seconds that the rest of the body is worth waiting for. None: as long as the `Fetch` may take."""
        if not self.optional:
            return None
        return _DRAIN_SECONDS if self._body is None else _ERROR_SECONDS

    def read(self, status: int, headers: Iterable[tuple[str, str]], body: bytes, *, decoded: bool = False) -> None:
        """Take a whole response: `begin`, `feed` and `end` for drivers whose HTTP library returns one."""
        self.begin(status, headers, decoded=decoded)
        self.feed(body)
        self.end()

    def check(self, shown: str) -> None:
        """Raise what is wrong with a body that must be readable: `InvalidDocument`, or `BadReply` from `shown`."""
        match self.failed:
            case None:
                pass
            case InvalidDocument() as invalid:
                raise evolve(invalid)
            case BodyTooLarge() | BadCoding() as bad:
                raise BadReply(shown, str(bad))
            case _:
                assert_never(self.failed)

    # --- inside ------------------------------------------------------------------------------------------------------

    @property
    def _undecoded(self) -> bool:
        return self._body is not None and self.failed is None and self._body.pending

    def _read_codings(self) -> None:
        values = [value for name, value in self.headers if name == "content-encoding"]
        listed = [each.strip().lower() for value in values for each in value.split(",")]
        codings = [coding for coding in listed if coding not in ("", "identity")]
        known: Codings = {**_GZIP, **self._codings}
        make = known.get(codings[0].encode("latin-1", "replace")) if len(codings) == 1 else None
        if codings and make is None:
            self._fail(BadCoding("expected a body in gzip, br, or plain"))
        elif make is not None:
            self._coded, self._body = True, Body(limit=self._limit, inflater=make())

    def _work(self) -> None:
        if not self._decoded and self._body is not None and (self._undecoded or self._queue):
            self._body.decode(b"" if self._undecoded else self._queue.popleft())
            if self._parser is not None:
                data = self._body.take()
                self._decoded.extend(data[at : at + PIECE] for at in range(0, len(data), PIECE))
        if self._decoded and self._parser is not None:
            # In the same step: to decode takes much less time than to parse.
            self._parser.feed(self._decoded.popleft())

    def _fail(self, error: InvalidDocument | BodyTooLarge | BadCoding) -> None:
        self._queue.clear()
        self._decoded.clear()
        if self.optional:
            self._body, self._left = None, 0
        else:
            # Without traceback and context, whose frames hold what was read.
            error.__context__ = None
            self.failed = error.with_traceback(None)
