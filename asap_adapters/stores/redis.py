"""Admission and limits in Redis or Valkey, shared by every process and host that serves an agent.

`asap_core.admission.redis` and its scripts decide; here one connection carries the questions, pipelined. While the
server is out of reach, everything that needs it is answered with `StoreUnavailable`, and no caller is queued.
"""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import anyio
import anyio.abc
from anyio.abc import ByteStream, TaskStatus
from coredis.connection import BaseConnection, Location, TCPLocation, UnixDomainSocketLocation
from coredis.exceptions import NoScriptError, RedisError
from coredis.pool import ConnectionPool

from asap_adapters.net.resolving import Resolver, SystemResolver
from asap_adapters.system import new_mark, new_secret
from asap_core.admission.admission import AdmissionAnswer, AdmissionQuestion, Admitted, Reservation, StoreUnavailable
from asap_core.admission.ratelimit import Granted, Limited
from asap_core.admission.redis import Begin, Command, SharedAdmission, SharedLimits
from asap_core.errors import BadStore
from asap_core.server.agent import Agent
from asap_core.server.exchange import TakeLimit

log: Final = logging.getLogger("asap.redis")

# Seconds. An answer takes a fifth of a millisecond; a caller who would wait for longer is told to retry.
_TIMEOUT: Final = 1.0
# Seconds between attempts to connect: not once per caller, and short enough for a restart to go unnoticed.
_PAUSE: Final = 0.1
# A server that was replaced answers `begin` once, so the second try is decided.
_TRIES: Final = 2
# Steps of an attempt to connect, each within `timeout`: probe, connect, handshake, begin. No caller waits for all.
_STEPS: Final = 4
# What is raised if the server can't be reached or can't be used.
_GONE: Final = (RedisError, OSError, BadStore)


