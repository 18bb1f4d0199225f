"""Nearly valid documents: the reader refuses each, and accepts it once its one rule is kept."""

from functools import cache
from typing import Any

import pytest
from attrs import NOTHING, fields
from hypothesis import given, settings, strategies as st

from asap_core.errors import InvalidDocument
from asap_core.mdns.dnssd import Announcement, UnusableRecord, read_announcement
from asap_core.testing import (
    cuts,
    nearly_valid_announcements,
    nearly_valid_envelopes,
    nearly_valid_manifests,
    nearly_valid_registry_entries,
)
from asap_core.testing.nearly_valid import ANNOUNCEMENT_RULES, ENVELOPE_RULES, MANIFEST_RULES, REGISTRY_ENTRY_RULES
from asap_core.wire.codec import decode_envelope, decode_manifest
from asap_core.wire.envelope import Envelope
from asap_core.wire.manifest import Manifest
from asap_core.wire.registry import decode_registry_entry
from tests.core.testing.measured import assert_even, examples_of

# Made once for each rule: a strategy that is made again for each example takes twice as long.
envelopes = cache(nearly_valid_envelopes)
manifests = cache(nearly_valid_manifests)
registry_entries = cache(nearly_valid_registry_entries)
announcements = cache(nearly_valid_announcements)


@pytest.mark.parametrize("rule", ENVELOPE_RULES)
@settings(max_examples=10)
@given(st.data())
def test_an_envelope_breaks_the_rule_and_no_other(rule, data) -> None:
    drawn = data.draw(envelopes(rule))
    assert drawn.rule == rule
    decode_envelope(drawn.mended)
    with pytest.raises(InvalidDocument) as caught:
        decode_envelope(drawn.document)
    assert len(caught.value.problems) == 1


@pytest.mark.parametrize("rule", MANIFEST_RULES)
@settings(max_examples=10)
@given(st.data())
def test_a_manifest_breaks_the_rule(rule, data) -> None:
    drawn = data.draw(manifests(rule))
    assert drawn.rule == rule
    decode_manifest(drawn.mended)
    with pytest.raises(InvalidDocument):
        decode_manifest(drawn.document)


@pytest.mark.parametrize("rule", REGISTRY_ENTRY_RULES)
@settings(max_examples=10)
@given(st.data())
def test_a_registry_entry_breaks_the_rule_and_no_other(rule, data) -> None:
    drawn = data.draw(registry_entries(rule))
    decode_registry_entry(drawn.mended)
    with pytest.raises(InvalidDocument) as caught:
        decode_registry_entry(drawn.document)
    assert len(caught.value.problems) == 1


def announced(document: dict[str, Any]) -> Announcement | UnusableRecord:
    txt = {key.encode(): value.encode() for key, value in document["txt"].items()}
    return read_announcement(**{**document, "txt": txt})


@pytest.mark.parametrize("rule", ANNOUNCEMENT_RULES)
@settings(max_examples=10)
@given(st.data())
def test_an_announcement_breaks_the_rule(rule, data) -> None:
    drawn = data.draw(announcements(rule))
    assert isinstance(announced(drawn.mended), Announcement)
    assert isinstance(announced(drawn.document), UnusableRecord)


@given(st.binary(max_size=20).flatmap(lambda data: st.tuples(st.just(data), cuts(data))))
def test_pieces_are_the_whole(drawn) -> None:
    data, pieces = drawn
    assert b"".join(pieces) == data
    assert all(pieces)


def test_every_field_of_an_envelope_is_broken_by_a_rule() -> None:
    assert {field.name for field in fields(Envelope)} <= {how.path[0] for how in ENVELOPE_RULES.values()}


def test_every_required_field_of_a_manifest_is_left_out_by_a_rule() -> None:
    required = {each.name for each in fields(Manifest) if each.default is NOTHING}
    assert required <= {how.path[0] for how in MANIFEST_RULES.values()}


def test_a_rule_that_is_unknown_is_refused() -> None:
    with pytest.raises(KeyError):
        nearly_valid_envelopes("no such rule")


@pytest.mark.parametrize(
    ("strategy", "rules"),
    [
        (nearly_valid_envelopes, ENVELOPE_RULES),
        (nearly_valid_manifests, MANIFEST_RULES),
        (nearly_valid_registry_entries, REGISTRY_ENTRY_RULES),
        (nearly_valid_announcements, ANNOUNCEMENT_RULES),
    ],
)
def test_the_rules_are_drawn_evenly(strategy, rules) -> None:
    assert_even((each.rule for each in examples_of(strategy())), rules)
