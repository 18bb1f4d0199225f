"""Header fields that are lists or have parameters, read by their grammar (RFC 9110 §5.6), never by `split`.

A comma, a semicolon or an equals sign inside a quoted-string separates nothing. What can't be read ends the reading:
nothing behind it is guessed at. The patterns are possessive, so that reading takes linear time whatever the text.
Texts are field values decoded as Latin-1, a character for each byte.
"""

import re
from collections.abc import Iterator
from typing import Final

from asap_core.http.grammar import QUOTED_STRING, TOKEN, WHITESPACE

_PAIR: Final = re.compile(r"\\(.)", re.DOTALL)


def _unquoted(text: str) -> str:
    """The value of a quoted-string in its quotes."""
    return _PAIR.sub(r"\1", text[1:-1])


# The last member of a list is the first of the reversed text. Within quotes a quote ends the string unless an odd
# number of backslashes stands before it, which in the reversed text is behind it.
_LAST: Final = re.compile(r'((?:[^",]++|"(?:[^"]++|"(?=\\(?:\\\\)*+(?!\\)))*+")*+)(?:,|\Z)')


def last_members(text: str) -> Iterator[str | None]:
    """The members of a list from its right end, blanks around them removed; None, and no more, if one can't be read.

    For lists that each hop appends to: what stands further left can't change how a well-formed member is read.
    """
    backwards, at = text[::-1], 0
    while True:
        member = _LAST.match(backwards, at)
        if member is None:
            yield None
            return
        yield member[1][::-1].strip(WHITESPACE)
        if member.end() == member.end(1):
            return
        at = member.end()


def members(text: str) -> list[str]:
    """The members of a list, in order, blanks around them removed. Empty if one of them can't be read."""
    if '"' not in text:
        return [member.strip(WHITESPACE) for member in text.split(",")]
    found = [*last_members(text)]
    return [member for member in reversed(found) if member is not None] if found[-1] is not None else []


# RFC 7239 §4 has tokens and quoted-strings here. Gateways also write addresses with ports and brackets unquoted, so an
# unquoted value is all that's visible and separates nothing.
_PARAMETER: Final = re.compile(rf"[ \t]*+(?:({TOKEN})=(?:({QUOTED_STRING})|([!#-+\--:<-\[\]-~]*+)))?+[ \t]*+(?:;|\Z)")


def parameters(text: str) -> dict[str, str] | None:
    """Read `name=value;name="value"`: the values by lower-case name. None if it isn't that, or has a name twice."""
    found: dict[str, str] = {}
    at = 0
    while at < len(text):
        pair = _PARAMETER.match(text, at)
        if pair is None:
            return None
        if pair[1] is not None:
            name = pair[1].lower()
            if name in found:
                return None
            found[name] = pair[3] if pair[2] is None else _unquoted(pair[2])
        at = pair.end()
    return found


CHALLENGE_SCHEME: Final = ""
"""The key of a challenge's scheme among its parameters: no parameter has an empty name."""

# RFC 9110 §11.6.1: schemes and their parameters in one list; a name before "=" is a parameter's, any other a scheme's,
# perhaps with a token68. Some servers leave out the commas, so blanks separate as well.
_AUTH_PARAMETER: Final = rf"({TOKEN})[ \t]*+=[ \t]*+(?:({QUOTED_STRING})|({TOKEN}))"
_AUTH_SCHEME: Final = rf"({TOKEN})(?:[ ]++[A-Za-z0-9._~+/-]++=*+(?=[ \t]*+(?:,|\Z)))?"
_CHALLENGE: Final = re.compile(rf"[ \t,]*+(?:{_AUTH_PARAMETER}|{_AUTH_SCHEME})(?=[ \t,]|\Z)")


def challenges(text: str) -> list[dict[str, str]]:
    """Read WWW-Authenticate: the parameters of each challenge by lower-case name, its scheme as `CHALLENGE_SCHEME`.

    The reading ends at what can't be read. Of a parameter that's there twice the first counts.
    """
    found: list[dict[str, str]] = []
    at = 0
    while (part := _CHALLENGE.match(text, at)) is not None:
        at = part.end()
        if part[4] is not None:
            found.append({CHALLENGE_SCHEME: part[4].lower()})
        elif found:
            found[-1].setdefault(part[1].lower(), part[3] if part[2] is None else _unquoted(part[2]))
        else:
            break
    return found
