"""Where the time of a POST goes, in microseconds for each stage: `python -m benchmarks server --stages`.

The stages of the core are measured alone, the best of many rounds; then the driver with all of them, a connection whose
stream costs nothing with all of that, and one over a socket pair. What's left of a row after those above it is the
row's own.
"""

import socket
import time
from collections.abc import Awaitable, Callable, Coroutine

import anyio
import h11

from asap_adapters.cli.echo_agent import ECHO_ID, echo, echo_manifest
from asap_adapters.server.acceptor import stream_maker
from asap_adapters.server.channel import head_of
from asap_adapters.server.connection import serve_connection
from asap_adapters.server.connection_limits import sweeping
from asap_adapters.server.driver import Driver
from asap_adapters.server.handlers import Handlers
from asap_adapters.server.startup import bind_agent
from asap_core import Agent, Policy, StartPolicy
from asap_core.http.head import HeadReader, read_plain_head
from asap_core.http.messages import Response
from asap_core.server.call import Answered, CallState, Dispatch, Record
from asap_core.server.exchange import Exchange, Fork, ReadBody, Respond
from asap_core.wire.handler_reply import Replied
from benchmarks.server_floor import serve_h11
from benchmarks.server_load import posts

__all__ = ["run"]

# Of the processor, as other processes may share it. Many short rounds: the best one was hardly interrupted.
clock = time.thread_time
ROUNDS, REQUESTS = 80, 40


class Timer:
    """The best mean of each stage, over rounds."""

    def __init__(self) -> None:
        self.best: dict[str, float] = {}
        self.now: dict[str, float] = {}

    def add(self, stage: str, since: float) -> float:
        now = clock()
        self.now[stage] = self.now.get(stage, 0.0) + now - since
        return clock()

    def round(self) -> None:
        for stage, seconds in self.now.items():
            self.best[stage] = min(self.best.get(stage, 1.0), seconds / REQUESTS)
        self.now = {}


class Whole:
    """A wire without a transport: the body is at hand, and the answer goes nowhere."""

    def __init__(self, body: bytes) -> None:
        self.body: bytes | None = body

    async def receive(self, *, expect_continue: bool) -> bytes | None:  # noqa: ARG002 - as the protocol has it
        body, self.body = self.body, None
        return body

    async def send(self, answer: Respond) -> None:
        assert answer.response.status == 200, answer.response

    async def send_last(self, response: Response) -> None:
        raise AssertionError(response)


class AtHand(anyio.abc.ByteStream):
    """A stream without a socket: each read returns the next of `requests`, and answers go nowhere."""

    def __init__(self, requests: list[bytes]) -> None:
        self.requests = requests[::-1]

    async def receive(self, max_bytes: int = 65_536) -> bytes:  # noqa: ARG002 - as the protocol has it
        if not self.requests:
            raise anyio.EndOfStream
        return self.requests.pop()

    async def send(self, item: bytes) -> None:
        assert item.startswith(b"HTTP/1.1 200 "), item

    async def send_eof(self) -> None:
        pass

    async def aclose(self) -> None:
        pass


class Unlimited:
    """A handler's deadline, kept by nobody: a connection's sweeper looks at it four times a second."""

    expired = False

    def begin_handler(self, seconds: float) -> None:
        pass


def _agent() -> Agent:
    manifest = echo_manifest(ECHO_ID, "http://127.0.0.1:8000")
    return bind_agent(Agent(manifest, policy=Policy(peer_limits=(), start=StartPolicy.OPEN)))


def by_h11(data: bytes) -> None:
    """Read a head as the general way does."""
    HeadReader(max_size=16_384, max_fields=100).feed(data)
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(data)
    tuple(connection.next_event().headers)  # type: ignore[union-attr]


