"""How long a fetched document may be used: pure functions from response headers to lifetimes (RFC 9111, RFC 5861).

This is a private cache: `s-maxage` and `private` don't concern it. Heuristics (RFC 9111 §4.2.2) are off: where the
headers are silent the document's own `ttl_seconds` counts, then policy's default. Whatever is malformed is stale.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Final

from attrs import field, frozen

from asap_core.clock import WallTime
from asap_core.http.dates import parse_http_date
from asap_core.http.grammar import QUOTED_STRING, TOKEN, WHITESPACE
from asap_core.wire.rules import number

HeaderPairs = Sequence[tuple[str, str]]


@frozen(kw_only=True)
class FreshnessPolicy:
    """Bounds on what a server may ask for, in seconds."""

    default: float = field(default=300.0, validator=number(least=0))
    """Where neither headers nor the document say anything: the reference's time to live."""
    most: float = field(default=86_400.0, validator=number(least=0))
    """A manifest that moved should be noticed within a day, whatever its old server said: the reference's cap."""
    stale_while_revalidate: float = field(default=3_600.0, validator=number(least=0))
    """The most that a server may allow; nothing where it allows nothing."""
    stale_if_error: float = field(default=86_400.0, validator=number(least=0))
    """How long past its lifetime a document serves while its server fails, unless the server forbids it: a day."""


@frozen(kw_only=True)
class Freshness:
    """What the headers allow, counted from the moment of the response.

    For `fresh_for` seconds it's good as it is; for `revalidate_for` more it may be used while somebody asks again; for
    `error_for` more than `fresh_for`, while the server fails. `store` false: it answers those who wait and isn't kept.
    """

    store: bool
    fresh_for: float
    revalidate_for: float = 0.0
    error_for: float = 0.0
    error_told: bool = False
    """Whether the server says itself how long that is, or that it mustn't be."""
    etag: str | None = None
    last_modified: str | None = None


def freshness_of(
    headers: HeaderPairs, *, policy: FreshnessPolicy, wall: WallTime, ttl: float | None = None
) -> Freshness:
    """Read a response's lifetimes. Never raises. `ttl` is what the document says of itself."""
    fields = _collect(headers)
    directives = _directives(fields.get("cache-control", []))
    # RFC 9111 §5.2.2.2: "a cache MUST NOT reuse that response [once stale] until it has been successfully validated".
    # §5.2.2.4: no-cache, not even while it's fresh; its form with field names "is often handled … as if an unqualified
    # no-cache directive was received", and is here. §5.2.2.8: proxy-revalidate "does not apply to private caches".
    unchecked = "no-cache" in directives
    strict = unchecked or "must-revalidate" in directives
    fresh_for = min(_lifetime(fields, directives, policy, wall, ttl) - _age(fields), policy.most)
    return Freshness(
        store=_may_store(fields, directives),
        fresh_for=0.0 if unchecked else max(fresh_for, 0.0),
        # RFC 5861 §3: "caches MAY serve the response … after it becomes stale, up to the indicated number of seconds".
        revalidate_for=0.0 if strict else _bounded(directives, "stale-while-revalidate", policy.stale_while_revalidate),
        error_for=0.0 if strict else _error_for(directives, policy),
        error_told=strict or "stale-if-error" in directives,
        etag=_single(fields, "etag"),
        last_modified=_single(fields, "last-modified"),
    )


def _may_store(fields: Mapping[str, list[str]], directives: Mapping[str, list[str | None]]) -> bool:
    # RFC 9111 §5.2.2.5: "a cache MUST NOT store any part of … the response". §4.1: "a stored response with a Vary
    # header field value containing a member "*" always fails to match". Other members are as they were: each request
    # for a document is made alike.
    members = {member.strip() for line in fields.get("vary", []) for member in line.split(",")}
    return "no-store" not in directives and "*" not in members


def _lifetime(
    fields: Mapping[str, list[str]],
    directives: Mapping[str, list[str | None]],
    policy: FreshnessPolicy,
    wall: WallTime,
    ttl: float | None,
) -> float:
    # RFC 9111 §4.2.1, in its order, less s-maxage (§5.2.2.10), which is "for a shared cache".
    if "max-age" in directives:
        # "More than one value present for a given directive": "the response should be considered stale", and "caches
        # are encouraged to consider responses that have invalid freshness information … to be stale".
        return _seconds(directives["max-age"]) or 0.0
    if "expires" in fields:
        # §5.3: "a cache recipient MUST interpret invalid date formats, especially the value "0", as … already expired".
        expires = parse_http_date(fields["expires"][0], wall=wall) if len(fields["expires"]) == 1 else None
        # RFC 9110 §6.6.1: without a Date it's the time at which the response was received.
        date = parse_http_date(fields["date"][0], wall=wall) if len(fields.get("date", [])) == 1 else wall
        return 0.0 if expires is None else expires - (wall if date is None else date)
    # §4.2.2: "a cache MAY assign a heuristic expiration time"; a tenth of the age of a file says nothing of an agent.
    return policy.default if ttl is None else max(ttl, 0.0)


