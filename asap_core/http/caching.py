"""The rules of caching a fetched document: how long it may be used, how it's revalidated, and what a 304 changes.

Pure functions from the headers of responses, by RFC 9111 and RFC 5861. The cache is private, so `s-maxage` and
`private` don't apply. There are no heuristics (RFC 9111 §4.2.2): if the headers give no lifetime, the document's own
`ttl_seconds` applies, then the policy's default. Malformed values are treated as stale.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Final

from attrs import field, frozen

from asap_core.clock import WallTime
from asap_core.http.fields import QUOTED_STRING, TOKEN, WHITESPACE, parse_http_date
from asap_core.wire.rules import number

HeaderPairs = Sequence[tuple[str, str]]


@frozen(kw_only=True)
class FreshnessPolicy:
    """Default and upper bounds of the lifetimes that servers ask for, in seconds."""

    default: float = field(default=300.0, validator=number(least=0))
    """If neither headers nor the document give a lifetime. 300 s is the reference's time to live."""
    most: float = field(default=86_400.0, validator=number(least=0))
    """The longest lifetime: a manifest that moved is noticed within a day. The reference has the same limit."""
    stale_while_revalidate: float = field(default=3_600.0, validator=number(least=0))
    """The most that a server may allow (RFC 5861 §3); 0 if the server doesn't allow any."""
    stale_if_error: float = field(default=86_400.0, validator=number(least=0))
    """How long past its lifetime a document may be used while its server fails, unless the server forbids it."""


@frozen(kw_only=True)
class Freshness:
    """What the headers allow, in seconds from the time of the response.

    `store`: whether the document may be cached; if not, it only answers the callers that wait for it.
    `fresh_for`: how long it may be used without asking again.
    `revalidate_for`: how long after that it may be used while it's being revalidated.
    `error_for`: how long after `fresh_for` it may be used while the server fails.
    """

    store: bool
    fresh_for: float
    revalidate_for: float = 0.0
    error_for: float = 0.0
    error_told: bool = False
    """Whether `error_for` comes from the server's headers, not from policy's default."""
    etag: str | None = None
    last_modified: str | None = None


def freshness_of(
    headers: HeaderPairs, *, policy: FreshnessPolicy, wall: WallTime, ttl: float | None = None
) -> Freshness:
    """Read the lifetimes of a response. Never raises.

    `ttl`: the document's own `ttl_seconds`, if it has one.
    """
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
    # header field value containing a member "*" always fails to match". Other members can be ignored: all
    # requests for a document have the same headers.
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
    # §4.2.2: "a cache MAY assign a heuristic expiration time". Not here: the usual one, a tenth of the time since
    # Last-Modified, says nothing about an agent.
    return policy.default if ttl is None else max(ttl, 0.0)


def _age(fields: Mapping[str, list[str]]) -> float:
    # §4.2.3 also uses wall - Date. Not here: clocks of two hosts often differ by more than a response's real age, and
    # then every document of that host would be stale. Age is measured by one clock.
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
    """Return the arguments of each directive by lower-case name; None for a directive without an argument."""
    found: dict[str, list[str | None]] = {}
    for line in lines:
        at = 0
        while at < len(line):
            member = _MEMBER.match(line, at)
            if member is None:
                # A malformed rest is stale (§4.2.1), and every directive that is named in it is honoured.
                for name in ("max-age", *_NAMES.findall(line, at)):
                    found.setdefault(name.lower(), []).append(None)
                break
            if member[1] is not None:
                found.setdefault(member[1].lower(), []).append(member[3] if member[2] is None else member[2][1:-1])
            at = member.end()
    return found


# §1.2.2: a value greater than can be represented, "the cache MUST consider … to be 2147483648 (2^31)".
_MAX_DELTA: Final = 2_147_483_648.0
_DELTA: Final = re.compile(r"\d+", re.ASCII)


def _seconds(values: Sequence[str | None]) -> float | None:
    """Read delta-seconds (§1.2.2). Returns None if there isn't exactly one value, or if it's malformed."""
    if len(values) != 1 or values[0] is None or _DELTA.fullmatch(values[0]) is None:
        return None
    return min(float(values[0].lstrip("0")[:20] or 0), _MAX_DELTA)


_MAX_VALIDATOR: Final = 1024


def _single(fields: Mapping[str, list[str]], name: str) -> str | None:
    values = fields.get(name, [])
    # It's sent back in a request header, so it must be one line of visible ASCII, of a reasonable length.
    fits = len(values) == 1 and 0 < len(values[0]) <= _MAX_VALIDATOR and values[0].isascii() and values[0].isprintable()
    return values[0] if fits else None


# The fields that lifetimes and conditions are read from; a response's other fields aren't cached.
_RELEVANT: Final = frozenset({"cache-control", "age", "date", "expires", "vary", "etag", "last-modified"})
# Age and Date describe one response only. RFC 9110 §6.6.1: a response without Date is dated when it's received.
_OF_ONE_RESPONSE: Final = frozenset({"age", "date"})


def relevant(headers: HeaderPairs) -> HeaderPairs:
    """Return the fields that are cached with a document, their names in lower case."""
    return tuple((name.lower(), value) for name, value in headers if name.lower() in _RELEVANT)


def merged(stored: HeaderPairs, update: HeaderPairs) -> HeaderPairs:
    """Return the fields of a cached document after a 304 with the fields of `update`. `stored` are `relevant` ones."""
    # RFC 9111 §3.2: "the cache MUST add each header field in the provided response to the stored response, replacing
    # field values that are already present".
    fields = relevant(update)
    replaced = _OF_ONE_RESPONSE.union(name for name, _ in fields)
    return (*((name, value) for name, value in stored if name not in replaced), *fields)


def conditions(freshness: Freshness | None) -> HeaderPairs:
    """Return the request headers that revalidate a cached document; none if `freshness` is None (nothing is cached)."""
    if freshness is None:
        return ()
    # RFC 9111 §4.3.1: both are sent; a server that knows If-None-Match ignores the other (RFC 9110 §13.1.3).
    both = (("if-none-match", freshness.etag), ("if-modified-since", freshness.last_modified))
    return tuple((name, value) for name, value in both if value is not None)


def confirms(update: HeaderPairs, freshness: Freshness) -> bool:
    """Whether a 304 with these fields is about the cached document.

    RFC 9111 §4.3.4: if it has a validator that isn't the cached document's, it "MUST NOT" update that.
    """
    said = dict(relevant(update))
    if "etag" in said:
        return _opaque(said["etag"]) == _opaque(freshness.etag or "")
    return said.get("last-modified", freshness.last_modified) == freshness.last_modified


def _opaque(etag: str) -> str:
    # RFC 9110 §8.8.3.2, §13.1.2: If-None-Match uses weak comparison.
    return etag.strip().removeprefix("W/")


def parse_retry_after(value: str, *, wall: WallTime) -> float | None:
    """Read Retry-After (RFC 9110 §10.2.3) as seconds from now, at least 0. Returns None if it's malformed.

    The caller must limit it: a server could ask for years.
    """
    seconds = _seconds([value.strip(WHITESPACE)])
    if seconds is not None:
        return seconds
    moment = parse_http_date(value.strip(WHITESPACE), wall=wall)
    return None if moment is None else max(moment - wall, 0.0)
