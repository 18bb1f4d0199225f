"""Carries out a `Fetch` over an httpx transport: one request, and its whole response into the effect's reader."""

import math
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from typing import Final

import anyio
import httpx

from asap_adapters.net.httpcore_requests import PROGRESS, ROUTE
from asap_core.client.body_reader import BodyReader
from asap_core.client.connections import Progress
from asap_core.client.programs import Barred, Expired, Fetch, Received, Stage, Unanswered
from asap_core.errors import Advice, NotAllowed

# Chunks after which other tasks get a turn: tiny ones, of which h11 has thousands at once, take some 20 µs each.
_TURN: Final = 64
# Closing takes no time, except in a custom transport.
_END_SECONDS: Final = 1.0


async def fetch(transport: httpx.AsyncBaseTransport, asked: Fetch) -> Received | Unanswered | Expired | Barred:
    """Make the request that `asked` describes. Nothing of it is open afterwards."""
    progress = Progress(patience=anyio.current_time() + asked.patience)
    request = httpx_request(asked, progress)
    if isinstance(request, Barred):
        return request
    outcome: Received | Unanswered | Expired | Barred | None = None
    with anyio.move_on_after(asked.seconds):
        outcome = await _exchange(transport, request, asked.reader, progress)
    return Expired(progress.stage) if outcome is None else outcome


async def _exchange(
    transport: httpx.AsyncBaseTransport, request: httpx.Request, reader: BodyReader, progress: Progress
) -> Received | Unanswered | Expired | Barred:
    try:
        # Not by httpx's client, which stores cookies, and logs URLs with their secrets.
        response = await transport.handle_async_request(request)
        progress.stage = Stage.ANSWERED
        try:
            await _read(response, reader)
        finally:
            with anyio.CancelScope(shield=True):
                await response.aclose()
    except (NotAllowed, TimeoutError, httpx.HTTPError) as error:
        return failed(error, progress.stage)
    return Received(progress.address)


def httpx_request(asked: Fetch, progress: Progress) -> httpx.Request | Barred:
    """Return the request for a transport, with its route and its progress. Barred if its host isn't one."""
    try:
        request = httpx.Request(
            asked.method,
            asked.url,
            headers=list(asked.headers),
            content=asked.body,
            extensions={
                "timeout": dict.fromkeys(("connect", "read", "write", "pool"), asked.seconds),
                PROGRESS: progress,
                ROUTE: asked.route,
            },
        )
    except (httpx.InvalidURL, UnicodeError):  # idna's errors are UnicodeErrors
        request = None
    # If httpx parses another host from the URL than the policy did, the request would go to an unchecked host.
    if request is None or request.url.raw_host.decode("ascii").lower() != asked.route.host.lower():
        return Barred("its host is not a valid host name", Advice("expected a URL such as https://agent.example"))
    return request


async def _read(response: httpx.Response, reader: BodyReader) -> None:
    # From a transport that makes complete responses, such as a mock: httpx has read and decompressed it already.
    whole = response.is_stream_consumed
    reader.begin(response.status_code, response.headers.multi_items(), decoded=whole)
    chunks = _in_one_piece(response.content) if whole else response.aiter_raw()
    count = 0
    try:
        with anyio.fail_after(reader.patience):
            async for chunk in chunks:
                reader.feed(chunk)
                count += 1
                await _work(reader, turn=count % _TURN == 0)
                if not reader.wants:
                    break
            else:
                reader.end()
                return
    except BaseException:
        await _close(response, chunks)
        raise
    await _close(response, chunks)


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


async def _close(response: httpx.Response, chunks: AsyncIterator[bytes]) -> None:
    """Close an unfinished body, and the generators of httpx and httpcore behind it.

    Otherwise unfinished generators warn at garbage collection. After the close, `anext` ends them.
    """
    with anyio.move_on_after(_END_SECONDS, shield=True):
        await response.aclose()
        with suppress(Exception):
            await anext(chunks)


async def _in_one_piece(content: bytes) -> AsyncIterator[bytes]:
    yield content


# --- words -----------------------------------------------------------------------------------------------------------
# The messages of h11 and httpx repeat what the peer sent, are empty, or lack the address.


def failed(error: NotAllowed | TimeoutError | httpx.HTTPError, stage: Stage) -> Unanswered | Expired | Barred:
    """Return the outcome of a request that failed at this stage."""
    if isinstance(error, NotAllowed):
        return Barred(error.reason, error.remedy)
    if isinstance(error, httpx.PoolTimeout):
        stage = Stage.QUEUED
    elif isinstance(error, httpx.ConnectError | httpx.ConnectTimeout) and stage is not Stage.QUEUED:
        stage = Stage.CONNECTING
    if isinstance(error, TimeoutError | httpx.TimeoutException):
        return Expired(stage)
    return Unanswered(stage, _words_of(error), silent=stage is Stage.SENT and _said_nothing(error))


def _said_nothing(error: Exception) -> bool:
    """Whether the peer closed the connection without answering. httpcore has no exception of its own for that."""
    return isinstance(error, httpx.ReadError) or str(error).startswith("Server disconnected without")


def _words_of(error: Exception) -> str:
    untrusted = next((cause for cause in _causes(error) if isinstance(cause, ssl.SSLCertVerificationError)), None)
    if untrusted is not None:
        # On trio it's two causes down, under errors without a message.
        return f"its certificate isn't trusted: {untrusted.verify_message}"
    if isinstance(error, httpx.ConnectError):
        words = " ".join(str(error).split())  # from `dialling`
        return f"can't connect: {words}" if words else "can't connect"
    kinds = {
        httpx.ProxyError: "the proxy doesn't connect to it",
        httpx.RemoteProtocolError: "what came back isn't an HTTP answer, or ended early",
        httpx.ReadError: "the connection broke",
        httpx.WriteError: "the connection broke",
    }
    return next((text for known, text in kinds.items() if isinstance(error, known)), "the request failed")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
