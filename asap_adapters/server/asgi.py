"""An ASGI application that serves an agent under any ASGI server, without a framework.

The server owns the connections, so it must limit them, and how long a head may take: those limits of `Policy` don't
apply. What a head still shows once the server has read it is judged as our own server judges it. After an early
refusal the connection can't linger, so some clients see a reset instead of the answer. Deadlines of bodies and answers
do apply.
"""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, MutableMapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any, Final
from urllib.parse import quote

import anyio
from attrs import define, evolve, field

from asap_adapters.auth.authenticator import Authenticator, VerifyCredential
from asap_adapters.server.connection_limits import NEVER, Sweeper, sweeping_beside
from asap_adapters.server.driver import WRITE_SIZE, Driver, PeerGone, Rest
from asap_adapters.server.handlers import Handler, Handlers
from asap_adapters.server.heap import give_back_large_blocks
from asap_adapters.server.logs import log_decision
from asap_adapters.server.startup import NO_ADDRESS, bind_agent, warn_if_elsewhere
from asap_adapters.server.storage import Redis, Storage, expect_storage, opened, shared_limits
from asap_adapters.system import cancel_scopes, loop_time
from asap_core.admission.policy import Policy
from asap_core.admission.ratelimit import is_address
from asap_core.arguments import expect_observer, replaced
from asap_core.errors import AsapError
from asap_core.http.head import BadHead, parsed_request
from asap_core.http.messages import Headers, Request, Response, findable
from asap_core.server.agent import Agent
from asap_core.server.events import Observer
from asap_core.server.exchange import Respond, refuse_head
from asap_core.server.metrics import Counters
from asap_core.wire.codec import warm_up

log: Final = logging.getLogger("asap.asgi")

AsgiScope = Mapping[str, Any]
AsgiMessage = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[AsgiMessage]]
Send = Callable[[AsgiMessage], Awaitable[None]]


