"""What a fetch brings, and what those who asked for the document are told."""

from enum import Enum
from typing import Generic, TypeVar

from attrs import frozen

from asap_core.http.freshness import HeaderPairs

V = TypeVar("V")


class FailureKind(Enum):
    """What kind of failure it was; it decides whether a kept document may stand in."""

    UNREACHABLE = "unreachable"
    TIMEOUT = "timeout"
    SERVER = "server"
    """500, 502, 503, 504 (RFC 5861 §4)."""
    GONE = "gone"
    """401, 403, 404, 410: the server answers, and what is kept is no longer for us."""
    UNUSABLE = "unusable"
    """An answer that isn't the document."""
    REFUSED = "refused"
    """It wasn't asked: it's not for us to go there, from where it was named. Not the server's, and not remembered."""
    CROWDED = "crowded"
    """It wasn't asked: this client had no connection to spare. Not remembered either; a kept document may stand in."""


@frozen
class Fetched(Generic[V]):
    """The document came: its value, the response headers, how long it says itself that it's good."""

    value: V
    headers: HeaderPairs = ()
    ttl: float | None = None


@frozen
class NotModified:
    """The server says that what is kept is good (RFC 9110 §15.4.5)."""

    headers: HeaderPairs = ()


@frozen
class Failed:
    """It did not come. `error` is what every waiter gets; `retry_after` is the server's own word, capped by policy."""

    error: Exception
    kind: FailureKind
    retry_after: float | None = None


FetchOutcome = Fetched[V] | NotModified | Failed


class Source(Enum):
    """Where a found document came from."""

    FETCHED = "fetched"
    CACHED = "cached"
    REVALIDATED = "revalidated"
    STALE_REVALIDATING = "stale, being revalidated"
    STALE_ERROR = "stale, its server fails"


@frozen
class Document(Generic[V]):
    """The document, where it came from, and how many seconds ago its server last vouched for it."""

    value: V
    source: Source
    age: float


@frozen
class NoDocument:
    """There's none: what happened, in how many seconds it pays to ask again, and how old what is kept is.

    `age` is None where nothing is kept: what is kept is past its bound, or this failure doesn't excuse its use.
    """

    error: Exception
    next_try: float
    age: float | None = None
