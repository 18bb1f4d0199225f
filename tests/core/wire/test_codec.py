"""The model and its codec: what peers write is read, every error is told with its place, nothing is echoed."""

import gc
import json
import sys
from datetime import UTC, datetime, timedelta, timezone
from enum import Enum
from typing import Any

import attrs
import pytest
from hypothesis import assume, given, strategies as st

from asap_core.clock import WallTime
from asap_core.errors import InvalidDocument
from asap_core.testing import broken_documents, envelope_documents, envelopes, json_values, manifests
from asap_core.wire import codec, registry_reader
from asap_core.wire.codec import (
    MAX_PROBLEMS,
    decode_envelope,
    decode_health,
    decode_manifest,
    decode_payload,
    encode_envelope,
    etag,
    format_timestamp,
    read_health,
    read_manifest,
    to_json,
    warm_up,
)
from asap_core.wire.envelope import Envelope, normalise_payload_type
from asap_core.wire.manifest import AuthScheme, Manifest, publishable_version
from asap_core.wire.parts import PARTS, TextPart, decode_part
from asap_core.wire.payloads import PAYLOADS, WIRE_NAMES, TaskRequest, TaskStream
from asap_core.wire.registry import Registry, decode_registry_entry
from asap_core.wire.registry_reader import read_registry
from asap_core.wire.rules import DATE_TIME, TEXT, URN, InvalidValue, number
from asap_core.wire.task import AgentRecord, Conversation, StateSnapshot

GOOD = {
    "id": "01HX5K4N000000000000000001",
    "asap_version": "0.1",
    "timestamp": "2026-11-23T09:15:52.739152Z",
    "sender": "urn:asap:agent:alice",
    "recipient": "urn:asap:agent:echo-agent",
    "payload_type": "task.request",
    "payload": {"conversation_id": "conv_1", "skill_id": "echo", "input": {"message": "hello"}},
    "trace_id": "trace_1",
    "extensions": {"nonce": "nonce-fc25db46ff515035"},
}
MANIFEST: dict[str, Any] = {
    "id": "urn:asap:agent:a",
    "name": "A",
    "version": "1.0.0",
    "description": "",
    "capabilities": {"skills": [{"id": "echo", "description": ""}]},
    "endpoints": {"asap": "http://localhost/asap"},
}
ENTRY = {
    "id": "urn:asap:agent:a",
    "name": "A",
    "description": "",
    "endpoints": {"http": "http://localhost"},
    "asap_version": "0.1",
}


def problems(decode, *arguments):
    with pytest.raises(InvalidDocument) as caught:
        decode(*arguments)
    return {problem.json_path: problem for problem in caught.value.problems}


