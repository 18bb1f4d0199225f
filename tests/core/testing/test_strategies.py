"""The strategies of valid and arbitrary values: they are valid, and differ enough, counted."""

import json
from collections import Counter

from hypothesis import given

from asap_core import InvalidDocument, decode_envelope
from asap_core.http.head import BadHead, judge
from asap_core.http.messages import collect
from asap_core.testing import (
    broken_documents,
    cuts,
    envelope_documents,
    envelopes,
    json_values,
    manifests,
    requests,
    urns,
)
from asap_core.wire.codec import decode_manifest, encode_envelope, to_json
from asap_core.wire.rules import URN
from tests.core.testing.measured import examples_of

DATA = b"0123456789"


def is_envelope(document) -> bool:
    try:
        decode_envelope(document)
    except InvalidDocument:
        return False
    return True


@given(envelopes(), envelope_documents(), manifests(), urns(), json_values())
def test_valid_values_are_read_as_they_were_written(envelope, document, manifest, urn, value) -> None:
    assert decode_envelope(encode_envelope(envelope)) == envelope
    assert is_envelope(document)
    assert decode_manifest(to_json(manifest)) == manifest
    assert URN.fits(urn)
    assert json.loads(json.dumps(value)) == value


def test_a_change_of_an_envelope_is_often_harmless_and_oftener_not() -> None:
    drawn = examples_of(broken_documents(), 150)
    assert 0.05 * len(drawn) <= sum(map(is_envelope, drawn)) <= 0.5 * len(drawn)


def test_envelopes_differ() -> None:
    drawn = examples_of(envelopes(), 150)
    kinds = Counter(each.payload_type == "x.unknown" for each in drawn)
    assert min(kinds.values()) >= 0.15 * len(drawn), kinds
    assert sum(each.extensions is not None for each in drawn) >= 0.15 * len(drawn)
    assert len({each.id for each in drawn}) >= 0.2 * len(drawn)


def test_manifests_differ() -> None:
    drawn = examples_of(manifests(), 150)
    assert sum(bool(each.capabilities.skills) for each in drawn) >= 0.2 * len(drawn)
    assert sum(each.auth is not None for each in drawn) >= 0.15 * len(drawn)


def test_heads_of_requests_are_admissible_and_not() -> None:
    drawn = examples_of(requests())
    refused = sum(isinstance(judge(each.method, each.target, collect(each.headers)), BadHead) for each in drawn)
    assert 0.15 * len(drawn) <= refused <= 0.85 * len(drawn)
    assert sum(each.target == "/asap" for each in drawn) >= 0.03 * len(drawn)


def test_json_values_are_of_every_type() -> None:
    kinds = Counter(type(value).__name__ for value in examples_of(json_values()))
    assert kinds.keys() == {"NoneType", "bool", "int", "float", "str", "list", "dict"}
    assert kinds["list"] + kinds["dict"] >= 0.3 * kinds.total(), kinds


def test_bytes_are_cut_nowhere_somewhere_and_everywhere() -> None:
    pieces = Counter(len(each) for each in examples_of(cuts(DATA)))
    assert pieces[1] >= 5, pieces
    # A search draws what it can draw only in one way about once.
    assert pieces[len(DATA)] >= 5, pieces
    assert sum(pieces[count] for count in range(2, len(DATA))) >= 0.2 * pieces.total(), pieces
