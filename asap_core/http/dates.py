"""Dates in HTTP header fields, in the three forms of RFC 9110 §5.6.7 and no other."""

import re
from datetime import UTC, datetime
from typing import Final

from asap_core.clock import WallTime

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
