"""The envelope: the message that agents send each other (docs/wire.md §1).

The core generates neither ids nor timestamps. The caller passes both (`ids=`, `wall=`), so tests and other runtimes
choose them.
"""

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Final, cast

from attrs import field, frozen

from asap_core.clock import WallTime
from asap_core.wire.json_values import JsonObject
from asap_core.wire.rules import BOOLEAN, DATE_TIME, OBJECT, TEXT, URN, InvalidValue, Rule, absent_or, parse_timestamp

ASAP_VERSION: Final = "0.1"
"""What the reference writes in `asap_version`, unchanged from 1.1 to 2.5. That of the HTTP binding is another."""

SUPPORTED_VERSIONS: Final = ("2.2", "2.1")
"""The versions of the HTTP binding that both halves speak, the preferred one first (header `ASAP-Version`)."""

# A ULID has 26 characters, a UUID 36. The reference accepts any length, but ids are stored, logged and
# echoed.
MAX_ID: Final = 256
ID: Final = Rule(
    f"a non-empty string of at most {MAX_ID} characters, without control characters",
    lambda value: type(value) is str and 0 < len(value) <= MAX_ID and (value.isalnum() or value.isprintable()),
)
PAYLOAD_TYPE: Final = Rule(
    f"a payload type such as task.request, at most {MAX_ID} characters",
    lambda value: type(value) is str and 0 < len(value) <= MAX_ID,
)

_IGNORED_IN_TYPES: Final = re.compile(r"[^a-z0-9]+")
# Precomputed for the usual spellings. A cache would let a peer fill it with other ones.
_USUAL_TYPES: Final = {"task.request": "taskrequest", "task.response": "taskresponse", "TaskRequest": "taskrequest"}

# Wire-protocol §1.5 "Later versions": payloads of these types require a correlation_id.
ANSWERS: Final = frozenset({"taskresponse", "taskstream", "mcptoolresult", "mcpresourcedata"})


def normalise_payload_type(payload_type: str) -> str:
    """Return the normal form of a payload type: `taskrequest` for `task.request`, `TaskRequest` and `task_request`.

    Lower-case ASCII letters and digits only, as the reference 2.x normalises. Source: docs/wire.md §1.4.
    """
    usual = _USUAL_TYPES.get(payload_type)
    return usual if usual is not None else _IGNORED_IN_TYPES.sub("", payload_type.lower())


def utc(wall: WallTime) -> datetime:
    """Return `wall` as a UTC datetime, to the microsecond."""
    return datetime.fromtimestamp(wall, UTC)


@frozen(kw_only=True)
class Envelope:
    """One message from one agent to another.

    id, timestamp: always set. If a peer left them out, the receiver's policy filled them in.
    payload: the JSON object as it was received; `asap_core.wire.codec.decode_payload` decodes it.
    correlation_id: the id of the envelope that this one answers; required for payloads that are answers.
    extensions: may hold `nonce`, `trace_id` and `span_id`.
    Raises: InvalidValue (a ValueError) if a field breaks its rule. Source: docs/wire.md §1.1, §1.5.
    """

    id: str = field(validator=ID)
    asap_version: str = field(validator=TEXT)
    timestamp: datetime = field(converter=parse_timestamp, validator=DATE_TIME)
    sender: str = field(validator=URN)
    recipient: str = field(validator=URN)
    payload_type: str = field(validator=PAYLOAD_TYPE)
    payload: JsonObject = field(validator=OBJECT)
    correlation_id: str | None = field(default=None, validator=absent_or(TEXT))
    trace_id: str | None = field(default=None, validator=absent_or(TEXT))
    requires_ack: bool = field(default=False, validator=BOOLEAN)
    extensions: JsonObject | None = field(default=None, validator=absent_or(OBJECT))

    def __attrs_post_init__(self) -> None:
        if not self.correlation_id and normalise_payload_type(self.payload_type) in ANSWERS:
            raise InvalidValue("correlation_id to name the envelope that this payload type answers")

    @classmethod
    def new(
        cls,
        *,
        sender: str,
        recipient: str,
        payload_type: str,
        payload: Mapping[str, object],
        ids: Callable[[], str],
        wall: WallTime,
        nonce: str | None = None,
        correlation_id: str | None = None,
        trace_id: str | None = None,
    ) -> "Envelope":
        """Make an envelope.

        ids: called once, returns the envelope's id.
        wall: the timestamp.
        nonce: stored in `extensions`.
        Raises: InvalidValue (a ValueError) if a field breaks its rule.
        """
        return cls(
            id=ids(),
            timestamp=utc(wall),
            asap_version=ASAP_VERSION,
            sender=sender,
            recipient=recipient,
            payload_type=payload_type,
            payload=dict(payload),
            correlation_id=correlation_id,
            trace_id=trace_id,
            extensions=None if nonce is None else {"nonce": nonce},
        )

    def reply(
        self,
        payload_type: str,
        payload: Mapping[str, object],
        *,
        ids: Callable[[], str],
        wall: WallTime,
        sender: str | None = None,
    ) -> "Envelope":
        """Make the reply to this envelope: addressed to its sender, with its id as `correlation_id`, in its trace.

        sender: the replying agent, if it isn't this envelope's recipient.
        """
        return Envelope.new(
            sender=sender or self.recipient,
            recipient=self.sender,
            payload_type=payload_type,
            payload=payload,
            ids=ids,
            wall=wall,
            correlation_id=self.id,
            trace_id=self.trace_id,
        )

    @property
    def nonce(self) -> object:
        """The value of `extensions.nonce`, unchecked, or None: a peer may send something else than a string."""
        return None if self.extensions is None else self.extensions.get("nonce")

    @property
    def issued(self) -> WallTime:
        """The timestamp as seconds since the epoch."""
        return cast("WallTime", self.timestamp.timestamp())  # a third of the time of a NewType's call
