"""What the checks of a driver use: a bound client, what runs programs, and what the server on loopback says."""

import json
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from gzip import compress
from itertools import chain, repeat
from typing import Any, Final, Literal, NoReturn, Protocol

from attrs import define, frozen

from asap_core.client.body_reader import BodyReader
from asap_core.client.client import Client
from asap_core.client.programs import (
    Barred,
    Completed,
    Effect,
    Expired,
    Fetch,
    FileRead,
    Outcome,
    Program,
    ReadFile,
    Received,
    Route,
    Sleep,
    Unanswered,
    Unavailable,
    Wait,
    WriteFile,
)
from asap_core.client.runtime import Runtime
from asap_core.testing.loopback import SILENCE, LoopbackScript, LoopbackServer
from asap_core.wire.manifest import MANIFEST_PATH

Ability = Literal["requests", "addresses", "patience", "concurrency", "cancelling"]
"""What a driver may lack: to make requests over sockets, to choose the address that it connects to, to give up the body
of an error early, to run several programs at the same time, to cancel one.
"""

# In seconds: an effect's limit; what a busy machine may add; after how long a run counts as hanging.
LIMIT: Final = 0.8
SLACK: Final = 2.0
HANGS: Final = 20.0
MAX_BODY: Final = 100_000
# A word to look for.
SECRET: Final = "what-the-peer-sent"  # noqa: S105 - no password


class ProgramRunner(Protocol):
    """Runs programs on the driver that is tested."""

    def __call__(self, programs: Sequence[Program[Any]], cancel_after: float | None) -> Sequence[object]:
        """Run these programs at the same time, each to its end. Called in a thread of its own.

        cancel_after: if it isn't None, cancel the run of the first program after so many seconds.

        Returns: for each program what it returned, or the exception that it raised; anything for a cancelled one.
        """
        ...


# --- what the server says --------------------------------------------------------------------------------------------


def _answer(body: bytes, status: str = "200 OK", **fields: str) -> bytes:
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in {"connection": "close", **fields}.items()]
    length = {} if "content_length" in fields else {"content-length": str(len(body))}
    lines += [f"{name}: {value}" for name, value in length.items()]
    return "\r\n".join([f"HTTP/1.1 {status}", *lines, "", ""]).encode("latin-1") + body


def _says(*pieces: bytes | float) -> LoopbackScript:
    return lambda: pieces


def _trickling(first: bytes, rest: bytes) -> Iterator[bytes | float]:
    yield first
    for _ in range(40):
        yield 0.1
        yield rest


