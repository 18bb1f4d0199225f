"""Laws of time: an envelope counts for 300 s, and 30 s ahead.

Offsets keep 10 s from the limits, since a run and the agent read two clocks, and a rate limit may delay a request.
"""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta, timezone
from functools import partial
from typing import Final

from asap_core.testing.laws.checks import accepted, answered, check, refused
from asap_core.testing.laws.effects import AdvanceClock, Pause, Steps
from asap_core.testing.laws.http_messages import Answer
from asap_core.testing.laws.lab import ABSENT, Change, Lab, asked_pause
from asap_core.testing.laws.law import LawGroup, Severity
from asap_core.testing.laws.verdicts import LawNotTried, Need

TIME: Final = LawGroup("time", "the window of timestamps")

_HOUR: Final = 3600
_DAY: Final = 24 * _HOUR
_RESTARTED: Final = "asap:admission/restarted"
# So often a date is made anew that lies before the agent's start: after a second, a new one lies behind it.
_ATTEMPTS: Final = 3
_EXPECTED: Final = "each is refused, by asap:protocol/invalid_timestamp (-32002)"


@TIME.law(clause="docs/wire.md §5; docs/security.md 1", expected=_EXPECTED, needs={Need.SKILL})
def old_envelopes(lab: Lab) -> Steps[None]:
    """An envelope older than 300 s is refused."""
    ages = {"310 s old": -310, "1 h old": -_HOUR, "400 days old": -400 * _DAY}
    yield from _each_is_refused(lab, ages)


@TIME.law(clause="docs/wire.md §5; docs/security.md 1", expected=_EXPECTED, needs={Need.SKILL})
def future_envelopes(lab: Lab) -> Steps[None]:
    """An envelope dated more than 30 s ahead is refused."""
    yield from _each_is_refused(lab, {"40 s ahead": 40, "1 h ahead": _HOUR, "400 days ahead": 400 * _DAY})


def _each_is_refused(lab: Lab, offsets: Mapping[str, int]) -> Steps[None]:
    """Send an envelope for each offset, so that a report says which were accepted and which refused."""
    answers: dict[str, Answer] = {}
    for example, seconds in offsets.items():
        answers[example] = yield from lab.send(lab.envelope(timestamp=lab.timestamp(seconds)))
    got = "; ".join(f"{example}: {'accepted' if each.is_success else each}" for example, each in answers.items())
    worst = next((each for each in answers.values() if each.is_success), None)
    check(worst is None, got, at=worst)
    for example, answer in answers.items():
        refused(answer, example)


@TIME.law(clause="docs/wire.md §5", expected="it's accepted", needs={Need.SKILL})
def clocks_that_are_ahead(lab: Lab) -> Steps[None]:
    """An envelope dated less than 30 s ahead is accepted."""
    accepted((yield from lab.send(lab.envelope(timestamp=lab.timestamp(20)))))


@TIME.law(clause="docs/wire.md §5", expected="it's accepted", needs={Need.SKILL})
def clocks_that_are_behind(lab: Lab) -> Steps[None]:
    """An envelope up to 300 s old is accepted, unless the agent has started since."""
    answer = yield from lab.send(lab.envelope(timestamp=lab.timestamp(-280)))
    if answer.taxonomy == _RESTARTED:
        raise LawNotTried("the agent has started less than 280 s ago, and refuses what is dated before")
    accepted(answer)


@TIME.law(
    clause="docs/security.md 1",
    expected="it's refused: without a date it could be replayed for ever",
    needs={Need.SKILL},
    strict=True,
)
def a_timestamp_is_required(lab: Lab) -> Steps[None]:
    """An envelope without a timestamp is refused."""
    for example, value in (("absent", ABSENT), ("null", None)):
        refused((yield from lab.send(lab.envelope(timestamp=value))), example)


# Also those whose sign stands before no hours, and the outermost ones that are in use.
_ZONES: Final = tuple(timezone(timedelta(minutes=each)) for each in (330, -480, -30, 30, -720, 840))
_MALFORMED: Final = (-32602, "asap:protocol/malformed_envelope")
# What two clocks may differ by.
_MOST_OFF: Final = 60


