"""Messages to send: the caller's values, checked before any request, and the envelope made from them."""

from collections.abc import Callable, Mapping
from hashlib import blake2b
from typing import Any, Final

from attrs import frozen, has

from asap_core.arguments import ArgumentRule, is_instance, is_or_none
from asap_core.clock import WallTime
from asap_core.wire.codec import to_json
from asap_core.wire.envelope import Envelope
from asap_core.wire.json import write_json
from asap_core.wire.jsonrpc import MAX_ID

# The reference's limit: servers refuse larger batches.
_MAX_BATCH: Final = 50
_PAYLOAD_TYPE: Final = ArgumentRule(
    f"text such as 'task.request', at most {MAX_ID} characters",
    lambda value: type(value) is str and 0 < len(value) <= MAX_ID,
)
_OPTIONAL_TEXT: Final = ArgumentRule("text, or None", is_or_none(is_instance(str)))
_TASK_REQUESTS: Final = frozenset({"task.request", "TaskRequest", "task_request"})


@frozen
class OutgoingMessage:
    """The content of one envelope, checked.

    payload: plain JSON.
    key: the caller's idempotency key, or None.
    """

    payload_type: str
    payload: dict[str, Any]
    key: str | None = None
    nonce: str | None = None
    trace_id: str | None = None

    def envelope(self, *, sender: str, recipient: str, ids: Callable[[], str], wall: WallTime, nonce: str) -> Envelope:
        """Make the envelope. A task request without `conversation_id` gets one.

        nonce: used if the caller gave none.
        """
        payload = self.payload
        if self.payload_type in _TASK_REQUESTS and "conversation_id" not in payload:
            made = f"conv_{ids()}" if self.key is None else conversation_id_of(self.key, sender, recipient)
            payload = {**payload, "conversation_id": made}
        return Envelope.new(
            sender=sender,
            recipient=recipient,
            payload_type=self.payload_type,
            payload=payload,
            ids=ids,
            wall=wall,
            nonce=self.nonce or nonce,
            trace_id=self.trace_id,
        )


def conversation_id_of(key: str, sender: str, recipient: str) -> str:
    """Derive the `conversation_id` of a task request from its idempotency key.

    A server compares the whole payload of requests with the same key. A derived id makes a repeated call the same
    request, even from another process. It's a hash only for its fixed length: it isn't secret and grants nothing.
    """
    digest = blake2b(write_json([sender, recipient, key]), digest_size=16, person=b"conversation")
    return f"conv_{digest.hexdigest()}"


def read_message(
    payload_type: object, payload: object, *, key: object = None, nonce: object = None, trace_id: object = None
) -> OutgoingMessage:
    """Check the values of one message. Raises ValueError, which says the right form."""
    _PAYLOAD_TYPE.check("payload_type", payload_type)
    _OPTIONAL_TEXT.check("nonce", nonce)
    _OPTIONAL_TEXT.check("trace_id", trace_id)
    return OutgoingMessage(
        str(payload_type),
        _plain(payload),
        key=None if key is None else read_key(key),
        nonce=nonce if isinstance(nonce, str) else None,
        trace_id=trace_id if isinstance(trace_id, str) else None,
    )


def _plain(payload: object) -> dict[str, Any]:
    """Return the payload as a new dict. Its values are checked when they are written as JSON."""
    try:
        document = dict(payload) if isinstance(payload, Mapping) else to_json(payload) if has(type(payload)) else None
    except TypeError:  # a class of the model with a field that isn't JSON
        document = None
    if type(document) is not dict or not all(type(name) is str for name in document):
        form = "a dict such as {'skill_id': 'echo', 'input': {}}, or one of asap_core's payloads such as TaskRequest"
        raise ValueError(f"payload: expected {form}")
    return document


def read_batch(messages: object) -> list[OutgoingMessage]:
    """Check the messages of a batch, each `(payload_type, payload)`. Raises ValueError."""
    if not isinstance(messages, list | tuple) or not all(map(_is_pair, messages)):
        raise ValueError("messages: expected pairs of payload type and payload, such as [('task.request', {…}), …]")
    if not 0 < len(messages) <= _MAX_BATCH:
        raise ValueError(f"expected 1 to {_MAX_BATCH} messages in a batch")
    return [read_message(payload_type, payload) for payload_type, payload in messages]


def _is_pair(value: object) -> bool:
    return isinstance(value, list | tuple) and len(value) == len(("type", "payload"))


def read_key(given: object) -> str:
    """Return an idempotency key that fits into a header. Raises ValueError, which doesn't repeat it."""
    if not (
        isinstance(given, str)
        and 0 < len(given) <= MAX_ID
        and given.isascii()
        and given.isprintable()
        and given == given.strip()
    ):
        raise ValueError(f"expected an idempotency key of 1 to {MAX_ID} visible ASCII characters")
    return given
