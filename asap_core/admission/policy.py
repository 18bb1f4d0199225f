"""What an agent lets in, as one frozen object: every number with its reason, two profiles ready made."""

from collections.abc import Mapping
from enum import Enum
from typing import Any, Final

from attrs import field, frozen, validators

from asap_core.admission.ratelimit import Limit, parse_limits
from asap_core.admission.replay import StartPolicy
from asap_core.auth.bearer import is_scope
from asap_core.http.pages import read_hosts, read_origins
from asap_core.http.proxies import ForwardedHeader, read_networks
from asap_core.wire.envelope import normalise_payload_type
from asap_core.wire.json import MAX_DEPTH, MOST_DEPTH


class NoncePolicy(Enum):
    """What stands for an envelope's uniqueness."""

    REQUIRED = "required"
    """`extensions.nonce`, always."""
    OR_ID = "or-id"
    """The nonce; where there's none, the envelope id. The reference's clients send none by default."""
    OFF = "off"
    """Nothing: replays are accepted. For development only."""


def _whole(_policy: Any, attribute: Any, value: Any) -> None:
    if type(value) is not int or value < 1:
        raise ValueError(f"{attribute.name}: expected a whole number, 1 or more")


def _seconds(_policy: Any, attribute: Any, value: Any) -> None:
    if type(value) not in (int, float) or not 0 < value < _FOREVER:
        raise ValueError(f"{attribute.name}: expected a number of seconds above 0")


def _seconds_or_none(policy: Any, attribute: Any, value: Any) -> None:
    if value != 0:
        _seconds(policy, attribute, value)


# Longer than anyone means, short enough that sums of a few stay exact to the microsecond.
_FOREVER: Final = 1e9


def _limits(value: Any) -> Any:
    if isinstance(value, str):
        return parse_limits(value)
    return tuple(value) if isinstance(value, list) else value


def _limits_only(_policy: Any, attribute: Any, value: Any) -> None:
    if type(value) is not tuple or not all(isinstance(one, Limit) for one in value):
        raise ValueError(f"{attribute.name}: expected limits such as 10/second;100/minute")


def _scopes(value: Any) -> Any:
    pairs = tuple(value.items()) if isinstance(value, Mapping) else value
    try:
        made = tuple((_one_spelling(key), frozenset([some] if isinstance(some, str) else some)) for key, some in pairs)
        fits = all(key and some and all(map(is_scope, some)) for key, some in made)
    except (TypeError, ValueError, AttributeError):
        fits, made = False, ()
    if not fits:
        raise ValueError("scopes: expected payload types or type/skill, each with scopes (RFC 6749 §3.3)")
    return made


def _one_spelling(key: str) -> str:
    kind, slash, skill = key.partition("/")
    return f"{normalise_payload_type(kind)}{slash}{skill}"


def _nonce(value: Any) -> Any:
    return next((one for one in NoncePolicy if one.value == value), value)


def _start(value: Any) -> Any:
    return next((one for one in StartPolicy if one.value == value), value)


def _one_of(_policy: Any, attribute: Any, value: Any) -> None:
    kind: type[Enum] = type(attribute.default)
    if value not in list(kind):
        raise ValueError(f"{attribute.name}: expected one of {', '.join(member.value for member in kind)}")


def _among(*words: str) -> Any:
    def check(_policy: Any, attribute: Any, value: Any) -> None:
        if value not in words:
            raise ValueError(f"{attribute.name}: expected {' or '.join(words)}")

    return check


def _boolean(_policy: Any, attribute: Any, value: Any) -> None:
    if type(value) is not bool:
        raise ValueError(f"{attribute.name}: expected true or false")


