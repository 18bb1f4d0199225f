"""Reads the bodies of responses: inflated within a limit, and given on in small pieces where they may be large."""

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
# Read in one go: what takes a reader a millisecond.
READ_PIECE: Final = 8_192
# Inflated in one go: a thousand times as much at most, a few milliseconds.
_CODED_PIECE: Final = 1_024
# Closing waits for nobody; a transport that does isn't waited for.
_END_SECONDS: Final = 1.0
# A body that nobody needs is read for the connection's sake, which costs a round trip or two to make anew: this much.
_DRAIN_SECONDS: Final = 0.2
_DRAIN_BYTES: Final = 65_536
# An error's body comes with its head, or soon after; the status is an answer without it.
_ERROR_SECONDS: Final = 5.0


async def read_body(response: httpx.Response, limit: int, into: Callable[[bytes], object] | None) -> bytes:
    """Read a response's body, inflated within the limit: httpx would inflate first and count never.

    With `into` it's given on in pieces, and nothing is returned. Raises `BodyTooLarge`, `BadCoding`, what `into` does.
    """
    make = _inflater_for(response)
    if response.is_stream_consumed:
        # A transport that makes whole responses, as mocks do: httpx has read and inflated it already.
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
            # Coded, a little may become a thousand times as much.
            step = _CODED_PIECE if make is not None else len(chunk)
            for start in range(0, len(chunk), step):
                body.feed(chunk[start : start + step])
                await _feed(body.take(), into)
    except BaseException:
        await _close(response, chunks)
        raise
    # No body at all isn't a coded one that was cut off.
    rest = b"" if empty else body.end()
    if into is None:
        return rest
    await _feed(rest, into)
    # What was cancelled may not have been given on whole.
    await anyio.lowlevel.checkpoint_if_cancelled()
    return b""


async def read_body_if_possible(response: httpx.Response, limit: int) -> bytes:
    """The body of an answer that its status decides: empty if it can't be read, since that changes nothing."""
    with anyio.move_on_after(_ERROR_SECONDS):
        try:
            return await read_body(response, limit, None)
        except (BadCoding, BodyTooLarge, httpx.HTTPError):
            pass
    return b""


async def drain(response: httpx.Response) -> None:
    """Pass over a body that says nothing: neither its coding nor its end matters (RFC 9110 §15.4.5: a 304 has none)."""
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
    """End a body that's of no more use, and with it the generators of httpx and httpcore that it comes through.

    Left as they are, each warns of itself when it's collected. A stream that was closed has an end or an error to give.
    """
    with anyio.move_on_after(_END_SECONDS, shield=True):
        await response.aclose()
        with suppress(Exception):
            await anext(chunks)


async def _feed(data: bytes, into: Callable[[bytes], object]) -> None:
    """Give the data on, with turns for other tasks in between.

    Whoever is cancelled meanwhile learns it where the next bytes are read: an error in the middle of `async for` would
    leave httpx's generators unfinished.
    """
    for start in range(0, len(data), READ_PIECE):
        into(data[start : start + READ_PIECE])
        with anyio.CancelScope(shield=True):
            await anyio.lowlevel.checkpoint()
        if anyio.current_effective_deadline() == -math.inf:
            return


async def _in_one_piece(content: bytes) -> AsyncIterator[bytes]:
    yield content
