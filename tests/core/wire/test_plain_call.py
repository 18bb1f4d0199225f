"""The calls that msgspec reads straight into objects: only what the other readers accept, and with the same meaning."""

import importlib.util
import json
import sys
import types
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st

from asap_core.errors import InvalidDocument
from asap_core.server import exchange
from asap_core.testing import broken_documents, envelope_documents, json_values, request_bodies
from asap_core.wire.codec import decode_envelope
from asap_core.wire.envelope import Envelope
from asap_core.wire.json import MAX_DEPTH, NotJson, read_json
from asap_core.wire.json_values import JsonObject
from asap_core.wire.jsonrpc import Call, RefusedCall, parse_call

read_plain_call: Callable[[bytes, int], Call | None] = vars(exchange)["read_plain_call"]
# Without msgspec nothing is read here: then the tests say only that nothing is accepted.
HERE = find_spec("msgspec") is not None

ENVELOPE: JsonObject = {
    "id": "01HX5K4N000000000000000001",
    "asap_version": "0.1",
    "timestamp": "2026-11-23T09:15:52.739152Z",
    "sender": "urn:asap:agent:alice",
    "recipient": "urn:asap:agent:echo-agent",
    "payload_type": "task.request",
    "payload": {"conversation_id": "conv_1", "skill_id": "echo", "input": {"message": "hé\n", "more": [1, 2.5, None]}},
    "correlation_id": None,
    "trace_id": None,
    "requires_ack": False,
    "extensions": {"nonce": "nonce-fc25db46ff515035"},
}
PARAMS: JsonObject = {"envelope": ENVELOPE, "idempotency_key": "key-1"}
OURS: JsonObject = {"jsonrpc": "2.0", "method": "asap.send", "id": "req-1", "params": PARAMS}
REFERENCE: JsonObject = {"jsonrpc": "2.0", "method": "asap.send", "params": PARAMS, "id": "req-1"}


def compact(document: object) -> bytes:
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()


def spaced(document: object) -> bytes:
    return json.dumps(document, ensure_ascii=False).encode()


def with_envelope(**changed: object) -> JsonObject:
    """A call whose envelope has these values, and lacks those keys whose value is `...`."""
    envelope = {key: value for key, value in {**ENVELOPE, **changed}.items() if value is not ...}
    return {**OURS, "params": {"envelope": envelope}}


def long_way(data: bytes, max_depth: int = MAX_DEPTH) -> Call | None:
    """What the other readers make of it, with the envelope decoded. None if it isn't a valid call."""
    try:
        call = parse_call(read_json(data, max_depth=max_depth))
        if isinstance(call, RefusedCall) or isinstance(call.envelope, Envelope):
            return None
        return Call(call.id, decode_envelope(call.envelope), call.idempotency_key)
    except (NotJson, InvalidDocument):
        return None


def same(plain: Call | None, long: Call | None) -> bool:
    # By their text too: 1 == 1.0 == True.
    return plain == long and repr(plain) == repr(long)


def is_read(data: bytes) -> None:
    """It's valid, and read here if anything is."""
    assert long_way(data) is not None
    assert same(read_plain_call(data, MAX_DEPTH), long_way(data) if HERE else None)