def _age(fields: Mapping[str, list[str]]) -> float:
    # §4.2.3 also takes wall - Date into account; clocks of two hosts differ by more than agents' responses are old, and
    # a wrong guess here would make every document of a skewed host stale. Age is counted by clocks that agree.
    # §5.1: "use the first member of the field value"; where that's invalid, "a cache SHOULD ignore the field".
    values = fields.get("age", [])
    return (_seconds([values[0].split(",")[0].strip()]) or 0.0) if values else 0.0


def _error_for(directives: Mapping[str, list[str | None]], policy: FreshnessPolicy) -> float:
    # RFC 5861 §4: "a cached stale response MAY be used to satisfy the request" when an error is encountered, for as
    # long as the server says. RFC 9111 §4.2.4 lets a cache that's disconnected do so where nothing forbids it.
    if "stale-if-error" in directives:
        return _bounded(directives, "stale-if-error", policy.stale_if_error)
    return policy.stale_if_error


def _bounded(directives: Mapping[str, list[str | None]], name: str, most: float) -> float:
    return min(_seconds(directives.get(name, [])) or 0.0, most)


def _collect(headers: HeaderPairs) -> dict[str, list[str]]:
    fields: dict[str, list[str]] = {}
    for name, value in headers:
        fields.setdefault(name.lower(), []).append(value.strip(WHITESPACE))
    return fields


_NAMES: Final = re.compile(TOKEN)
# One member of the list, which may be empty (RFC 9110 §5.6.1.2), and the comma or end behind it. RFC 9111 §5.2:
# cache-directive = token [ "=" ( token / quoted-string ) ], without blanks around "="; "recipients ought to accept both
# forms" of an argument. Possessive, or a line of blanks would take the square of its length.
_MEMBER: Final = re.compile(rf"[ \t]*+(?:({TOKEN})(?:=(?:({QUOTED_STRING})|({TOKEN})))?+)?+[ \t]*+(?:,|\Z)")


def _directives(lines: Sequence[str]) -> dict[str, list[str | None]]:
    """The arguments of each directive, None where one has none."""
    found: dict[str, list[str | None]] = {}
    for line in lines:
        at = 0
        while at < len(line):
            member = _MEMBER.match(line, at)
            if member is None:
                # What can't be read is stale (§4.2.1), and what restricts is honoured if it's named in there at all.
                for name in ("max-age", *_NAMES.findall(line, at)):
                    found.setdefault(name.lower(), []).append(None)
                break
            if member[1] is not None:
                found.setdefault(member[1].lower(), []).append(member[3] if member[2] is None else member[2][1:-1])
            at = member.end()
    return found


# §1.2.2: what is greater than can be represented, "the cache MUST consider … to be 2147483648 (2^31)".
_MAX_DELTA: Final = 2_147_483_648.0
_DELTA: Final = re.compile(r"\d+", re.ASCII)


def _seconds(values: Sequence[str | None]) -> float | None:
    """delta-seconds (§1.2.2), or None where there's not exactly one value, or it's malformed."""
    if len(values) != 1 or values[0] is None or _DELTA.fullmatch(values[0]) is None:
        return None
    return min(float(values[0].lstrip("0")[:20] or 0), _MAX_DELTA)


def _single(fields: Mapping[str, list[str]], name: str) -> str | None:
    values = fields.get(name, [])
    # It's sent back in a request header: one line of visible ASCII, of a sensible length.
    fits = len(values) == 1 and 0 < len(values[0]) <= _MAX_VALIDATOR and values[0].isascii() and values[0].isprintable()
    return values[0] if fits else None


_MAX_VALIDATOR: Final = 1024


def parse_retry_after(value: str, *, wall: WallTime) -> float | None:
    """Read Retry-After (RFC 9110 §10.2.3) as seconds from now, 0 or more, or None where it's malformed.

    The caller caps it: a server mustn't park a client for years (fault 48).
    """
    seconds = _seconds([value.strip(WHITESPACE)])
    if seconds is not None:
        return seconds
    moment = parse_http_date(value.strip(WHITESPACE), wall=wall)
    return None if moment is None else max(moment - wall, 0.0)
