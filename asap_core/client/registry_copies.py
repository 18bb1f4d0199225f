"""A registry's copy and its file: what is written when, and which file is used.

    first line: JSON (whose copy it is, when its server confirmed it, for how long it may be used, the registry's length
    and digest), a space, and a checksum of that JSON
    rest: the registry

Rule: a file that isn't exactly what was written isn't used.
"""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import cached_property
from hashlib import blake2b
from typing import Final

from attrs import define, evolve, frozen

from asap_core.client.file_to_write import HEAD_BYTES
from asap_core.clock import Moment, WallTime
from asap_core.errors import InvalidDocument
from asap_core.net.addresses import Proximity
from asap_core.net.urls import normal
from asap_core.wire.json import NotJson, read_json, write_json
from asap_core.wire.registry_index import RegistryIndex
from asap_core.wire.registry_reader import RegistryReader

LONGEST: Final = 604_800.0
"""The most seconds for which a copy is used: a week. Longer than an outage that is being worked on, and short enough
that an agent removed from a registry disappears from every client."""
# The clock may have been set back since a copy was written. The age of a copy that is dated further in the future is
# unknown.
_SKEW: Final = 60.0
_KIND: Final = "asap registry copy 2"
_DIGEST: Final = 32
# Bytes of the hash in a file's name, long enough against collisions of URLs; and of the checksum of the first line. It
# is against damaged files, as the digest is. It isn't a signature: anyone who can write the file can make one.
_SHORT: Final = 16
_SUFFIX: Final = ".registry"


class _UnusableCopy(InvalidDocument):
    """A file isn't a copy. `what`: why, as text for people."""

    def __str__(self) -> str:
        return self.what


@frozen
class CopyHead:
    """The first line of a copy's file.

    confirmed: when its server confirmed it.
    serves: seconds from then for which it may be used.
    proximity: how near the server was.
    length, digest: the registry's.
    """

    confirmed: WallTime
    serves: float
    proximity: Proximity
    length: int
    digest: str

    def written(self, url: str) -> bytes:
        """Return the line, for the registry at `url`."""
        text = write_json({
            "kind": _KIND, "of": _name(url), "vouched": round(self.confirmed, 3), "serves": self.serves,
            "zone": self.proximity.name, "length": self.length, "digest": self.digest,
        })  # fmt: skip
        return b"%b %b\n" % (text, _hash(text).encode("ascii"))


def read_head(data: bytes, url: str, *, wall: WallTime) -> CopyHead:
    """Read the first line of a file that should be a copy of the registry at `url`.

    Raises: _UnusableCopy if it can't be used at `wall`, and nothing else whatever the bytes.
    """
    line, end, _ = data[:HEAD_BYTES].partition(b"\n")
    text, _, seal = line.rpartition(b" ")
    try:
        value = read_json(text) if end and seal == _hash(text).encode("ascii") else None
    except NotJson:
        value = None
    match value:
        case {
            "kind": str(kind), "of": str(name), "vouched": float(confirmed), "serves": float(serves),
            "zone": str(zone), "length": int(length), "digest": str(digest),
        } if kind == _KIND and zone in Proximity.__members__:  # fmt: skip
            pass
        case _:
            raise _UnusableCopy("it isn't a copy of a registry", ())
    if name != _name(url):
        raise _UnusableCopy("it's a copy of another registry", ())
    age = wall - confirmed
    if not -_SKEW <= age <= min(serves, LONGEST):
        raise _UnusableCopy("it's too old" if age > 0 else "it's from the future", ())
    return CopyHead(WallTime(confirmed), serves, Proximity[zone], length, digest)


def file_name(url: str) -> str:
    """Return the name of the copy's file. It doesn't tell the URL, which may hold a secret."""
    return _name(url) + _SUFFIX


def _name(url: str) -> str:
    return _hash(normal(url).encode("utf-8", "surrogatepass"))


def _hash(data: bytes) -> str:
    return blake2b(data, digest_size=_SHORT).hexdigest()


