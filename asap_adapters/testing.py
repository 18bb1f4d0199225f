"""For users' tests: a client that talks to an agent in the same process, without sockets."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from types import TracebackType
from typing import Any, Self

import anyio
import anyio.abc
import httpx
from attrs import evolve

from asap_adapters.auth.authenticator import Authenticator, VerifyCredential
from asap_adapters.client.agent_client import AgentClient
from asap_adapters.memory_network import MemoryNetwork
from asap_adapters.net.outbound_transport import HttpOptions
from asap_adapters.server.driver import Driver
from asap_adapters.server.handlers import Handler, Handlers
from asap_adapters.server.startup import bind_agent
from asap_adapters.server.user_code import mark_own_task
from asap_core.arguments import expect_kind, replaced
from asap_core.http.messages import Request, Response
from asap_core.net.outbound import OutboundPolicy
from asap_core.net.urls import authority_of, host_in, origin_of
from asap_core.server.agent import Agent
from asap_core.server.exchange import Respond

__all__ = ["InProcessTransport", "MemoryNetwork", "in_process"]

DEFAULT_SENDER = "urn:asap:agent:test-client"
DEFAULT_PEER = "127.0.0.1"


class InProcessTransport(httpx.AsyncBaseTransport):
    """An httpx transport that passes requests to an agent instead of opening a connection.

    agent, handlers, authenticate: as in `serve`.
    peer: the address that callers seem to come from.

    If it's entered with `async with` (`in_process` and `httpx.AsyncClient` do that), it runs each exchange in a task of
    its own, so that a caller who gives up is free at once, as over HTTP; else in the caller's task. If the agent isn't
    bound, or is bound to another event loop, a copy is served: each transport begins anew.
    """

    @replaced(on="Handlers(handlers, on=…) for the handlers")
    def __init__(
        self,
        agent: Agent,
        handlers: Mapping[str, Handler] | Handlers,
        *,
        authenticate: Authenticator | VerifyCredential | None = None,
        peer: str = DEFAULT_PEER,
    ) -> None:
        expect_kind("agent", agent, Agent, "Agent(manifest)")
        served = agent if _runs_here(agent) else bind_agent(agent.unbound())
        self._driver = Driver(served, Handlers.of(handlers), authenticate=authenticate)
        self._peer = peer
        self._tasks: anyio.abc.TaskGroup | None = None
        self._group = _task_group()

    async def __aenter__(self) -> Self:
        """Run exchanges in tasks of their own from now on. Raises RuntimeError if it's entered already."""
        if self._tasks is not None:
            raise RuntimeError("expected to be entered once; httpx.AsyncClient(transport=…) enters it by itself")
        self._group = _task_group()
        self._tasks = await self._group.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        """Wait for running requests, `Policy.drain` seconds at most, as a server that stops does."""
        tasks, self._tasks = self._tasks, None
        if tasks is None:
            return
        agent = self._driver.agent
        agent.drain()
        tasks.cancel_scope.deadline = anyio.current_time() + (agent.policy.drain if error is None else 0.0)
        try:
            await self._group.__aexit__(kind, error, traceback)
        except BaseExceptionGroup as errors:
            one, *others = errors.exceptions
            if others:
                raise
            # What the caller's block raised goes on as it is: a group of its own is a copy here.
            if one is not error and not isinstance(error, BaseExceptionGroup):
                raise one from None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Answer one request."""
        head = Request(
            method=request.method,
            target=request.url.raw_path.decode("ascii"),
            headers=tuple((name.lower(), value) for name, value in request.headers.raw),
            peer=self._peer,
            local=DEFAULT_PEER,
        )
        wire = _Wire(await request.aread())
        exchange = partial(self._driver.run, head, wire)
        await (exchange() if self._tasks is None else _beside(self._tasks, exchange))
        response = wire.response
        return httpx.Response(response.status, headers=list(response.headers), stream=_Bytes(response.body))


def _runs_here(agent: Agent) -> bool:
    """Whether the agent is bound, to a clock that can be read in this event loop."""
    try:
        agent.now()
    except RuntimeError:
        return False
    return True


def _on_asyncio() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


@asynccontextmanager
async def _task_group() -> AsyncIterator[anyio.abc.TaskGroup]:
    """A task group. On asyncio it may be left in another task than it was entered in.

    Fixtures of pytest-asyncio are: it lives in a task of its own, which ends with the block. On trio, which has no
    tasks without a parent, the plugins enter and leave fixtures in one.
    """
    if not _on_asyncio():
        async with anyio.create_task_group() as tasks:
            yield tasks
        return
    began, end = anyio.Event(), anyio.Event()
    groups: list[anyio.abc.TaskGroup] = []

    async def host() -> None:
        async with anyio.create_task_group() as tasks:
            groups.append(tasks)
            began.set()
            await end.wait()

    hosting = asyncio.create_task(host())
    try:
        await began.wait()
        yield groups[0]
    finally:
        end.set()
        with anyio.CancelScope(shield=True):
            await hosting


async def _beside(tasks: anyio.abc.TaskGroup, exchange: Callable[[], Awaitable[object]]) -> None:
    """Run an exchange in a task of its own and wait for it. If the caller leaves, the exchange is cancelled."""
    over, scope = anyio.Event(), anyio.CancelScope()
    failed: list[Exception] = []

    async def run() -> None:
        mark_own_task()
        try:
            with scope:
                await exchange()
        except Exception as error:  # noqa: BLE001 - it's raised where it's waited for
            failed.append(error)
        finally:
            over.set()

    tasks.start_soon(run)
    try:
        await over.wait()
    finally:
        scope.cancel()
    if failed:
        raise failed[0]


class _Bytes(httpx.AsyncByteStream):
    """A body in one piece, which httpx reads itself."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._body


class _Wire:
    def __init__(self, body: bytes) -> None:
        self._chunks = [body] if body else []
        self.response = Response(status=500)

    async def receive(self, *, expect_continue: bool) -> bytes | None:
        del expect_continue
        return self._chunks.pop() if self._chunks else None

    async def send(self, answer: Respond) -> None:
        self.response = answer.response

    async def send_last(self, response: Response) -> None:
        self.response = response


@replaced(on="Handlers(handlers, on=…) for the handlers")
@asynccontextmanager
async def in_process(
    agent: Agent,
    handlers: Mapping[str, Handler] | Handlers,
    *,
    sender: str = DEFAULT_SENDER,
    authenticate: Authenticator | VerifyCredential | None = None,
    **client_options: Any,
) -> AsyncIterator[AgentClient]:
    """Make a client for an agent in this process. Every URL leads to that agent.

    agent, handlers, authenticate: as in `serve`.
    sender: the client's URN.
    client_options: further arguments of `AgentClient`.

    Nothing is remembered from one `in_process` to the next: an agent that isn't bound yet is taken as a copy. Leaving
    it waits for what is in flight, within `Policy.drain`.

    >>> async with in_process(agent, {"echo": echo}) as client:
    ...     reply = await client.send("http://localhost", "task.request", {"skill_id": "echo", "input": {}})
    """
    transport = InProcessTransport(agent, handlers, authenticate=authenticate)
    # Wherever the manifest says that the agent is, it's here.
    endpoint = agent.manifest.endpoints.asap
    endpoints = [origin] if (origin := origin_of(endpoint)) else []
    reachable = OutboundPolicy(allow_endpoints=endpoints, allow_http=[host_in(authority_of(endpoint) or "")])
    client_options.setdefault("outbound", reachable)
    client_options["http"] = evolve(client_options.get("http", HttpOptions()), transport=transport)
    async with transport, AgentClient(sender, **client_options) as client:
        yield client
