"""The grammar of header fields (RFC 9110 §5.6); lists and parameters in them are read by it, never by `split`.

A comma, a semicolon or an equals sign inside a quoted-string is no separator. Reading ends at the first part that isn't
well-formed; what follows it is ignored. The patterns are possessive, so that reading takes linear time for any text.
Texts are field values decoded as Latin-1, a character for each byte; `.encode("latin-1")` makes the same pattern for
bytes.
"""

import re
from collections.abc import Iterator
from typing import Final

TOKEN: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]++"  # noqa: S105 - no password
"""RFC 9110 §5.6.2."""
CONTROL: Final = r"[\x00-\x08\x0a-\x1f\x7f]"
"""RFC 9110 §5.5: what a field value must not contain. HTAB is the one control character that may be there."""
QUOTED_STRING: Final = r'"(?:[^"\\\x00-\x08\x0a-\x1f\x7f]|\\[^\x00-\x08\x0a-\x1f\x7f])*+"'
"""RFC 9110 §5.6.4: all but control characters, where `"` and a backslash follow a backslash."""
WHITESPACE: Final = " \t"
"""RFC 9110 §5.6.3, for `str.strip`: other blanks belong to a value."""

_PAIR: Final = re.compile(r"\\(.)", re.DOTALL)


def _unquoted(text: str) -> str:
    """Return the value of a quoted-string (RFC 9110 §5.6.4)."""
    return _PAIR.sub(r"\1", text[1:-1])


# The last member of a list is the first of the reversed text. A quote ends a quoted-string unless an odd number of
# backslashes precedes it; in the reversed text they follow it.
_LAST: Final = re.compile(r'((?:[^",]++|"(?:[^"]++|"(?=\\(?:\\\\)*+(?!\\)))*+")*+)(?:,|\Z)')


def last_members(text: str) -> Iterator[str | None]:
    """Iterate over the members of a list from its right end, without the blanks around them.

    Ends with None at a member that isn't well-formed. For lists that each hop appends to: what is further left can't
    change how a well-formed member is read.
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
    """Return the members of a list, in order, without the blanks around them. Empty if one isn't well-formed."""
    if '"' not in text:
        return [member.strip(WHITESPACE) for member in text.split(",")]
    found = [*last_members(text)]
    return [member for member in reversed(found) if member is not None] if found[-1] is not None else []


# RFC 7239 §4 allows tokens and quoted-strings. Gateways also write addresses with ports and brackets unquoted, so an
# unquoted value may have all visible characters that aren't separators.
_PARAMETER: Final = re.compile(rf"[ \t]*+(?:({TOKEN})=(?:({QUOTED_STRING})|([!#-+\--:<-\[\]-~]*+)))?+[ \t]*+(?:;|\Z)")


def parameters(text: str) -> dict[str, str] | None:
    """Read `name=value;name="value"` into values by lower-case name.

    Returns None if the text has another form, or a name twice.
    """
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
"""The key under which `challenges` returns the scheme: no parameter has an empty name."""

# RFC 9110 §11.6.1: schemes and their parameters in one list. A name before "=" is a parameter; any other is a scheme,
# with or without a token68. Some servers omit the commas, so blanks separate as well.
_AUTH_PARAMETER: Final = rf"({TOKEN})[ \t]*+=[ \t]*+(?:({QUOTED_STRING})|({TOKEN}))"
_AUTH_SCHEME: Final = rf"({TOKEN})(?:[ ]++[A-Za-z0-9._~+/-]++=*+(?=[ \t]*+(?:,|\Z)))?"
_CHALLENGE: Final = re.compile(rf"[ \t,]*+(?:{_AUTH_PARAMETER}|{_AUTH_SCHEME})(?=[ \t,]|\Z)")


def challenges(text: str) -> list[dict[str, str]]:
    """Read WWW-Authenticate: the parameters of each challenge by lower-case name, its scheme as `CHALLENGE_SCHEME`.

    Reading ends at the first part that isn't well-formed. If a parameter is repeated, the first one counts.
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
