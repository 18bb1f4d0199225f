"""What it costs to judge where a request goes: ours beside bare httpx, on connections that are kept and on new ones.

Client, server and resolver share a process; the rivals take turns, so that whatever else the machine does meets all.
"""

import statistics
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from socket import create_server, socket

import anyio
import httpx

from asap_adapters.driver import ProgramDriver
from asap_adapters.net.outbound_transport import HttpOptions
from asap_core.client.requests import Requests
from asap_core.net.outbound import OutboundPolicy

__all__ = ["run"]

ROUNDS, KEPT, NEW = 30, 40, 20
REPLY = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n%s\r\n{}"

Request = Callable[[str], Awaitable[object]]


class Here:
    """A resolver that costs nothing: what's measured is what's done about its answer."""

    async def resolve(self, host: str, port: int) -> Sequence[str]:
        del host, port
        return ("127.0.0.1",)


def answer(peer: socket) -> None:
    with peer:
        while head := peer.recv(65_536):
            closing = b"GET /new " in head
            peer.sendall(REPLY % (b"connection: close\r\n" if closing else b""))
            if closing:
                return


def serve(listener: socket) -> None:
    while True:
        peer, _ = listener.accept()
        threading.Thread(target=answer, args=(peer,), daemon=True).start()


async def microseconds(request: Request, url: str, times: int) -> float:
    began = time.perf_counter()
    for _ in range(times):
        await request(url)
    return (time.perf_counter() - began) / times * 1e6


async def measure(base: str) -> None:
    policy = OutboundPolicy(allow_http=["agent.lan"], allow_networks=["127.0.0.0/8"])
    driver = ProgramDriver(HttpOptions(resolver=Here()), owner="the benchmark")
    requests = Requests(driver.runtime, policy=policy)
    driver.open()
    client = httpx.AsyncClient(trust_env=False)
    transport = httpx.AsyncHTTPTransport()

    async def ours(url: str) -> object:
        return await driver.run(requests.get(requests.judge(url), (), 1000))

    async def named(url: str) -> object:
        return await ours(url.replace("127.0.0.1", "agent.lan"))

    async def through_client(url: str) -> object:
        return await client.get(url)

    async def through_transport(url: str) -> object:
        response = await transport.handle_async_request(httpx.Request("GET", url))
        return await response.aread()

    rivals = {
        "httpx's transport, bare": through_transport,
        "httpx's client": through_client,
        "ours, by address": ours,
        "ours, by name": named,
    }
    for path, times, what in (("/kept", KEPT, "a connection that is kept"), ("/new", NEW, "a new connection")):
        taken: dict[str, list[float]] = {name: [] for name in rivals}
        for _ in range(ROUNDS):
            for name, request in rivals.items():
                taken[name].append(await microseconds(request, base + path, times))
        print(what)
        bare = statistics.median(taken["httpx's transport, bare"])
        for name, figures in taken.items():
            median = statistics.median(figures)
            print(f"  {name:<28}{median:8.0f} µs   {median / bare:.2f}x")
    await driver.aclose()
    await client.aclose()
    await transport.aclose()
    decide(policy)


def decide(policy: OutboundPolicy) -> None:
    """The decisions alone."""
    answers = ["8.8.8.8", "2606:4700::1"]
    calls: dict[str, Callable[[], object]] = {
        "judge a URL": lambda: policy.judge("https://agent.example:8443/.well-known/asap/manifest.json"),
        "judge what a name resolves to (2)": lambda: policy.choose("agent.example", answers, port=443),
    }
    for what, call in calls.items():
        began = time.perf_counter()
        for _ in range(5_000):
            call()
        print(f"{what:<34}{(time.perf_counter() - began) / 5_000 * 1e6:6.1f} µs")


def run() -> None:
    """Print the table."""
    with create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, args=(listener,), daemon=True).start()
        for backend in ("asyncio", "trio"):
            print(f"{backend}:")
            anyio.run(measure, f"http://127.0.0.1:{listener.getsockname()[1]}", backend=backend)


if __name__ == "__main__":
    run()