class TestEnvelopes:
    def test_a_version_is_required_as_by_the_reference(self) -> None:
        for wrong in ({}, {"asap_version": None}):
            document = {key: value for key, value in GOOD.items() if key != "asap_version"} | wrong
            assert set(problems(decode_envelope, document)) == {"$.asap_version"}

    def test_an_envelope_from_the_wire_is_read(self) -> None:
        envelope = decode_envelope(GOOD)
        assert (envelope.sender, envelope.nonce) == ("urn:asap:agent:alice", "nonce-fc25db46ff515035")
        assert envelope.timestamp == datetime(2026, 11, 23, 9, 15, 52, 739152, UTC)
        assert envelope.issued == envelope.timestamp.timestamp()
        assert (envelope.correlation_id, envelope.requires_ack) == (None, False)

    def test_every_error_has_its_json_path(self) -> None:
        spoiled = {**GOOD, "sender": "x", "timestamp": True, "extensions": [], "more": 1, "id": ""}
        del spoiled["recipient"]
        found = problems(decode_envelope, spoiled)
        assert set(found) == {"$", "$.sender", "$.recipient", "$.timestamp", "$.extensions", "$.id"}
        assert (found["$"].kind, found["$.recipient"].kind, found["$.id"].kind) == ("unknown_keys", "missing", "wrong")
        assert found["$.sender"].expected.startswith("an agent URN")

    @pytest.mark.parametrize("value", [None, 1, "x", [], True])
    def test_a_value_that_is_no_object_is_refused(self, value) -> None:
        assert set(problems(decode_envelope, value)) == {"$"}

    def test_a_given_path_precedes_the_path_of_an_error(self) -> None:
        with pytest.raises(InvalidDocument) as caught:
            decode_envelope({**GOOD, "sender": 1}, path=("params", "envelope"))
        assert caught.value.problems[0].json_path == "$.params.envelope.sender"
        assert "$.params.envelope.sender: expected an agent URN" in str(caught.value)

    @pytest.mark.parametrize(
        "kind", ["TaskResponse", "task.response", "task_stream", "mcp.tool_result", "McpResourceData"]
    )
    def test_an_answer_needs_a_correlation_id(self, kind) -> None:
        for correlation in (None, ""):
            assert problems(decode_envelope, {**GOOD, "payload_type": kind, "correlation_id": correlation})
        assert decode_envelope({**GOOD, "payload_type": kind, "correlation_id": "x"}).correlation_id == "x"

    @pytest.mark.parametrize(
        "urn",
        [
            "urn:asap:agent:a\n",
            "urn:asap:agent:A",
            "urn:asap:agent:",
            "urn:asap:agent:a:b:c",
            "x" * 300,
            "urn:asap:agent:" + "a" * 250,
        ],
    )
    def test_a_urn_has_one_spelling(self, urn) -> None:
        assert problems(decode_envelope, {**GOOD, "sender": urn})

    @given(envelopes())
    def test_a_written_value_is_read_back(self, envelope) -> None:
        assert decode_envelope(encode_envelope(envelope)) == envelope
        assert decode_envelope(json.loads(json.dumps(to_json(envelope)))) == envelope

    @given(broken_documents() | envelope_documents())
    def test_the_fast_reader_and_the_full_one_decide_alike(self, document) -> None:
        def outcome(decode):
            try:
                return decode()
            except InvalidDocument as error:
                return error.problems

        thorough = outcome(lambda: codec.decode_as(document, Envelope, "envelope", ()))
        assert outcome(lambda: decode_envelope(document)) == thorough

    @given(
        document=envelope_documents(),
        key=st.sampled_from(sorted(GOOD)),
        place=st.sampled_from(["value", "key", "deep"]),
    )
    def test_errors_repeat_nothing_of_the_document(self, document, key, place) -> None:
        marker = "zqxjkvbp"
        assume(marker not in json.dumps(document))
        spoiled = {
            "value": {**document, key: [marker]},
            "key": {**document, marker: 1, "sender": marker},
            "deep": {**document, "payload": {marker: {marker: marker}}, "timestamp": marker},
        }[place]
        refused = ""
        try:
            envelope = decode_envelope(spoiled)
            decode_payload(envelope.payload_type, envelope.payload)
        except InvalidDocument as error:
            json.dumps([attrs.asdict(problem) for problem in error.problems])
            refused = str(error)
        assert marker not in refused

    def test_the_number_of_errors_is_bounded(self) -> None:
        many = {**MANIFEST, "capabilities": {"skills": [{}] * 100}}
        assert len(problems(decode_manifest, many)) == MAX_PROBLEMS

    def test_the_core_generates_no_ids(self) -> None:
        made = Envelope.new(
            sender="urn:asap:agent:a",
            recipient="urn:asap:agent:b",
            payload_type="task.request",
            payload={"a": 1},
            ids=lambda: "the-id",
            wall=WallTime(0.0),
            nonce="n",
            trace_id="t",
        )
        assert (made.id, made.timestamp, made.nonce) == ("the-id", datetime(1970, 1, 1, tzinfo=UTC), "n")
        reply = made.reply("task.response", {}, ids=lambda: "reply", wall=WallTime(1.5))
        assert (reply.sender, reply.recipient) == (made.recipient, made.sender)
        assert (reply.correlation_id, reply.trace_id, reply.nonce) == ("the-id", "t", None)
        assert encode_envelope(reply)["timestamp"] == "1970-01-01T00:00:01.500000Z"

    def test_an_envelope_made_in_python_obeys_the_same_rules(self) -> None:
        with pytest.raises(InvalidValue, match="sender: expected an agent URN"):
            attrs.evolve(decode_envelope(GOOD), sender="me")