class AsgiApp:
    """An ASGI 3 application: `hypercorn mymodule:app`, or `uvicorn mymodule:app`.

    >>> app = AsgiApp(agent, {"echo": echo})    # doctest: +SKIP

    By default replay memory and limits are per process: of several workers each accepts an envelope once, and the
    application says so when it starts. `storage=Redis(url)` has them remember together.

    handlers: for each skill, a function `(request, context) -> result`, async or not; `Handlers` has further options.
    authenticate: says whom a bearer token stands for, such as `TokenTable({…})`.
    storage: where admission is remembered, as in `serve`. It's opened when the application starts. The server has to
        say when that is (ASGI's lifespan) or, if it's mounted in another application, that one (`lifespan`).
    observe: is told every decision of admission; by default each is logged.
    metrics: True counts the decisions and shows them at /asap/metrics; `Counters` may count for several processes.
    """

    @replaced(
        on="Handlers(handlers, on=…) for the handlers",
        threads="Handlers(handlers, threads=…) for the handlers",
        state="storage=StateFile(path)",
        redis="storage=Redis(url)",
        share_peer_limits="storage=Redis(url, share_peer_limits=True)",
    )
    def __init__(
        self,
        agent: Agent,
        handlers: Mapping[str, Handler] | Handlers,
        *,
        authenticate: Authenticator | VerifyCredential | None = None,
        storage: Storage = None,
        observe: Observer = log_decision,
        metrics: bool | Counters = False,
    ) -> None:
        self._observe, self._metrics = observe, metrics
        expect_observer(observe)
        expect_storage(storage)
        self._storage = storage
        self._asked = self._warned = self._opened = False
        self._waits: _Waits | None = None

        def make(agent: Agent) -> Driver:
            return Driver(agent, Handlers.of(handlers), authenticate=authenticate)

        self._make = make
        self._driver = make(agent)
        # An agent that its user bound stays bound. One that is bound here is copied and bound anew for each lifespan.
        self._given = agent.bound

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """Serve one ASGI scope."""
        match scope["type"]:
            case "http":
                wire = _AsgiWire(scope, receive, send, self._driver.agent.policy, self._waits or self._start())
                if not self._asked:
                    self._asked = True
                    self._warn_if_url_differs(scope.get("server"))
                try:
                    await self._answer(self._began(scope, wire), wire)
                except PeerGone:
                    log.debug("the peer left before its answer, or didn't take it")
            case "lifespan":
                await self._lifespan(receive, send)
            case "websocket":
                # Not built; ASGI says to refuse the handshake so (403 to the peer).
                await receive()
                await send({"type": "websocket.close", "code": 1000})
            case kind:
                raise RuntimeError(f"expected an ASGI scope of http, websocket or lifespan, not {kind!r}")

    def _warn_if_url_differs(self, server: tuple[str, int | None] | None) -> None:
        """Warn if the agent's URL leads elsewhere. `server` is where the server listens: None for a UNIX socket."""
        if server is not None and server[1]:
            host, port = str(server[0]), int(server[1])
            warn_if_elsewhere(self._driver.agent, log, host=host, port=port, mounted=True)

    def _warn_if_peer_is_unknown(self, peer: str) -> None:
        if not self._warned and not is_address(peer):
            self._warned = True
            log.warning("this ASGI server doesn't say where requests come from: %s", NO_ADDRESS)

    def _began(self, scope: AsgiScope, wire: "_AsgiWire") -> Rest:
        """Read the head. Returns how to go on."""
        request = _request(scope, wire.policy)
        if isinstance(request, BadHead):
            refusal = refuse_head(request.status, f"Expected {request.expected}")
            # RFC 9110 §9.3.2: no body, and the same headers.
            return partial(wire.send_last, evolve(refusal, body=b"") if scope["method"] == "HEAD" else refusal)
        self._warn_if_peer_is_unknown(request.peer)
        return partial(self._driver.run, request, wire, wire)

    async def _answer(self, rest: Rest | None, wire: "_AsgiWire") -> None:
        wire.begins()
        try:
            while rest is not None:
                with wire.scope() as scope:
                    rest = await rest()
                if scope.cancelled_caught:
                    await wire.refuse_if_too_slow()
                    return
        finally:
            wire.ends()

    def _start(self) -> "_Waits":
        """Start without lifespan, which only works with the memory of this process."""
        if self._storage is not None:
            raise RuntimeError(
                "storage= is opened when the application starts, and no lifespan event was received: expected an ASGI "
                "server with lifespan or, if it's mounted in another application, `async with app.lifespan():` "
                "in that one's lifespan"
            )
        return self._bind(None)

    def _bind(self, sweeper: Sweeper | None) -> "_Waits":
        give_back_large_blocks()
        agent = self._driver.agent
        bind_agent(
            agent,
            observe=self._observe,
            metrics=self._metrics,
            shared_admission=self._storage is not None,
            shared_limits=shared_limits(self._storage, agent),
        )
        self._waits = _Waits(sweeper)
        return self._waits

    @asynccontextmanager
    async def lifespan(self, _parent: object = None) -> AsyncIterator[None]:
        """Serve until the end of the block. For an application that mounts this one.

        Frameworks don't forward ASGI's lifespan to mounted applications. Enter this context manager in the lifespan of
        the outer application, or pass it as that: `Starlette(lifespan=app.lifespan)`. After it was left, it can be
        entered again, also in another event loop; the application then starts anew.

        Raises RuntimeError if it is active already, and what `serve` raises if the storage can't be used.
        """
        if self._opened:
            raise RuntimeError("the application has started already: expected one lifespan at a time")
        self._opened = True
        try:
            async with sweeping_beside() as sweeper:
                waits = self._bind(sweeper)
                async with opened(self._storage, self._driver):
                    self._log_warnings()
                    try:
                        yield
                    finally:
                        self._driver.agent.drain()
                        waits.stop_sweeping()
        finally:
            self._opened, self._waits = False, None
            if not self._given:
                self._driver = self._make(self._driver.agent.unbound())

    def _log_warnings(self) -> None:
        warm_up()
        agent = self._driver.agent
        if not isinstance(self._storage, Redis):
            log.warning("replay memory and limits are per process: run one worker, or each accepts once")
        if not agent.authenticates:
            log.warning("%s serves without authentication", agent.manifest.id)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()  # lifespan.startup
        async with AsyncExitStack() as stack:
            try:
                await stack.enter_async_context(self.lifespan())
            except (OSError, AsapError, ValueError, RuntimeError) as error:
                await send({"type": "lifespan.startup.failed", "message": str(error)})
                return
            await send({"type": "lifespan.startup.complete"})
            await receive()  # lifespan.shutdown
        await send({"type": "lifespan.shutdown.complete"})


