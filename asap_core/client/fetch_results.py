"""The results of fetching a document, and of looking one up in the cache."""

from enum import Enum
from typing import Final, Generic, TypeVar

from attrs import frozen

from asap_core.http.caching import HeaderPairs

V = TypeVar("V")


class FailureKind(Enum):
    """Kinds of failed fetches. The kind decides whether a stale document may be used instead."""

    UNREACHABLE = "unreachable"
    TIMEOUT = "timeout"
    SERVER = "server"
    """500, 502, 503, 504 (RFC 5861 §4)."""
    GONE = "gone"
    """401, 403, 404, 410: the document is gone or refused, so the cached one must not be used any longer."""
    UNUSABLE = "unusable"
    """An answer that isn't the document."""
    REFUSED = "refused"
    """Not requested: policy doesn't allow the URL. Not remembered, since the server didn't fail."""
    CROWDED = "crowded"
    """Not requested: this client has no free connection. Not remembered; a stale document may be used."""


GONE: Final = frozenset({401, 403, 404, 410})
"""Statuses by which a server says that there's no document, or none for this client (401, 403): no copy may be used."""
OUTAGE: Final = frozenset({500, 502, 503, 504})
"""Statuses of an outage (RFC 5861 §4): a copy may be used."""


@frozen
class Fetched(Generic[V]):
    """The document was fetched.

    ttl: the lifetime in seconds that the document itself states, if it does.
    """

    value: V
    headers: HeaderPairs = ()
    ttl: float | None = None


@frozen
class NotModified:
    """The server confirmed the cached document (304, RFC 9110 §15.4.5)."""

    headers: HeaderPairs = ()


@frozen
class Failed:
    """The fetch failed.

    error: raised to every waiter.
    retry_after: seconds that the server asks to wait; policy caps them.
    """

    error: Exception
    kind: FailureKind
    retry_after: float | None = None


FetchOutcome = Fetched[V] | NotModified | Failed


class Source(Enum):
    """Where a document came from."""

    FETCHED = "fetched"
    CACHED = "cached"
    REVALIDATED = "revalidated"
    STALE_REVALIDATING = "stale, being revalidated"
    STALE_ERROR = "stale, its server fails"


@frozen
class Document(Generic[V]):
    """A document that was looked up.

    age: seconds since its server last sent or confirmed it.
    """

    value: V
    source: Source
    age: float


@frozen
class NoDocument:
    """A look-up that failed.

    next_try: seconds until a retry is worthwhile.
    age: the age in seconds of a cached document that can't be used: it's too old, or this failure doesn't excuse its
    use. None if there is none.
    """

    error: Exception
    next_try: float
    age: float | None = None
