"""What one job touches: which functions of the two packages run for it, and so which files its reader opens.

Each job runs once before it's counted, so that what is made once and kept isn't.
"""

import json
import sys
import threading
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import CodeType, FrameType

import anyio
from attrs import field, frozen

from asap_adapters import AgentClient, serve
from asap_adapters.cli.echo_agent import echo_manifest
from asap_core import Agent, Envelope, encode_envelope
from asap_core.auth.authorization import ClientCredentials
from asap_core.auth.client_credentials import ClientSecret
from tests.house.source import PACKAGES, ROOT

__all__ = ["Touched", "touched"]

FOLDERS = tuple(f"{ROOT / package}/" for package in PACKAGES)


@frozen
class Touched:
    """The functions that a job ran, each with its file."""

    functions: frozenset[tuple[str, str]] = field(repr=False)
    lines: Mapping[str, int] = field(repr=False)
    """How many lines these functions have, by file: what of it a reader of the job reads."""

    @property
    def files(self) -> list[str]:
        return sorted({file for file, _ in self.functions})


@contextmanager
def watching() -> Iterator[set[CodeType]]:
    """All functions of the two packages that this thread enters."""
    seen: set[CodeType] = set()

    def note(frame: FrameType, event: str, _argument: object) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(FOLDERS):
            seen.add(frame.f_code)

    sys.setprofile(note)
    try:
        yield seen
    finally:
        sys.setprofile(None)


def told(seen: set[CodeType]) -> Touched:
    functions = [code for code in seen if code.co_name != "<module>"]
    lines = {
        (file_of(code), number) for code in functions for number in range(code.co_firstlineno, last_line(code) + 1)
    }
    return Touched(
        frozenset((file_of(code), code.co_qualname) for code in functions), Counter(file for file, _ in lines)
    )


def file_of(code: CodeType) -> str:
    return code.co_filename.removeprefix(f"{ROOT}/")


def last_line(code: CodeType) -> int:
    return max(line for _, _, line in code.co_lines() if line is not None)


async def once(job: Callable[[], Awaitable[object]]) -> Touched:
    with watching() as seen:
        await job()
    return told(seen)


@asynccontextmanager
async def served() -> AsyncIterator[str]:
    """An echo agent, in this loop."""
    port = await free_port()
    agent = Agent(echo_manifest("urn:asap:agent:echo-agent", f"http://127.0.0.1:{port}"))
    stop = anyio.Event()
    async with anyio.create_task_group() as group:
        yield await group.start(partial(serve, agent, {"echo": echo}, at=("127.0.0.1", port), stop=stop))
        stop.set()


async def free_port() -> int:
    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
        return int(listener.extra(anyio.abc.SocketAttribute.local_port))


async def echo(request, _context: object) -> object:
    return request.input


@contextmanager
def elsewhere() -> Iterator[str]:
    """An echo agent in a thread, so that only the client's half runs in this one."""
    urls: list[str] = []
    ready, end = threading.Event(), threading.Event()

    async def main() -> None:
        async with served() as url:
            urls.append(url)
            ready.set()
            await anyio.to_thread.run_sync(end.wait)

    thread = threading.Thread(target=anyio.run, args=(main,))
    thread.start()
    ready.wait()
    try:
        yield urls[0]
    finally:
        end.set()
        thread.join()


class Provider(BaseHTTPRequestHandler):
    """An OAuth 2 provider that gives tokens to anybody."""

    def log_message(self, *_: object) -> None: ...

    def do_GET(self) -> None:
        here = f"http://{self.headers['host']}"
        self.answer({"issuer": here, "token_endpoint": f"{here}/token"})

    def do_POST(self) -> None:
        self.answer({"access_token": "secret", "token_type": "Bearer", "expires_in": 3600})

    def answer(self, document: object) -> None:
        body = json.dumps(document).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.send_header("content-type", "application/json")
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def provider() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Provider)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


async def a_post() -> Touched:
    async with served() as url:
        await post(url, request(1))
        return await once(partial(post, url, request(2)))


def request(number: int) -> bytes:
    """The bytes of one request. They're made before it's watched, since our client makes them by the same modules."""
    envelope = encode_envelope(message(number))
    call = {"jsonrpc": "2.0", "method": "asap.send", "id": number, "params": {"envelope": envelope}}
    body = json.dumps(call).encode()
    head = f"POST /asap HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
    return head.encode() + body


async def post(url: str, data: bytes) -> None:
    """One request over a raw socket."""
    host, _, port = url.removeprefix("http://").partition(":")
    async with await anyio.connect_tcp(host, int(port)) as stream:
        await stream.send(data)
        answer = b"".join([data async for data in stream])
    if b" 200 " not in answer.partition(b"\r\n")[0]:
        raise RuntimeError(f"the agent refused: {answer!r}")


def message(number: int) -> Envelope:
    return Envelope(
        id=f"message-{number}", asap_version="0.1", timestamp=datetime.now(UTC), sender="urn:asap:agent:me",
        recipient="urn:asap:agent:echo-agent", payload_type="task.request",
        payload={"conversation_id": "c", "skill_id": "echo", "input": {"number": number}},
        extensions={"nonce": f"nonce-{number}"},
    )  # fmt: skip


REQUEST = {"skill_id": "echo", "input": {}}


async def a_discovery() -> Touched:
    with elsewhere() as url:
        async with AgentClient(sender="urn:asap:agent:me") as client:
            await client.discover(url)
            client.reset()
            return await once(partial(client.discover, url))


async def a_send() -> Touched:
    with elsewhere() as url:
        async with AgentClient(sender="urn:asap:agent:me") as client:
            manifest = await client.discover(url)
            await client.send(manifest, "task.request", REQUEST)
            return await once(partial(client.send, manifest, "task.request", REQUEST))


async def a_cold_token() -> Touched:
    with elsewhere() as url, provider() as issuer:
        auth = {url: ClientCredentials(client=ClientSecret("me", "secret"), issuer=issuer)}
        async with AgentClient(sender="urn:asap:agent:me", auth=auth) as client:
            manifest = await client.discover(url)
            return await once(partial(client.send, manifest, "task.request", REQUEST))


JOBS = {"a POST": a_post, "discover": a_discovery, "send": a_send, "send with a cold token": a_cold_token}


def touched() -> dict[str, Touched]:
    """The functions that each job touches."""
    return {name: anyio.run(job) for name, job in JOBS.items()}