class RedisStore:
    """Answers admission and limits for one agent, by its policy and URN. Made by `open`."""

    def __init__(self, agent: Agent, link: "_Link") -> None:
        policy, urn = agent.policy, agent.manifest.id
        self._link = link
        self._timeout = link.timeout
        self._retry_after = policy.retry_after_unavailable
        self._admission = SharedAdmission(urn, policy, secret=new_secret())
        self._limits = {
            scope: SharedLimits(urn, scope, limits, capacity=policy.limiter_capacity)
            for scope, limits in (("peer", policy.peer_limits), ("principal", policy.principal_limits))
        }
        self._away = False

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        url: str,
        agent: Agent,
        *,
        timeout: float = _TIMEOUT,  # noqa: ASYNC109 - of each answer, not of this call
    ) -> AsyncIterator["RedisStore"]:
        """Connect to `redis://[user:password@]host[:port][/db]`, `rediss://…` or `unix://…`, and begin there.

        timeout: how long one answer may take, in seconds, including a new connection and retries.

        Enter and leave it in the same task, since its connection runs in a child task. Raises OSError if the server
        can't be reached or refuses the login; `BadStore` if it can't be used; ValueError if `url` is invalid or the
        agent wasn't bound with `shared_admission=True`.
        """
        if agent.admission is not None:
            raise ValueError(
                "expected an agent that isn't bound, or is bound with shared_admission=True: others don't ask a store"
            )
        location, make = _connections(url, timeout)
        try:
            async with anyio.create_task_group() as group:
                link = _Link(location, make, group, timeout)
                store = cls(agent, link)
                link.begin = store._begin
                try:
                    await link.ready()
                except (RedisError, OSError) as error:
                    raise ConnectionError(f"{link.place}: {_reason(error)}") from None
                except BadStore as error:
                    raise BadStore(f"{link.place}: {error}") from None
                yield store
                group.cancel_scope.cancel()
        except ExceptionGroup as errors:
            # The child tasks raise nothing, so it's the one error raised above or in the caller's block.
            raise errors.exceptions[0] from None

    async def connection(self) -> BaseConnection:
        """Return the connection that carries the questions, for benchmarks. Raises OSError or RedisError."""
        return await self._link.ready()

    @property
    def keys(self) -> tuple[bytes, ...]:
        """The names of the keys that hold what was admitted. To delete them is a start without memory."""
        return self._admission.keys

    # --- admission ---------------------------------------------------------------------------------------------------

    async def ask(self, question: AdmissionQuestion) -> AdmissionAnswer:
        """Answer one question, atomically. If it's cancelled or times out, what it may have reserved is given back."""
        if question.nonce is None and question.idempotency_key is None:
            return Admitted(None)
        try:
            with anyio.fail_after(self._timeout) as limit:
                for _ in range(_TRIES):
                    connection = await self._link.ready()
                    answer = await self._ask_on(connection, question, until=limit.deadline)
                    if not isinstance(answer, Begin):
                        return answer
                    await self._begin(connection)
        except _GONE as error:
            return self._unavailable(error)
        return self._unavailable(BadStore("expected a server that stays the one it is"))

    async def _ask_on(
        self, connection: BaseConnection, question: AdmissionQuestion, *, until: float
    ) -> AdmissionAnswer | Begin:
        command = self._admission.ask(question, token=new_mark())
        try:
            return self._admission.answer(await self._run(connection, command), command)
        except BaseException:
            # It may have been reserved, and the caller has stopped waiting: the work never begins.
            reserved = self._admission.reservation_of(command)
            if reserved is not None:
                await self._release(connection, self._admission.give_back(reserved), until=until)
            raise

    async def _release(self, connection: BaseConnection, command: Command, *, until: float) -> None:
        """Give back on the connection that asked: if the server hangs, it reads both later, in this order."""
        if not _written(connection, command):
            await self._tell(command, within=until - anyio.current_time())

    async def _begin(self, connection: BaseConnection) -> None:
        self._admission.begun(await self._run(connection, self._admission.begin()))

    async def record(self, reservation: Reservation, outcome: object, size: int) -> None:
        """Keep the outcome for retries."""
        del size
        await self._tell(self._admission.record(reservation, outcome), tries=_TRIES)

    async def lose(self, reservation: Reservation) -> None:
        """Note that the work was cut off."""
        await self._tell(self._admission.lose(reservation), tries=_TRIES)

    async def give_back(self, reservation: Reservation) -> None:
        """Note that the work never began."""
        await self._tell(self._admission.give_back(reservation))

    async def _tell(self, command: Command, *, tries: int = 1, within: float | None = None) -> None:
        """End a reservation, even if the caller is cancelled. If that fails, it ends by itself at its deadline.

        tries: more than 1 if the work was done; sending the command twice changes nothing. All tries share the time of
        one answer, since the caller waits for them.
        """
        with anyio.CancelScope(shield=True):
            try:
                with anyio.fail_after(self._timeout if within is None else within):
                    while not await self._delivered(command, last=tries <= 1):
                        tries -= 1
                        await anyio.sleep(2 * _PAUSE)
            except _GONE as error:
                self._unavailable(error)

    async def _delivered(self, command: Command, *, last: bool) -> bool:
        try:
            connection = await self._link.ready()
            try:
                await self._run(connection, command)
            except anyio.get_cancelled_exc_class():
                # Timed out. Send it without waiting, as text: a server that recovers may not have the script.
                _written(connection, command)
                raise
        except _GONE:
            if last:
                raise
            return False
        return True

    # --- limits ------------------------------------------------------------------------------------------------------

    async def take(self, state: TakeLimit) -> Granted | Limited | StoreUnavailable:
        """Take from a share."""
        limits = self._limits[state.scope]
        try:
            command = limits.take(state.key, cost=state.cost, partial=state.partial)
            with anyio.fail_after(self._timeout):
                return limits.taken(await self._run(await self._link.ready(), command))
        except _GONE as error:
            return self._unavailable(error)

    # --- the server --------------------------------------------------------------------------------------------------

    async def _run(self, connection: BaseConnection, command: Command) -> object:
        reply = await self._link.run(connection, command)
        if self._away:
            self._away = False
            log.warning("%s answers again", self._link.place)
        return reply

    def _unavailable(self, error: BaseException) -> StoreUnavailable:
        if not self._away:  # logged once, not once per caller
            self._away = True
            log.error("%s can't be asked, so nothing is admitted: %s", self._link.place, _reason(error))
        return StoreUnavailable(self._retry_after)


def _reason(error: BaseException) -> str:
    """Return the reason in a few words. It never contains the URL, which may hold a password."""
    reason = ""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, BaseExceptionGroup):
            seen = seen.exceptions[0]
        # The system's own message is more precise than the wrapper's.
        reason = (seen.strerror if isinstance(seen, OSError) else "") or reason or str(seen)
        seen = seen.__cause__
    return reason or "it doesn't answer in time"


def _connections(url: str, timeout: float) -> tuple[Location, Callable[[Location], BaseConnection]]:
    scheme, separator, _ = url.partition("://")
    if scheme not in ("redis", "rediss", "unix") or not separator:
        raise ValueError("expected a URL such as redis://localhost:6379/0, rediss://… or unix:///path")
    try:
        # The pool only parses the URL. It isn't used, since it leaks a place if a caller is cancelled while connecting,
        # and 100 callers of a dead host would make 100 attempts.
        pool = ConnectionPool.from_url(
            url, decode_components=True, connect_timeout=timeout, stream_timeout=timeout, decode_responses=False
        )
    except (ValueError, TypeError, KeyError):
        raise ValueError("expected a URL such as redis://localhost:6379/0; some part of it isn't right") from None
    location = pool.location
    if location is None:
        raise ValueError("expected a URL with a host, such as redis://localhost:6379/0")
    options: Any = pool.connection_kwargs
    named = options.get("ssl_context") is not None
    make: Any = pool.connection_class  # of the location's kind
    return location, lambda reached: make(location if named else reached, **options)


