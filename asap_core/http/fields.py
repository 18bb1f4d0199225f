"""The grammar of header fields (RFC 9110 §5.6): lists and parameters are read by it, never by `split`; and dates.

A comma, a semicolon or an equals sign inside a quoted-string is no separator. Reading ends at the first part that isn't
well-formed; what follows it is ignored. The patterns are possessive, so that reading takes linear time for any text.
Texts are field values decoded as Latin-1, a character for each byte; `.encode("latin-1")` makes the same pattern for
bytes.
"""

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Final

from asap_core.clock import WallTime

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


# --- dates (RFC 9110 §5.6.7) ------------------------------------------------------------------------------------------

_DAY: Final = r"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)"
_DAY_IN_FULL: Final = r"(?:Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday)"
_MONTHS: Final = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_MONTH: Final = rf"(?P<month>{'|'.join(_MONTHS)})"
# "00:00:00 - 23:59:60 (leap second)".
_TIME: Final = r"(?:(?P<hour>[01]\d|2[0-3]):(?P<minute>[0-5]\d):(?P<second>[0-5]\d)|23:59:60)"
# RFC 9111 §4.2: "Although all date formats are specified to be case-sensitive, a cache recipient SHOULD match the field
# value case-insensitively." And it "SHOULD consider a date with a zone abbreviation other than "GMT" to be invalid".
_FORMS: Final = tuple(
    re.compile(form, re.IGNORECASE | re.ASCII)
    for form in (
        rf"{_DAY}, (?P<day>\d\d) {_MONTH} (?P<year>\d{{4}}) {_TIME} GMT",  # IMF-fixdate
        rf"{_DAY_IN_FULL}, (?P<day>\d\d)-{_MONTH}-(?P<year>\d\d) {_TIME} GMT",  # rfc850-date
        rf"{_DAY} {_MONTH} (?P<day>\d\d| \d) {_TIME} (?P<year>\d{{4}})",  # asctime-date
    )
)
_YEARS_AHEAD: Final = 50
_TWO_DIGITS: Final = 2


def parse_http_date(value: str, *, wall: WallTime) -> WallTime | None:
    """Read an HTTP-date in any of its three forms. Returns None for any other text; never raises.

    `wall`: the current time, since years of the rfc850 form have two digits.
    Whether the day of the week fits the date isn't checked.
    """
    match = next((match for form in _FORMS if (match := form.fullmatch(value)) is not None), None)
    if match is None:
        return None
    try:
        return WallTime(_moment(match, wall).timestamp())
    except ValueError:  # no such day in this month
        return None


def _moment(match: re.Match[str], wall: WallTime) -> datetime:
    if len(match["year"]) > _TWO_DIGITS:
        return _in_year(match, int(match["year"]))
    # RFC 9110 §5.6.7: recipients "MUST interpret a timestamp that appears to be more than 50 years in the future as
    # representing the most recent year in the past that had the same last two digits".
    today = datetime.fromtimestamp(wall, UTC)
    latest = today.year + _YEARS_AHEAD
    year = latest - (latest - int(match["year"])) % 100
    found = _in_year(match, year)
    too_late = year == latest and (found.month, found.day, found.time()) > (today.month, today.day, today.time())
    return _in_year(match, year - 100) if too_late else found


def _in_year(match: re.Match[str], year: int) -> datetime:
    month, day = _MONTHS.index(match["month"].lower()) + 1, int(match["day"])
    # RFC 9111 §4.2: a leap second can't be represented; use "the nearest time equal to or earlier than" it.
    time = (23, 59, 59) if match["hour"] is None else (int(match["hour"]), int(match["minute"]), int(match["second"]))
    return datetime(year, month, day, *time, tzinfo=UTC)
