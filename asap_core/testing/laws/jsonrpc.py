"""Laws of JSON-RPC 2.0, as far as ASAP uses it."""

from typing import Final

from asap_core.testing.laws.checks import accepted, check, refused
from asap_core.testing.laws.effects import Steps
from asap_core.testing.laws.lab import ABSENT, Change, Lab
from asap_core.testing.laws.law import LawGroup, Severity
from asap_core.testing.laws.verdicts import Need
from asap_core.wire.json_values import Json, JsonObject

JSONRPC: Final = LawGroup("jsonrpc", "requests and responses of JSON-RPC 2.0")

_IDS: Final[tuple[Change, ...]] = (ABSENT, None, {"a": 1}, [1], 1.5, 1.0, True)


@JSONRPC.law(
    clause="docs/wire.md §4.1; JSON-RPC 2.0 §4", expected="each is refused, by Method not found (-32601)",
    needs={Need.ADMITTED},
)  # fmt: skip
def other_methods(lab: Lab) -> Steps[None]:
    """A method other than asap.send is refused."""
    for method in ("asap.sends", "ASAP.SEND", "rpc.discover", "", " asap.send", "asap.send\n"):
        refused((yield from lab.call(lab.rpc(lab.envelope(), method=method))), f"method {method!r}")


@JSONRPC.law(
    clause="docs/wire.md §4.1; JSON-RPC 2.0 §4", expected="each is refused, by Invalid request (-32600)",
    needs={Need.ADMITTED},
)  # fmt: skip
def other_versions(lab: Lab) -> Steps[None]:
    """A request of another version than 2.0 is refused."""
    for version in ("1.0", "2", 2.0, None):
        refused((yield from lab.call(lab.rpc(lab.envelope(), jsonrpc=version))), f"jsonrpc {version!r}")


@JSONRPC.law(clause="docs/wire.md §4.1", expected="each is refused, by Invalid request (-32600)", needs={Need.SKILL})
def ids_are_text_or_integers(lab: Lab) -> Steps[None]:
    """A request without an id, or with one that is neither text nor an integer, is refused."""
    for value in _IDS:
        refused((yield from lab.call(lab.rpc(lab.envelope(), id=value))), f"id {value!r}")


@JSONRPC.law(
    clause="JSON-RPC 2.0 §5; docs/wire.md §4.1",
    expected='the same id, `"jsonrpc": "2.0"`, and no key `error`, not even null',
    needs={Need.SKILL},
)
def responses(lab: Lab) -> Steps[None]:
    """A response has its request's id, of the same type, and either a result or an error."""
    ids: tuple[int | str, ...] = (lab.fresh(), 7, 0, -1, "", 2**53 + 1)
    for value in ids:
        answer = yield from lab.call(lab.rpc(lab.envelope(), id=value))
        accepted(answer, f"id {value!r}")
        got = answer.document
        check(got.get("id") == value and type(got["id"]) is type(value), f"id {got.get('id')!r}", f"id {value!r}")
        check(got.get("jsonrpc") == "2.0", f"jsonrpc: {got.get('jsonrpc')!r}")
        check("error" not in got, f"error: {got.get('error')!r} beside a result")
        check(got.keys() <= {"jsonrpc", "result", "id"}, f"members {', '.join(got)}")


_INVALID: Final = (-32600, "asap:rpc/invalid_request")
_UNREADABLE: Final = (-32700, "asap:rpc/parse_error")
# More than any agent counts to, and fewer than CPython would neither read nor write.
_MANY_DIGITS: Final = 1_000


@JSONRPC.law(
    clause="docs/wire.md §4.1; JSON-RPC 2.0 §4", expected="each is refused, by Invalid request (-32600)",
    needs={Need.ADMITTED},
)  # fmt: skip
def bodies_are_objects(lab: Lab) -> Steps[None]:
    """A JSON text that is neither an object nor an array is refused as an invalid request."""
    bodies: tuple[Json, ...] = (1, "text", None, True, 1.5)
    for body in bodies:
        refused((yield from lab.call(body)), f"body {body!r}", codes=_INVALID)


@JSONRPC.law(clause="docs/wire.md §4.1", expected="each is refused, by Invalid params (-32602)", needs={Need.SKILL})
def params_are_an_object(lab: Lab) -> Steps[None]:
    """Params that are no object are refused, also an array with the envelope."""
    wrong: tuple[Json, ...] = ([lab.envelope()], "text", None, 1)
    for params in wrong:
        refused((yield from lab.call(lab.rpc(lab.envelope(), params=params))), f"params: {type(params).__name__}")


@JSONRPC.law(
    clause="docs/wire.md §4.1", expected="it's refused, by Invalid request (-32600)", severity=Severity.SHOULD,
    needs={Need.ADMITTED}, strict=True,
)  # fmt: skip
def params_are_required(lab: Lab) -> Steps[None]:
    """A request without params is an invalid request."""
    refused((yield from lab.call(lab.rpc(lab.envelope(), params=ABSENT))), codes=_INVALID)


