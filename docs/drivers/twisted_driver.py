"""Twisted: a resource that serves an agent, and a client whose programs run in the reactor's thread, without a lock.

    agent.bind(clock=CLOCK, ids=lambda: uuid.uuid4().hex, key=secrets.token_bytes(32))
    reactor.listenTCP(8000, Site(AgentResource(agent, handle)), interface="127.0.0.1")

    twisted = TwistedClient(Client("urn:asap:agent:me"))
    manifest = await twisted.run(twisted.client.discover("http://127.0.0.1:8000"))

`handle` is a coroutine function; it may await Deferreds. Cancel the Deferred of a run, and the next that waits takes
over its request.

What it leaves out:

* Twisted parses requests, and has read a body of any size before the agent can refuse it. A response is buffered until
  its peer has read it.
* A handler isn't cancelled if its caller leaves, only at its deadline. A retry that comes while it runs is told to come
  back; it doesn't wait.
* No token is verified and no store is shared.
* The client opens a connection for each request. It reads no files and doesn't watch the
  local network, so registries must be URLs. Install `twisted[tls]`.
* The body of an error is waited for as long as the request may take: `patience` isn't looked at. What arrives at once
  is worked through at once: 64 KiB of gzip that become 22 MB hold the reactor for 0.3 s.
* A certificate that isn't trusted looks like a peer that closed the connection.
"""

import logging
import random
import secrets
import socket
import time
import uuid
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar, assert_never

from twisted.internet import reactor
from twisted.internet.defer import Deferred, ensureDeferred, gatherResults
from twisted.internet.endpoints import HostnameEndpoint, connectProtocol, wrapClientTLS
from twisted.internet.error import ConnectError
from twisted.internet.protocol import Protocol
from twisted.internet.ssl import optionsForClientTLS
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request as WebRequest

from asap_core import (
    HANDLER_TIMEOUT,
    Admit,
    Agent,
    Answered,
    Authenticate,
    CallState,
    ClaimProof,
    Dispatch,
    Done,
    Exchange,
    Fork,
    FunctionClock,
    Hold,
    Payload,
    ReadBody,
    Record,
    Refusal,
    Request,
    Respond,
    TakeLimit,
    broken_call,
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
    Ticket,
    Unanswered,
    Unavailable,
    Wait,
    WriteFile,
    step,
)

T = TypeVar("T")

# --- both ------------------------------------------------------------------------------------------------------------


CLOCK = FunctionClock(time.monotonic, time.time)

# --- server ----------------------------------------------------------------------------------------------------------


class AgentResource(Resource):
    """Serves `agent` at the root of a site."""

    isLeaf = True

    def __init__(self, agent: Agent, handle: Callable[[Dispatch], Coroutine[Any, Any, Payload]]) -> None:
        super().__init__()
        self.agent, self.handle = agent, handle

    def render(self, web: WebRequest) -> int:
        """Begin to serve one request."""
        ensureDeferred(self.serve(web)).addErrback(web.processingFailed)
        return NOT_DONE_YET

    async def serve(self, web: WebRequest) -> None:
        """Serve one request to its end."""
        headers = [(name.lower(), value) for name, values in web.requestHeaders.getAllRawHeaders() for value in values]
        method, target, peer = web.method.decode("latin-1"), web.uri.decode("latin-1"), web.client.host
        state: Exchange = self.agent.open(Request(method=method, target=target, headers=headers, peer=peer))
        try:
            while not isinstance(state, Done):
                match state:
                    case ReadBody():
                        state = state.feed(web.content.read())
                        state = state.end() if isinstance(state, ReadBody) else state
                    case Fork(calls):
                        state = state.answered(await gatherResults([ensureDeferred(self.answer(one)) for one in calls]))
                    case Respond(response):
                        web.setResponseCode(response.status)
                        for name, value in response.headers:
                            web.responseHeaders.addRawHeader(name, value)
                        if web.channel is not None:  # else the peer has left
                            web.write(response.body)
                            web.finish()
                        state = state.sent()
                    case TakeLimit() | Authenticate() | ClaimProof():
                        state = state.unavailable()
                    case _:
                        assert_never(state)
        finally:
            if not isinstance(state, Done):
                state.abandon()

    async def answer(self, call: CallState) -> Answered:
        """Drive one call to its answer."""
        try:
            while not isinstance(call, Answered):
                match call:
                    case Dispatch():
                        work = ensureDeferred(self.handle(call))
                        result = await work.addTimeout(call.deadline, reactor, lambda *_: Refusal(kind=HANDLER_TIMEOUT))
                        call = call.failed(result) if isinstance(result, Refusal) else call.replied(result)
                    case Hold():
                        call = call.expired()
                    case Admit() | Record():
                        return broken_call(call)
                    case _:
                        assert_never(call)
        except Exception:
            logging.getLogger(__name__).exception("a handler failed")
            return broken_call(call)
        return call