async def _evaluate(connection: BaseConnection, command: Command) -> object:
    """Run a script. Raises RedisError or TimeoutError."""
    rest = (b"%d" % len(command.keys), *command.keys, *command.arguments)
    try:
        return await connection.create_request(b"EVALSHA", command.script.sha.encode("ascii"), *rest)
    except NoScriptError:
        return await connection.create_request(b"EVAL", command.script.text.encode("ascii"), *rest)


def _written(connection: BaseConnection, command: Command) -> bool:
    """Send a command without waiting for its reply. Returns False if the connection is lost."""
    rest = (b"%d" % len(command.keys), *command.keys, *command.arguments)
    try:
        connection.create_request(b"EVAL", command.script.text.encode("ascii"), *rest)
    except (RedisError, anyio.ClosedResourceError, anyio.BrokenResourceError):
        return False
    return True


class _Attempt:
    """One attempt to connect, shared by all callers that need a connection."""

    def __init__(self) -> None:
        self.over = anyio.Event()
        self.error: Exception | None = None


class _Link:
    """One pipelined connection, shared by all callers, and replaced when it's lost."""

    def __init__(
        self, location: Location, make: Callable[[Location], BaseConnection], group: anyio.abc.TaskGroup, timeout: float
    ) -> None:
        self._location = location
        self.place = f"redis at {location}"
        self._make = make
        self._resolver = SystemResolver()
        self._group = group
        self.timeout = timeout
        self._connection: BaseConnection | None = None
        self._attempt: _Attempt | None = None
        self.begin: Callable[[BaseConnection], Awaitable[None]] = _nothing

    async def ready(self) -> BaseConnection:
        """Return the connection, after `begin` on it. Raises what the attempt to connect raised."""
        while self._connection is None or not self._connection.usable:
            attempt = self._attempt
            if attempt is None:
                attempt = self._attempt = _Attempt()
                self._group.start_soon(self._live, attempt)
            await attempt.over.wait()
            if attempt.error is not None:
                raise attempt.error
        return self._connection

    async def run(self, connection: BaseConnection, command: Command) -> object:
        """Run a script. Raises RedisError or TimeoutError. A connection that hangs is abandoned."""
        asked = anyio.current_time()
        try:
            return await _evaluate(connection, command)
        except BaseException:
            # Half the timeout, thousands of times what an answer takes: callers that waited to connect have less left.
            if anyio.current_time() - asked >= self.timeout / 2:
                self._leave(connection)
            raise

    def _leave(self, connection: BaseConnection) -> None:
        """Send nothing more on this connection: it hangs, and would delay every later request."""
        if self._connection is connection:
            self._connection = None
            self._group.start_soon(self._end, connection)

    async def _end(self, connection: BaseConnection) -> None:
        # By then all callers that waited there have timed out, and have sent what they give back.
        await anyio.sleep(self.timeout + _PAUSE)
        connection.invalidate("no answer in time")

    async def _live(self, attempt: _Attempt) -> None:
        """Connect, and serve until the connection is lost."""
        try:
            async with anyio.create_task_group() as group:
                try:
                    with anyio.fail_after(_STEPS * self.timeout):
                        with anyio.fail_after(self.timeout):
                            reached = await _probe(self._location, self._resolver)
                        connection = self._make(reached)
                        await group.start(_carry, connection)
                        await self.begin(connection)
                except Exception as error:  # noqa: BLE001 - the waiting callers raise it
                    attempt.error = error
                    group.cancel_scope.cancel()
                else:
                    # No await between the reply to `begin` and this, so its run id is that of this connection's server.
                    self._connection, self._attempt = connection, None
                attempt.over.set()
            if attempt.error is not None:
                await anyio.sleep(_PAUSE)
        finally:
            if self._attempt is attempt:
                self._attempt = None


async def _probe(location: Location, resolver: Resolver) -> Location:
    """Return a location that accepts connections. Raises OSError if none does.

    Probing first is needed since coredis leaks its stream if it can't connect. Names are resolved here, in threads of
    our own; with TLS the connection needs the name, so it resolves it again.
    """
    match location:
        case TCPLocation():
            address = await _connectable(
                location.host, location.port, await resolver.resolve(location.host, location.port)
            )
            return TCPLocation(address, location.port)
        case UnixDomainSocketLocation():
            stream: ByteStream = await anyio.connect_unix(location.path)
            await stream.aclose()
    return location


async def _connectable(host: str, port: int, addresses: Sequence[str]) -> str:
    failed: OSError = OSError(f"{host} has no address")
    for address in addresses:
        try:
            stream = await anyio.connect_tcp(address, port)
        except OSError as error:
            failed = error
        else:
            await stream.aclose()
            return address
    raise failed


async def _carry(connection: BaseConnection, *, task_status: TaskStatus[None]) -> None:
    greeted = False

    class Greeted:
        def started(self, value: None = None) -> None:
            nonlocal greeted
            greeted = True
            task_status.started(value)

    try:
        await connection.run(task_status=Greeted())
    except RedisError as error:
        if not greeted:
            raise
        log.debug("a connection ended: %s", error)


async def _nothing(_connection: BaseConnection) -> None:
    """Do nothing: stands in for `begin` until the store is made."""
