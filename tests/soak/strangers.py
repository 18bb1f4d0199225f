"""Peers that mean no good, or can't do better: slow readers, slow bodies and heads, garbage."""

import asyncio
import json
import random
import ssl
from collections import Counter

from attrs import define

from tests.soak.link import Link, post
from tests.soak.world import World

ADDRESS = "127.0.0.2"
SLOW_READERS = 6
SLOW_SENDERS = 6
GARBAGE = 4
_SENDER = "urn:asap:agent:stranger"
_ENDED = (OSError, EOFError, ssl.SSLError, TimeoutError, asyncio.LimitOverrunError, json.JSONDecodeError)
# Seconds in which each of them is over, whatever the server does: its own limits are 3 and 4.
_PATIENCE = 10.0


def garbage(chance: random.Random) -> bytes:
    """Bytes that no request begins with, or one that is wrong somewhere."""
    request = post("work", {"id": "garbage", "seconds": 0}, sender=_SENDER)
    head, _, body = request.partition(b"\r\n\r\n")
    chunked = b"POST /asap HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    return chance.choice(
        [
            chance.randbytes(chance.randrange(1, 3_000)),
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + chance.randbytes(500),
            b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 5_000 + b"\r\n",
            b"POST /asap HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n{}",
            b"POST /asap HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999\r\n\r\n",
            head + b"\r\n\r\n" + chance.randbytes(len(body)),
            head + b"\r\n\r\n" + b"[" * len(body),
            chunked + b"zz\r\n" + body,
            chunked + b"5\r\nabcdefgh",
            request.replace(b"asap.send", b"asap.sand"),
            request.replace(b"timestamp", b"timestomp"),
            b"\r\n" * 10_000,
        ]
    )


@define(eq=False)
class Strangers:
    """All of them, for as long as the task that runs them isn't cancelled."""

    world: World
    chance: random.Random
    counts: Counter[str]

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for each, number in ((self.read, SLOW_READERS), (self.trickle, SLOW_SENDERS), (self.babble, GARBAGE)):
                for _ in range(number):
                    group.create_task(self._again_and_again(each))

    async def _again_and_again(self, each) -> None:
        while True:
            link = None
            try:
                async with asyncio.timeout(_PATIENCE):
                    window = 4_096 if each == self.read else None
                    link = await Link.open(self.chance.choice(self.world.served), ADDRESS, window=window)
                    await each(link)
            except _ENDED:
                pass
            finally:
                if link is not None:
                    link.leave(reset=self.chance.random() < 0.5)
            await asyncio.sleep(self.chance.random() * 0.2)

    async def read(self, link: Link) -> None:
        """Ask for a megabyte, and read it slowly, or not at all."""
        self.counts["slow readers"] += 1
        await link.send(post("large", {}, sender=_SENDER))
        pause = self.chance.choice((0.001, 0.05, _PATIENCE))
        while await link.reader.read(16_384):  # noqa: ASYNC110 - slow is what it's for
            await asyncio.sleep(pause)

    async def trickle(self, link: Link) -> None:
        """Send a request byte by byte, from somewhere on."""
        self.counts["slow senders"] += 1
        request = post("work", {"id": "trickled", "seconds": 0, "text": "x" * 500}, sender=_SENDER)
        start = self.chance.randrange(len(request))
        await link.send(request[:start])
        for at in range(start, len(request)):
            await link.send(request[at : at + 1])
            await asyncio.sleep(0.05)
        await link.answer()

    async def babble(self, link: Link) -> None:
        self.counts["garbage"] += 1
        await link.send(garbage(self.chance))
        async with asyncio.timeout(1):
            await link.reader.read()