def _now(lab: Lab, zone: timezone = UTC) -> datetime:
    return datetime.fromtimestamp(lab.wall(), zone)


@TIME.law(
    clause="docs/wire.md §1.2",
    expected="the same moment is accepted; the same digits with another offset are refused",
    needs={Need.SKILL},
)
def offsets_are_read(lab: Lab) -> Steps[None]:
    """The same moment with any offset is accepted, and its digits with another offset are another moment."""
    for zone in _ZONES:
        accepted((yield from lab.send(lab.envelope(timestamp=_now(lab, zone).isoformat()))), str(zone))
        shifted = _now(lab).replace(tzinfo=zone).isoformat()
        refused((yield from lab.send(lab.envelope(timestamp=shifted))), f"now in UTC, with the offset {zone}")


@TIME.law(clause="docs/wire.md §1.2", expected="it's accepted", severity=Severity.SHOULD, needs={Need.SKILL})
def without_an_offset_its_utc(lab: Lab) -> Steps[None]:
    """A date without an offset is UTC, wherever the agent runs."""
    accepted((yield from lab.send(lab.envelope(timestamp=_now(lab).replace(tzinfo=None).isoformat()))))


def _spelled(lab: Lab, spelling: str) -> str:
    return _now(lab).strftime(spelling)


def _is_accepted(lab: Lab, date: Callable[[], Change]) -> Steps[None]:
    """Check that an envelope with the present date is accepted.

    A date without fractions of a second may lie before the agent's start. If it's refused for that, a new one is sent.
    """
    for _ in range(_ATTEMPTS):
        value = date()
        answer = yield from lab.send(lab.envelope(timestamp=value))
        if not _has_just_started(answer):
            accepted(answer, repr(value))
            return
        yield from Pause(asked_pause(answer))
    raise LawNotTried("the agent has just started, and refuses what is dated before")


def _has_just_started(answer: Answer) -> bool:
    return answer.taxonomy == _RESTARTED and answer.header("retry-after") is not None


@TIME.law(clause="docs/wire.md §1.2", expected="each is accepted", severity=Severity.SHOULD, needs={Need.SKILL})
def spellings_of_dates(lab: Lab) -> Steps[None]:
    """A date in lower case, with a space, without seconds or with many digits is accepted."""
    for spelling in (
        "%Y-%m-%dt%H:%M:%Sz", "%Y-%m-%d %H:%M:%SZ", "%Y-%m-%dT%H:%M:%S.%f123Z",
        "%Y-%m-%dT%H:%M:%S+00:00", "%Y-%m-%dT%H:%M:%S-00:00",
    ):  # fmt: skip
        yield from _is_accepted(lab, partial(_spelled, lab, spelling))


@TIME.law(clause="docs/wire.md §1.2", expected="each is accepted", severity=Severity.SHOULD, needs={Need.SKILL})
def unix_seconds(lab: Lab) -> Steps[None]:
    """A number, or text of digits, is Unix seconds."""
    for date in (lab.wall, lambda: int(lab.wall()), lambda: str(int(lab.wall()))):
        yield from _is_accepted(lab, date)


@TIME.law(clause="docs/wire.md §1.2", expected="it's accepted", severity=Severity.SHOULD, needs={Need.SKILL})
def unix_milliseconds(lab: Lab) -> Steps[None]:
    """A number above 20,000,000,000 is Unix milliseconds."""
    yield from _is_accepted(lab, lambda: int(lab.wall() * 1000))


@TIME.law(clause="docs/wire.md §1.2", expected="each is refused", needs={Need.SKILL})
def other_forms(lab: Lab) -> Steps[None]:
    """ISO's basic format, booleans and words are no dates."""
    now = _now(lab)
    wrong: tuple[Change, ...] = (f"{now:%Y%m%dT%H%M%SZ}", True, "now", "", f"{now:%Y-%m-%dT25:%M:%SZ}", [lab.wall()])
    for value in wrong:
        refused((yield from lab.send(lab.envelope(timestamp=value))), repr(value), codes=_MALFORMED)


# The first digit of other scripts' ten: full-width and Arabic-Indic.
_OTHER_ZEROS: Final = ("\uff10", "\u0660")


