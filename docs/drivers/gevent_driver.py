"""gevent: a WSGI application for `gevent.pywsgi`, and a client whose programs run in greenlets, without a lock.

    agent.bind(clock=CLOCK, ids=lambda: uuid.uuid4().hex, key=secrets.token_bytes(32))
    WSGIServer(("127.0.0.1", 8000), Application(agent, handle)).serve_forever()

    greenlets = Greenlets(Client("urn:asap:agent:me"))
    manifest = greenlets.run(greenlets.client.discover("http://127.0.0.1:8000"))

One greenlet runs at a time, and the core never switches to another, so nothing needs a lock. One thread owns the agent,
and one the client. Kill a greenlet that runs a program, and the next that waits takes over its request. Nothing here
needs `gevent.monkey`.

What it leaves out:

* `gevent.pywsgi` parses requests, limits connections (`spawn`), and passes decoded paths only. A peer that is slow is
  waited for.
* A handler isn't killed if its caller leaves, only at its deadline.
* No token is verified and no store is shared.
* The client opens a connection for each request, and sends before it receives: an answer
  that comes early is read if the peer closes, not if it stays open and doesn't read on.
* The client reads no files and doesn't watch the local network, so registries must be URLs.
"""

import logging
import random
import secrets
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.client import responses
from typing import TYPE_CHECKING, TypeVar, assert_never
from urllib.parse import quote
from weakref import WeakValueDictionary

import gevent
from gevent import socket, ssl
from gevent.event import Event
from gevent.pool import Group

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

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

T = TypeVar("T")

# --- both ------------------------------------------------------------------------------------------------------------


CLOCK = FunctionClock(time.monotonic, time.time)

# --- server ----------------------------------------------------------------------------------------------------------


class Application:
    """A WSGI application that serves `agent`. `handle` runs in several greenlets."""

    def __init__(self, agent: Agent, handle: Callable[[Dispatch], Payload]) -> None:
        self.agent, self.handle = agent, handle
        self.held: WeakValueDictionary[bytes | None, Event] = WeakValueDictionary()

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterator[bytes]:
        """Serve one request. If the peer leaves, the server closes the iterator, which abandons the exchange."""
        state: Exchange = self.agent.open(request_of(environ))
        try:
            while not isinstance(state, Done):
                match state:
                    case ReadBody():
                        chunk = environ["wsgi.input"].read(65_536)
                        state = state.feed(chunk) if chunk else state.end()
                    case Fork(calls):
                        state = state.answered(Group().map(self.answer, calls))
                    case Respond(response):
                        headers = [(name.decode(), value.decode("latin-1")) for name, value in response.headers]
                        start_response(f"{response.status} {responses.get(response.status, 'Unknown')}", headers)
                        yield response.body
                        state = state.sent()
                    case TakeLimit() | Authenticate() | ClaimProof():
                        state = state.unavailable()
                    case _:
                        assert_never(state)
        finally:
            if not isinstance(state, Done):
                state.abandon()
            self.wake()

    def answer(self, call: CallState) -> Answered:
        """Drive one call to its answer."""
        try:
            while not isinstance(call, Answered):
                match call:
                    case Dispatch():
                        reply = gevent.with_timeout(call.deadline, self.handle, call, timeout_value=None)
                        call = call.failed(Refusal(kind=HANDLER_TIMEOUT)) if reply is None else call.replied(reply)
                        self.wake()
                    case Hold(ticket, seconds):
                        self.held.setdefault(ticket, Event()).wait(seconds)
                        call = call.again()
                    case Admit() | Record():
                        return broken_call(call)
                    case _:
                        assert_never(call)
        except Exception:
            logging.getLogger(__name__).exception("a handler failed")
            return broken_call(call)
        return call

    def wake(self) -> None:
        """Let those ask again who wait for work that has ended."""
        for ticket in self.agent.take_wakes():
            if ticket in self.held:
                self.held[ticket].set()


def request_of(environ: "WSGIEnvironment") -> Request:
    """Return the head of a request."""
    fields = {key.removeprefix("HTTP_"): environ[key] for key in environ if key.startswith(("HTTP_", "CONTENT_"))}
    headers = [(key.replace("_", "-").lower().encode(), fields[key].strip().encode("latin-1")) for key in fields]
    target = quote(environ["PATH_INFO"], safe="/:@!$&'()*+,;=", encoding="latin-1")  # WSGI has decoded it
    return Request(method=environ["REQUEST_METHOD"], target=target, headers=headers, peer=environ["REMOTE_ADDR"])


# --- client ----------------------------------------------------------------------------------------------------------

TLS = ssl.create_default_context()


class Greenlets:
    """Runs a client's programs in the greenlets that call."""

    def __init__(self, client: Client) -> None:
        self.client = client.bind(Runtime(CLOCK, lambda: uuid.uuid4().hex, secrets.token_hex, random.random))
        self.parked: WeakValueDictionary[Ticket, Event] = WeakValueDictionary()

    def run(self, program: Program[T]) -> T:
        """Run a program to its end, and return its result."""
        try:
            moved = step(program)
            while not isinstance(moved, Returned):
                self.settle()
                moved = step(program, self.perform(moved))
            return moved.value
        finally:
            program.close()
            self.settle()

    def settle(self) -> None:
        """Wake those who need not wait any longer, and log what is to be logged."""
        for ticket in self.client.take_wakes():
            if ticket in self.parked:
                self.parked[ticket].set()
        for remark in self.client.take_remarks():
            getattr(logging.getLogger(remark.logger), remark.level)("%s", remark.text)

    def perform(self, effect: Effect) -> Outcome:
        """Carry out one effect."""
        match effect:
            case Fetch():
                return fetch(effect)
            case Wait(ticket, seconds):
                woken = self.parked[ticket] = Event()
                return Completed() if ticket.ready or woken.wait(seconds) else Expired()
            case Sleep(seconds):
                gevent.sleep(seconds)
                return Completed()
            case Next() | ReadFile() | WriteFile():
                return Unavailable("this driver makes requests only")
            case _:
                assert_never(effect)


def fetch(asked: Fetch) -> Received | Unanswered | Expired | Barred:
    """Make one request on a connection of its own."""
    http, route = HttpExchange(asked), asked.route
    try:
        with gevent.Timeout(asked.seconds, TimeoutError):
            found = socket.getaddrinfo(route.name, route.port, type=socket.SOCK_STREAM) if route.name else []
            chosen = route.choose([str(address[0]) for *_, address in found])
            if not isinstance(chosen, Dial):
                return chosen
            with connect(http, route, *chosen.addresses) as connection:
                with suppress(ConnectionError):  # the peer has closed, perhaps after an answer that came early
                    connection.sendall(http.begin(connection.getpeername()[0]))
                while http.outcome is None:
                    connection.settimeout(http.seconds_left(time.monotonic()))
                    http.feed(connection.recv(65_536))
                    while http.work():
                        gevent.sleep(0)
                return http.outcome
    except OSError as error:
        return http.failed(error)


def connect(http: HttpExchange, route: Route, address: str, *others: str) -> socket.socket:
    """Connect to the first of these addresses that answers. Each has an equal share of the time that is left."""
    with suppress(*[OSError] if others else []):
        seconds = http.seconds_left(time.monotonic()) / (1 + len(others))
        plain = socket.create_connection((address, route.port), seconds)
        return plain if route.scheme == "http" else TLS.wrap_socket(plain, server_hostname=route.server_name)
    return connect(http, route, *others)