@JSONRPC.law(clause="docs/wire.md §4.1", expected="each is refused, by Invalid params (-32602)", needs={Need.SKILL})
def the_envelope_has_its_place(lab: Lab) -> Steps[None]:
    """Params that are the envelope itself, or have none, are refused."""
    places: tuple[tuple[str, JsonObject], ...] = (
        ("the envelope as params", lab.envelope()), ("no envelope", {}), ("null", {"envelope": None}),
        ("an array", {"envelope": [lab.envelope()]}),
    )  # fmt: skip
    for example, params in places:
        refused((yield from lab.call(lab.rpc(lab.envelope(), params=params))), example)


@JSONRPC.law(
    clause="docs/wire.md §4.1", expected="it's refused, by Invalid request (-32600)", severity=Severity.SHOULD,
    needs={Need.SKILL}, strict=True,
)  # fmt: skip
def unknown_members(lab: Lab) -> Steps[None]:
    """A request with a member that JSON-RPC doesn't know is refused."""
    refused((yield from lab.call(lab.rpc(lab.envelope(), x_unknown=1))), codes=_INVALID)


@JSONRPC.law(
    clause="docs/security.md 21", expected="each is refused, by Invalid request (-32600), or by Parse error (-32700)",
    severity=Severity.HARDENING, needs={Need.SKILL}, strict=True,
)  # fmt: skip
def ids_are_bounded(lab: Lab) -> Steps[None]:
    """An id of 100,000 characters, or of 1,000 digits, is refused: it would be sent back."""
    most = 10**_MANY_DIGITS - 1
    for example, value in (("100,000 characters", "a" * 100_000), ("1,000 digits", most), ("-, 1,000 digits", -most)):
        codes = (*_INVALID, *_UNREADABLE)
        refused((yield from lab.call(lab.rpc(lab.envelope(), id=value))), example, codes=codes)


@JSONRPC.law(
    clause="docs/security.md 21", expected="the same id", severity=Severity.SHOULD, needs={Need.SKILL}, strict=True
)
def ids_at_the_bounds(lab: Lab) -> Steps[None]:
    """Text of 256 characters, and each integer of 64 bits, is an id."""
    for value in ("\xe9" * 256, 2**63 - 1, -(2**63)):
        answer = yield from lab.call(lab.rpc(lab.envelope(), id=value))
        accepted(answer, f"id {value!r:.20}")
        check(answer.document.get("id") == value, f"id {answer.document.get('id')!r:.40}", f"id {value!r:.20}")


@JSONRPC.law(clause="docs/wire.md §4.1", expected="Content-Type is application/json", needs={Need.SKILL})
def media_type(lab: Lab) -> Steps[None]:
    """Results and errors are sent as application/json."""
    for example, body in (("a result", lab.rpc(lab.envelope())), ("an error", {})):
        kind = (yield from lab.call(body)).header("content-type") or ""
        check(kind.lower().partition(";")[0].strip() == "application/json", f"Content-Type: {kind!r}", example)


@JSONRPC.law(clause="RFC 9110 §8.3.1", expected="each is accepted", severity=Severity.SHOULD, needs={Need.SKILL})
def media_types_of_requests(lab: Lab) -> Steps[None]:
    """A call's media type is read in any case, and with a parameter."""
    for kind in ("application/json; charset=utf-8", "APPLICATION/JSON", 'application/json;charset="UTF-8"'):
        answer = yield from lab.call(lab.rpc(lab.envelope()), headers=[("Content-Type", kind)])
        accepted(answer, f"Content-Type: {kind}")


@JSONRPC.law(
    clause="JSON-RPC 2.0 §5; docs/security.md 22",
    expected="the id of the refusal is null",
    severity=Severity.HARDENING,
    needs={Need.SKILL},
    strict=True,
)
def unusable_ids_are_not_sent_back(lab: Lab) -> Steps[None]:
    """The refusal of a request whose id is neither text nor an integer has the id null."""
    for value in _IDS:
        answer = yield from lab.call(lab.rpc(lab.envelope(), id=value))
        refused(answer, f"id {value!r}")
        check(answer.document.get("id", "") is None, f"id: {answer.document.get('id', 'none')!r}", f"id {value!r}")


@JSONRPC.law(
    clause="RFC 8259 §6; JSON-RPC 2.0 §5",
    expected="the id comes back as it was sent, or is refused",
    needs={Need.SKILL},
)
def large_ids_are_exact(lab: Lab) -> Steps[None]:
    """An integer beyond the precision of a double comes back as the same id."""
    for number in (2**53 + 1, -(2**53) - 1, 2**63 - 1):
        answer = yield from lab.call(lab.rpc(lab.envelope(), id=number))
        got = answer.document.get("id")
        check(got == number or (got is None and answer.error is not None), f"{answer}: id {got!r}", str(number))


@JSONRPC.law(
    clause="JSON-RPC 2.0 §5; docs/wire.md §4.1",
    expected="`jsonrpc`, `result` and `id`, and nothing else",
    severity=Severity.SHOULD,
    needs={Need.SKILL},
)
def members_of_a_response(lab: Lab) -> Steps[None]:
    """A response has no other members than those of JSON-RPC."""
    answer = yield from lab.succeed(lab.envelope())
    others = sorted(answer.document.keys() - {"jsonrpc", "result", "id", "error"})
    check(not others, f"{answer}: also {', '.join(others)}")