def _in_digits_from(zero: str, text: str) -> str:
    """Return a text with the digits of another script."""
    return "".join(chr(ord(zero) + int(each)) if each.isdigit() else each for each in text)


@TIME.law(
    clause="docs/wire.md §1.2; RFC 3339 §5.6", expected="each is refused, by Invalid params (-32602)",
    severity=Severity.HARDENING, needs={Need.SKILL}, strict=True,
)  # fmt: skip
def characters_of_dates(lab: Lab) -> Steps[None]:
    """A date with digits of another script, or with blanks, signs or other characters around or within, is refused."""
    now, unix = _now(lab), str(int(lab.wall()))
    texts = (f"{now:%Y-%m-%dT%H:%M:%SZ}", f"{now:%Y-%m-%dT%H:%M:%S.%f}Z", unix)
    wrong = [_in_digits_from(zero, text) for zero in _OTHER_ZEROS for text in texts]
    wrong += [text for each in texts for text in (f" {each}", f"{each} ", f"{each}\n", f"+{each}", f"{each}\0")]
    wrong += [f"{now:%Y-%m-%dT%H:%M:%S},0Z", f"{unix[:1]}_{unix[1:]}", f"{unix}e0", hex(int(unix))]
    for value in wrong:
        refused((yield from lab.send(lab.envelope(timestamp=value))), ascii(value), codes=_MALFORMED)


# Long after a start: what is dated before is refused.
_PAST_THE_WINDOW: Final = 700
_LATEST: Final = 299
_ANSWERED: Final = "an answer, whichever, without a crash"


@TIME.law(clause="RFC 3339 §5.6, §5.7", expected=_ANSWERED, needs={Need.SKILL})
def leap_seconds(lab: Lab) -> Steps[None]:
    """A leap second is answered without a crash."""
    for value in (f"{_now(lab):%Y-%m-%dT%H:%M}:60Z", "2016-12-31T23:59:60Z"):
        answered((yield from lab.send(lab.envelope(timestamp=value))), value)


@TIME.law(clause="docs/wire.md §1.2; RFC 3339 §5.6", expected=_ANSWERED, needs={Need.SKILL})
def ends_of_the_calendar(lab: Lab) -> Steps[None]:
    """A date in the year 1 or 9999, or beyond in UTC, and a number far beyond, are answered without a crash."""
    for value in ("0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", 10**18, -1e300):
        answered((yield from lab.send(lab.envelope(timestamp=value))), repr(value))


@TIME.law(
    clause="docs/errors.md",
    expected="`data.details.server_time` is the agent's present time",
    severity=Severity.SHOULD,
    needs={Need.SKILL},
    strict=True,
)
def the_agents_time_is_told(lab: Lab) -> Steps[None]:
    """The refusal of a date tells the agent's time, so that the caller can compare its clock."""
    answer = yield from lab.send(lab.envelope(timestamp=lab.timestamp(-_HOUR)))
    refused(answer)
    details = answer.data.get("details")
    told = details.get("server_time") if isinstance(details, dict) else None
    check(isinstance(told, str), f"details: {details!r}")
    off = datetime.fromisoformat(str(told)).timestamp() - lab.wall()
    check(abs(off) < _MOST_OFF, f"server_time: {told}, {off:.0f} s off")


@TIME.law(clause="docs/wire.md §5", expected="each is accepted", needs={Need.SKILL, Need.CLOCK})
def nearly_outside(lab: Lab) -> Steps[None]:
    """A date is accepted up to the ends of the window: whose clock can be moved has ours."""
    yield from AdvanceClock(_PAST_THE_WINDOW)
    for offset in (-295, 29):
        sent = lab.wall() + offset
        answer = yield from lab.send(lab.envelope(timestamp=sent))
        if not answer.is_success and lab.wall() - sent > _LATEST:
            raise LawNotTried("the call took seconds")
        accepted(answer, f"{offset:+} s")


@TIME.law(clause="docs/wire.md §5", expected="it's accepted", needs={Need.SKILL, Need.CLOCK})
def a_day_later(lab: Lab) -> Steps[None]:
    """An agent that has run for a day compares dates with the present."""
    yield from AdvanceClock(_DAY)
    accepted((yield from lab.send(lab.envelope())))
