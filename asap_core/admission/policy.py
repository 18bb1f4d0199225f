"""What an agent accepts, as one frozen object: every limit with its default and the reason for it.

There are two profiles: `Policy()` is strict, and `Policy.reference()` accepts what old peers send. Each validator and
converter below raises ValueError that names the field and says which values are valid.
"""

from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from typing import Final

from attrs import field, frozen, validators

from asap_core.admission.ratelimit import Limit, parse_limits
from asap_core.admission.replay import StartPolicy
from asap_core.arguments import NamedField
from asap_core.auth.bearer import is_scope
from asap_core.http.pages import read_hosts, read_origins
from asap_core.http.proxies import ForwardedHeader, read_networks
from asap_core.wire.envelope import normalise_payload_type
from asap_core.wire.json import MAX_DEPTH, MOST_DEPTH


class NoncePolicy(Enum):
    """What makes an envelope unique for replay detection."""

    REQUIRED = "required"
    """`extensions.nonce`; an envelope without one is refused."""
    OR_ID = "or-id"
    """The nonce or, if it's missing, the envelope id: clients of the reference send no nonce by default."""
    OFF = "off"
    """Nothing: replays are accepted. For development only."""


# The longest duration, 31 years: longer than any sensible one, and sums of a few stay exact to the microsecond.
_LONGEST: Final = 1e9


def _whole(_policy: object, attribute: NamedField, value: object) -> None:
    if type(value) is not int or value < 1:
        raise ValueError(f"{attribute.name}: expected a whole number, 1 or more")


def _seconds(_policy: object, attribute: NamedField, value: object) -> None:
    if not isinstance(value, int | float) or type(value) is bool or not 0 < value < _LONGEST:
        raise ValueError(f"{attribute.name}: expected a number of seconds above 0")


def _seconds_or_none(policy: object, attribute: NamedField, value: object) -> None:
    if value != 0:
        _seconds(policy, attribute, value)


def _limits(value: str | list[Limit] | tuple[Limit, ...]) -> tuple[Limit, ...]:
    if isinstance(value, str):
        return parse_limits(value)
    return tuple(value) if isinstance(value, list) else value


def _limits_only(_policy: object, attribute: NamedField, value: object) -> None:
    if type(value) is not tuple or not all(isinstance(one, Limit) for one in value):
        raise ValueError(f"{attribute.name}: expected limits such as 10/second;100/minute")


_Scopes = str | Iterable[str]


def _scopes(value: Mapping[str, _Scopes] | Iterable[tuple[str, _Scopes]]) -> tuple[tuple[str, frozenset[str]], ...]:
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


# Two converters and not one made for each enumeration: the type checker's plug-in reads named functions only. A value
# that isn't a member is left for `_member_of` to refuse.
def _nonce(value: NoncePolicy | str) -> NoncePolicy | str:
    return next((one for one in NoncePolicy if one.value == value), value)


def _start(value: StartPolicy | str) -> StartPolicy | str:
    return next((one for one in StartPolicy if one.value == value), value)


def _member_of(kind: type[Enum]) -> Callable[[object, NamedField, object], None]:
    def check(_policy: object, attribute: NamedField, value: object) -> None:
        if value not in list(kind):
            raise ValueError(f"{attribute.name}: expected one of {', '.join(member.value for member in kind)}")

    return check


def _among(*words: str) -> Callable[[object, NamedField, object], None]:
    def check(_policy: object, attribute: NamedField, value: object) -> None:
        if value not in words:
            raise ValueError(f"{attribute.name}: expected {' or '.join(words)}")

    return check


def _boolean(_policy: object, attribute: NamedField, value: object) -> None:
    if type(value) is not bool:
        raise ValueError(f"{attribute.name}: expected true or false")


