"""Reads the bodies of responses: inflated within a limit, and given on in small pieces where they may be large."""

import math
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any, Final

import anyio
import httpx

from asap_adapters.coding import CODINGS
from asap_core.http import BadCoding, Body, Gzip

__all__ = ["PIECE", "read_body"]

_CODINGS: Final[dict[str, Callable[[], Any]]] = {"gzip": Gzip, "br": CODINGS[b"br"]}
# Read in one go: what takes a reader a millisecond.
PIECE: Final = 8_192
# Inflated in one go: a thousand times as much at most, a few milliseconds.
_CODED_PIECE: Final = 1_024
# Closing waits for nobody; a transport that does isn't waited for.
_END_SECONDS: Final = 1.0


async def read_body(response: httpx.Response, limit: int, into: Callable[[bytes], object] | None) -> bytes:
    """Read a response's body, inflated within the limit: httpx would inflate first and count never (fault 43).

    With `into` it's given on in pieces, and nothing is returned. Raises `BodyTooLarge`, `BadCoding`, what `into` does.
    """
    coding = response.headers.get("content-encoding", "").strip().lower()
    if coding not in ("", "identity", *_CODINGS):
        raise BadCoding("expected a body in gzip, br, or plain")
    make = _CODINGS.get(coding)
    if response.is_stream_consumed:
        # A transport that makes whole responses, as mocks do: httpx has read and inflated it already.
        make = None
        chunks: AsyncIterator[bytes] = _in_one_piece(response.content)
    else:
        chunks = response.aiter_raw()
    body = Body(limit=limit, inflater=None if make is None else make())
    try:
        async for chunk in chunks:
            if into is None:
                body.feed(chunk)
                continue
            # Coded, a little may become a thousand times as much.
            step = _CODED_PIECE if make is not None else len(chunk)
            for start in range(0, len(chunk), step):
                body.feed(chunk[start : start + step])
                await _hand_on(body.take(), into)
    except BaseException:
        await _finish(response, chunks)
        raise
    rest = body.end()
    if into is None:
        return rest
    await _hand_on(rest, into)
    # What was cancelled may not have been given on whole.
    await anyio.lowlevel.checkpoint_if_cancelled()
    return b""


async def _finish(response: httpx.Response, chunks: AsyncIterator[bytes]) -> None:
    """End a body that's of no more use, and with it the generators of httpx and httpcore that it comes through.

    Left as they are, each warns of itself when it's collected. A stream that was closed has an end or an error to give.
    """
    with anyio.move_on_after(_END_SECONDS, shield=True):
        await response.aclose()
        with suppress(Exception):
            await anext(chunks)


async def _hand_on(data: bytes, into: Callable[[bytes], object]) -> None:
    """Give the data on, with turns for other tasks in between.

    Whoever is cancelled meanwhile learns it where the next bytes are read: an error in the middle of `async for` would
    leave httpx's generators unfinished.
    """
    for start in range(0, len(data), PIECE):
        into(data[start : start + PIECE])
        with anyio.CancelScope(shield=True):
            await anyio.lowlevel.checkpoint()
        if anyio.current_effective_deadline() == -math.inf:
            return


async def _in_one_piece(content: bytes) -> AsyncIterator[bytes]:
    yield content
