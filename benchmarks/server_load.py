"""Loads a server over keep-alive connections, each with one request at a time, and prints what came of it as JSON.

`python -m benchmarks.server_load PORT CASE AGENT CONNECTIONS SECONDS`. All connections are open before the measure
begins. It's a process of its own, so that it can have the other core.
"""

import json
import re
import selectors
import socket
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime

__all__ = ["CASES"]

# Requests and, of the response, whether it's the right one.
CASES = ("post 1 KB", "post 64 KB", "manifest", "304")
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE).search
_ETAG = re.compile(rb"\r\netag: *([^\r]+)", re.IGNORECASE).search
# What wrk does without being asked.
WARM_UP = 0.5
# Ours remembers 100,000 nonces of each.
SENDERS = 64
# Connections from one address; ours lets each have 100.
FROM_ONE = 50


def asap_call(agent: str, text: str) -> object:
    """A call with an envelope id and a nonce of its own, its keys in the order in which clients write them.

    Clients of this project and of the reference write the same order. A call in another one takes some 5 µs more.
    """
    stamp = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    envelope = {
        "id": "e-NUMBER", "asap_version": "0.1", "timestamp": stamp, "sender": "urn:asap:agent:alice-SENDER",
        "recipient": agent, "payload_type": "task.request",
        "payload": {"conversation_id": "c", "skill_id": "echo", "input": {"text": text}},
        "correlation_id": None, "trace_id": None, "requires_ack": False, "extensions": {"nonce": "n-NUMBER"},
    }  # fmt: skip
    return {"jsonrpc": "2.0", "method": "asap.send", "id": "1", "params": {"envelope": envelope}}


def a2a_call(_agent: str, text: str) -> object:
    """The same for A2A 1.0."""
    message = {"messageId": "e-NUMBER", "role": "ROLE_USER", "parts": [{"text": text}]}
    return {"jsonrpc": "2.0", "method": "SendMessage", "id": "n-NUMBER", "params": {"message": message}}


def posts(agent: str, size: int) -> Callable[[], bytes]:
    """Requests, no two of them the same, all of one size."""
    call, path = (a2a_call, "/a2a") if agent == "a2a" else (asap_call, "/asap")

    def text_of(text: str) -> str:
        return (
            json.dumps(call(agent, text), separators=(",", ":"))
            .replace("NUMBER", "%(n)020d")
            .replace("SENDER", "%(s)02d")
        )

    frame = len(text_of("") % {"n": 0, "s": 0})
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nA2A-Version: 1.0\r\n"
    template = f"{head}Content-Length: {size}\r\n\r\n{text_of('x' * (size - frame))}".encode()
    number = time.time_ns()

    def one() -> bytes:
        nonlocal number
        number += 1
        return template % {b"n": number, b"s": number % SENDERS}

    return one


def gets(etag: bytes | None) -> Callable[[], bytes]:
    condition = b"" if etag is None else b"If-None-Match: " + etag + b"\r\n"
    request = b"GET /.well-known/asap/manifest.json HTTP/1.1\r\nHost: 127.0.0.1\r\n" + condition + b"\r\n"
    return lambda: request


class Link:
    """One connection, the `number`th."""

    def __init__(self, port: int, number: int) -> None:
        address = f"127.0.1.{1 + number // FROM_ONE}" if sys.platform == "linux" else "127.0.0.1"
        self.socket = socket.create_connection(("127.0.0.1", port), source_address=(address, 0))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.began = 0.0
        self.data = b""

    def ask(self, request: bytes) -> None:
        self.began = time.perf_counter()
        self.socket.sendall(request)

    def read(self) -> bytes | None:
        """Read what's there. Returns the response if it's complete."""
        got = self.socket.recv(262_144)
        if not got:
            raise ConnectionError(f"closed by the server after {self.data[:200]!r}")
        data = self.data = self.data + got if self.data else got
        end = data.find(b"\r\n\r\n")
        if end < 0:
            return None
        length = _LENGTH(data, 0, end)
        if length is not None and not data.startswith(b"HTTP/1.1 304") and len(data) < end + 4 + int(length[1]):
            return None
        self.data = b""
        return data

    def wait(self) -> bytes:
        """Read a whole response."""
        while (answer := self.read()) is None:
            pass
        return answer


def run(port: int, case: str, agent: str, connections: int, seconds: float) -> dict[str, float]:
    status, expected = b"HTTP/1.1 200", b'"result"' if case.startswith("post") else b"urn:asap"
    make = posts(agent, 1_024 if case == "post 1 KB" else 65_536) if case.startswith("post") else gets(None)
    links = [Link(port, number) for number in range(connections)]
    # Each is served once, one after another: a busy server takes its time to accept, which isn't what is measured.
    answer = b""
    for link in links:
        link.ask(make())
        answer = link.wait()
    if case == "304" and agent != "floor":
        etag = _ETAG(answer)
        assert etag is not None, answer
        make, status, expected = gets(etag[1]), b"HTTP/1.1 304", b""
    poll = selectors.DefaultSelector()
    for link in links:
        poll.register(link.socket, selectors.EVENT_READ, link)
        link.ask(make())
    refused, asked, times, used = 0, 0, [], time.process_time()
    begins = time.perf_counter() + WARM_UP
    ends = begins + seconds
    while (now := time.perf_counter()) < ends:
        for key, _ in poll.select(1):
            link = key.data
            answer = link.read()
            if answer is None:
                continue
            now = time.perf_counter()
            if now >= begins:
                times.append(now - link.began)
            # The floor returns the request itself, or its head's empty body.
            refused += not (answer.startswith(status) and (expected in answer or agent == "floor"))
            asked += 1
            link.ask(make())
    times.sort()
    return {
        "load": (time.process_time() - used) / asked * 1e6, "rate": len(times) / seconds, "asked": asked,
        "refused": refused, "p50": times[len(times) // 2], "p99": times[len(times) * 99 // 100], "worst": times[-1],
    }  # fmt: skip


if __name__ == "__main__":
    print(json.dumps(run(int(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]), float(sys.argv[5]))))
