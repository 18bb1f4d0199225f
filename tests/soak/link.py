"""One HTTP connection of the soak's peers, which may break it off at any byte."""

import asyncio
import json
import re
import socket
import ssl
import struct
import time
from contextlib import suppress
from datetime import UTC, datetime
from itertools import count
from typing import Any

from attrs import define, frozen

from tests.soak.served import AGENT
from tests.soak.world import Served

# Seconds that an honest caller waits for an answer. The handler's deadline and what waits for it are far less.
PATIENCE = 20.0
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_RETRY_AFTER = re.compile(rb"\r\nretry-after: *(\d+)", re.IGNORECASE)
_CLOSE = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)
_numbers = count()


def trusting() -> ssl.SSLContext:
    """TLS to any certificate, since they change."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


CONTEXT = trusting()


def post(skill: str, given: dict[str, object], *, sender: str, key: str | None = None, envelope_id: str = "") -> bytes:
    """A request with a timestamp and a nonce of its own."""
    number = next(_numbers)
    envelope = {
        "id": envelope_id or f"e{number}", "asap_version": "0.1", "sender": sender, "recipient": AGENT,
        "timestamp": datetime.now(UTC).isoformat().replace("+00:00", "Z"), "payload_type": "task.request",
        "payload": {"conversation_id": "c", "skill_id": skill, "input": given},
        "extensions": {"nonce": f"n{number}-{time.monotonic_ns()}"},
    }  # fmt: skip
    params: dict[str, object] = {"envelope": envelope}
    if key is not None:
        params["idempotency_key"] = key
    body = json.dumps({"jsonrpc": "2.0", "method": "asap.send", "id": number, "params": params}).encode()
    named = f"X-Idempotency-Key: {key}\r\n" if key is not None else ""
    head = f"POST /asap HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{named}"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


@frozen
class Answer:
    """A response: status, document, and the seconds after which to ask again, if it says so."""

    status: int
    document: Any
    retry_after: float | None
    closes: bool


@define(eq=False)
class Link:
    """One open connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @classmethod
    async def open(cls, one: Served, address: str = "127.0.0.1", *, window: int | None = None) -> "Link":
        """Connect from one of this machine's addresses. `window`: how many bytes are buffered unread."""
        opened = socket.socket()
        opened.setblocking(False)
        if window is not None:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
        try:
            opened.bind((address, 0))
            await asyncio.get_running_loop().sock_connect(opened, ("127.0.0.1", one.port))
            reader, writer = await asyncio.open_connection(
                sock=opened,
                ssl=CONTEXT if one.tls else None,
                server_hostname="localhost" if one.tls else None,
                limit=window or 65_536,
            )
        except BaseException:
            opened.close()
            raise
        return cls(reader, writer)

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self) -> Answer:
        """Read a response. Raises EOFError or OSError if it doesn't come."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        length, again = _LENGTH.search(head), _RETRY_AFTER.search(head)
        body = await self.reader.readexactly(int(length[1]) if length else 0)
        return Answer(
            int(head[9:12]), json.loads(body) if body else None, float(again[1]) if again else None,
            _CLOSE.search(head) is not None,
        )  # fmt: skip

    def leave(self, *, reset: bool) -> None:
        """Close it, or reset it (RST) as a crashed host's network does."""
        opened = self.writer.get_extra_info("socket")
        if reset and opened is not None:  # None once it's closed
            with suppress(OSError):
                opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.writer.transport.abort()
        else:
            self.writer.close()