_MANIFEST: Final = {
    "id": "urn:asap:agent:checked", "name": "Checked", "version": "1.0.0", "description": "Answers a check of a driver",
    "capabilities": {"asap_version": "0.1", "skills": [{"id": "echo", "description": "Echoes"}]},
    "endpoints": {"asap": "http://127.0.0.1/asap"},
}  # fmt: skip
BODY: Final = b'{"body": 1}'
PLAIN: Final = b"x" * 50_000
_ENDLESS: Final = b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n"
SCRIPTS: Final[dict[str, LoopbackScript]] = {
    "/ok": _says(_answer(BODY, set_cookie="id=1; Path=/", content_type="application/json")),
    "/pieces": _says(_answer(BODY)[:20], 0.05, _answer(BODY)[20:-5], 0.05, _answer(BODY)[-5:]),
    "/gzip": _says(_answer(compress(PLAIN), content_encoding="gzip")),
    "/until-closed": _says(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n", 0.05, BODY),
    "/interim": _says(b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n", 0.05, _answer(BODY)),
    "/moved": _says(_answer(b"", "302 Found", location="/ok")),
    "/endless": lambda: chain([_ENDLESS], repeat(bytes(65_536))),
    "/cut": _says(_answer(BODY[:5], content_length=str(len(BODY)))),
    "/closed": _says(),
    "/garbage": _says(f"220 {SECRET} ready\r\n\r\n".encode()),
    "/silent": _says(SILENCE),
    "/deaf": _says(SILENCE),
    "/trickling": lambda: _trickling(_answer(b"", content_length="500"), b"x"),
    "/trickling-head": lambda: _trickling(b"HTTP/1.1 200 OK\r\n", b"x-a: 1\r\n"),
    "/refused": _says(_answer(b"", "503 Busy", content_length="500", retry_after="3"), SILENCE),
    "/early": _says(_answer(BODY, "413 Too Large"), 0.3),
    MANIFEST_PATH: _says(0.6, _answer(json.dumps(_MANIFEST).encode(), content_type="application/json")),
}
WHAT: Final = {
    "/ok": "a plain response", "/pieces": "a response in pieces", "/gzip": "a compressed response",
    "/until-closed": "a body that ends with its connection", "/interim": "a response after an interim one (103)",
    "/moved": "a redirect", "/endless": "a body that goes on when its reader wants no more",
    "/early": "an answer that comes before the request is read",
}  # fmt: skip


# --- what a check uses -----------------------------------------------------------------------------------------------

_OUTCOMES: Final[dict[type, tuple[type, ...]]] = {
    Fetch: (Received, Unanswered, Expired, Barred),
    Wait: (Completed, Expired),
    Sleep: (Completed,),
    ReadFile: (FileRead, Unavailable, Expired),
    WriteFile: (Completed, Unavailable, Expired),
}


def fail(text: str) -> NoReturn:
    """Fail the check."""
    raise AssertionError(text)


@define(eq=False)
class Trial:
    """One check: a server, a client that is bound to the driver, and what runs programs on it."""

    server: LoopbackServer
    client: Client
    runner: ProgramRunner
    lacks: Collection[Ability]

    @property
    def runtime(self) -> Runtime:
        """Return what the driver bound the client to."""
        runtime = vars(self.client).get("_runtime")
        return runtime if isinstance(runtime, Runtime) else fail("it doesn't bind the client")

    def run(self, *programs: Program[Any], cancel_after: float | None = None) -> list[object]:
        """Run programs together; fails if that hangs, or if the runner raises."""
        ended: list[Sequence[object] | BaseException] = []

        def run() -> None:
            try:
                ended.append(self.runner(programs, cancel_after))
            except BaseException as error:  # noqa: BLE001 - it's reported
                ended.append(error)

        self.runtime  # noqa: B018 - first of all, the client must be bound
        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        thread.join(HANGS)
        if not ended:
            fail(f"it hangs: a run hasn't ended after {HANGS:g} s")
        if isinstance(ended[0], BaseException):
            fail(f"the runner raised {ended[0]!r}; expected it in the list, in the place of its program")
        if len(ended[0]) != len(programs):
            fail(f"the runner returned {len(ended[0])} results for {len(programs)} programs")
        return list(ended[0])

    def outcome(self, effect: Effect) -> Outcome:
        """Let the driver carry out one effect."""
        return self.timed(effect)[0]

    def timed(self, effect: Effect) -> tuple[Outcome, float]:
        """As `outcome`, with the seconds that it took by the client's own clock."""
        times: list[float] = []

        def program() -> Program[Outcome]:
            times.append(self.runtime.now())
            outcome = yield effect
            times.append(self.runtime.now())
            return outcome

        (outcome,) = self.run(program())
        kinds, name = _OUTCOMES[type(effect)], type(effect).__name__
        if isinstance(outcome, BaseException):
            fail(f"a {name} raised {outcome!r}; a failure is an outcome, not an exception")
        if not isinstance(outcome, kinds):
            fail(f"a {name} is answered by {' or '.join(kind.__name__ for kind in kinds)}, not by {outcome!r}")
        return outcome, times[1] - times[0]  # type: ignore[return-value]  # one of `kinds`

    def fetch(self, path: str, *, body: bytes | None = None, seconds: float = 8.0, **changes: Any) -> Fetch:
        """Return the effect of a request to the server."""
        route = Route("127.0.0.1", self.server.port, "http")
        options = {"headers": (), "route": route, "reader": NotingReader(MAX_BODY), **changes}
        url = options.pop("url", self.server.url)
        method = "GET" if body is None else "POST"
        return Fetch(method, url + path, body=body, seconds=seconds, patience=seconds, **options)

    def received(self, path: str, **options: Any) -> Fetch:
        """Make a request whose response must arrive."""
        fetch = self.fetch(path, **options)
        outcome = self.outcome(fetch)
        assert isinstance(outcome, Received), f"expected Received for {WHAT[path]}, not {outcome!r}"
        assert fetch.reader.status, "answered Received before BodyReader.begin"
        return fetch

    def arrived(self, path: str) -> None:
        """Wait until a request has arrived."""
        end = time.monotonic() + SLACK
        while path not in self.server.paths():
            assert time.monotonic() < end, f"no request for {path} arrived"
            time.sleep(0.01)

    def is_settled(self) -> None:
        """Fail if the driver should have taken more from the client."""
        quiet, remarks = self.runtime.is_quiet, self.runtime.take_remarks()
        assert not remarks, f"it doesn't call take_remarks(), and they accumulate: {remarks[0].text!r}"
        assert quiet, "it doesn't call take_wakes() after each step and after each close(): others wait for ever"


class NotingReader(BodyReader):
    """Notes how large the pieces are."""

    __slots__ = ("largest",)

    def __init__(self, limit: int, **options: Any) -> None:
        super().__init__(limit, **options)
        self.largest = 0

    def feed(self, data: bytes) -> None:
        """Note the size."""
        self.largest = max(self.largest, len(data))
        super().feed(data)


# --- rules -----------------------------------------------------------------------------------------------------------


@frozen
class DriverRule:
    """A check, whose docstring says what must hold, and what a driver must be able to do for it."""

    check: Callable[[Trial], None]
    needs: frozenset[str]

    @property
    def says(self) -> str:
        """Return what must hold."""
        return (self.check.__doc__ or "").removesuffix(".")


RULES: Final[list[DriverRule]] = []


def rule(*needs: Ability) -> Callable[[Callable[[Trial], None]], Callable[[Trial], None]]:
    """Add a check to `RULES`."""

    def add(check: Callable[[Trial], None]) -> Callable[[Trial], None]:
        RULES.append(DriverRule(check, frozenset(needs)))
        return check

    return add
