"""The revocation list: listed agents are revoked, and a partly unreadable list is refused."""

import json
import types
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from asap_core.errors import InvalidDocument
from asap_core.wire import revocation
from asap_core.wire.codec import MAX_PROBLEMS
from asap_core.wire.json import NotJson, read_json
from asap_core.wire.revocation import read_revocations

A, B = "urn:asap:agent:a", "urn:asap:agent:b:v1"


def listing(*entries, **root) -> bytes:
    return json.dumps({"version": "1.0", "revoked": list(entries), **root}).encode()


def test_revoked_agents_are_found_with_their_reason() -> None:
    revoked = read_revocations(
        listing({"urn": A, "reason": "stolen", "revoked_at": "soon"}, {"urn": B, "more": 1}, {"urn": A}, more=[])
    )
    assert (len(revoked), revoked.why(A), revoked.why(B), revoked.why(f"{A}x")) == (2, "stolen", "", None)
    assert len(read_revocations(listing())) == 0


@pytest.mark.parametrize(
    ("data", "path"),
    [
        (b"", "$"),
        (b"[]", "$"),
        (b'{"version": "1.0", "revoked": [], "revoked": []}', "$"),
        (b'{"version": "1.0"}', "$.revoked"),
        (listing(revoked={}), "$.revoked"),
        (listing(version=None), "$.version"),
        (listing(version="2.0"), "$.version"),
        (listing(version="1" + "." * 64), "$.version"),
        (listing({"urn": A}, B), "$.revoked[1]"),
        (listing({"id": A}), "$.revoked[0].urn"),
        (listing({"urn": f"{A}\n"}), "$.revoked[0].urn"),
        (listing({"urn": A, "reason": 7}), "$.revoked[0].reason"),
        (listing({"urn": A, "reason": "x" * 1001}), "$.revoked[0].reason"),
    ],
)
def test_a_partly_unreadable_list_is_refused(data: bytes, path: str) -> None:
    with pytest.raises(InvalidDocument, match="not a valid revocation list") as caught:
        read_revocations(data)
    assert [problem.json_path for problem in caught.value.problems] == [path]


def test_all_problems_are_reported_up_to_a_bound() -> None:
    with pytest.raises(InvalidDocument) as caught:
        read_revocations(json.dumps({"revoked": None}).encode())
    assert [problem.json_path for problem in caught.value.problems] == ["$.version", "$.revoked"]
    with pytest.raises(InvalidDocument) as caught:
        read_revocations(listing(*[None] * 1000))
    assert len(caught.value.problems) == MAX_PROBLEMS


# --- the law, and mutants it must catch ------------------------------------------------------------------------------

ENTRIES = st.lists(
    st.fixed_dictionaries({"urn": st.sampled_from([A, B])}, optional={"reason": st.none() | st.text(max_size=5)})
    | st.sampled_from([None, {}, {"urn": "a"}, {"urn": A, "reason": []}, [A], A]),
    max_size=4,
)
DOCUMENTS = (
    st.builds(lambda entries: listing(*entries), ENTRIES)
    | st.sampled_from([b"{}", b"[]", b"null", listing(revoked=None), listing(revoked={A: 1}), listing(version="2")])
    | st.binary(max_size=20)
)


def law(module, data: bytes) -> None:
    """Every agent that a list names is revoked, or the list is refused."""
    try:
        revoked = module.read_revocations(data)
    except InvalidDocument:
        return
    try:
        value: Any = read_json(data)
    except NotJson:
        pytest.fail("what isn't JSON was read")
    assert value["version"].startswith("1")
    named = {entry["urn"] for entry in value["revoked"]}
    assert {urn for urn in (A, B) if revoked.why(urn) is not None} == named
    first = {entry["urn"]: entry.get("reason") or "" for entry in reversed(value["revoked"])}
    assert {urn: revoked.why(urn) for urn in named} == first


@given(DOCUMENTS)
def test_any_list_gives_all_its_revoked_agents_or_is_refused(data: bytes) -> None:
    law(revocation, data)


MUTANTS = {
    "the wrong shape is clear": ("if type(entries) is not list:\n",
                                 "if type(entries) is not list:\n        return RevocationList({})\n"),
    "what isn't an object is clear": ('raise _invalid(Problem((), "an object"))', "return RevocationList({})"),
    "entries that can't be read are skipped": ("    if problems:\n", "    if False:\n"),
    "revoked is ignored": ("return self._reasons.get(urn)", "return None"),
    "without a reason it isn't revoked": ("return self._reasons.get(urn)", "return self._reasons.get(urn) or None"),
    "the reason is lost": ('entry.get("reason") or ""', '""'),
}  # fmt: skip


@pytest.mark.planted
@pytest.mark.parametrize("name", MUTANTS)
def test_a_planted_bug_is_caught(name: str) -> None:
    before, after = MUTANTS[name]
    source = Path(str(revocation.__file__)).read_text("utf-8")
    assert source.count(before) == 1
    mutant = types.ModuleType("mutant")
    exec(compile(source.replace(before, after), "mutant", "exec"), mutant.__dict__)

    @settings(database=None, max_examples=500, report_multiple_bugs=False)
    @given(DOCUMENTS)
    def run(data: bytes) -> None:
        law(mutant, data)

    with pytest.raises((AssertionError, TypeError, KeyError)):
        run()
