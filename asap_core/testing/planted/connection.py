"""One HTTP/1.1 connection as bytes in, bytes out: requests are read one after another, and answered in their order.

`_serve` is a generator that asks for more bytes by `yield`, so that reading is written as one sequence.
"""

from collections.abc import Generator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final

from asap_core.testing.planted.agent import PlantedAgent
from asap_core.testing.planted.chunks import check_trailer, chunk_size
from asap_core.testing.planted.heads import HeadLines, line_text, read_head
from asap_core.testing.planted.messages import REASONS, Fields, HttpFault, PlantedRequest, PlantedResponse
from asap_core.testing.planted.texts import write_text

More = Generator[None, bytes, None]
# The framing of a chunked body takes at most this much beside its content: a line of a few bytes for each chunk.
_LONGEST_LINE: Final = 4_096


# What a broken agent keeps of the first request on a connection.
_KEPT: Final = (
    ("http.key_of_the_connection", "x-idempotency-key"),
    ("http.coding_of_the_connection", "content-encoding"),
)


class PlantedConnection:
    """Reads requests for an agent, and writes its responses.

    closed: whether the connection is over. Then nothing more is read.
    phase: what it waits for: "idle", "head" or "body". A broken agent has further ones.
    """

    def __init__(self, agent: PlantedAgent, *, peer: str = "127.0.0.1") -> None:
        self.agent = agent
        self.broken = agent.broken
        self.peer = peer
        self.closed = False
        self.phase = "idle"
        self._credentials: Fields = ()
        self._versions: Fields = ()
        self._kept: dict[str, list[str]] = {}
        self._buffer = bytearray()
        self._out = bytearray()
        self._serving = self._serve()
        next(self._serving)

    def receive(self, data: bytes) -> bytes:
        """Take the next bytes from the peer. Returns the bytes to send, if any."""
        if not self.closed:
            self._serving.send(data)
        out, self._out = bytes(self._out), bytearray()
        return out

    def timed_out(self) -> bytes:
        """The peer was too slow. Returns the bytes to send before the connection ends."""
        waited, self.closed = self.phase, True
        if waited == "idle" or self.broken("http.timeout_silent"):
            return b""
        self._refuse(HttpFault(408, f"the {waited} of the request in time"))
        return bytes(self._out)

    def seconds_left(self, waited: float) -> float:
        """How long to wait for more, having waited this long in this phase."""
        options = self.agent.options
        limits = {"idle": options.idle_timeout, "head": options.head_timeout, "body": options.body_timeout}
        limits |= {"rest": options.body_timeout, "chunks": 3600.0}
        if self.broken(f"http.slow_{self.phase}"):
            return 3600.0
        return limits[self.phase] - waited

    # --- reading -----------------------------------------------------------------------------------------------------

    def _serve(self) -> More:
        try:
            while not self.closed:
                yield from self._one()
        except HttpFault as fault:
            self._refuse(fault)
            self.closed = not self.broken("http.open_after_fault")
            while True:
                yield
        while True:
            yield

    def _one(self) -> More:
        lines = HeadLines(self.agent.options, self.broken)
        self.phase = "head" if self._buffer else "idle"
        done = False
        while not done:
            line = yield from self._line(lines)
            done = lines.take(line)
        request = replace(read_head(lines.lines, self.broken), peer=self.peer)
        if self.broken("identity.of_the_connection"):
            self._credentials = self._credentials or tuple(
                ("authorization", v) for v in request.values("authorization")
            )
            if not request.values("authorization"):
                request = replace(request, fields=(*request.fields, *self._credentials))
        request = self._with_what_came_before(request)
        if self.broken("versions.of_the_connection"):
            self._versions = self._versions or (("asap-version", request.value("asap-version") or "2.2"),)
            others = tuple(field for field in request.fields if field[0] != "asap-version")
            request = replace(request, fields=(*others, *self._versions))
        self.phase = "body"
        response = self.agent.before_body(request)
        if response is None:
            response = yield from self._with_body(request)
        elif response.close and self._reads_on_after(response):
            response = replace(response, close=False)
        elif request.length and not response.close and not self.broken("http.body_of_get_is_a_request"):
            yield from self._take(request.length)
        self._send(response, request)
        if self.broken("http.pipelined_lost"):
            self._buffer.clear()

    def _with_what_came_before(self, request: PlantedRequest) -> PlantedRequest:
        """Add fields of earlier requests on this connection. Only a broken agent does."""
        for switch, name in _KEPT:
            if self.broken(switch):
                self._kept.setdefault(name, request.values(name)[:1])
                if not request.values(name) and self._kept[name]:
                    request = replace(request, fields=(*request.fields, (name, self._kept[name][0])))
        if self.broken("identity.first_of_the_connection") and request.values("authorization"):
            self._kept.setdefault("authorization", request.values("authorization"))
            others = tuple(field for field in request.fields if field[0] != "authorization")
            first = tuple(("authorization", value) for value in self._kept["authorization"])
            request = replace(request, fields=(*others, *first))
        return request

    def _reads_on_after(self, response: PlantedResponse) -> bool:
        """Whether the body of a request that was refused early is read as the next one. Only a broken agent's is."""
        too_large = response.status == 413 and self.broken("http.open_after_413")
        return too_large or self.broken("http.refused_body_is_a_request")

    def _with_body(self, request: PlantedRequest) -> Generator[None, bytes, PlantedResponse]:
        expectation = request.value("expect") or ""
        expects = "100-continue" in (expectation if self.broken("http.expect_case") else expectation.lower())
        if expects and not self._buffer and not self.broken("http.expect"):
            self._out += b"HTTP/1.1 100 Continue\r\n\r\n"
        if request.length is None:
            self.phase = "chunks" if self.broken("http.slow_chunks") else self.phase
            body = yield from self._chunks()
            if body is None:
                return self.agent.body_too_large(request, unread=True)
        else:
            body = yield from self._take(request.length)
        return self.agent.answer(replace(request, body=body, length=len(body)))

    def _line(self, lines: HeadLines | None) -> Generator[None, bytes, bytes]:
        """Return the next line, with its end. `lines`: the head that it belongs to, if it's one of a head."""
        while not (end := self._buffer.find(b"\n") + 1):
            self._check_start(lines)
            self._buffer += yield
            if lines is not None:
                self.phase = "head"
        self._check_start(lines)
        line = bytes(self._buffer[:end])
        del self._buffer[:end]
        return line

    def _check_start(self, lines: HeadLines | None) -> None:
        """Refuse what can't become a line as soon as that is known."""
        if lines is None:
            if len(self._buffer) > _LONGEST_LINE and b"\n" not in self._buffer[:_LONGEST_LINE]:
                raise HttpFault(400, "chunk lines of a few bytes")
            return
        if b"\n" not in self._buffer:
            lines.check_size(len(self._buffer))
        first = bytes(self._buffer[:1])
        if first and not lines.lines and not first.isalpha() and first not in b"\r\n":
            raise HttpFault(400, "an HTTP/1.1 request")

    def _take(self, length: int) -> Generator[None, bytes, bytes]:
        while len(self._buffer) < length:
            self._buffer += yield
            if self.broken("http.slow_drips"):  # another name begins another time
                self.phase = "rest" if self.phase == "body" else "body"
        taken = bytes(self._buffer[:length])
        del self._buffer[:length]
        return taken

    def _chunks(self) -> Generator[None, bytes, bytes | None]:
        """Return a chunked body. None if it's too large."""
        body, most = bytearray(), self.agent.options.max_body
        while size := chunk_size(line_text((yield from self._line(None)), self.broken), self.broken):
            if len(body) + size > most and not self.broken("limits.chunked_body"):
                return None
            body += yield from self._take(size)
            end = yield from self._take(2)
            if end != b"\r\n" and not self.broken("http.chunk_end"):
                raise HttpFault(400, "CR LF after each chunk")
        count = 0
        while trailer := line_text((yield from self._line(None)), self.broken):
            check_trailer(trailer, self.broken)
            count += 1
            if count > self.agent.options.max_fields:
                raise HttpFault(400, "fewer trailers")
        return bytes(body)

    # --- writing -----------------------------------------------------------------------------------------------------

    def _refuse(self, fault: HttpFault) -> None:
        status = 500 if self.broken("http.fault_is_500") else fault.status
        body = write_text({"detail": f"Expected {fault.expected}"})
        fields = (
            ("content-type", "application/json"),
            ("content-length", str(len(body))),
            ("asap-version", "2.2"),
        )
        if not self.broken("http.fault_silent"):
            self._write(PlantedResponse(status=status, fields=fields, body=body, close=True))

    def _send(self, response: PlantedResponse, request: PlantedRequest) -> None:
        close = response.close or not request.keeps_open
        self._write(replace(response, close=close))
        self.closed = close

    def _write(self, response: PlantedResponse) -> None:
        fields = response.fields
        if self.broken("http.length_of_response"):
            fields = tuple(
                (name, str(int(value) + 1)) if name == "content-length" else (name, value) for name, value in fields
            )
        if response.close and not self.broken("http.close_unsaid"):
            fields = (*fields, ("connection", "close"))
        if self.broken("http.length_twice"):
            fields = (*fields, *(field for field in fields if field[0] == "content-length"))
        if not self.broken("http.date_missing"):
            form = "%Y-%m-%dT%H:%M:%SZ" if self.broken("http.date_form") else "%a, %d %b %Y %H:%M:%S GMT"
            fields = (*fields, ("date", datetime.fromtimestamp(self.agent.wall(), UTC).strftime(form)))
        lines = [f"HTTP/1.1 {response.status} {REASONS.get(response.status, 'Status')}"]
        lines += [f"{name}: {value}" for name, value in fields]
        end = "\n" if self.broken("http.response_line_ends") else "\r\n"
        self._out += (end.join(lines) + end * 2).encode("latin-1") + response.body
