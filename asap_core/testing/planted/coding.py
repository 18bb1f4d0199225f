"""Content codings: which one a body has, and gzip inflated within a limit, and as much of br as the laws send."""

import zlib
from dataclasses import dataclass
from typing import Final

from asap_core.testing.laws.brotli_streams import BLANKS, END, stored_brotli
from asap_core.testing.planted.messages import PlantedOptions, PlantedRequest
from asap_core.testing.planted.switches import Breaks

# One call of the decoder returns at most this, so that a bomb is noticed one block after the limit.
_BLOCK: Final = 65_536

# With these the content is as large as it comes.
_UNLIMITED: Final = ("compression.bomb", "compression.size_in_the_trailer")


@dataclass(frozen=True)
class Coding:
    """Reads bodies by their Content-Encoding."""

    options: PlantedOptions
    broken: Breaks

    def name(self, request: PlantedRequest) -> str:
        """The coding of the body; empty if it has none."""
        coding = (request.value("content-encoding") or "").strip()
        if self.broken("compression.list"):
            coding = coding.rpartition(",")[2].strip()
        if self.broken("compression.identity") and coding.lower() == "identity":
            return "unknown"
        if self.broken("compression.gzip") and coding.lower() == "gzip":
            return "unknown"
        return coding if self.broken("compression.case") else coding.lower()

    def decoded(self, request: PlantedRequest) -> bytes:
        """Inflate a body, within its limit. Raises ValueError if it's corrupt, OverflowError if it's too large."""
        if self.name(request) == "br" and "br" in self.options.codings:
            return self._stored(request.body)
        if self.name(request) != "gzip":
            return request.body
        stated = int.from_bytes(request.body[-4:], "little")
        if self.broken("compression.size_in_the_trailer") and stated > self.options.max_body:
            raise OverflowError
        plain, rest = self._member(request.body, 0)
        # RFC 1952 §2.2: a stream may have several members. Files are padded with zeros.
        while rest.lstrip(b"\0") and not self.broken("compression.trailing_bytes"):
            if self.broken("compression.members"):
                raise ValueError
            before = 0 if self.broken("compression.limit_of_a_member") else len(plain)
            more, rest = self._member(rest.lstrip(b"\0"), before)
            plain += more
        return plain

    def _stored(self, data: bytes) -> bytes:
        """Return the content of a br stream that `to_brotli` wrote. There's no other decoder without a dependency."""
        if self.broken("compression.brotli"):
            raise ValueError
        size, plain, ends = stored_brotli(data)
        if len(plain) < size or not any(map(ends.startswith, (END, BLANKS))):
            if self.broken("compression.brotli_cut") and plain:
                return plain
            raise ValueError
        end = BLANKS if ends.startswith(BLANKS) else END
        if ends != end and not self.broken("compression.brotli_trailing_bytes"):
            raise ValueError
        if end == BLANKS and not self.broken("compression.brotli_bomb"):
            raise OverflowError
        return plain

    def _member(self, data: bytes, before: int) -> tuple[bytes, bytes]:
        """Inflate one member, and return its content and what follows it. `before`: the size of those before it."""
        # RFC 1952 §2.3.1: with a flag, the header is longer than ten bytes.
        if data[3:4] > b"\0" and self.broken("compression.gzip_header"):
            raise ValueError
        member, plain = zlib.decompressobj(wbits=31), bytearray()
        try:
            while not member.eof:
                piece = member.decompress(data, _BLOCK)
                if not piece and not member.unconsumed_tail and not member.eof:
                    break
                plain += piece
                data = member.unconsumed_tail
                if before + len(plain) > self.options.max_body and not any(map(self.broken, _UNLIMITED)):
                    raise OverflowError
        except zlib.error:
            if not self.broken("compression.corrupt"):
                raise ValueError from None
            return bytes(plain), b""
        if not member.eof and not self.broken("compression.cut"):
            raise ValueError
        return bytes(plain), member.unused_data
