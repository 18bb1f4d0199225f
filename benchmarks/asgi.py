"""What the ASGI application adds to a trivial one, in process: `python -m benchmarks.asgi`.

Both get the same messages, as an ASGI server would pass them: a POST of 1 KB, each with an envelope of its own. The
trivial application reads the body and sends it back. Medians of rounds in turns, in microseconds of processor time.
"""

import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

import anyio

from asap_adapters.cli.echo_agent import ECHO_ID, echo, echo_manifest
from asap_adapters.server.asgi import AsgiApp
from asap_core import Agent, Policy, StartPolicy
from benchmarks.server_load import posts

__all__ = ["main"]

ROUNDS: Final = 9
REQUESTS: Final = 400
App = Callable[[Any, Any, Any], Awaitable[None]]


async def trivial(
    _scope: object, receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]
) -> None:
    """Echo the body."""
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


def scope_of(head: bytes) -> dict[str, Any]:
    """Return the scope of a request's head, as servers of HTTP/1.1 make it."""
    line, *fields = head.split(b"\r\n")
    method, target, _ = line.split()
    return {
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.4"}, "http_version": "1.1", "scheme": "http",
        "method": method.decode(), "path": target.decode(), "raw_path": target, "query_string": b"", "root_path": "",
        "headers": [tuple(part.strip() for part in field.lower().split(b":", 1)) for field in fields],
        "client": ("127.0.0.1", 50_000), "server": ("127.0.0.1", 8000), "state": {}, "extensions": {},
    }  # fmt: skip


async def requests(app: App, count: int) -> float:
    """Return the microseconds of processor time that each of `count` requests takes."""
    post, prepared = posts(ECHO_ID, 1_024), []
    for _ in range(count):
        head, _, body = post().partition(b"\r\n\r\n")
        prepared.append((scope_of(head), body))
    status = 0

    async def send(message: Any) -> None:
        nonlocal status
        status = message.get("status", status)

    began = time.process_time()
    for scope, body in prepared:
        first: Any = {"type": "http.request", "body": body, "more_body": False}

        async def receive(message: Any = first) -> Any:
            return message

        await app(scope, receive, send)
        assert status == 200, status
    return (time.process_time() - began) / count * 1e6


def ours() -> AsgiApp:
    manifest = echo_manifest(ECHO_ID, "http://127.0.0.1:8000")
    return AsgiApp(Agent(manifest, policy=Policy(peer_limits=(), start=StartPolicy.OPEN)), {"echo": echo})


async def measured() -> tuple[float, float]:
    """Return the medians of the trivial application and of ours."""
    app = ours()
    async with app.lifespan():
        rounds = [(await requests(trivial, REQUESTS), await requests(app, REQUESTS)) for _ in range(ROUNDS)]
    return statistics.median(one for one, _ in rounds[1:]), statistics.median(other for _, other in rounds[1:])


def main() -> None:
    """Print the table."""
    print("µs for each POST of 1 KB   trivial   ours   ours adds")
    for backend, options in (("trio", {}), ("asyncio", {}), ("asyncio", {"use_uvloop": True})):
        bare, full = anyio.run(measured, backend=backend, backend_options=options)
        name = "uvloop" if options else backend
        print(f"{name:<25}{bare:9.0f}{full:7.0f}{full - bare:12.0f}")


if __name__ == "__main__":
    main()