def _request(scope: AsgiScope, policy: Policy) -> Request | BadHead:
    client, server, raw_path, root_path = map(scope.get, ("client", "server", "raw_path", "root_path"))
    # raw_path is optional in ASGI, and path is percent-decoded: "/asap%3Fx" must not become "/asap" and a query.
    target = raw_path.decode("latin-1") if raw_path else _encoded(scope["path"])
    # Mounted under a path, an application sees it in front of its own (ASGI: root_path).
    if root_path and target.startswith(f"{_encoded(root_path)}/"):
        target = target[len(_encoded(root_path)) :]
    if query := scope.get("query_string"):
        target = f"{target}?{query.decode('latin-1')}"
    return parsed_request(
        scope["method"],
        target,
        _headers(scope["headers"]),
        # A server that doesn't say its version is held to what all versions share.
        version=scope.get("http_version", "2"),
        peer="" if client is None else str(client[0]),  # none over UNIX sockets
        local="" if server is None else str(server[0]),
        max_size=policy.max_head,
        max_fields=policy.max_headers,
    )


def _headers(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    # A list, since it may be read twice below. httptools leaves blanks after a value, which aren't part of it (RFC 9110
    # §5.5).
    pairs = [(name, value.strip(b" \t")) for name, value in headers]
    try:
        return findable(pairs)
    except ValueError:
        # The server doesn't keep to ASGI: it passes names with capitals, or bytearrays.
        return tuple((bytes(name).lower(), bytes(value)) for name, value in pairs)


def _encoded(path: str) -> str:
    return quote(path.encode("utf-8", "surrogateescape"), safe="/:@!$&'()*+,;=")


@define(eq=False)
class _Waits:
    """How the waits of all exchanges end that have lasted too long.

    sweeper: ends them, during a lifespan. Without one each exchange's scope has deadlines, which takes 7 to 9 µs.
    """

    sweeper: Sweeper | None
    wires: "set[_AsgiWire]" = field(factory=set)
    time: Callable[[], float] = field(factory=loop_time)
    new_scope: Callable[[], anyio.CancelScope] = field(factory=cancel_scopes)

    def stop_sweeping(self) -> None:
        """The lifespan ends. Exchanges that still run keep their limits."""
        self.sweeper = None
        for wire in self.wires:
            wire.wait_until(wire.until)


class _AsgiWire:
    """A `Wire` of ASGI messages, and the `Timer` of its exchange: one scope, whose deadline moves with what is awaited.

    until: until when the present wait may last.
    policy: the agent's.
    """

    def __init__(self, scope: AsgiScope, receive: Receive, send: Send, policy: Policy, waits: _Waits) -> None:
        # HTTP/2 has no such header, and no need of it (RFC 9113 §8.2.2).
        self._says_close = str(scope.get("http_version", "1.1")).startswith("1")
        self._receive = receive
        self._send = send
        self.policy = policy
        self._waits = waits
        self.until = NEVER
        self._body_deadline: float | None = None
        self._reads = False
        self._more = True

    def begins(self) -> None:
        """The exchange begins."""
        self._waits.wires.add(self)
        if self._waits.sweeper is not None:
            self._waits.sweeper.add(self)

    def ends(self) -> None:
        """The exchange is over."""
        self._waits.wires.discard(self)
        if self._waits.sweeper is not None:
            self._waits.sweeper.discard(self)

    def scope(self) -> anyio.CancelScope:
        """Return a new scope, for all waits until one expires."""
        self._scope, self._expired = self._waits.new_scope(), False
        return self._scope

    def wait_until(self, until: float) -> None:
        """Let what is awaited now, or next, last until then at most."""
        self.until = until
        if self._waits.sweeper is None:
            self._scope.deadline = until

    def expire(self) -> None:
        """See `Waiting`."""
        self.until, self._expired = NEVER, True
        self._scope.cancel()

    def hasten(self, deadline: float) -> None:
        """See `Waiting`. ASGI servers decide for how long they still read when they stop."""

    @property
    def expired(self) -> bool:
        """See `Timer`."""
        return self._expired or (self._waits.sweeper is None and self._scope.cancel_called)

    def begin_handler(self, seconds: float) -> None:
        """See `Timer`. The next limit is set before anything else is awaited: the answer's."""
        self.wait_until(self._waits.time() + seconds)

    async def refuse_if_too_slow(self) -> None:
        """The wait that has ended the scope was for the rest of the body, or for the peer to take its answer."""
        if not self._reads:
            log.debug("the peer didn't take its answer in time")
            return
        refusal = refuse_head(408, f"Expected the whole body within {self.policy.body_timeout:g} s")
        with self.scope():
            await self.send_last(refusal)

    async def receive(self, *, expect_continue: bool) -> bytes | None:  # noqa: ARG002 - servers do that by themselves
        """See `Wire`. ASGI servers send 100 Continue by themselves."""
        if not self._more:
            self.wait_until(NEVER)
            self._reads = False
            return None
        if self._body_deadline is None:
            self._body_deadline = self._waits.time() + self.policy.body_timeout
            self._reads = True
            self.wait_until(self._body_deadline)
        message = await self._receive()
        if self.expired:  # at this very moment, or the server's `receive` has swallowed the cancellation
            await anyio.lowlevel.checkpoint_if_cancelled()
        if message["type"] == "http.disconnect":
            raise PeerGone
        self._more = message.get("more_body", False)
        return bytes(message.get("body", b""))

    async def send(self, answer: Respond) -> None:
        """See `Wire`."""
        response = answer.response
        size = len(response.body)
        try:
            await self._send(self._start(response))
            for start in range(0, size - WRITE_SIZE, WRITE_SIZE):
                await self._send(_piece(response.body[start : start + WRITE_SIZE], more=True))
                answer.progressed()
            await self._send(_piece(response.body[max(0, size - 1) // WRITE_SIZE * WRITE_SIZE :], more=False))
        except OSError as error:
            # ASGI 2.4: send() raises OSError once the peer has gone.
            raise PeerGone from error

    async def send_last(self, response: Response) -> None:
        """See `Wire`. Also refuses a request whose body didn't arrive."""
        try:
            await self._send(self._start(response))
            await self._send(_piece(response.body, more=False))
        except OSError as error:
            raise PeerGone from error

    def _start(self, response: Response) -> AsgiMessage:
        """The answer begins, and has so many seconds."""
        self.wait_until(self._waits.time() + self.policy.write_timeout)
        self._reads = False
        headers = list(response.headers)
        if response.close and self._says_close:
            headers.append((b"connection", b"close"))
        return {"type": "http.response.start", "status": response.status, "headers": headers}


def _piece(data: bytes, *, more: bool) -> AsgiMessage:
    return {"type": "http.response.body", "body": data, "more_body": more}