class TestAccepted:
    @pytest.mark.parametrize("document", [OURS, REFERENCE], ids=["ours", "reference"])
    @pytest.mark.parametrize("write", [compact, spaced])
    def test_the_forms_that_both_clients_write(self, document, write) -> None:
        is_read(write(document))

    def test_clients_that_leave_out_what_is_null(self) -> None:
        absent = dict.fromkeys(("correlation_id", "trace_id", "requires_ack", "extensions"), ...)
        is_read(compact(with_envelope(**absent)))
        is_read(compact(with_envelope(correlation_id=...)))
        is_read(compact({**OURS, "params": {**PARAMS, "idempotency_key": None}}))

    def test_all_values_that_are_not_null(self) -> None:
        is_read(compact(with_envelope(correlation_id="c", trace_id="t", requires_ack=True, extensions={})))

    @pytest.mark.parametrize("number", ["", "x" * 256, 0, -1, 2**63 - 1, -(2**63)])
    def test_any_id(self, number) -> None:
        is_read(compact({**OURS, "id": number}))
        is_read(spaced({**REFERENCE, "id": number}))

    def test_the_longest_names(self) -> None:
        is_read(compact({**OURS, "params": {"envelope": ENVELOPE, "idempotency_key": "é" * 256}}))
        is_read(compact(with_envelope(id="é" * 256, payload_type="é" * 256)))

    @pytest.mark.parametrize("correlation_id", ["c", "é" * 300])
    def test_an_answer_that_names_what_it_answers(self, correlation_id) -> None:
        is_read(compact(with_envelope(payload_type="task.response", correlation_id=correlation_id)))

    @pytest.mark.parametrize("timestamp", ["2026-11-23T09:15:52Z", "0001-01-01T00:00:00.000001Z"])
    def test_a_timestamp_in_utc_with_six_digits_or_none(self, timestamp) -> None:
        is_read(compact(with_envelope(timestamp=timestamp)))

    def test_the_largest_text_and_the_deepest(self) -> None:
        data = compact(with_envelope(payload={"x": ""}))
        is_read(data.replace(b'"x":""', b'"x":"%s"' % (b"x" * (4096 - len(data)))))
        deep = b'"x":' + b"[" * (MAX_DEPTH - 5) + b"]" * (MAX_DEPTH - 5)
        is_read(data.replace(b'"x":""', deep))

    def test_blanks_before_it_and_a_long_number_in_it(self) -> None:
        is_read(b" " + compact(OURS).replace(b"2.5", b"9" * 15))


def left(data: bytes) -> None:
    assert read_plain_call(data, MAX_DEPTH) is None


