"""Virtual time on both backends, in-memory streams, and an agent to talk to.

trio has MockClock; asyncio gets a loop whose selector, when nothing is ready, advances the clock instead of waiting.
"""

import asyncio
import selectors
from collections.abc import Callable
from functools import partial
from typing import Any

import anyio
import pytest
import trio.testing

from asap_adapters.testing import InProcessTransport
from asap_core import Agent, Manifest
from tests import builders
from tests.clients import make_client

# Worker threads, which asyncio's own clean-up uses, report within milliseconds, or seconds if the machine is busy; what
# takes this long is a deadlock.
DEADLOCK_SECONDS = 60.0


class VirtualSelector(selectors.DefaultSelector):
    """Waits for nothing: lets time pass."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout=None):
        ready = super().select(0)
        if ready or timeout == 0:
            return ready
        if timeout is None:
            ready = super().select(DEADLOCK_SECONDS)
            if not ready:
                raise RuntimeError("deadlock: nothing is scheduled, and nothing will ever happen")
            return ready
        # One more real look, a moment long, so that worker threads get their turn.
        self.now += timeout
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._virtual = VirtualSelector()
        super().__init__(self._virtual)

    def time(self):
        return self._virtual.now


def virtual_trio():
    return ("trio", {"clock": trio.testing.MockClock(autojump_threshold=0)})


@pytest.fixture(params=["trio", "asyncio"])
def anyio_backend(request):
    return virtual_trio() if request.param == "trio" else ("asyncio", {"loop_factory": VirtualLoop})


class MemoryStream:
    """One end of a byte stream in memory, as much of anyio's ByteStream as the server uses."""

    def __init__(self, incoming, outgoing) -> None:
        self._incoming = incoming
        self._outgoing = outgoing
        self._rest = b""
        self.chunk = 65_536

    async def receive(self, max_bytes=65_536):
        if not self._rest:
            self._rest = await self._incoming.receive()
        size = min(max_bytes, self.chunk)
        data, self._rest = self._rest[:size], self._rest[size:]
        return data

    async def send(self, data) -> None:
        await self._outgoing.send(data)

    def extra(self, _attribute, default):
        return default  # it has no socket

    async def send_eof(self) -> None:
        self._outgoing.close()

    async def aclose(self) -> None:
        self._incoming.close()
        self._outgoing.close()


@pytest.fixture
def pipe():
    """Make a pair of connected streams; both are closed at the end."""
    made: list[Any] = []

    def make():
        to_server, from_client = anyio.create_memory_object_stream(100)  # type: ignore[var-annotated]
        to_client, from_server = anyio.create_memory_object_stream(100)  # type: ignore[var-annotated]
        made.extend([to_server, from_client, to_client, from_server])
        return MemoryStream(from_server, to_server), MemoryStream(from_client, to_client)

    yield make
    for end in made:
        end.close()


BASE = "http://localhost"


@pytest.fixture
def manifest() -> Callable[..., Manifest]:
    """Make the manifest of an agent at BASE."""
    return partial(builders.manifest, url=f"{BASE}/asap")


@pytest.fixture
def agent(manifest: Callable[..., Manifest]) -> Callable[..., Agent]:
    """Make an agent at BASE with these skills and this policy."""

    def make(*skills: str, auth: bool = False, **policy) -> Agent:
        return builders.agent(manifest(*skills, auth=auth), **policy)

    return make


async def echo(request, _context):
    return {"echoed": request.input}


@pytest.fixture
def echo_handlers():
    return {"echo": echo}


class CountingTransport(InProcessTransport):
    """Counts what the agent is asked, and may take its time."""

    def __init__(self, *args, seconds=0.0, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.paths: Any = []
        self.seconds = seconds
        self.fail_with = None

    async def handle_async_request(self, request):
        self.paths.append(request.url.path)
        await anyio.sleep(self.seconds)
        if self.fail_with is not None:
            raise self.fail_with
        return await super().handle_async_request(request)


@pytest.fixture
def counting(agent, echo_handlers):
    def make(**kwargs):
        return CountingTransport(agent(), echo_handlers, **kwargs)

    return make


@pytest.fixture
def client_of():
    def make(transport, **kwargs):
        return make_client(sender="urn:asap:agent:tester", transport=transport, **kwargs)

    return make
