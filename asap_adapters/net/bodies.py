"""Reads the bodies of responses: decompresses within a limit, and passes large ones on in small pieces."""

import math
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any, Final

import anyio
import httpx

from asap_adapters.coding import CODINGS
from asap_core.http.body import BadCoding, Body, BodyTooLarge, Gzip

# RFC 9110 §8.4.1.3: "A recipient SHOULD consider \"x-gzip\" to be equivalent to \"gzip\"."
_CODINGS: Final[dict[str, Callable[[], Any]]] = {"gzip": Gzip, "x-gzip": Gzip, "br": CODINGS[b"br"]}
# Bytes passed on at once: a reader needs a millisecond for them.
READ_PIECE: Final = 8_192
# Bytes decompressed at once: they become a thousand times as many at most, in a few milliseconds.
_CODED_PIECE: Final = 1_024
# Closing takes no time, except in a custom transport.
_END_SECONDS: Final = 1.0
# Drain at most this much so that the connection can be reused: a new one costs a round trip or two.
_DRAIN_SECONDS: Final = 0.2
_DRAIN_BYTES: Final = 65_536
# The body of an error response follows its head at once. Without it, the status is reported.
_ERROR_SECONDS: Final = 5.0


async def read_body(response: httpx.Response, limit: int, into: Callable[[bytes], object] | None) -> bytes:
    """Read a response's body, decompressed within the limit. httpx decompresses without a limit.

    into: called with pieces of the body, which isn't returned then. Its exceptions propagate.
    Raises: BodyTooLarge, BadCoding.
    """
    make = _inflater_for(response)
    if response.is_stream_consumed:
        # From a transport that makes complete responses, such as a mock: httpx has read and decompressed it already.
        make = None
        chunks: AsyncIterator[bytes] = _in_one_piece(response.content)
    else:
        chunks = response.aiter_raw()
    body = Body(limit=limit, inflater=None if make is None else make())
    empty = True
    try:
        async for chunk in chunks:
            empty = empty and not chunk
            if into is None:
                body.feed(chunk)
                continue
            # Compressed data may become a thousand times as much.
            step = _CODED_PIECE if make is not None else len(chunk)
            for start in range(0, len(chunk), step):
                body.feed(chunk[start : start + step])
                await _feed(body.take(), into)
    except BaseException:
        await _close(response, chunks)
        raise
    # A missing body isn't a truncated compressed one.
    rest = b"" if empty else body.end()
    if into is None:
        return rest
    await _feed(rest, into)
    # After a cancellation, `_feed` may have stopped early.
    await anyio.lowlevel.checkpoint_if_cancelled()
    return b""


async def read_body_if_possible(response: httpx.Response, limit: int) -> bytes:
    """Return the body of an error response; empty if it's unreadable, since the status decides."""
    with anyio.move_on_after(_ERROR_SECONDS):
        try:
            return await read_body(response, limit, None)
        except (BadCoding, BodyTooLarge, httpx.HTTPError):
            pass
    return b""


async def drain(response: httpx.Response) -> None:
    """Read a body without using it, so that the connection can be reused. A 304 has none (RFC 9110 §15.4.5)."""
    if response.is_stream_consumed:
        return
    chunks, length = response.aiter_raw(), 0
    try:
        with anyio.move_on_after(_DRAIN_SECONDS):
            async for chunk in chunks:
                length += len(chunk)
                if length > _DRAIN_BYTES:
                    break
            else:
                return
    except httpx.HTTPError:
        return
    except BaseException:
        await _close(response, chunks)
        raise
    await _close(response, chunks)


def _inflater_for(response: httpx.Response) -> Callable[[], Any] | None:
    value = response.headers.get("content-encoding", "")
    codings = [coding for each in value.split(",") if (coding := each.strip().lower()) not in ("", "identity")]
    if len(codings) > 1 or not _CODINGS.keys() >= set(codings):
        raise BadCoding("expected a body in gzip, br, or plain")
    return _CODINGS[codings[0]] if codings else None


async def _close(response: httpx.Response, chunks: AsyncIterator[bytes]) -> None:
    """Close an unfinished body, and the generators of httpx and httpcore behind it.

    Otherwise unfinished generators warn at garbage collection. After the close, `anext` ends them.
    """
    with anyio.move_on_after(_END_SECONDS, shield=True):
        await response.aclose()
        with suppress(Exception):
            await anext(chunks)


async def _feed(data: bytes, into: Callable[[bytes], object]) -> None:
    """Pass the data on in pieces, and yield to other tasks in between.

    A cancellation is delivered at the next read instead, since an exception inside `async for` would leave httpx's
    generators unfinished.
    """
    for start in range(0, len(data), READ_PIECE):
        into(data[start : start + READ_PIECE])
        with anyio.CancelScope(shield=True):
            await anyio.lowlevel.checkpoint()
        if anyio.current_effective_deadline() == -math.inf:
            return


async def _in_one_piece(content: bytes) -> AsyncIterator[bytes]:
    yield content