class TestLeft:
    """What isn't accepted: the other readers decide about it."""

    @pytest.mark.parametrize("write", [compact, spaced])
    @pytest.mark.parametrize("document", [OURS, REFERENCE], ids=["ours", "reference"])
    @pytest.mark.parametrize(
        ("once", "twice"),
        [
            ('"jsonrpc"', '"jsonrpc":"2.0","jsonrpc"'), ('"id": "req-1"', '"id": "req-0","id": "req-1"'),
            ('"id": "req-1"', '"id": "req-1","x": 1'), ('"sender"', '"sender":"urn:asap:agent:bob","sender"'),
            ('"message"', '"message":"h","message"'), ('"nonce"', '"nonce":"n","nonce"'), ('"nonce"', '"\\u006eonce"'),
            ('"idempotency_key": "key-1"', '"idempotency_key": "key-1","idempotency_key": "key-1"'),
            ('"idempotency_key": "key-1"', '"idempotency_key": "key-1","x": 1'), ('"trace_id"', '"x": 1,"trace_id"'),
        ],
    )  # fmt: skip
    def test_a_key_that_is_repeated_unknown_or_escaped(self, document, write, once, twice) -> None:
        text = json.dumps(document, ensure_ascii=False).replace(once, twice)
        assert text != json.dumps(document, ensure_ascii=False)
        left(text.encode() if write is spaced else text.replace(", ", ",").replace(": ", ":").encode())

    @pytest.mark.parametrize("document", [OURS, REFERENCE], ids=["ours", "reference"])
    @pytest.mark.parametrize(
        "number", ["1.0", "1e0", "-0", f"{2**63}", f"-{2**63 + 1}", "null", "true", "[]", '"%s"' % ("x" * 257)]
    )
    def test_an_id_that_is_no_string_and_no_whole_number_of_64_bits(self, document, number) -> None:
        left(compact(document).replace(b'"req-1"', number.encode()))

    @pytest.mark.parametrize(
        "changed",
        [
            {"jsonrpc": "1.0"}, {"jsonrpc": 2.0}, {"jsonrpc": None}, {"method": "asap.ack"}, {"method": None},
            {"params": None}, {"params": []}, {"params": {}}, {"params": {"envelope": None}},
            {"params": {"envelope": [ENVELOPE]}}, {"params": {**PARAMS, "idempotency_key": ""}},
            {"params": {**PARAMS, "idempotency_key": "x" * 257}}, {"params": {**PARAMS, "idempotency_key": 1}},
        ],
    )  # fmt: skip
    def test_another_call(self, changed) -> None:
        left(compact({**OURS, **changed}))
        left(compact({**REFERENCE, **changed}))

    @pytest.mark.parametrize("key", list(ENVELOPE))
    def test_an_envelope_without_a_key_or_with_another_type(self, key) -> None:
        left(compact(with_envelope(**{key: 1})))
        if key in ("id", "asap_version", "timestamp", "sender", "recipient", "payload_type", "payload"):
            left(compact(with_envelope(**{key: ...})))
            left(compact(with_envelope(**{key: None})))

    @pytest.mark.parametrize(
        "changed",
        [
            {"id": ""}, {"id": "a\n"}, {"id": "x" * 257}, {"timestamp": "now"}, {"timestamp": ""},
            {"timestamp": "2026-02-30T09:15:52.739152Z"}, {"sender": "alice"}, {"recipient": "urn:asap:agent:A"},
            {"payload_type": ""}, {"payload_type": "x" * 257}, {"payload": []}, {"extensions": []},
            {"payload_type": "task.response"}, {"payload_type": "TaskStream", "correlation_id": ""},
            {"payload_type": "task_response", "correlation_id": ...}, {"requires_ack": None},
        ],
    )  # fmt: skip
    def test_an_envelope_that_breaks_a_rule(self, changed) -> None:
        assert long_way(compact(with_envelope(**changed))) is None
        left(compact(with_envelope(**changed)))

    @pytest.mark.parametrize(
        "value",
        [
            "NaN", "Infinity", "1e999", "1.50", "1E2", "1e2", "-0", "-0.0e0", "1" * 5000, '"\\ud800"', '"\\u00e9"',
            '"\\/"', "[1,]", "01", '"\t"', '{"a":1,"a":2}'
        ],
    )  # fmt: skip
    def test_a_value_of_an_unusual_form(self, value) -> None:
        left(compact(OURS).replace(b"2.5", value.encode()))

    @pytest.mark.parametrize(
        "timestamp",
        [
            "2026-11-23T09:15:52.7391529Z", "2026-11-23T09:15:52.7391525Z", "2026-11-23T09:15:52.1Z", "1763889352",
            "2026-11-23T09:15:52.000000Z", "2026-11-23T09:15:52+00:00", "2026-11-23T09:15:52-00:00",
            "2026-11-23T09:15:52+01:00", "2026-11-23T09:15:52", "2026-11-23 09:15:52Z", "2026-11-23T09:15:52z",
            "2026-11-23T09:15Z", "2026-11-23", 1763889352, 1763889352.5,
        ],
    )  # fmt: skip
    def test_another_form_of_timestamp(self, timestamp) -> None:
        assert long_way(compact(with_envelope(timestamp=timestamp))) is not None
        left(compact(with_envelope(timestamp=timestamp)))

    def test_members_in_another_order(self) -> None:
        left(compact(dict(reversed(OURS.items()))))
        left(compact({**OURS, "params": dict(reversed(PARAMS.items()))}))
        left(compact({**OURS, "params": {"envelope": dict(reversed(ENVELOPE.items()))}}))

    @pytest.mark.parametrize("data", [b"", b"{}", b"}}", b"[]", b"null", b"\xff", b"\xef\xbb\xbf" + compact(OURS)])
    def test_other_texts(self, data) -> None:
        left(data)

    @pytest.mark.parametrize("document", [OURS, REFERENCE], ids=["ours", "reference"])
    def test_more_or_less_than_a_call(self, document) -> None:
        data = compact(document)
        for other in (data[:-1], data[1:], data + b"}", data + b"\0", data + data, b"[" + data + b"]"):
            left(other)

    def test_a_text_that_is_too_large_or_too_deep(self) -> None:
        data = compact(with_envelope(payload={"x": ""}))
        large = data.replace(b'"x":""', b'"x":"%s"' % (b"x" * (4097 - len(data))))
        assert len(large) == 4097
        left(large)
        left(data.replace(b'"x":""', b'"x":' + b"[" * (MAX_DEPTH - 4) + b"]" * (MAX_DEPTH - 4)))
        # The calls, params, envelope, payload and extensions: five braces, and two more objects than fit in four.
        assert read_plain_call(data, 4) is None


