"""A network in memory: a server listens on it, clients connect, and a script says what breaks. For virtual time."""

import errno
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

import anyio
import anyio.abc
import anyio.lowlevel
import httpcore
from anyio.abc import ByteStream, SocketAttribute
from attrs import define, field

from asap_adapters.client.agent_client import AgentClient
from asap_adapters.net.http_requests import as_httpcore_error
from asap_adapters.net.outbound_transport import OutboundTransport
from asap_adapters.server.listener import Bound
from asap_core.testing.network_faults import ConnectionFaults, Cut, DirectionFaults

# As a socket's buffer: a writer waits until the reader has taken what is more.
_BUFFER: Final = 65_536
# RFC 5737: addresses for documentation.
_CLIENT: Final = "192.0.2.1"
_SERVER: Final = "127.0.0.1"
# More connections than that are waiting to be accepted: it's as if the server were down.
_BACKLOG: Final = 128


class MemoryNetwork:
    """Connects clients to one server, in this process.

    Time is the event loop's. With `trio.testing.MockClock`, or an asyncio loop of virtual time, delays take none.

    script: what happens to the connections, in the order in which they're made. Those after the last have no faults.
        `asap_core.testing.network_scripts` draws it.

    listener: the server's end of it.
    connections: how many were asked for.

    >>> network = MemoryNetwork([ConnectionFaults(refused=True)])
    >>> # serve(agent, handlers, at=network.bound)
    >>> # async with network.client("urn:asap:agent:me") as client: …
    """

    def __init__(self, script: Iterable[ConnectionFaults] = ()) -> None:
        self._script = iter(script)
        self.listener = _MemoryListener()
        self.connections = 0

    @property
    def bound(self) -> Bound:
        """Where the server listens: an argument of `serve`. Its URL is `http://127.0.0.1`."""
        return Bound(self.listener, f"http://{_SERVER}", _SERVER, 0)

    async def connect(self) -> ByteStream:
        """Connect to the server. Raises OSError if the connection is refused, or nobody accepts it."""
        return await self._connect()

    async def _connect(self) -> "_MemoryStream":
        self.connections += 1
        faults = next(self._script, ConnectionFaults())
        await anyio.sleep(faults.connect_delay)
        if faults.refused or not self.listener.has_room:
            raise OSError(errno.ECONNREFUSED, "Connection refused")
        to_server, to_client = _Pipe(faults.to_server), _Pipe(faults.to_client)
        to_server.back, to_client.back = to_client, to_server
        self.listener.offer(_MemoryStream(to_server, to_client, (_CLIENT, self.connections)))
        return _MemoryStream(to_client, to_server, (_SERVER, 80))

    @asynccontextmanager
    async def client(self, sender: str, **options: Any) -> AsyncIterator[AgentClient]:
        """Make a client all whose connections go to the server, whatever their address. `options`: `AgentClient`'s."""

        async def dial(_address: str, _port: int) -> httpcore.AsyncNetworkStream:
            return _Dialled(await self._connect())

        async with AgentClient(sender, **options) as client:
            transport = client._driver._transport  # noqa: SLF001 - the one place where it connects otherwise
            if not isinstance(transport, OutboundTransport):
                raise ValueError("http: expected no transport, since this network is the client's")  # noqa: TRY004
            transport._dial = dial  # noqa: SLF001
            yield client


class _MemoryListener(anyio.abc.Listener[ByteStream]):
    """Gives the server the connections that were made."""

    def __init__(self) -> None:
        self._offered: deque[ByteStream] = deque()
        self._closed = False
        self._news = anyio.Event()

    @property
    def has_room(self) -> bool:
        return not self._closed and len(self._offered) < _BACKLOG

    def offer(self, stream: ByteStream) -> None:
        self._offered.append(stream)
        self._news.set()

    async def accept(self) -> ByteStream:
        await anyio.lowlevel.checkpoint()
        while not self._offered:
            self._news = anyio.Event()
            await self._news.wait()
        return self._offered.popleft()

    async def serve(self, handler: Callable[[ByteStream], Any], task_group: anyio.abc.TaskGroup | None = None) -> None:
        raise NotImplementedError("expected to be served by asap_adapters.serve")

    async def aclose(self) -> None:
        self._closed = True
        while self._offered:
            await self._offered.popleft().aclose()


class _End:
    """What a reader finds at the end of a direction."""


_CLOSED: Final = _End()
_BROKEN: Final = _End()