class TestTimestamps:
    """Wire-protocol §1.2."""

    AT = datetime(2026, 11, 23, 8, 58, 39, tzinfo=UTC)

    @pytest.mark.parametrize(
        ("text", "moment"),
        [
            ("2026-11-23T08:58:39Z", AT),
            ("2026-11-23t08:58:39z", AT),
            ("2026-11-23 08:58:39Z", AT),
            ("2026-11-23T08:58:39", AT),
            ("2026-11-23T09:58:39+01:00", AT),
            ("2026-11-23T09:58:39+0100", AT),
            ("2026-11-23T08:58Z", AT.replace(second=0)),
            ("2026-11-23", AT.replace(hour=0, minute=0, second=0)),
            ("2026-11-23T08:58:39.1Z", AT.replace(microsecond=100000)),
            ("2026-11-23T08:58:39.123456Z", AT.replace(microsecond=123456)),
            ("2026-11-23T08:58:39.123456789Z", AT.replace(microsecond=123456)),
            (AT.timestamp(), AT),
            (int(AT.timestamp()), AT),
            (AT.timestamp() * 1000, AT),
            (str(int(AT.timestamp())), AT),
            (str(int(AT.timestamp() * 1000)), AT),
            (AT.replace(tzinfo=None), AT),
            (AT.astimezone(timezone(timedelta(hours=5))), AT),
        ],
        ids=repr,
    )
    def test_every_form_that_peers_write_is_read(self, text, moment) -> None:
        assert DATE_TIME.read(text) == moment

    @pytest.mark.parametrize(
        "value",
        [
            "20261123T085839Z", True, None, "", "soon", "2026-13-01T00:00:00Z", "2026-11-23T25:00:00Z", [], {},
            "2026-11-23T08:58.5Z", "2026-11-23T08:58:39Z\n", "2026-W47-1T00:00:00Z", "0001-01-01T00:00:00+23:59",
            "9999-12-31T23:59:59-23:59", 1e300, float("inf"), float("nan"), "９999", "2026-11-23T08:58:39.123456z ",
            "2026-02-30T08:58:39.123456Z", -1e15,
        ],
        ids=repr,
    )  # fmt: skip
    def test_other_forms_of_timestamps_are_refused(self, value) -> None:
        with pytest.raises(InvalidValue):
            DATE_TIME.read(value)

    @given(st.text(max_size=40) | st.floats() | st.integers())
    def test_any_value_is_read_or_refused(self, value) -> None:
        try:
            read = DATE_TIME.read(value)
        except InvalidValue:
            return
        assert isinstance(read, datetime)
        assert read.tzinfo is not None

    @given(st.datetimes(timezones=st.just(UTC)))
    def test_a_timestamp_is_written_in_utc_with_z(self, moment) -> None:
        text = format_timestamp(moment)
        assert text.endswith("Z")
        assert DATE_TIME.read(text) == moment


class TestPayloads:
    def test_all_spellings_of_a_payload_type_are_equal(self) -> None:
        assert {
            normalise_payload_type(kind) for kind in ("task.request", "TaskRequest", "task_request", "TASK-REQUEST")
        } == {"taskrequest"}
        assert {normalise_payload_type(name) for name in WIRE_NAMES.values()} == set(PAYLOADS)

    def test_an_unknown_payload_type_has_no_class(self) -> None:
        assert decode_payload("no.such", {"a": 1}) is None

    def test_every_error_of_a_payload_is_reported(self) -> None:
        found = problems(decode_payload, "task.request", {"skill_id": 1, "more": 1})
        assert set(found) == {"$", "$.conversation_id", "$.skill_id", "$.input"}

    @pytest.mark.parametrize("progress", [{"percent": 101}, {"percent": -1}, {"percent": True}, {"percent": "1"}, []])
    def test_a_percent_is_from_0_to_100(self, progress) -> None:
        update = {"task_id": "t", "update_type": "progress", "status": "working", "progress": progress}
        assert set(problems(decode_payload, "task.update", update)) == {"$.progress"}

    @pytest.mark.parametrize("progress", [None, {}, {"percent": 0}, {"percent": 99.5}])
    def test_a_percent_may_be_missing(self, progress) -> None:
        update = {"task_id": "t", "update_type": "progress", "status": "working", "progress": progress}
        assert decode_payload("task.update", update).progress == progress  # type: ignore[union-attr]

    @pytest.mark.parametrize(
        ("fields", "right"),
        [
            ({"success": True, "result": {}}, True),
            ({"success": False, "error": "e"}, True),
            ({"success": True}, False),
            ({"success": True, "result": {}, "error": "e"}, False),
            ({"success": False}, False),
            ({"success": False, "result": {}, "error": "e"}, False),
        ],
    )
    def test_a_tool_result_is_a_result_or_an_error(self, fields, right) -> None:
        document = {"request_id": "r", **fields}
        if right:
            assert to_json(decode_payload("McpToolResult", document)) == {"result": None, "error": None, **document}
        else:
            assert set(problems(decode_payload, "McpToolResult", document)) == {"$"}

    def test_a_stream_piece_has_defaults(self) -> None:
        assert decode_payload("TaskStream", {}) == TaskStream()
        assert set(problems(decode_payload, "TaskStream", {"progress": 2, "status": "x"})) == {"$.progress", "$.status"}

    @given(json_values())
    def test_any_value_is_read_or_refused(self, value) -> None:
        for name in WIRE_NAMES.values():
            try:
                decode_payload(name, value)
            except InvalidDocument:
                pass

    def test_free_form_objects_take_any_keys(self) -> None:
        document = {"conversation_id": "c", "skill_id": "s", "input": {}, "config": {"anything": [1]}}
        assert decode_payload("task.request", document) == TaskRequest(**document)  # type: ignore[arg-type]