def test_the_exchange_works_without_msgspec(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "asap_core.wire.plain_call", None)
    spec: Any = importlib.util.spec_from_file_location("without_msgspec", exchange.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.read_plain_call(compact(OURS), MAX_DEPTH) is None


@st.composite
def almost_plain_calls(draw: st.DrawFn) -> bytes:
    """Calls as clients write them, most of them valid, some with a part replaced or a piece of text repeated."""
    params: JsonObject = {"envelope": draw(envelope_documents() | broken_documents())}
    if draw(st.booleans()):
        params["idempotency_key"] = draw(st.text(max_size=3) | json_values(max_leaves=2))
    number = draw(st.text(max_size=3) | st.integers() | json_values(max_leaves=2))
    call = {"jsonrpc": "2.0", "method": "asap.send", "id": number, "params": params}
    if draw(st.booleans()):
        call["id"] = call.pop("id")
    data = draw(st.sampled_from([compact, spaced]))(call)
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2]))):
        at, size = draw(st.integers(0, len(data))), draw(st.integers(0, 20))
        piece = draw(st.sampled_from([b"", b"\\u0061", b".0", b"e1", b" ", b"\n", data[at : at + size]]))
        data = data[:at] + piece + data[at + draw(st.integers(0, 1)) :]
    return data


def law(read: Callable[[bytes, int], Call | None], data: bytes, max_depth: int) -> None:
    plain = read(data, max_depth)
    assert plain is None or same(plain, long_way(data, max_depth))


@given(almost_plain_calls() | request_bodies(), st.integers(1, 8) | st.just(MAX_DEPTH))
def test_whatever_is_accepted_the_other_readers_accept_and_read_the_same(data, max_depth) -> None:
    law(read_plain_call, data, max_depth)


TRAPS = [
    compact(document)
    for document in (
        OURS,
        with_envelope(id="\n"),
        with_envelope(sender="alice"),
        with_envelope(recipient="alice"),
        with_envelope(payload_type="task.response"),
        with_envelope(timestamp="2026-11-23T09:15:52.739152+01:00"),
        with_envelope(requires_ack=...),
        with_envelope(payload={"x": [[[[[]]]]]}),
    )
]
TRAPS += [compact(OURS).replace(b"2.5", b"2.50"), spaced(OURS).replace(b'"nonce"', b'"nonce": 1, "nonce"')]
MUTANTS = {
    "a key may be repeated": ("if written != data and", "if False and"),
    "any longer text passes": ("written != reformat(data, indent=-1)", "False"),
    "the id may be anything": ("read.id.isprintable()", "True"),
    "the sender may be anything": ("and URN.fits(read.sender)", ""),
    "the recipient may be anything": ("and URN.fits(read.recipient)", ""),
    "the timestamp is in any zone": ("and read.timestamp.tzinfo is UTC", ""),
    "an answer needs no question": ("not in ANSWERS", "is not None"),
    "the depth isn't limited": ("or opened(data) > max_depth", ""),
    "the sender is the recipient": ("_set_sender(made, read.sender)", "_set_sender(made, read.recipient)"),
    "an acknowledgement is required": ("read.requires_ack is True", "read.requires_ack is not False"),
}


@pytest.mark.planted
@pytest.mark.parametrize("name", MUTANTS)
def test_a_planted_bug_is_caught(name: str, monkeypatch) -> None:
    before, after = MUTANTS[name]
    source = Path(str(exchange.__file__)).parents[1].joinpath("wire/plain_call.py").read_text("utf-8")
    assert source.count(before) == 1
    mutant: Any = types.ModuleType("mutant")
    monkeypatch.setitem(sys.modules, "mutant", mutant)  # msgspec looks up the annotations there
    exec(compile(source.replace(before, after), "mutant", "exec"), mutant.__dict__)

    def check(read: Callable[[bytes, int], Call | None]) -> None:
        for data in TRAPS:
            law(read, data, 8)

    check(read_plain_call)
    with pytest.raises(AssertionError):
        check(mutant.read_plain_call)