@frozen(kw_only=True)
class Policy:
    """What an agent accepts. `Policy()` is the profile `strict`; `Policy.reference()` accepts what old peers send.

    Times are in seconds and sizes in bytes throughout. `attrs.evolve(policy, max_body=…)` changes single fields.
    Raises ValueError, which names the field, if a value is invalid.
    """

    profile: str = field(default="strict", validator=_among("strict", "reference"))
    """The profile that this policy began as: `strict` or `reference`. For logs and warnings; no decision depends on it.
    """

    # --- the request -------------------------------------------------------------------------------------------------
    max_body: int = field(default=10_485_760, validator=_whole)
    """Largest request body in bytes, at least 1. The default, 10 MiB, is the reference's limit, so what its clients
    send arrives. It applies to the inflated body and to the compressed one, which may be 128 KiB larger: padding,
    names, and what compression adds to random data."""
    max_bodies: int = field(default=268_435_456, validator=_whole)
    """Bytes of all request bodies in memory together, at least `max_body`. They count inflated, without the first 64
    KiB of each, until the answer is made. The default, 256 MiB, holds 25 of the largest at once: without it a thousand
    connections with one each would take 10 GB."""
    max_answers: int = field(default=268_435_456, validator=_whole)
    """Bytes of all answers above 64 KiB that callers haven't read yet, together; also the limit of a single answer.
    Past it the slowest readers are disconnected to make room for the next answer. The default is that of
    `max_bodies`."""
    max_depth: int = field(default=MAX_DEPTH, validator=[_whole, validators.le(MOST_DEPTH)])
    """Nesting of arrays and objects in a request, in levels. An envelope needs 5; readers elsewhere fail at 1,000."""
    max_batch: int = field(default=50, validator=_whole)
    """Requests in one JSON-RPC batch, at least 1. The default is the reference's limit."""

    # --- time window and replays -------------------------------------------------------------------------------------
    max_age: float = field(default=300.0, validator=_seconds)
    """How old an envelope's timestamp may be, in seconds, above 0. The default is the reference's window. A longer one
    costs memory for nonces; a shorter one refuses callers whose clocks are slow."""
    skew: float = field(default=30.0, validator=_seconds_or_none)
    """How far ahead a timestamp may be, in seconds, 0 or more. The default is the reference's tolerance."""
    require_id: bool = field(default=True, validator=_boolean)
    """Refuse envelopes without an id: their answers can't be correlated, and `or-id` can't tell them apart."""
    require_timestamp: bool = field(default=True, validator=_boolean)
    """Refuse envelopes without a timestamp: one that was captured could be replayed for ever."""
    nonce: NoncePolicy = field(default=NoncePolicy.OR_ID, converter=_nonce, validator=_member_of(NoncePolicy))
    """What makes an envelope unique: `required`, `or-id` or `off` (see `NoncePolicy`)."""
    nonce_capacity: int = field(default=1_000_000, validator=_whole)
    """Nonces remembered at once, at least 1; each is remembered for `max_age + skew`. The default is 330 s at 3,000
    envelopes per second. It takes 130 MB (180 MB after entries have been replaced), and 300 MB more if each nonce comes
    from an authenticated sender of its own."""
    nonces_per_sender: int = field(default=100_000, validator=_whole)
    """Nonces remembered for one authenticated sender, at least 1. The default is 300 per second for the whole window, a
    tenth of `nonce_capacity`, so that one sender can't use up the others' room."""
    start: StartPolicy = field(default=StartPolicy.FLOOR, converter=_start, validator=_member_of(StartPolicy))
    """What is refused after a start without a state file: `exact`, `floor` or `open` (see `StartPolicy`). `floor`
    refuses everything that was issued before the start, which includes a request that started the process
    (docs/restarts.md says what to choose for functions)."""

    # --- sender, recipient and origin --------------------------------------------------------------------------------
    check_recipient: bool = field(default=True, validator=_boolean)
    """Refuse envelopes for other agents: one that is accepted here could be captured there and replayed here."""
    check_version: bool = field(default=True, validator=_boolean)
    """Refuse envelopes whose major `asap_version` isn't 0: they may mean something else by the same keys."""
    check_payload_sender: bool = field(default=True, validator=_boolean)
    """Refuse a `message.send` whose payload names another sender than its envelope: a handler may read either."""
    scopes: tuple[tuple[str, frozenset[str]], ...] = field(default=(), converter=_scopes, repr=False)
    """Scopes (RFC 6749 §3.3) that a caller's token needs, as a mapping by payload type (`task.cancel`) or skill
    (`task.request/translate`); if both are listed, it needs both. Callers without a token, or with a static one, have
    no scopes. `Agent` raises ValueError for a type or skill that it doesn't have, since a misspelt one protects
    nothing."""
    plain_refusals: bool = field(default=False, validator=_boolean)
    """Answer 401 and 403 as HTTP 200, as the reference does. Proxies and rate limiters then don't see them."""

    trusted_proxies: tuple[str, ...] = field(default=(), converter=read_networks)
    """Addresses or networks of the proxies in front. `unix:` stands for connections without an address: those over a
    UNIX socket, and under ASGI those whose `client` is None. Only a proxy's `forwarded_header` names the peer."""
    forwarded_header: ForwardedHeader = field(
        default="x-forwarded-for", validator=_among("x-forwarded-for", "forwarded")
    )
    """The header that those proxies write: `x-forwarded-for` or `forwarded` (RFC 7239). The other one isn't read, since
    proxies pass it on as the caller wrote it."""

    origins: tuple[str, ...] = field(default=(), converter=read_origins)
    """Origins of web pages that may call the agent and read its answers, such as `https://app.example`. Other pages may
    call it without reading the answer, if they are of the agent's own URL or, on a loopback bind, of this machine."""
    hosts: tuple[str, ...] = field(default=(), converter=read_hosts)
    """Further names of this agent that are accepted in `Host` if a web page calls: those that a proxy sends."""

    # --- limits ------------------------------------------------------------------------------------------------------
    peer_limits: tuple[Limit, ...] = field(default="10/second;100/minute", converter=_limits, validator=_limits_only)
    """Rate limits for each peer address (IPv6: each /64), checked before anything else. The default is the reference's.
    Empty: no limit."""
    principal_limits: tuple[Limit, ...] = field(default=(), converter=_limits, validator=_limits_only)
    """Rate limits for each authenticated agent, checked after authentication. Off by default: peers are limited
    already."""
    concurrent: int = field(default=100, validator=_whole)
    """Handlers that run at once for one principal or, without authentication, for one peer address; at least 1. The
    default is a tenth of `max_connections`, so that one caller's slow work doesn't keep others out."""
    limiter_capacity: int = field(default=100_000, validator=_whole)
    """Keys that each rate limiter remembers, at least 1; the default takes 20 to 30 MB. Past it new keys share one
    record."""
    retry_after_unavailable: float = field(default=1.0, validator=_seconds)
    """`Retry-After` in seconds, above 0, if a store or an identity provider is out of reach."""

    # --- work --------------------------------------------------------------------------------------------------------
    handler_deadline: float = field(default=30.0, validator=_seconds)
    """How long a handler may run, in seconds, at most `drain`. Callers of the reference wait 60 s; half of that leaves
    time for the answer."""
    hold: float = field(default=5.0, validator=_seconds_or_none)
    """How long a retry waits for the first request under its idempotency key, in seconds, before it's told to come
    again. 0 answers at once. Most work is shorter than the default, and clients of 1.1 don't retry by themselves."""
    idempotency_ttl: float = field(default=600.0, validator=_seconds)
    """How long a finished answer is kept for retries, in seconds, above 0. The reference retries within 3 minutes, and
    its windows add 5.5."""
    idempotency_entries: int = field(default=100_000, validator=_whole)
    """Idempotency keys remembered, with or without their answers; at least 1."""
    idempotency_bytes: int = field(default=67_108_864, validator=_whole)
    """Bytes of kept answers together, at least 1; 64 MiB by default. Past it the oldest answers are dropped, and their
    keys answer `answer gone`."""

    # --- heads; ASGI servers have limits of their own besides --------------------------------------------------------
    max_head: int = field(default=16_384, validator=_whole)
    """Bytes of request line and headers together, at least 1. The default is node's limit; nginx and Apache allow 8 KiB
    per line, and a token takes 8 KiB at most."""
    max_headers: int = field(default=100, validator=_whole)
    """Header fields in one request, at least 1. The default is Apache's limit."""

    # --- the connection (not under ASGI servers, which have their own limits) ----------------------------------------
    max_connections: int = field(default=1_000, validator=_whole)
    """Connections at once, at least 1; each takes some 60 KB (on asyncio 300 KB, if the peer sends ahead). When full,
    the connection that has been idle longest is closed for the new one. If all are busy, up to 64 new ones wait, and
    the rest stay in the kernel's queue."""
    connections_per_peer: int = field(default=100, validator=_whole)
    """Connections at once from one address (IPv6: one /64), at least 1. When full, that address's longest idle
    connection is closed for the new one; if all are busy, the new one is closed at once. Trusted proxies aren't
    limited."""
    head_timeout: float = field(default=10.0, validator=_seconds)
    """From the first byte of a request to the end of its head, in seconds, above 0."""
    body_timeout: float = field(default=30.0, validator=_seconds)
    """From the end of the head to the end of the body, in seconds, above 0. The default is 10 MB at 3 Mbit/s. Applies
    under ASGI too."""
    idle_timeout: float = field(default=60.0, validator=_seconds)
    """Between requests on one connection, in seconds, above 0. The reference's clients close theirs after 5 s."""
    write_timeout: float = field(default=30.0, validator=_seconds)
    """For the peer to read one response, beyond what kernels buffer, in seconds, above 0. Applies under ASGI too."""
    drain: float = field(default=30.0, validator=_seconds)
    """After a signal to stop: how long running requests may take, in seconds, at least `handler_deadline`."""
    drain_incomplete: float = field(default=5.0, validator=_seconds)
    """After a signal to stop: how long incomplete heads and bodies may take, in seconds; `drain` limits it too. The
    default is half of the 10 s after which containers are killed."""

    def __attrs_post_init__(self) -> None:
        if self.handler_deadline > self.drain:
            raise ValueError(
                "handler_deadline: expected at most `drain`, or what is in flight is cut off when it stops"
            )
        if self.max_bodies < self.max_body:
            raise ValueError("max_bodies: expected at least `max_body`, or the largest could never be sent")

    @classmethod
    def reference(cls) -> "Policy":
        """Return a policy that accepts what the reference does: no id, timestamp or nonce, and any recipient.

        For old peers. An envelope without a timestamp can then be replayed after its nonce was forgotten.
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