class TestParts:
    @pytest.mark.parametrize(
        "document",
        [
            {"type": "text", "content": "x"},
            {"type": "data", "data": {}, "schema_uri": None},
            {"type": "file", "uri": "https://a/b..c", "mime_type": "Text/plain", "inline_data": "aGk="},
            {"type": "resource", "resource_uri": "mcp://x"},
            {"type": "template", "template": "x", "variables": {}},
        ],
    )
    def test_each_part_is_read_and_written(self, document) -> None:
        assert to_json(decode_part(document)) == document

    @pytest.mark.parametrize("value", [None, [], {}, {"type": 1}, {"type": "x"}, {"type": []}, {"content": "x"}])
    def test_a_part_of_an_unknown_type_is_refused(self, value) -> None:
        found = problems(decode_part, value)
        assert set(found) == {"$.type"}
        assert next(iter(PARTS)) in found["$.type"].expected

    @pytest.mark.parametrize(
        "uri",
        [
            "file:///etc/passwd", "FILE:x", "file:/x", "%66ile:///x", "%2566ile:x", "a/../b", "a/%2e%2e/b", "..",
            "a\\..\\b", "", "a b", "a\nb", "x" * 9000, 1, None, "https://a/%252e%252e/b", "?..", " file:x",
        ],
    )  # fmt: skip
    def test_a_uri_that_reaches_for_files_is_refused(self, uri) -> None:
        assert "$.uri" in problems(decode_part, {"type": "file", "uri": uri, "mime_type": "a/b"})

    @pytest.mark.parametrize("data", ["aGk", "a Gk=", "é", 1, "aGk=\n"])
    def test_inline_data_is_strict_base64(self, data) -> None:
        document = {"type": "file", "uri": "x", "mime_type": "a/b", "inline_data": data}
        assert set(problems(decode_part, document)) == {"$.inline_data"}

    @pytest.mark.parametrize("mime_type", ["text", "text/plain; charset=x", "a/b\n", "", 1])
    def test_a_media_type_has_no_parameters(self, mime_type) -> None:
        assert set(problems(decode_part, {"type": "file", "uri": "x", "mime_type": mime_type})) == {"$.mime_type"}


