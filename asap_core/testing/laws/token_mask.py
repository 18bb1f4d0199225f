"""Hides callers' tokens in what reports show, and what laws make of tokens, each by a name that shell lines expand."""

import base64
import re
from collections.abc import Mapping, Sequence
from typing import Final
from urllib.parse import quote

from attrs import field, frozen

# A shorter text is hidden in credentials only: as a part of other words it would make a report unreadable.
_HIDDEN_ANYWHERE: Final = 4
# What stands before a credential: in a head, and in a header's value.
_BEFORE: Final = ("authorization: ", "bearer ", "bearer", "token ", "digest ", "basic ")
_IN_CREDENTIALS: Final = rf"(?:\A|{'|'.join(f'(?<={text})' for text in _BEFORE)})"


@frozen
class TokenMask:
    """Replaces tokens by `$TOKEN` and `$OTHER_TOKEN`, whether letters are capitals or not.

    A suffix says what a law has made of the token: `_SHORTER` (its last character is missing), `_SWAPPED` (capitals
    for small letters and the reverse), `_BASIC` (the password of a user, in the scheme Basic).

    names: each text that is hidden, with what stands for it.
    """

    names: Mapping[str, str] = field(repr=False)
    _found: re.Pattern[str] = field(repr=False)

    @classmethod
    def of(cls, secrets: Mapping[str, str]) -> "TokenMask":
        """Return the mask of these tokens, each with its name."""
        names: dict[str, str] = {}
        for token, name in secrets.items():
            names |= {token[:-1]: f"{name}_SHORTER"} if len(token) > 1 else {}
            names[base64.b64encode(f"conform:{token}".encode()).decode()] = f"{name}_BASIC"
            names[quote(token, safe="")] = name
        for token, name in secrets.items():  # a token may be a part of another one
            names |= {token.swapcase(): f"{name}_SWAPPED"}
        names |= secrets
        parts = [
            ("" if len(text) >= _HIDDEN_ANYWHERE else _IN_CREDENTIALS) + re.escape(text)
            for text in sorted(names, key=len, reverse=True)
        ]
        return cls(names, re.compile("|".join(parts) or r"(?!)", re.IGNORECASE))

    def text(self, text: str) -> str:
        """Return a text with names in place of tokens."""
        return self._found.sub(self._name, text) if self._occurs(text) else text

    def data(self, data: bytes) -> bytes:
        """Return bytes with names in place of tokens."""
        return self.text(data.decode("latin-1")).encode("latin-1")

    def pieces(self, pieces: Sequence[bytes | float]) -> tuple[bytes | float, ...]:
        """Return pieces with names in place of tokens. Of a token on both sides of a pause all stands before it."""
        whole = b"".join(each for each in pieces if isinstance(each, bytes)).decode("latin-1")
        spans = [match.span() for match in self._found.finditer(whole)] if self._occurs(whole) else []
        shown: list[bytes | float] = []
        end = begun = 0
        for piece in pieces:
            if isinstance(piece, float):
                shown.append(piece)
                continue
            end += len(piece)
            cut = max([end, *(last for first, last in spans if first < end < last)])
            shown.append(self.data(whole[begun:cut].encode("latin-1")))
            begun = max(begun, cut)
        return tuple(shown)

    def _occurs(self, text: str) -> bool:
        """Say whether there may be a token: most of what's sent is long, and has none."""
        lower = text.lower()
        return any(each.lower() in lower for each in self.names)

    def _name(self, match: re.Match[str]) -> str:
        found = match[0]
        if found in self.names:
            return self.names[found]
        return next(name for text, name in self.names.items() if text.lower() == found.lower())
