"""For users' tests: a client that talks to an agent in the same process, without sockets, through the same Exchange."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx

from asap_adapters.client import AgentClient
from asap_adapters.drive import Authenticator, Driver
from asap_adapters.handlers import Handler, Handlers
from asap_adapters.serve import bind_agent
from asap_core.client.outbound import origin_of
from asap_core.http import Request, Response
from asap_core.server.agent import Agent
from asap_core.server.exchange import Respond

__all__ = ["InProcessTransport", "in_process"]

DEFAULT_SENDER = "urn:asap:agent:test-client"


class InProcessTransport(httpx.AsyncBaseTransport):
    """An httpx transport that drives an agent instead of opening a connection."""

    def __init__(
        self,
        agent: Agent,
        handlers: Mapping[str, Handler],
        *,
        on: Mapping[str, Handler] | None = None,
        authenticate: Authenticator | None = None,
        peer: str = "127.0.0.1",
    ) -> None:
        self._driver = Driver(bind_agent(agent), Handlers(handlers, on=on), authenticate=authenticate)
        self._peer = peer

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Answer one request."""
        head = Request(
            method=request.method,
            target=request.url.raw_path.decode("ascii"),
            headers=tuple((name.lower(), value) for name, value in request.headers.raw),
            peer=self._peer,
        )
        wire = _Wire(await request.aread())
        await self._driver.run(head, wire)
        response = wire.response
        return httpx.Response(response.status, headers=list(response.headers), stream=_Bytes(response.body))


class _Bytes(httpx.AsyncByteStream):
    """A body that comes in one piece, unread as httpx wants it."""

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


@asynccontextmanager
async def in_process(
    agent: Agent,
    handlers: Mapping[str, Handler],
    *,
    sender: str = DEFAULT_SENDER,
    on: Mapping[str, Handler] | None = None,
    authenticate: Authenticator | None = None,
    **client_options: Any,
) -> AsyncIterator[AgentClient]:
    """A client for `agent` in this process; every URL leads to it.

    >>> async with in_process(agent, {"echo": echo}) as client:
    ...     reply = await client.send("http://localhost", "task.request", {"skill_id": "echo", "input": {}})
    """
    transport = InProcessTransport(agent, handlers, on=on, authenticate=authenticate)
    # Wherever the manifest says that the agent is, it's here.
    endpoint = agent.manifest.endpoints.asap
    client_options.setdefault("allow_endpoints", [origin] if (origin := origin_of(endpoint)) else [])
    client_options.setdefault("allow_http", [urlsplit(endpoint).hostname or ""])
    async with AgentClient(sender=sender, transport=transport, **client_options) as client:
        yield client
