"""Laws of JSON: a text has one reading. Each text is an otherwise valid call."""

from collections.abc import Mapping
from typing import Final

from asap_core.testing.laws.checks import accepted, answered, refused
from asap_core.testing.laws.effects import Steps
from asap_core.testing.laws.lab import Lab, to_body
from asap_core.testing.laws.law import LawGroup, Severity
from asap_core.testing.laws.verdicts import Need

JSON_TEXT: Final = LawGroup("json_text", "a text has one reading")

_PLACE: Final = "the place of the text"
_EXPECTED: Final = "it's refused, by Parse error (-32700)"
# Deeper than any envelope, and than most readers can: 100 levels are ours, 1,000 is CPython's limit of recursion.
_DEEP: Final = 5_000
_DEEPER_THAN_NEEDED: Final = 500
# CPython reads integers of 4,300 digits.
_MANY_DIGITS: Final = 5_000


def _call_with(lab: Lab, text: bytes) -> bytes:
    """Return a valid call whose input is an object with this value, as it's written here."""
    return to_body(lab.rpc(lab.envelope(payload=lab.task(input={"x": _PLACE})))).replace(f'"{_PLACE}"'.encode(), text)


def _each_is_refused(lab: Lab, texts: Mapping[str, bytes]) -> Steps[None]:
    for example, text in texts.items():
        refused((yield from lab.post(_call_with(lab, text))), example)


@JSON_TEXT.law(
    clause="RFC 8259 §4; docs/security.md 19", expected=_EXPECTED, severity=Severity.HARDENING, needs={Need.SKILL},
    strict=True,
)  # fmt: skip
def duplicate_keys(lab: Lab) -> Steps[None]:
    """A text with a key twice in one object is refused: two readers could read two requests."""
    yield from _each_is_refused(lab, {"in the input": b'{"a": 1, "a": 2}', "escaped": b'{"a": 1, "\\u0061": 2}'})
    body = to_body(lab.rpc(lab.envelope()))
    sender = f'"sender": "{lab.caller.urn}"'.encode()
    refused((yield from lab.post(body.replace(sender, sender + b", " + sender))), "the sender")


@JSON_TEXT.law(clause="RFC 8259 §6; docs/security.md 19", expected=_EXPECTED, needs={Need.SKILL}, strict=True)
def no_constants(lab: Lab) -> Steps[None]:
    """NaN and infinities are refused: JSON has no such numbers."""
    yield from _each_is_refused(lab, {text: text.encode() for text in ("NaN", "Infinity", "-Infinity", "1e999")})


@JSON_TEXT.law(clause="RFC 8259 §8.1; docs/security.md 19", expected=_EXPECTED, needs={Need.SKILL})
def utf_8(lab: Lab) -> Steps[None]:
    """Bytes that aren't UTF-8 are refused."""
    texts = {"0xff": b'"\xff"', "Latin-1": '"ü"'.encode("latin-1"), "overlong": b'"\xc0\xaf"'}
    yield from _each_is_refused(lab, {**texts, "a surrogate": b'"\xed\xa0\x80"'})


@JSON_TEXT.law(clause="RFC 8259 §2", expected=_EXPECTED, needs={Need.SKILL})
def nothing_after_the_text(lab: Lab) -> Steps[None]:
    """A body that goes on after its JSON text is refused, and so is one that ends before."""
    for example, added in (("a second text", b"{}"), ("a comma", b","), ("a zero byte", b"\0")):
        refused((yield from lab.post(to_body(lab.rpc(lab.envelope())) + added)), example)
    refused((yield from lab.post(to_body(lab.rpc(lab.envelope()))[:-1])), "cut short")


@JSON_TEXT.law(clause="RFC 8259 §2", expected="each is accepted", needs={Need.SKILL})
def blanks_around_the_text(lab: Lab) -> Steps[None]:
    """Blanks, tabs and line ends may stand before and after the JSON text."""
    for blank in (b" ", b"\t", b"\n", b"\r\n"):
        accepted((yield from lab.post(blank + to_body(lab.rpc(lab.envelope())))), f"{blank!r} before")
        accepted((yield from lab.post(to_body(lab.rpc(lab.envelope())) + blank)), f"{blank!r} after")


@JSON_TEXT.law(
    clause="RFC 8259 §2; docs/security.md 19", expected=_EXPECTED, severity=Severity.HARDENING, needs={Need.SKILL},
    strict=True,
)  # fmt: skip
def other_blanks(lab: Lab) -> Steps[None]:
    """Form feeds, no-break spaces and other blanks that JSON doesn't have are refused around the text."""
    for blank in ("\x0b", "\x0c", "\x85", "\xa0", "\u2028", "\u3000"):
        refused((yield from lab.post(blank.encode() + to_body(lab.rpc(lab.envelope())))), f"{blank!a} before")
        refused((yield from lab.post(to_body(lab.rpc(lab.envelope())) + blank.encode())), f"{blank!a} after")


@JSON_TEXT.law(
    clause="docs/security.md 19", expected="it's refused, without a crash", severity=Severity.HARDENING,
    needs={Need.SKILL}, strict=True,
)  # fmt: skip
def depth(lab: Lab) -> Steps[None]:
    """Arrays and objects nested hundreds or thousands of levels deep are refused, not a crash."""
    for deep in (_DEEPER_THAN_NEEDED, _DEEP):
        texts = {"arrays": b"[" * deep + b"]" * deep, "objects": b'{"a":' * deep + b"1" + b"}" * deep}
        yield from _each_is_refused(lab, {f"{deep} {name}": text for name, text in texts.items()})


@JSON_TEXT.law(
    clause="RFC 8259 §8.1; docs/security.md 19", expected=_EXPECTED, severity=Severity.HARDENING, needs={Need.SKILL},
    strict=True,
)  # fmt: skip
def no_byte_order_mark(lab: Lab) -> Steps[None]:
    """A body that begins with a byte order mark is refused."""
    refused((yield from lab.post(b"\xef\xbb\xbf" + to_body(lab.rpc(lab.envelope())))))


@JSON_TEXT.law(clause="RFC 8259 §7", expected=_EXPECTED, needs={Need.SKILL})
def no_control_characters(lab: Lab) -> Steps[None]:
    """A string with a control character that isn't escaped is refused."""
    yield from _each_is_refused(lab, {"a line feed": b'"a\nb"', "a NUL": b'"\0"', "a tab": b'"\t"'})


@JSON_TEXT.law(
    clause="docs/security.md 19; RFC 8259 §8.2", expected=_EXPECTED, severity=Severity.HARDENING, needs={Need.SKILL},
    strict=True,
)  # fmt: skip
def no_lone_surrogates(lab: Lab) -> Steps[None]:
    """A string with half a surrogate pair is refused: it's no text, and no UTF-8 can be made of it."""
    texts = {"high": b'"\\ud800"', "low": b'"\\udc00"', "turned": b'"\\udc00\\ud800"', "a key": b'{"\\ud800": 1}'}
    yield from _each_is_refused(lab, texts)


@JSON_TEXT.law(
    clause="docs/security.md 19", expected="an answer, whichever, without a crash", severity=Severity.HARDENING,
    needs={Need.SKILL},
)  # fmt: skip
def long_numbers(lab: Lab) -> Steps[None]:
    """A number of thousands of digits is answered, not a crash."""
    digits = b"1" * _MANY_DIGITS
    for example, text in (("an integer", digits), ("a fraction", b"0." + digits), ("an exponent", b"1e" + digits)):
        answered((yield from lab.post(_call_with(lab, text))), example)
