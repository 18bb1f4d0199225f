"""Threads: a WSGI application for wsgiref, Flask or any WSGI server, and a client that any thread may use.

    agent.bind(clock=CLOCK, ids=lambda: uuid.uuid4().hex, key=secrets.token_bytes(32))
    application = Application(agent, handle)
    make_server("127.0.0.1", 8000, application).serve_forever()

    threads = Threads(Client("urn:asap:agent:me"))
    manifest = threads.run(threads.client.discover("http://127.0.0.1:8000"))

One lock owns the agent, and one the client. `Turn` holds it around each move or step, and around nothing that waits.

What it leaves out:

* A thread can't be stopped: a handler goes on after its deadline, and a caller of the client waits for the name server
  as long as the system does. The client's other limits are absolute once a connection is made.
* wsgiref limits neither connections nor slow peers. WSGI passes decoded paths, and no chunked bodies.
* No token is verified and no store is shared.
* The client opens a connection for each request, and sends before it receives: an answer
  that comes early is read if the peer closes, not if it stays open and doesn't read on.
* The client reads no files and doesn't watch the local network, so registries must be URLs.
  `asap_adapters` has a complete client for threads, `BlockingClient`.
"""

import logging
import random
import secrets
import socket
import ssl
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.client import responses
from typing import TYPE_CHECKING, ParamSpec, TypeVar, assert_never
from urllib.parse import quote

from asap_core import (
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
    Unanswered,
    Unavailable,
    Wait,
    WriteFile,
    step,
)

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

P = ParamSpec("P")
T = TypeVar("T")

# --- both ------------------------------------------------------------------------------------------------------------


CLOCK = FunctionClock(time.monotonic, time.time)


class Turn:
    """One lock for an agent or a client. Threads that wait for another's work wait on it too."""

    def __init__(self, owner: Agent | Client) -> None:
        self.owner, self.lock = owner, threading.Condition()

    def __call__(self, move: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Make one move, then wake those who wait, if some of them need not wait any longer."""
        with self.lock:
            result = move(*args, **kwargs)
            if self.owner.take_wakes():
                self.lock.notify_all()
            return result


# --- server ----------------------------------------------------------------------------------------------------------


class Application:
    """A WSGI application that serves `agent`. `handle` runs without the lock, in several threads at once.

    A view of Flask may return it: `flask.add_url_rule("/asap", "asap", lambda: application, methods=["GET", "POST"])`,
    and the same for "/.well-known/asap/manifest.json".
    """

    def __init__(self, agent: Agent, handle: Callable[[Dispatch], Payload]) -> None:
        self.agent, self.handle, self.turn = agent, handle, Turn(agent)

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterator[bytes]:
        """Serve one request. If the peer leaves, the server closes the iterator, which abandons the exchange."""
        state: Exchange = self.turn(self.agent.open, request_of(environ))
        try:
            while not isinstance(state, Done):
                match state:
                    case ReadBody():
                        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
                        state = self.turn(state.feed, body)
                        state = self.turn(state.end) if isinstance(state, ReadBody) else state
                    case Fork(calls):
                        state = self.turn(state.answered, [self.answer(call) for call in calls])
                    case Respond(response):
                        headers = [(name.decode(), value.decode("latin-1")) for name, value in response.headers]
                        start_response(f"{response.status} {responses.get(response.status, 'Unknown')}", headers)
                        yield response.body
                        state = self.turn(state.sent)
                    case TakeLimit() | Authenticate() | ClaimProof():
                        state = self.turn(state.unavailable)
                    case _:
                        assert_never(state)
        finally:
            if not isinstance(state, Done):
                self.turn(state.abandon)

    def answer(self, call: CallState) -> Answered:
        """Drive one call to its answer."""
        try:
            while not isinstance(call, Answered):
                match call:
                    case Dispatch():
                        call = self.turn(call.replied, self.handle(call))
                    case Hold():
                        with self.turn.lock:
                            call = call.again()  # ask first: the work may have ended before this thread had the lock
                            if isinstance(call, Hold):
                                self.turn.lock.wait(call.seconds)
                    case Admit() | Record():
                        return self.turn(broken_call, call)
                    case _:
                        assert_never(call)
        except Exception:
            logging.getLogger(__name__).exception("a handler failed")
            return self.turn(broken_call, call)
        return call


def request_of(environ: "WSGIEnvironment") -> Request:
    """Return the head of a request."""
    fields = {key.removeprefix("HTTP_"): environ[key] for key in environ if key.startswith(("HTTP_", "CONTENT_"))}
    headers = [(key.replace("_", "-").lower().encode(), fields[key].strip().encode("latin-1")) for key in fields]
    target = quote(environ["PATH_INFO"], safe="/:@!$&'()*+,;=", encoding="latin-1")  # WSGI has decoded it
    return Request(method=environ["REQUEST_METHOD"], target=target, headers=headers, peer=environ["REMOTE_ADDR"])


# --- client ----------------------------------------------------------------------------------------------------------

TLS = ssl.create_default_context()


class Threads:
    """Runs a client's programs in the threads that call, several at once."""

    def __init__(self, client: Client) -> None:
        runtime = Runtime(CLOCK, lambda: uuid.uuid4().hex, secrets.token_hex, random.random)
        self.client, self.turn = client.bind(runtime), Turn(client)

    def run(self, program: Program[T]) -> T:
        """Run a program to its end, and return its result. If this thread is interrupted, one that waits takes over."""
        try:
            moved = self.turn(step, program)
            while not isinstance(moved, Returned):
                moved = self.turn(step, program, self.perform(moved))
            return moved.value
        finally:
            self.turn(program.close)
            for remark in self.turn(self.client.take_remarks):
                getattr(logging.getLogger(remark.logger), remark.level)("%s", remark.text)

    def perform(self, effect: Effect) -> Outcome:
        """Carry out one effect, without the lock."""
        match effect:
            case Fetch():
                return fetch(effect)
            case Wait(ticket, seconds):
                with self.turn.lock:
                    return Completed() if self.turn.lock.wait_for(lambda: ticket.ready, seconds) else Expired()
            case Sleep(seconds):
                time.sleep(seconds)
                return Completed()
            case Next() | ReadFile() | WriteFile():
                return Unavailable("this driver makes requests only")
            case _:
                assert_never(effect)


def fetch(asked: Fetch) -> Received | Unanswered | Expired | Barred:
    """Make one request on a connection of its own."""
    http, route = HttpExchange(asked), asked.route
    try:
        http.seconds_left(time.monotonic())  # the time starts
        found = socket.getaddrinfo(route.name, route.port, type=socket.SOCK_STREAM) if route.name else []
        chosen = route.choose([str(address[0]) for *_, address in found])
        if not isinstance(chosen, Dial):
            return chosen
        with connect(http, route, *chosen.addresses) as connection:
            connection.settimeout(http.seconds_left(time.monotonic()))
            with suppress(ConnectionError):  # the peer has closed, perhaps after an answer that came early
                connection.sendall(http.begin(connection.getpeername()[0]))
            while http.outcome is None:
                connection.settimeout(http.seconds_left(time.monotonic()))
                http.receive(connection.recv(65_536))
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
