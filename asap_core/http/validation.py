"""Conditional requests: headers that revalidate a cached document, and what a 304 means (RFC 9111 §4.3, §3.2)."""

from typing import Final

from asap_core.http.freshness import Freshness, HeaderPairs

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
