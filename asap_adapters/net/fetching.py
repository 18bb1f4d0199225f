"""Carries out a `Fetch`: one request, and its whole response into the effect's reader."""

import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Final, Protocol

import anyio
import httpx
from attrs import frozen

from asap_adapters.net.http_requests import FAILURES, failed, httpx_request
from asap_core.client.body_reader import BodyReader
from asap_core.client.connections import Progress
from asap_core.client.programs import Barred, Expired, Fetch, Received, Stage, Unanswered

# Chunks after which other tasks get a turn: tiny ones, of which h11 has thousands at once, take some 20 µs each.
_TURN: Final = 64
# Closing takes no time, except in a custom transport.
_END_SECONDS: Final = 1.0


class Transport(Protocol):
    """What makes requests."""

    async def exchange(self, asked: Fetch, progress: Progress) -> None:
        """Make one request, and read its response. Nothing of it is open afterwards. Raises one of `FAILURES`."""

    async def aclose(self) -> None:
        """Close all connections."""


async def fetch(transport: Transport, asked: Fetch) -> Received | Unanswered | Expired | Barred:
    """Make the request that `asked` describes. Nothing of it is open afterwards."""
    progress = Progress(patience=anyio.current_time() + asked.patience, route=asked.route)
    with anyio.move_on_after(asked.seconds):
        try:
            await transport.exchange(asked, progress)
        except FAILURES as error:
            return failed(error, progress.stage)
        return Received(progress.address)
    return Expired(progress.stage)


@frozen
class HttpxTransport:
    """A transport of httpx, such as a mock. Not used by httpx's client, which stores cookies, and logs URLs."""

    transport: httpx.AsyncBaseTransport

    async def exchange(self, asked: Fetch, progress: Progress) -> None:
        """See `Transport`."""
        response = await self.transport.handle_async_request(httpx_request(asked))
        progress.stage = Stage.ANSWERED
        # From a transport that makes complete responses, such as a mock: httpx has read and decompressed it already.
        whole = response.is_stream_consumed
        chunks = _in_one_piece(response.content) if whole else response.aiter_raw()
        asked.reader.begin(response.status_code, response.headers.multi_items(), decoded=whole)
        await read_body(asked.reader, chunks, response.aclose)

    async def aclose(self) -> None:
        """See `Transport`."""
        await self.transport.aclose()


async def _in_one_piece(content: bytes) -> AsyncIterator[bytes]:
    yield content


async def read_body(reader: BodyReader, chunks: AsyncIterator[bytes], close: Callable[[], Awaitable[None]]) -> None:
    """Read a body as far as it's wanted, and close it. Raises TimeoutError if the rest isn't worth waiting for."""
    count = 0
    try:
        with anyio.fail_after(reader.patience):
            async for chunk in chunks:
                reader.feed(chunk)
                count += 1
                await _work(reader, turn=count % _TURN == 0)
                if not reader.wants:
                    return
            reader.end()
    finally:
        # Otherwise the unfinished generators of httpx and httpcore warn at garbage collection. After the close, `anext`
        # ends them.
        with anyio.move_on_after(_END_SECONDS, shield=True):
            await close()
            with suppress(Exception):
                await anext(chunks)


async def _work(reader: BodyReader, *, turn: bool) -> None:
    """Let the reader work, and yield to other tasks in between, at least once if it's their `turn`.

    A cancellation is delivered at the next read instead, since an exception inside `async for` would leave httpx's
    generators unfinished.
    """
    while reader.work() or turn:
        turn = False
        with anyio.CancelScope(shield=True):
            await anyio.lowlevel.checkpoint()
        if anyio.current_effective_deadline() == -math.inf:
            return