class TestManifests:
    def test_a_manifest_of_the_reference_is_read(self) -> None:
        later = {
            **MANIFEST,
            "supported_versions": ["2.2"], "auth": None, "signature": None, "sla": None, "verification": None,
            "ttl_seconds": 300, "brand_new": {"x": 1},
            "capabilities": {
                **MANIFEST["capabilities"], "hardware": None, "inference": {"modes": ["cloud"]}, "newer": 1,
            },
        }  # fmt: skip
        manifest = decode_manifest(later)
        assert manifest.extra == {"brand_new": {"x": 1}}
        assert manifest.capabilities.extra == {"newer": 1}
        assert (manifest.supported_versions, manifest.skill_ids) == (("2.2",), ("echo",))

    def test_a_key_named_extra_is_a_key_like_any_other(self) -> None:
        assert decode_manifest({**MANIFEST, "extra": 5}).extra == {"extra": 5}

    def test_a_signed_manifest_is_unwrapped(self) -> None:
        assert decode_manifest({"manifest": MANIFEST, "signature": {}, "public_key": None}).id == MANIFEST["id"]

    def test_any_auth_scheme_is_read(self) -> None:
        manifest: Any = decode_manifest({**MANIFEST, "auth": {"schemes": ["OAuth2", "Bearer"], "oauth2": {"x": 1}}})
        assert manifest.auth.accepts("bearer")
        assert not AuthScheme(schemes=["basic"]).accepts("bearer")

    def test_only_values_of_the_model_are_written(self) -> None:
        assert to_json({"a": [1, None]}) == {"a": [1, None]}
        with pytest.raises(TypeError, match="expected a value of the model, not object"):
            to_json(object())

    def test_errors_have_their_json_paths(self) -> None:
        spoiled = {
            **MANIFEST,
            "capabilities": {"skills": [{"id": 1, "description": ""}, 3]},
            "ttl_seconds": 0,
            "endpoints": [],
        }
        assert set(problems(decode_manifest, spoiled)) == {
            "$.capabilities.skills[0].id",
            "$.capabilities.skills[1]",
            "$.ttl_seconds",
            "$.endpoints",
        }
        assert set(problems(decode_manifest, {**MANIFEST, "capabilities": {"skills": {}}})) == {"$.capabilities.skills"}

    @given(manifests())
    def test_a_written_value_is_read_back(self, manifest) -> None:
        assert decode_manifest(json.loads(json.dumps(to_json(manifest)))) == manifest

    def test_a_skill_is_found_by_its_id(self) -> None:
        manifest: Any = decode_manifest(MANIFEST)
        assert manifest.skill("echo").id == "echo"
        assert manifest.skill("other") is None

    @pytest.mark.parametrize("version", ["1", "1.2.3", "2.0.0-rc.1", "1.0a1", "1.2.3.4"])
    def test_versions_that_all_generations_read_are_publishable(self, version) -> None:
        assert publishable_version(version)

    @pytest.mark.parametrize("version", ["", "abc", "v1", "1.0.0-x", "1.0\n", "1!2.0", "1" * 20])
    def test_versions_that_some_generations_refuse_are_not_publishable(self, version) -> None:
        assert not publishable_version(version)

    @pytest.mark.parametrize("data", [b"", b"[]", b"{}", b"\xff", b'{"id":1,"id":2}'])
    def test_bytes_that_are_no_manifest_are_refused(self, data) -> None:
        for read in (read_manifest, read_health, read_registry):
            with pytest.raises(InvalidDocument, match="expected"):
                read(data)


class TestHealth:
    def test_a_health_document_of_the_reference_is_read(self) -> None:
        report = {"status": "healthy", "agent_id": "x", "version": "1", "uptime_seconds": 2.99, "load": None, "new": 1}
        health = decode_health(report)
        assert (health.healthy, health.asap_version, health.extra) == (True, "0.1", {"new": 1})
        loaded: Any = decode_health({**report, "status": "on fire", "load": {"active_tasks": 3, "x": 1}})
        assert (loaded.healthy, loaded.load.active_tasks, loaded.load.queue_depth) == (False, 3, 0)


