"""A registry's last good copy, written down for a start without its server: what is in it, and whether it counts.

    one line: JSON that says what it's a copy of, when its server vouched for it, for how long it may stand in, how
    long the registry is and its digest; and a seal over that
    the registry

Rule of this module: a copy stands in for a server that can't be reached, never for one that says something else; and
what isn't exactly what was written is no copy.
"""

from collections.abc import Iterable
from enum import Enum
from hashlib import blake2b
from typing import Any, Final

from attrs import frozen

from asap_core.clock import WallTime
from asap_core.errors import BadReply, Unreachable
from asap_core.http.freshness import Freshness
from asap_core.net.addresses import Proximity
from asap_core.net.urls import normal
from asap_core.wire.json import NotJson, read_json, write_json

LONGEST: Final = 604_800.0
"""For how many seconds a copy stands in: a week. Longer than any outage that somebody is working on, and short enough
that an agent which was taken off the list is off everybody's."""
# Clocks of one machine differ by what they were set by since; a copy from further in the future has no known age.
_SKEW: Final = 60.0
# What the line has, some 350 bytes; more isn't one of ours.
MAX_HEAD: Final = 1_024
_KIND: Final = "asap registry copy 2"
_DIGEST: Final = 32
# Against what happens to files, as the digest is: whoever may write to them can make a seal as well.
_SEAL: Final = 16
# Of a file's name: nobody finds a second URL for it.
_NAME_DIGEST: Final = 16
_NO_OUTAGE: Final = frozenset({401, 403, 404, 410})
# RFC 5861 §4.
_OUTAGE: Final = frozenset({500, 502, 503, 504})


@frozen
class Copy:
    """A copy that counts: its server vouched for it `age` seconds ago, and was as near as `zone`.

    It stands in for `serves` seconds from when it was vouched for.
    """

    age: float
    serves: float
    zone: Proximity
    length: int
    digest: str

    def holds(self, registry: bytes | memoryview) -> bool:
        """Whether this is what was written."""
        return measure((registry,)) == (self.length, self.digest)


class CopyAction(Enum):
    """What a failure to have the registry means for its copy."""

    SERVES = "serves"
    """The server can't be reached, or is in trouble: the copy stands in."""
    STAYS = "stays"
    """It can be, and what it says is unusable: the copy is no better an answer."""
    GOES = "goes"
    """It says that there's no such registry, or not for us."""


def copy_action(error: Exception) -> CopyAction:
    """What becomes of a copy when its registry can't be had because of `error`."""
    if isinstance(error, Unreachable):
        return CopyAction.SERVES
    status = error.status if isinstance(error, BadReply) else None
    return CopyAction.SERVES if status in _OUTAGE else CopyAction.GOES if status in _NO_OUTAGE else CopyAction.STAYS


def serves_for(freshness: Freshness) -> float:
    """For how many seconds a registry's copy may stand in, from when its server vouched for it; 0 is no copy at all.

    What the server says of its outages counts (RFC 5861 §4, and RFC 9111 §5.2.2.2: "MUST NOT reuse that response"
    once stale), and no-store (§5.2.2.5: not "in non-volatile storage"). Where it says nothing, it's a week.
    """
    if not freshness.store:
        return 0.0
    return min(freshness.fresh_for + freshness.error_for, LONGEST) if freshness.error_told else LONGEST


def file_name(url: str) -> str:
    """The name of the file that a registry's copy is in: it tells nothing of the URL, which may hold a secret."""
    return f"{_name(url)}.registry"


def _name(url: str) -> str:
    return blake2b(normal(url).encode("utf-8", "surrogatepass"), digest_size=_NAME_DIGEST).hexdigest()


def measure(pieces: Iterable[bytes | memoryview]) -> tuple[int, str]:
    """The length and the digest of what is written in these pieces."""
    length, digest = 0, blake2b(digest_size=_DIGEST)
    for piece in pieces:
        length += len(piece)
        digest.update(piece)
    return length, digest.hexdigest()


def write_head(url: str, *, vouched: WallTime, serves: float, zone: Proximity, length: int, digest: str) -> bytes:
    """The first line of the copy of the registry at `url`, which was good at `vouched` and as near as `zone`."""
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
    """Read the first line of a file that should be the copy of the registry at `url`; what speaks against it, in words.

    Never raises, whatever the bytes.
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
