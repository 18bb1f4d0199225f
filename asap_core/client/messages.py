"""What is sent: an envelope made of what the caller gave, all of it checked before anything is asked or sent."""

from collections.abc import Callable, Mapping
from hashlib import blake2b
from typing import Any, Final

from attrs import frozen, has

from asap_core.arguments import Form, is_instance, is_or_none
from asap_core.clock import WallTime
from asap_core.wire.codec import to_json
from asap_core.wire.envelope import Envelope
from asap_core.wire.json import write_json
from asap_core.wire.jsonrpc import MAX_ID

# As the reference: more is refused by servers.
_MAX_BATCH: Final = 50
_PAYLOAD_TYPE: Final = Form(
    f"text such as 'task.request', at most {MAX_ID} characters",
    lambda value: type(value) is str and 0 < len(value) <= MAX_ID,
)
_OPTIONAL_TEXT: Final = Form("text, or None", is_or_none(is_instance(str)))
_TASK_REQUESTS: Final = frozenset({"task.request", "TaskRequest", "task_request"})


@frozen
class OutgoingMessage:
    """What one envelope is to carry: the payload as plain JSON, and the idempotency key that its caller chose."""

    payload_type: str
    payload: dict[str, Any]
    key: str | None = None
    nonce: str | None = None
    trace_id: str | None = None

    def envelope(self, *, sender: str, recipient: str, ids: Callable[[], str], wall: WallTime, nonce: str) -> Envelope:
        """Make the envelope; `nonce` counts where the caller gave none. A task request gets a conversation."""
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
    """The `conversation_id` of a task request that has an idempotency key, and no conversation of its caller's.

    It follows from the key, so that the same call is the same request, from another process too: a server compares the
    whole payload under a key. A hash, for its fixed length; it's no secret, and grants nothing.
    """
    digest = blake2b(write_json([sender, recipient, key]), digest_size=16, person=b"conversation")
    return f"conv_{digest.hexdigest()}"


def read_message(
    payload_type: object, payload: object, *, key: object = None, nonce: object = None, trace_id: object = None
) -> OutgoingMessage:
    """Take what the caller wants to send. Raises ValueError, with the right form, for what can't be sent."""
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
    """The payload as a dict of its own; what is in it is judged when it's written."""
    try:
        document = dict(payload) if isinstance(payload, Mapping) else to_json(payload) if has(type(payload)) else None
    except TypeError:  # a model that holds something else than values of the model
        document = None
    if type(document) is not dict or not all(type(name) is str for name in document):
        form = "a dict such as {'skill_id': 'echo', 'input': {}}, or one of asap_core's payloads such as TaskRequest"
        raise ValueError(f"payload: expected {form}")
    return document


def read_batch(messages: object) -> list[OutgoingMessage]:
    """Take the messages of a batch, each `(payload_type, payload)`. Raises ValueError."""
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