def core(agent: Agent, data: bytes, timer: Timer) -> None:
    """One request through the core, each stage by itself."""
    at = clock()
    by_h11(data)
    at = timer.add("(h11 would take for the head)", at)
    head = read_plain_head(data, max_size=16_384, max_fields=100)
    assert head is not None
    at = timer.add("head", at)
    state: Exchange = agent.open(head.request(peer="127.0.0.1", local="127.0.0.1"))
    assert isinstance(state, ReadBody)
    at = timer.add("target, limits, credential, version", at)
    state = state.feed(data[head.end :])
    assert isinstance(state, ReadBody)
    state = state.end()
    assert isinstance(state, Fork)
    call: CallState = state.calls[0]
    assert isinstance(call, Dispatch), call
    at = timer.add("JSON, envelope, admission", at)
    call = call.replied(Replied("task.response", {"task_id": "t", "status": "completed", "result": call.request.input}))  # type: ignore[union-attr]
    if isinstance(call, Record):
        call = call.recorded()
    assert isinstance(call, Answered)
    at = timer.add("reply", at)
    state = state.answered([call])
    assert isinstance(state, Respond)
    head_of(state.response, close=False)
    at = timer.add("response", at)


async def measure(timer: Timer) -> None:
    agent = _agent()
    driver, make = Driver(agent, Handlers({"echo": echo})), posts(ECHO_ID, 1_024)
    for _ in range(ROUNDS):
        for _ in range(REQUESTS):
            core(agent, make(), timer)
        requests = [make() for _ in range(REQUESTS)]
        at = clock()
        for data in requests:
            head = read_plain_head(data, max_size=16_384, max_fields=100)
            assert head is not None
            await driver.run(head.request(peer="127.0.0.1"), Whole(data[head.end :]), Unlimited())
        timer.add("all of that, and the driver with a handler", at)
        timer.round()
    await _over_sockets(driver, make, timer)


async def _over_sockets(driver: Driver, make: Callable[[], bytes], timer: Timer) -> None:
    async with sweeping() as sweeper:

        async def serve(stream: anyio.abc.ByteStream) -> None:
            await serve_connection(stream, driver, peer="127.0.0.1", sweeper=sweeper)

        theirs = anyio.abc.SocketStream.from_socket
        for _ in range(ROUNDS):
            stream = AtHand([make() for _ in range(REQUESTS)])
            at = clock()
            await serve(stream)
            timer.add("all of that, and the connection without a socket", at)
            timer.round()
        await _asked(_echo, theirs, make, timer, "(bare anyio would take to read and write)")
        await _asked(_echo, _ours, make, timer, "(our streams take to read and write)")
        await _asked(serve_h11, theirs, make, timer, "(bare h11 over anyio would take for all)")
        await _asked(serve, _ours, make, timer, "all of that, and the socket")


async def _echo(stream: anyio.abc.ByteStream) -> None:
    while True:
        await stream.send(await stream.receive())


async def _ours(connection: socket.socket) -> anyio.abc.ByteStream:
    return stream_maker()(connection)


async def _asked(
    serve: Callable[[anyio.abc.ByteStream], Coroutine[object, object, None]],
    connected: Callable[[socket.socket], Awaitable[anyio.abc.ByteStream]],
    make: Callable[[], bytes],
    timer: Timer,
    stage: str,
) -> None:
    """Time the server's side of a connection: that of the other side, which never waits, is taken off."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)  # noqa: FBT003 - its only argument
    stream = await connected(theirs)
    async with anyio.create_task_group() as group:
        group.start_soon(serve, stream)
        for _ in range(ROUNDS):
            requests = [make() for _ in range(REQUESTS)]
            at, others = clock(), 0.0
            ours.settimeout(0)
            for data in requests:
                others += await _ask(ours, data)
            timer.add(stage, at + others)
            timer.round()
        group.cancel_scope.cancel()
    ours.close()
    await stream.aclose()


async def _ask(ours: socket.socket, data: bytes) -> float:
    began = clock()
    ours.send(data)
    took = clock() - began
    while True:
        await anyio.lowlevel.checkpoint()
        began = clock()
        try:
            ours.recv(65_536)
        except BlockingIOError:
            continue
        return took + clock() - began


def run() -> None:
    """Print the table."""
    timers = {}
    for backend in ("trio", "asyncio"):
        timers[backend] = Timer()
        anyio.run(measure, timers[backend], backend=backend)
    print(f"{'µs for each POST of 1 KB':<50}{'trio':>8}{'asyncio':>9}")
    for stage in timers["trio"].best:
        print(f"{stage:<50}{timers['trio'].best[stage] * 1e6:8.1f}{timers['asyncio'].best[stage] * 1e6:9.1f}")


if __name__ == "__main__":
    run()