@frozen(kw_only=True)
class Policy:
    """What an agent lets in. `Policy()` is the profile `strict`; `Policy.reference()` accepts what old peers send.

    Seconds and bytes throughout. `attrs.evolve(policy, max_body=…)` changes single fields.
    """

    profile: str = field(default="strict", validator=_among("strict", "reference"))
    """Which of the two it began as: for logs and warnings, nothing is decided by it."""

    # --- the request -------------------------------------------------------------------------------------------------
    max_body: int = field(default=10_485_760, validator=_whole)
    """The reference's limit, so that what its clients send arrives. Applies to the inflated body as well as to the
    coded one, which may have 128 KiB more: padding, names, and what coding adds to noise."""
    max_bodies: int = field(default=268_435_456, validator=_whole)
    """Bytes of all bodies together, inflated, the first 64 KiB of each apart; a body counts until its answer is made.
    25 of the largest at once: a thousand connections that each held one would take 10 GB."""
    max_answers: int = field(default=268_435_456, validator=_whole)
    """Bytes of all answers of more than 64 KiB together that callers are still to take, as much as of bodies. Past it
    the slowest readers are ended, to make room for the next answer and for making it. No single one may be larger."""
    max_depth: int = field(default=MAX_DEPTH, validator=[_whole, validators.le(MOST_DEPTH)])
    """Arrays and objects within each other. An envelope needs 5 levels; readers elsewhere break at 1,000."""
    max_batch: int = field(default=50, validator=_whole)
    """The reference's limit on requests in one batch."""

    # --- when and once -----------------------------------------------------------------------------------------------
    max_age: float = field(default=300.0, validator=_seconds)
    """How old a timestamp may be: the reference's window. Longer costs memory, shorter refuses slow clocks."""
    skew: float = field(default=30.0, validator=_seconds_or_none)
    """How far ahead a timestamp may be: the reference's tolerance."""
    require_id: bool = field(default=True, validator=_boolean)
    """Without an id nothing can be correlated, and with `or-id` nothing told apart."""
    require_timestamp: bool = field(default=True, validator=_boolean)
    """Without a timestamp an envelope is fresh for ever, and what was captured once replays for ever."""
    nonce: NoncePolicy = field(default=NoncePolicy.OR_ID, converter=_nonce, validator=_one_of)
    """See `NoncePolicy`."""
    nonce_capacity: int = field(default=1_000_000, validator=_whole)
    """Live nonces in all: 330 s at 3,000 envelopes per second, in 130 MB (180 MB once they come and go), and 300 MB
    more where every one of them comes from a proven sender of its own."""
    nonces_per_sender: int = field(default=100_000, validator=_whole)
    """Live nonces of one sender: 300 per second for the whole window, a tenth of all."""
    start: StartPolicy = field(default=StartPolicy.FLOOR, converter=_start, validator=_one_of)
    """What is refused after a start without a state file. `FLOOR` refuses all that was issued before it: also a request
    that started the process (docs/restarts.md says what to choose there)."""

    # --- who and to whom ---------------------------------------------------------------------------------------------
    check_recipient: bool = field(default=True, validator=_boolean)
    """An envelope for another agent, accepted here, could be captured there and replayed here."""
    check_version: bool = field(default=True, validator=_boolean)
    """An envelope of another major version than 0 (`asap_version`) may mean something else by the same keys."""
    check_payload_sender: bool = field(default=True, validator=_boolean)
    """`sender` of a `message.send` is the envelope's: a handler that reads it must not be told another name."""
    scopes: tuple[tuple[str, frozenset[str]], ...] = field(default=(), converter=_scopes, repr=False)
    """What a caller's token must allow for what it asks, by payload type (`task.cancel`) or skill
    (`task.request/translate`); both where both are there. Who has no token, or a static one, has no scopes. An agent
    that doesn't have them can't be made with it: what's misspelt would protect nothing."""
    plain_refusals: bool = field(default=False, validator=_boolean)
    """Answer 401 and 403 as HTTP 200, as the reference does. Proxies and limiters then can't see them."""

    trusted_proxies: tuple[str, ...] = field(default=(), converter=read_networks)
    """Addresses or networks of the proxies in front: from them, and no one else, `forwarded_header` names the peer."""
    forwarded_header: ForwardedHeader = field(
        default="x-forwarded-for", validator=_among("x-forwarded-for", "forwarded")
    )
    """The header that those proxies write. The other one they pass on as the caller wrote it, so it isn't read."""

    origins: tuple[str, ...] = field(default=(), converter=read_origins)
    """Origins of web pages that may call and read the answers, such as `https://app.example`. Unlisted pages may only
    call: those of the agent's own URL and, on a loopback bind, of this machine."""
    hosts: tuple[str, ...] = field(default=(), converter=read_hosts)
    """Further names of this agent that `Host` may have if a web page calls: those that a proxy puts there."""

    # --- shares ------------------------------------------------------------------------------------------------------
    peer_limits: tuple[Limit, ...] = field(default="10/second;100/minute", converter=_limits, validator=_limits_only)
    """Per peer address, before anything else is looked at: the reference's default. Empty is no limit."""
    principal_limits: tuple[Limit, ...] = field(default=(), converter=_limits, validator=_limits_only)
    """Per authenticated agent, after authentication. Off by default: peers are limited already."""
    concurrent: int = field(default=100, validator=_whole)
    """Handlers at work for one principal, or for one peer address where nobody authenticates: a tenth of the
    connections, since one caller of slow work mustn't keep the others out."""
    limiter_capacity: int = field(default=100_000, validator=_whole)
    """Keys remembered per limiter, 20 to 30 MB; past it new keys share one overflow bucket."""
    retry_after_unavailable: float = field(default=1.0, validator=_seconds)
    """What a caller is told to wait where a store or identity provider is out of reach."""

    # --- work --------------------------------------------------------------------------------------------------------
    handler_deadline: float = field(default=30.0, validator=_seconds)
    """How long a handler may take. Callers of the reference wait 60 s; half of it leaves time for the answer."""
    hold: float = field(default=5.0, validator=_seconds_or_none)
    """How long a retry waits for the first of its kind to end, before it's told to come again: most work is shorter,
    and 1.1 clients don't come again by themselves. 0 answers at once."""
    idempotency_ttl: float = field(default=600.0, validator=_seconds)
    """How long a finished answer is kept for a retry: the reference retries within 3 minutes, its windows add 5.5."""
    idempotency_entries: int = field(default=100_000, validator=_whole)
    """Answers and tombstones kept in all."""
    idempotency_bytes: int = field(default=67_108_864, validator=_whole)
    """Bytes of answers kept in all: 64 MiB. Past it the oldest become tombstones."""

    # --- the connection (h11 driver only; ASGI servers have their own) -----------------------------------------------
    max_head: int = field(default=16_384, validator=_whole)
    """Request line and headers together: node's limit; nginx and Apache allow 8 KiB per line, a token has 8 at most."""
    max_headers: int = field(default=100, validator=_whole)
    """Header fields in one request: Apache's limit."""
    max_connections: int = field(default=1_000, validator=_whole)
    """Connections at once, about 60 KB each (on asyncio 300 KB, if the peer sends ahead). Past it the one that has been
    longest without a request gives way to the next; while all are busy one waits, the rest in the kernel's queue."""
    connections_per_peer: int = field(default=100, validator=_whole)
    """Of those, from one address (IPv6: one /64). Past it the one of them that has been longest without a request gives
    way to the next; while all are busy the next is closed at once. Trusted proxies may have all places."""
    head_timeout: float = field(default=10.0, validator=_seconds)
    """From the first byte of a request to the end of its head."""
    body_timeout: float = field(default=30.0, validator=_seconds)
    """From the end of the head to the end of the body: 10 MB at 3 Mbit/s. Under ASGI as well."""
    idle_timeout: float = field(default=60.0, validator=_seconds)
    """Between requests on one connection; the reference's clients drop theirs after 5 s."""
    write_timeout: float = field(default=30.0, validator=_seconds)
    """For one response to be taken by the peer, as far as kernels don't buffer it. Under ASGI as well."""
    drain: float = field(default=30.0, validator=_seconds)
    """After a signal to stop: how long what is in flight may take. Not below the handlers' deadline."""
    drain_incomplete: float = field(default=5.0, validator=_seconds)
    """After a signal to stop: how long heads and bodies that aren't complete may still take, `drain` at most. Half of
    the 10 s after which containers are killed."""

    def __attrs_post_init__(self) -> None:
        if self.handler_deadline > self.drain:
            raise ValueError(
                "handler_deadline: expected at most `drain`, or what is in flight is cut off when it stops"
            )
        if self.max_bodies < self.max_body:
            raise ValueError("max_bodies: expected at least `max_body`, or the largest could never be sent")

    @classmethod
    def reference(cls) -> "Policy":
        """Accept what the reference implementation accepts: id, timestamp or nonce missing, any recipient.

        For talking to old peers. An envelope without a timestamp can then be replayed once its nonce is forgotten.
        """
        return cls(
            profile="reference",
            require_id=False,
            require_timestamp=False,
            check_recipient=False,
            check_version=False,
            check_payload_sender=False,
            plain_refusals=True,
            start=StartPolicy.OPEN,
        )