class CopyParser:
    """Reads a copy's file. Parameters as `read_head`; `most`: the largest registry, in bytes."""

    def __init__(self, url: str, *, wall: WallTime, most: int) -> None:
        self._url, self._wall, self._most = url, wall, most
        self._start = b""
        self._length, self._digest = 0, blake2b(digest_size=_DIGEST)
        self._registry = RegistryReader()
        self.head: CopyHead | None = None

    def feed(self, data: bytes) -> None:
        """See `DocumentParser`. Raises if the rest of the file needn't be read."""
        if self.head is None:
            self._start += data
            if b"\n" not in self._start and len(self._start) < HEAD_BYTES:
                return
            self.head = read_head(self._start, self._url, wall=self._wall)
            data = self._start.partition(b"\n")[2]
        self._length += len(data)
        self._digest.update(data)
        if self.head.length > self._most:
            raise _UnusableCopy("it's too large", ())
        if self._length > self.head.length:
            raise _UnusableCopy("it isn't whole", ())
        with suppress(InvalidDocument):  # `close` raises it if the file is whole
            self._registry.feed(data)

    def close(self) -> tuple[CopyHead, RegistryIndex]:
        """See `DocumentParser`."""
        head = read_head(self._start, self._url, wall=self._wall)
        if (self._length, self._digest.hexdigest()) != (head.length, head.digest):
            raise _UnusableCopy("it isn't whole", ())
        return head, self._registry.close()


# Copies in one directory, which several programs may share: 2 GB at most.
_MAX_FILES: Final = 32
# Seconds after which an unchanged copy that its server confirmed is written again, so its age is known to the hour.
WRITE_AGAIN: Final = 3_600.0
# Age in seconds of a temporary file that a killed process must have left, since writing one takes seconds.
_LEFT_OVER: Final = 600.0


@define(eq=False)
class Copy:
    """A copy in memory, and what `WriteFile` asks of it, in another thread.

    since: when it came here.
    confirmed: when its server confirmed it. By both clocks: the monotonic one may stop during suspend, and the wall
        clock be set.
    in_use: whether it's used instead of the registry, and this was logged.
    current: whether it belongs on disk: it wasn't dropped or replaced.
    interrupted: whether the program that wrote it was closed meanwhile, so it may not be on disk.
    """

    url: str
    index: RegistryIndex
    since: Moment
    confirmed: Moment
    serves: float
    proximity: Proximity
    from_disk: bool = False
    in_use: bool = False
    current: bool = True
    interrupted: bool = False

    def interrupt(self) -> None:
        """Note that writing it was interrupted."""
        self.interrupted = True

    def age(self, at: Moment) -> float:
        """Return how many seconds ago its server confirmed it."""
        return max(at.now - self.confirmed.now, at.wall - self.confirmed.wall, 0.0)

    @cached_property
    def _head(self) -> CopyHead:
        length, digest = 0, blake2b(digest_size=_DIGEST)
        for piece in self.index.written():
            length += len(piece)
            digest.update(piece)
        return CopyHead(self.confirmed.wall, self.serves, self.proximity, length, digest.hexdigest())

    def surplus(self, files: Iterable[tuple[str, float]]) -> Iterable[str]:
        """Return what was left half written, copies that no longer count, and the oldest of too many."""
        ages = sorted((self.since.wall - modified, name) for name, modified in files if f"{_SUFFIX}." in f"{name}.")
        copies = [(age, name) for age, name in ages if name.endswith(_SUFFIX)]
        # One is about to come.
        yield from (name for place, (age, name) in enumerate(copies, 1) if place >= _MAX_FILES or age > LONGEST)
        yield from (name for age, name in ages if name.endswith(".tmp") and age > _LEFT_OVER)

    def is_written(self, head: bytes, size: int) -> bool:
        """Return whether the same copy is there, hardly older: another process may have written it."""
        try:
            old = read_head(head, self.url, wall=self.since.wall)
        except _UnusableCopy:
            return False
        return (
            size == head.index(b"\n") + 1 + old.length
            and self.confirmed.wall - old.confirmed < WRITE_AGAIN
            and old == evolve(self._head, confirmed=old.confirmed)
        )

    def pieces(self) -> Iterator[bytes]:
        """See `FileToWrite`."""
        yield self._head.written(self.url)
        yield from self.index.written()

    def wanted(self) -> bool:
        """See `FileToWrite`."""
        return self.current
