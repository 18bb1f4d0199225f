"""Conditional requests: with what a kept document is asked about, and what a 304 says of it (RFC 9111 §4.3, §3.2)."""

from typing import Final

from asap_core.http.freshness import Freshness, HeaderPairs

# What lifetimes and conditions are read from; the rest of a response's head isn't kept.
_RELEVANT: Final = frozenset({"cache-control", "age", "date", "expires", "vary", "etag", "last-modified"})
# An Age was the old response's, a Date its time; RFC 9110 §6.6.1: one without is dated when it's received.
_OF_ONE_RESPONSE: Final = frozenset({"age", "date"})


def relevant(headers: HeaderPairs) -> HeaderPairs:
    """The fields worth keeping, their names in lower case."""
    return tuple((name.lower(), value) for name, value in headers if name.lower() in _RELEVANT)


def merged(stored: HeaderPairs, update: HeaderPairs) -> HeaderPairs:
    """The fields of a document that a 304 with the fields of `update` confirmed. `stored` are `relevant` ones."""
    # RFC 9111 §3.2: "the cache MUST add each header field in the provided response to the stored response, replacing
    # field values that are already present".
    fields = relevant(update)
    replaced = _OF_ONE_RESPONSE.union(name for name, _ in fields)
    return (*((name, value) for name, value in stored if name not in replaced), *fields)


def conditions(freshness: Freshness | None) -> HeaderPairs:
    """The request headers that ask whether a kept document is good still; none where nothing is kept."""
    if freshness is None:
        return ()
    # RFC 9111 §4.3.1: both, and the server goes by the first that it knows.
    both = (("if-none-match", freshness.etag), ("if-modified-since", freshness.last_modified))
    return tuple((name, value) for name, value in both if value is not None)


def confirms(update: HeaderPairs, freshness: Freshness) -> bool:
    """Whether a 304 with these fields is about the kept document.

    RFC 9111 §4.3.4: where it has a validator, that's the kept document's, or it "MUST NOT" update it.
    """
    said = dict(relevant(update))
    if "etag" in said:
        return _opaque(said["etag"]) == _opaque(freshness.etag or "")
    return said.get("last-modified", freshness.last_modified) == freshness.last_modified


def _opaque(etag: str) -> str:
    # RFC 9110 §8.8.3.2: by weak comparison, which is If-None-Match's.
    return etag.strip().removeprefix("W/")