class TestRegistries:
    ROOT = {"version": "1.0", "updated_at": "2026-01-01T00:00:00Z"}

    def read(self, value: object) -> Registry:
        return read_registry(json.dumps(value).encode())

    def test_one_bad_entry_is_skipped_and_reported(self) -> None:
        agents = [ENTRY, {**ENTRY, "id": "x"}, 5, {**ENTRY, "new": 1}]
        registry = self.read({**self.ROOT, "agents": agents, "more": 1})
        assert [entry.extra for entry in registry.agents] == [{}, {"new": 1}]
        assert [skipped.index for skipped in registry.skipped] == [1, 2]
        assert registry.skipped[0].problems[0].json_path == "$.agents[1].id"
        assert registry.extra == {"more": 1}
        assert "skipped" not in to_json(registry)

    @pytest.mark.parametrize("value", [[], {}, {"version": "1"}, {**ROOT, "agents": {}}, {**ROOT, "version": 1}])
    def test_an_invalid_registry_is_refused(self, value) -> None:
        assert problems(self.read, value)

    def test_the_number_of_skipped_entries_is_bounded(self, monkeypatch) -> None:
        monkeypatch.setattr(registry_reader, "MAX_SKIPPED", 3)
        assert len(self.read({**self.ROOT, "agents": [1] * 3}).skipped) == 3
        with pytest.raises(InvalidDocument, match=r"\$\.agents: expected entries of which at most 3 can't be read"):
            self.read({**self.ROOT, "agents": [1] * 10})

    @pytest.mark.parametrize("item", [{}, {"id": 1}, 1])
    def test_no_more_invalid_items_are_read_than_reported(self, item, monkeypatch) -> None:
        reads: list[Any] = []
        fits = TEXT.fits

        def counted(value):
            reads.append(1)
            return fits(value)

        monkeypatch.setattr(TEXT, "fits", counted)
        document = {**MANIFEST, "capabilities": {"skills": [item] * 100_000}}
        with pytest.raises(InvalidDocument) as caught:
            decode_manifest(document)
        assert len(caught.value.problems) == 20
        assert len(reads) < 200

    def test_a_registry_cannot_set_its_skipped_entries(self) -> None:
        assert self.read({**self.ROOT, "skipped": [1]}).skipped == ()


class TestRules:
    def test_numbers_have_bounds(self) -> None:
        assert number(least=0).expected == "a number, 0 or more"
        assert number(most=1).expected == "a number, 1 or less"
        assert not number().fits(float("inf"))
        assert not number().fits(10**400)

    def test_reading_uses_the_same_rule(self) -> None:
        assert URN.read("urn:asap:agent:a") == "urn:asap:agent:a"
        with pytest.raises(InvalidValue):
            TEXT.read(1)

    def test_entities_are_held_to_their_rules(self) -> None:
        with pytest.raises(InvalidValue):
            AgentRecord(id="urn:asap:agent:a", manifest_uri="x", capabilities=[])
        with pytest.raises(InvalidValue):
            Conversation(id="c", participants=[1], created_at="2026-01-01")
        with pytest.raises(InvalidValue):
            StateSnapshot(id="s", task_id="t", version=0, data={}, created_at="2026-01-01")
        assert AgentRecord(id="urn:asap:agent:a", manifest_uri="x", capabilities=["a"]).capabilities == ("a",)

    def test_a_part_has_its_type(self) -> None:
        assert to_json(TextPart(content="x")) == {"type": "text", "content": "x"}

    def test_enums_are_written_as_their_values(self) -> None:
        class Colour(Enum):
            RED = "red"

        assert to_json((Colour.RED, 1)) == ["red", 1]


def test_a_bug_in_a_rule_is_not_reported_as_the_callers_fault(monkeypatch) -> None:
    def broken(_value) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(URN, "fits", broken)
    with pytest.raises(ZeroDivisionError):
        codec.decode_as({"id": "urn:asap:agent:a"}, Manifest, "manifest", ())


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize(
    ("decode", "value"),
    [
        (decode_envelope, {"unknown": 1}),
        (decode_envelope, {"id": "e", "asap_version": 3, "payload": {}, "sender": 1}),
        (decode_manifest, {"id": 1, "capabilities": {"skills": [{}, {"id": 3}, 7]}}),
        (decode_registry_entry, {"endpoints": {"http": 1}, "skills": [1, {}]}),
        (lambda value: codec.decode_payload("task.request", value), {"conversation_id": 1}),
        (lambda value: codec.decode_payload("message.send", value), {"parts": [{"type": "text"}]}),
    ],
)
def test_a_refused_value_is_released_at_once(decode, value, times) -> None:
    """Without the garbage collector, because a caller chooses the size of the value."""
    before = sys.getrefcount(value)
    gc.disable()
    try:
        for _ in range(times):
            with pytest.raises(InvalidDocument) as caught:
                decode(value)
            del caught
        assert sys.getrefcount(value) == before
    finally:
        gc.enable()


def test_equal_bodies_share_an_etag() -> None:
    assert etag(b"x") == etag(b"x") != etag(b"y")
    assert etag(b"x").startswith('"')


def test_warm_up_creates_the_readers() -> None:
    warm_up()
    assert codec._converter.cache_info().currsize == 1
