"""Messages made of what a caller gave: checked before anything is sent, and the same again under the same key."""

import pytest

from asap_core import TaskRequest
from asap_core.client.messages import conversation_id_of, read_batch, read_key, read_message

ME, YOU = "urn:asap:agent:me", "urn:asap:agent:you"
ASK = {"skill_id": "echo", "input": {}}


def made(message, nonce: str = "new"):
    return message.envelope(sender=ME, recipient=YOU, ids=lambda: "an-id", wall=1_800_000_000.0, nonce=nonce)


class TestEnvelopes:
    def test_an_envelope_holds_its_arguments(self) -> None:
        envelope = made(read_message("x.y", {"a": 1}, nonce="mine", trace_id="t"))
        assert (envelope.sender, envelope.recipient, envelope.payload_type) == (ME, YOU, "x.y")
        assert (envelope.payload, envelope.extensions, envelope.trace_id) == ({"a": 1}, {"nonce": "mine"}, "t")
        assert made(read_message("x.y", {})).extensions == {"nonce": "new"}

    @pytest.mark.parametrize("kind", ["task.request", "TaskRequest", "task_request"])
    def test_a_task_request_gets_a_conversation_id(self, kind) -> None:
        assert made(read_message(kind, ASK)).payload == {**ASK, "conversation_id": "conv_an-id"}
        assert made(read_message(kind, {**ASK, "conversation_id": "mine"})).payload["conversation_id"] == "mine"
        given = TaskRequest(conversation_id="mine", skill_id="echo", input={})
        assert made(read_message(kind, given, key="k")).payload["conversation_id"] == "mine"
        assert "conversation_id" not in ASK
        assert "conversation_id" not in made(read_message("task.cancel", {"task_id": "t"}, key="k")).payload

    def test_under_a_key_the_conversation_id_is_derived_from_the_key(self) -> None:
        first, again, other = (made(read_message("task.request", ASK, key=key)).payload for key in ("k", "k", "l"))
        assert first == again != other
        assert first["conversation_id"] == conversation_id_of("k", ME, YOU)

    def test_the_derived_conversation_id_depends_on_sender_and_recipient(self) -> None:
        names = [("k", "a", "b"), ("k", "b", "a"), ("l", "a", "b"), ("k", "ab", ""), ('k"', "a", "b")]
        assert len({conversation_id_of(*each) for each in names}) == len(names)
        # Other processes and later versions make the same.
        assert conversation_id_of("k", "a", "b") == "conv_4cedccbab94bb6c58ce6b907770a3639"


class TestInvalidMessages:
    @pytest.mark.parametrize("payload_type", [None, "", 5, b"task.request", "x" * 257, ["task.request"]])
    def test_a_payload_type_that_is_no_text_is_refused(self, payload_type) -> None:
        with pytest.raises(ValueError, match=r"payload_type: expected text such as 'task\.request'"):
            read_message(payload_type, ASK)

    @pytest.mark.parametrize("payload", [None, "hello", b"{}", 5, [], [("a", 1)], ASK.items(), TaskRequest, {1: 2}])
    def test_a_payload_that_is_no_object_is_refused(self, payload) -> None:
        with pytest.raises(ValueError, match=r"payload: expected a dict such as \{'skill_id'.* TaskRequest"):
            read_message("task.request", payload)

    def test_a_payload_object_with_an_invalid_field_is_refused(self) -> None:
        request = TaskRequest(conversation_id="c", skill_id="echo", input={})
        object.__setattr__(request, "skill_id", object())
        with pytest.raises(ValueError, match="payload: expected a dict"):
            read_message("task.request", request)

    @pytest.mark.parametrize("key", ["", " ", "a\nb: c", "k" * 257, "kéy", 5, b"k", ["k"]])
    def test_an_invalid_key_is_refused(self, key) -> None:
        for give in (read_key, lambda key: read_message("x", {}, key=key)):
            with pytest.raises(ValueError, match="1 to 256 visible ASCII"):
                give(key)

    @pytest.mark.parametrize("name", ["nonce", "trace_id"])
    def test_names_that_are_no_text_are_refused(self, name) -> None:
        with pytest.raises(ValueError, match=f"{name}: expected text, or None"):
            read_message("x", {}, **{name: 5})

    @pytest.mark.parametrize(
        "messages", [None, 5, "ab", {"x": {}}, ["task.request"], [("x",)], [("x", {}, 1)], [{"a": 1, "b": 2}], [None]]
    )
    def test_an_invalid_batch_is_refused(self, messages) -> None:
        with pytest.raises(ValueError, match=r"messages: expected pairs of payload type and payload, such as"):
            read_batch(messages)

    def test_the_size_of_a_batch_is_bounded_and_each_item_is_checked(self) -> None:
        assert [message.payload for message in read_batch((("x", {"a": 1}), ["y", {}]))] == [{"a": 1}, {}]
        assert len(read_batch([("x", {})] * 50)) == 50
        for number in (0, 51):
            with pytest.raises(ValueError, match="1 to 50"):
                read_batch([("x", {})] * number)
        with pytest.raises(ValueError, match="payload: expected"):
            read_batch([("x", "hello")])