@define(eq=False)
class _Pipe:
    """One direction of a connection: pieces, each with the time when it arrives."""

    faults: DirectionFaults
    back: "_Pipe" = field(init=False, repr=False)
    _pieces: deque[tuple[float, bytes | _End]] = field(factory=deque)
    _held: int = 0
    _carried: int = 0
    _cut: bool = False
    broken: bool = False
    _news: anyio.Event = field(factory=anyio.Event)

    def wake(self) -> None:
        self._news.set()
        self._news = anyio.Event()

    def put(self, what: bytes | _End) -> None:
        self._pieces.append((anyio.current_time() + self.faults.delay, what))
        self._held += len(what) if isinstance(what, bytes) else 0
        self.wake()

    def break_off(self) -> None:
        """Let the reader find, after what is under way, that the connection broke; the writer finds it at once."""
        if not self.broken:
            self.broken = True
            self.put(_BROKEN)

    @property
    def readable(self) -> bool:
        """Whether something has arrived."""
        return bool(self._pieces) and self._pieces[0][0] <= anyio.current_time()

    async def write(self, data: bytes) -> None:
        await anyio.lowlevel.checkpoint()
        for start in range(0, len(data), self.faults.piece):
            while self._held >= _BUFFER and not self.broken:
                await self._news.wait()
            if self.broken:
                raise anyio.BrokenResourceError
            self._carry(data[start : start + self.faults.piece])

    def _carry(self, piece: bytes) -> None:
        if self._cut:  # lost
            return
        end = self.faults.cut_after
        whole = end is None or self._carried + len(piece) <= end
        kept = piece if whole or end is None else piece[: end - self._carried]
        self._carried += len(kept)
        if kept:
            self.put(kept)
        if whole:
            return
        self._cut = True
        match self.faults.cut:
            case Cut.RESET:
                self.break_off()
                self.back.break_off()
            case Cut.CLOSED:
                self.put(_CLOSED)
                self.broken = True
                self.back.break_off()
            case Cut.LOST:
                pass

    async def read(self, most: int) -> bytes:
        await anyio.lowlevel.checkpoint()
        while not self._pieces:
            await self._news.wait()
        at, what = self._pieces[0]
        await anyio.sleep(max(0.0, at - anyio.current_time()))
        if isinstance(what, _End):
            raise anyio.EndOfStream if what is _CLOSED else anyio.BrokenResourceError
        # Only now: if the reader was cancelled meanwhile, nothing is lost.
        taken, rest = what[:most], what[most:]
        if rest:
            self._pieces[0] = at, rest
        else:
            self._pieces.popleft()
        self._held -= len(taken)
        self.wake()
        return taken


@define(eq=False)
class _MemoryStream(ByteStream):
    """One end of a connection."""

    incoming: _Pipe
    outgoing: _Pipe
    peer: tuple[str, int]
    _ended: bool = False
    _closed: bool = False

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        return {SocketAttribute.remote_address: lambda: self.peer}

    async def receive(self, max_bytes: int = 65_536) -> bytes:
        if self._closed:
            raise anyio.ClosedResourceError
        return await self.incoming.read(max_bytes)

    async def send(self, item: bytes) -> None:
        if self._closed or self._ended:
            raise anyio.ClosedResourceError
        await self.outgoing.write(bytes(item))

    async def send_eof(self) -> None:
        await anyio.lowlevel.checkpoint()
        if not self._ended:
            self._ended = True
            self.outgoing.put(_CLOSED)

    async def aclose(self) -> None:
        if not self._closed:
            self._closed = True
            # What is still sent here meets a closed socket.
            self.incoming.broken = True
            self.incoming.wake()
            await self.send_eof()
        await anyio.lowlevel.checkpoint()


@define(eq=False)
class _Dialled(httpcore.AsyncNetworkStream):
    """A client's end, as httpcore has it."""

    stream: _MemoryStream

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109 - httpcore's
        del timeout
        with as_httpcore_error(httpcore.ReadError):
            try:
                return await self.stream.receive(max_bytes)
            except anyio.EndOfStream:
                return b""

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109 - httpcore's
        del timeout
        with as_httpcore_error(httpcore.WriteError):
            await self.stream.send(buffer)

    async def aclose(self) -> None:
        await self.stream.aclose()

    def get_extra_info(self, info: str) -> Any:
        return self.stream.incoming.readable if info == "is_readable" else None
