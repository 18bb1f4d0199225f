"""Laws of JSON-RPC 2.0, as far as ASAP uses it."""

from typing import Final

from asap_core.testing.laws.checks import accepted, check, refused
from asap_core.testing.laws.effects import Steps
from asap_core.testing.laws.lab import ABSENT, Change, Lab
from asap_core.testing.laws.law import LawGroup
from asap_core.testing.laws.verdicts import Need

JSONRPC: Final = LawGroup("jsonrpc", "requests and responses of JSON-RPC 2.0")

_IDS: Final[tuple[Change, ...]] = (ABSENT, None, {"a": 1}, [1], 1.5)


@JSONRPC.law(clause="docs/wire.md §4.1; JSON-RPC 2.0 §4", expected="each is refused, by Method not found (-32601)")
def other_methods(lab: Lab) -> Steps[None]:
    """A method other than asap.send is refused."""
    for method in ("asap.sends", "ASAP.SEND", "rpc.discover", ""):
        refused((yield from lab.call(lab.rpc(lab.envelope(), method=method))), f"method {method!r}")


@JSONRPC.law(clause="docs/wire.md §4.1; JSON-RPC 2.0 §4", expected="each is refused, by Invalid request (-32600)")
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
    ids: tuple[int | str, ...] = (lab.fresh(), 7, -1, "")
    for value in ids:
        answer = yield from lab.call(lab.rpc(lab.envelope(), id=value))
        accepted(answer, f"id {value!r}")
        got = answer.document
        check(got.get("id") == value and type(got["id"]) is type(value), f"id {got.get('id')!r}", f"id {value!r}")
        check(got.get("jsonrpc") == "2.0", f"jsonrpc: {got.get('jsonrpc')!r}")
        check("error" not in got, f"error: {got.get('error')!r} beside a result")
