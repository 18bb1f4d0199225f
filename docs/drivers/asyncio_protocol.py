"""asyncio alone: a server on `asyncio.Protocol` and a client on streams. It needs the standard library, and no anyio.

    agent.bind(clock=FunctionClock(time.monotonic, time.time), ids=secrets.token_hex, key=secrets.token_bytes(32))
    held = Waiting()
    await loop.create_server(lambda: AgentProtocol(agent, handle, held), "127.0.0.1", 8000)

    mine = AsyncioClient(Client("urn:asap:agent:me"))
    manifest = await mine.run(mine.client.discover("http://127.0.0.1:8000"))

One event loop owns the agent, and one the client: nothing here needs a lock.

What it leaves out:

* The server answers one request on each connection. It sends no 100 Continue, and doesn't limit the number
  of connections. A response is buffered until the peer has read it, for 30 s at most.
* No tokens are verified and no store is shared; docs/embedding.md says what to do in these states.
* The client opens a connection for each request. It reads no files and doesn't watch
  the local network, so registries must be URLs.
"""

import asyncio
import logging
import random
import secrets
import ssl
import time
from asyncio import Future, StreamReader, StreamWriter, gather
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, suppress
from email.utils import formatdate
from typing import TypeVar, assert_never
from weakref import WeakValueDictionary

from asap_core import (
    HANDLER_TIMEOUT,
    Agent,
    Answered,
    Authenticate,
    BadHead,
    CallState,
    Dispatch,
    Done,
    Exchange,
    Fork,
    FunctionClock,
    HeadReader,
    Hold,
    Payload,
    ReadBody,
    Refusal,
    RequestBody,
    Respond,
    Response,
    TakeLimit,
    broken_call,
    refuse_head,
)
from asap_core.client import (
    Barred,
    Client,
    Completed,
    Dial,
    Effect,
    Expired,
    Fetch,
    HttpExchange,
    Next,
    Outcome,
    Program,
    ReadFile,
    Received,
    Returned,
    Route,
    Runtime,
    Sleep,
    Unanswered,
    Unavailable,
    Wait,
    WriteFile,
    step,
)

T = TypeVar("T")

# --- both ------------------------------------------------------------------------------------------------------------


Waiting = WeakValueDictionary[object, Future[None]]


def wake(owner: Agent | Client, waiting: Waiting) -> None:
    """Wake those who need not wait any longer."""
    for ticket in owner.take_wakes():
        waiting.pop(ticket, Future()).set_result(None)


# --- server ----------------------------------------------------------------------------------------------------------