# --- client ----------------------------------------------------------------------------------------------------------


class TwistedClient:
    """Runs a client's programs in the reactor's thread."""

    def __init__(self, client: Client) -> None:
        runtime = Runtime(CLOCK, lambda: uuid.uuid4().hex, secrets.token_hex, random.random)
        self.client, self.parked = client.bind(runtime), dict[Ticket, Deferred[Outcome]]()

    async def run(self, program: Program[T]) -> T:
        """Run a program to its end, and return its result."""
        try:
            moved = step(program)
            while not isinstance(moved, Returned):
                self.settle()
                moved = step(program, await self.perform(moved))
            return moved.value
        finally:
            program.close()
            self.settle()

    def settle(self) -> None:
        """Wake those who need not wait any longer, and log what is to be logged."""
        for ticket in filter(self.parked.get, self.client.take_wakes()):
            self.parked.pop(ticket).callback(Completed())
        for remark in self.client.take_remarks():
            getattr(logging.getLogger(remark.logger), remark.level)("%s", remark.text)

    async def perform(self, effect: Effect) -> Outcome:
        """Carry out one effect."""
        match effect:
            case Fetch(seconds=seconds):
                http = HttpExchange(effect)
                made = ensureDeferred(fetch(effect.route, http))
                return await made.addTimeout(seconds, reactor, lambda *_: Expired(http.stage))
            case Wait(ticket, seconds):
                woken = self.parked[ticket] = Deferred(lambda _: self.parked.pop(ticket))
                # Without a limit of its own it's asked for again after an hour.
                limit = 0 if ticket.ready else 3_600 if seconds is None else seconds
                return await woken.addTimeout(limit, reactor, lambda *_: Completed() if ticket.ready else Expired())
            case Sleep(seconds):
                return await deferLater(reactor, seconds, Completed)
            case Next() | ReadFile() | WriteFile():
                return Unavailable("this driver makes requests only")
            case _:
                assert_never(effect)


async def fetch(route: Route, http: HttpExchange) -> Received | Unanswered | Expired | Barred:
    """Make one request on a connection of its own."""
    try:
        found = await deferToThread(socket.getaddrinfo, route.name, route.port) if route.name else []
        chosen = route.choose([str(address[0]) for *_, address in found])
        return await (await connect(http, route, *chosen.addresses)).outcome if isinstance(chosen, Dial) else chosen
    except (ConnectError, OSError) as error:
        return http.failed(error)


async def connect(http: HttpExchange, route: Route, address: str, *others: str) -> "Connection":
    """Connect to the first of these addresses that answers, each within its share of the time."""
    plain = HostnameEndpoint(reactor, address, route.port, http.seconds_left(reactor.seconds()) / (1 + len(others)))
    endpoint = plain if route.scheme == "http" else wrapClientTLS(optionsForClientTLS(route.server_name), plain)
    with suppress(*[ConnectError] if others else []):
        return await connectProtocol(endpoint, Connection(http))
    return await connect(http, route, *others)


class Connection(Protocol):
    """One request and its response. Cancel `outcome`, and the connection is aborted."""

    def __init__(self, http: HttpExchange) -> None:
        self.http, self.outcome = http, Deferred[Outcome](lambda _: self.transport.abortConnection())

    def connectionMade(self) -> None:
        """Send the request."""
        self.transport.write(self.http.begin(self.transport.getPeer().host))

    def dataReceived(self, data: bytes) -> None:
        """Take some of the response; empty, if the peer has closed the connection."""
        if self.http.receive(data) and not self.outcome.called:
            self.outcome.callback(self.http.outcome)
            self.transport.abortConnection()

    def connectionLost(self, _reason: object = None) -> None:
        """Take the end of the response."""
        self.dataReceived(b"")
