"""The file format of cached registries, and when such a copy may be used instead of its server.

    first line: JSON (whose copy it is, when its server confirmed it, for how long it may be used, the registry's length
    and digest), a space, and a checksum of that JSON
    rest: the registry

Rules of this module: a copy is used if its server can't be reached, never if the server answers something else. A file
that isn't exactly what was written isn't used.
"""

from collections.abc import Iterable
from enum import Enum
from hashlib import blake2b
from typing import Any, Final

from attrs import frozen

from asap_core.clock import WallTime
from asap_core.errors import BadReply, Unreachable
from asap_core.http.caching import Freshness
from asap_core.net.addresses import Proximity
from asap_core.net.urls import normal
from asap_core.wire.json import NotJson, read_json, write_json

LONGEST: Final = 604_800.0
"""The most seconds for which a copy is used: a week. Longer than an outage that is being worked on, and short enough
that an agent removed from a registry disappears from every client."""
# The clock may have been set back since a copy was written. The age of a copy that is dated further in the future is
# unknown.
_SKEW: Final = 60.0
# The first line has some 350 bytes. A longer one wasn't written by this library.
MAX_HEAD: Final = 1_024
_KIND: Final = "asap registry copy 2"
_DIGEST: Final = 32
# A checksum against damaged files, as the digest is. It isn't a signature: anyone who can write the file can make one.
_SEAL: Final = 16
# Of the hash in a file's name; long enough against collisions of URLs.
_NAME_DIGEST: Final = 16
_NO_OUTAGE: Final = frozenset({401, 403, 404, 410})
# RFC 5861 §4.
_OUTAGE: Final = frozenset({500, 502, 503, 504})


@frozen
class Copy:
    """The first line of a copy that may be used.

    age: seconds since its server confirmed it.
    serves: seconds from then for which it may be used.
    zone: how near the server was.
    """

    age: float
    serves: float
    zone: Proximity
    length: int
    digest: str

    def holds(self, registry: bytes | memoryview) -> bool:
        """Return whether `registry` has the length and digest that were written."""
        return measure((registry,)) == (self.length, self.digest)


class CopyAction(Enum):
    """What to do with a copy when its registry can't be fetched."""

    SERVES = "serves"
    """Use it: the server can't be reached, or reports an outage."""
    STAYS = "stays"
    """Keep it, but don't use it: the server answers, and its answer is unusable."""
    GOES = "goes"
    """Delete it: the server says that the registry is gone, or refuses it."""


def copy_action(error: Exception) -> CopyAction:
    """Return what to do with a copy when fetching its registry failed with `error`."""
    if isinstance(error, Unreachable):
        return CopyAction.SERVES
    status = error.status if isinstance(error, BadReply) else None
    return CopyAction.SERVES if status in _OUTAGE else CopyAction.GOES if status in _NO_OUTAGE else CopyAction.STAYS


def serves_for(freshness: Freshness) -> float:
    """Return for how many seconds after its confirmation a copy may be used. 0 means that none may be stored.

    The server's stale-if-error (RFC 5861 §4), must-revalidate (RFC 9111 §5.2.2.2: "MUST NOT reuse that response" once
    stale) and no-store (§5.2.2.5: not "in non-volatile storage") are obeyed. By default it's a week.
    """
    if not freshness.store:
        return 0.0
    return min(freshness.fresh_for + freshness.error_for, LONGEST) if freshness.error_told else LONGEST


def file_name(url: str) -> str:
    """Return the name of the copy's file. It's a hash, since a URL may hold a secret."""
    return f"{_name(url)}.registry"


def _name(url: str) -> str:
    return blake2b(normal(url).encode("utf-8", "surrogatepass"), digest_size=_NAME_DIGEST).hexdigest()


def measure(pieces: Iterable[bytes | memoryview]) -> tuple[int, str]:
    """Return the length and the digest of the registry in these pieces."""
    length, digest = 0, blake2b(digest_size=_DIGEST)
    for piece in pieces:
        length += len(piece)
        digest.update(piece)
    return length, digest.hexdigest()


def write_head(url: str, *, vouched: WallTime, serves: float, zone: Proximity, length: int, digest: str) -> bytes:
    """Write the first line of a copy of the registry at `url`.

    vouched: when its server confirmed it.
    serves: for how many seconds from then it may be used.
    zone: how near its server was.
    """
    head = {
        "kind": _KIND,
        "of": _name(url),
        "vouched": round(vouched, 3),
        "serves": serves,
        "zone": zone.name,
        "length": length,
        "digest": digest,
    }
    text = write_json(head)
    return b"%b %b\n" % (text, _seal(text))


def _seal(text: bytes) -> bytes:
    return blake2b(text, digest_size=_SEAL).hexdigest().encode("ascii")


def read_copy(head: bytes, url: str, *, wall: WallTime) -> Copy | str:
    """Read the first line of a file that should be a copy of the registry at `url`.

    Returns why it can't be used, as text for people. Never raises, whatever the bytes.
    """
    line, end, _ = head[:MAX_HEAD].partition(b"\n")
    text, _, seal = line.rpartition(b" ")
    try:
        value: Any = read_json(text) if end and seal == _seal(text) else None
    except NotJson:
        value = None
    if not _is_head(value):
        return "it isn't a copy of a registry"
    if value["of"] != _name(url):
        return "it's a copy of another registry"
    age = wall - value["vouched"]
    if not -_SKEW <= age <= min(value["serves"], LONGEST):
        return "it's too old" if age > 0 else "it's from the future"
    return Copy(max(age, 0.0), value["serves"], Proximity[value["zone"]], value["length"], value["digest"])


def _is_head(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and value.get("kind") == _KIND
        and all(type(value.get(name)) is float for name in ("vouched", "serves"))
        and type(value.get("length")) is int
        and all(isinstance(value.get(name), str) for name in ("of", "zone", "digest"))
        and value["zone"] in Proximity.__members__
    )