class AgentProtocol(asyncio.Protocol):
    """One connection. `held`, empty at first: who waits for a request that is running; all connections share it."""

    def __init__(self, agent: Agent, handle: Callable[[Dispatch], Awaitable[Payload]], held: Waiting) -> None:
        self.agent, self.handle, self.held, self.reader, self.kept = agent, handle, held, StreamReader(), False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin. The reader pauses the transport if more arrives than it should hold."""
        self.reader.set_transport(transport)
        self.transport, self.task = transport, asyncio.create_task(self.serve())

    def data_received(self, data: bytes) -> None:
        """Take the next bytes."""
        self.reader.feed_data(data)

    def connection_lost(self, _error: Exception | None) -> None:
        """Stop, since the peer has left; unless the answer is kept, for a retry with the same idempotency key."""
        if not self.kept:
            self.task.cancel()

    async def serve(self) -> None:
        """Drive one exchange. The states come in this order; those that are missing need stores or tokens."""
        state: Exchange = Done()
        try:
            with suppress(EOFError, ValueError, TimeoutError, asyncio.LimitOverrunError):
                async with asyncio.timeout(30):
                    head = HeadReader(max_size=65_536, max_fields=100).feed(await self.reader.readuntil(b"\r\n\r\n"))
                    peer, bad = self.transport.get_extra_info("peername")[0], BadHead(400, "an HTTP/1.1 request")
                    request = bad if head is None else head if isinstance(head, BadHead) else head.request(peer=peer)
                    if isinstance(request, BadHead):
                        return await self.send(refuse_head(request.status, f"Expected {request.expected}"))
                    state, body = self.agent.open(request), RequestBody(request)
                    while isinstance(state, ReadBody):
                        content = b"" if body.ended else body.read(await self.reader.read(65_536))
                        if isinstance(content, BadHead):
                            return await self.send(refuse_head(content.status, f"Expected {content.expected}"))
                        fed = state.feed(content)
                        state = fed.end() if body.ended and isinstance(fed, ReadBody) else fed
            state = state.unavailable() if isinstance(state, TakeLimit | Authenticate) else state
            state = state.answered(await gather(*map(self.answer, state.calls))) if isinstance(state, Fork) else state
            if isinstance(state, Respond):
                response, state, self.kept = state.response, state.sent(), False
                await self.send(response)
        finally:
            if not isinstance(state, Done):
                state.abandon()
            wake(self.agent, self.held)
            self.transport.abort()

    async def send(self, response: Response) -> None:
        """Send it, and wait until the peer closes. Closing while bytes arrive might lose the response."""
        head = f"HTTP/1.1 {response.status} \r\nconnection: close\r\ndate: {formatdate(usegmt=True)}\r\n".encode()
        self.transport.writelines([head, *(b"%s: %s\r\n" % pair for pair in response.headers), b"\r\n", response.body])
        with suppress(OSError):  # the peer has reset the connection
            self.transport.write_eof()
        await asyncio.sleep(0 if self.transport.is_closing() else 30)

    async def answer(self, call: CallState) -> Answered:
        """Drive one call to its answer, and wake those who wait for it."""
        while isinstance(call, Dispatch | Hold):
            call = await self.work(call) if isinstance(call, Dispatch) else call.again()
            wake(self.agent, self.held)
            if isinstance(call, Hold):
                await asyncio.wait([self.held.setdefault(call.ticket, Future())], timeout=call.seconds)
        return call if isinstance(call, Answered) else broken_call(call)

    async def work(self, call: Dispatch) -> CallState:
        """Run the handler."""
        self.kept |= call.shielded
        try:
            return call.replied(await asyncio.wait_for(self.handle(call), call.deadline))
        except TimeoutError:
            return call.failed(Refusal(kind=HANDLER_TIMEOUT))
        except Exception:
            logging.getLogger(__name__).exception("a handler failed")
            return broken_call(call)


# --- client ----------------------------------------------------------------------------------------------------------


class AsyncioClient:
    """Runs the programs of `client`, each in the task of its caller."""

    def __init__(self, client: Client) -> None:
        runtime = Runtime(FunctionClock(time.monotonic, time.time), secrets.token_hex, secrets.token_hex, random.random)
        self.client, self.waiting = client.bind(runtime), Waiting()

    async def run(self, program: Program[T]) -> T:
        """Run one program. If this task is cancelled, another one that waits for the same takes over."""
        outcome: Outcome | None = None
        try:
            while not isinstance(moved := step(program, outcome), Returned):
                self.settle()
                outcome = await self.perform(moved)
            return moved.value
        finally:
            program.close()
            self.settle()

    def settle(self) -> None:
        """Wake those who need not wait any longer, and log what programs noted."""
        wake(self.client, self.waiting)
        for remark in self.client.take_remarks():
            getattr(logging.getLogger(remark.logger), remark.level)("%s", remark.text)

    async def perform(self, effect: Effect) -> Outcome:
        """Carry out one effect."""
        match effect:
            case Fetch():
                return await fetch(effect)
            case Wait(ticket, seconds):
                await asyncio.wait([self.waiting.setdefault(ticket, Future())], timeout=0 if ticket.ready else seconds)
                return Completed() if ticket.ready else Expired()
            case Sleep(seconds):
                return await asyncio.sleep(seconds, Completed())
            case Next() | ReadFile() | WriteFile():
                return Unavailable("this driver makes requests only")
            case _:
                assert_never(effect)


async def fetch(asked: Fetch) -> Received | Unanswered | Expired | Barred:
    """Make one request on a connection of its own."""
    http, route, loop = HttpExchange(asked), asked.route, asyncio.get_running_loop()
    try:
        async with asyncio.timeout(asked.seconds) as limit:
            found = [] if route.name is None else await loop.getaddrinfo(route.name, route.port)
            dial = route.choose([str(address[0]) for *_, address in found])
            if not isinstance(dial, Dial):
                return dial
            reader, writer = await connect(http, route, *dial.addresses)
            with ExitStack() as after:
                after.callback(writer.transport.abort)
                writer.write(http.begin(writer.get_extra_info("peername")[0]))
                while (busy := http.work()) or http.outcome is None:
                    await asyncio.sleep(0) if busy else http.feed(await reader.read(65_536))
                    limit.reschedule(loop.time() + http.seconds_left(loop.time()))
                return http.outcome
    except OSError as error:
        return http.failed(error)


async def connect(http: HttpExchange, route: Route, address: str, *others: str) -> tuple[StreamReader, StreamWriter]:
    """Connect to the first of these addresses that answers. Each has an equal share of the time that is left."""
    tls, name = (ssl.create_default_context(), route.server_name) if route.scheme == "https" else (None, None)
    with suppress(*[OSError] if others else []):
        async with asyncio.timeout(http.seconds_left(asyncio.get_running_loop().time()) / (1 + len(others))):
            return await asyncio.open_connection(address, route.port, ssl=tls, server_hostname=name)
    return await connect(http, route, *others)
