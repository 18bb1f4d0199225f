"""Content codings that the standard library doesn't have: brotli, stopping at a limit as the core asks."""

from typing import Final

import brotli

from asap_core.http.messages import BadCoding, Codings


class Brotli:
    """brotli (RFC 7932), behind the core's `Inflater`."""

    __slots__ = ("_decompressor", "_full")

    def __init__(self) -> None:
        self._decompressor = brotli.Decompressor()
        self._full = False

    def inflate(self, data: bytes, room: int) -> bytes:
        """Return about `room` bytes of output; brotli may go over it by one of its blocks, never by the whole."""
        if self._decompressor.is_finished():
            if data:
                raise BadCoding("expected nothing after the brotli stream")
            return b""
        try:
            output: bytes = self._decompressor.process(data, output_buffer_limit=room)
        except brotli.error:
            raise BadCoding("expected a brotli stream (RFC 7932)") from None
        self._full = not self._decompressor.can_accept_more_data()
        return output

    @property
    def pending(self) -> bool:
        """Whether more output waits without more input."""
        return self._full and not self._decompressor.is_finished()

    @property
    def finished(self) -> bool:
        """Whether the stream has ended."""
        return bool(self._decompressor.is_finished())


CODINGS: Final[Codings] = {b"br": Brotli}
