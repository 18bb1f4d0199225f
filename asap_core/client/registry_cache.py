"""The last good copy of each registry, in memory and in a file: used if the registry is unavailable.

Rule: a copy is used if its server can't be reached, never if the server answers something else.
"""

import errno
from typing import Final, assert_never

from attrs import frozen

from asap_core.client.body_reader import PIECE, BodyReader
from asap_core.client.fetch_results import GONE, OUTAGE
from asap_core.client.file_to_write import HEAD_BYTES
from asap_core.client.programs import (
    Completed,
    Expired,
    FileIdentity,
    FileRead,
    Program,
    ReadFile,
    Unavailable,
    WriteFile,
)
from asap_core.client.registry_copies import LONGEST, WRITE_AGAIN, Copy, CopyHead, CopyParser, file_name
from asap_core.client.requests import Requests
from asap_core.client.runtime import Place, Runtime
from asap_core.clock import Instant, Moment, WallTime
from asap_core.errors import BadReply, InvalidDocument, Unreachable
from asap_core.flights import Crowded, Flight, Flights, Leading
from asap_core.http.caching import Freshness
from asap_core.lru import Lru
from asap_core.net.urls import without_credentials
from asap_core.wire.registry_index import RegistryIndex

# Registries. A client has one or a few, each with some 50 MB at most.
_MAX_COPIES: Final = 16


def serves_for(freshness: Freshness) -> float:
    """Return for how many seconds after its confirmation a copy may be used. 0 means that none may be stored.

    The server's stale-if-error (RFC 5861 §4), must-revalidate (RFC 9111 §5.2.2.2: "MUST NOT reuse that response" once
    stale) and no-store (§5.2.2.5: not "in non-volatile storage") are obeyed. By default it's a week.
    """
    if not freshness.store:
        return 0.0
    return min(freshness.fresh_for + freshness.error_for, LONGEST) if freshness.error_told else LONGEST


@frozen
class CachedCopy:
    """A copy used instead of an unavailable registry, which confirmed it `age` seconds ago."""

    index: RegistryIndex
    age: float
    from_disk: bool = False

    @property
    def words(self) -> str:
        """Describe it for people, with its age."""
        units = ((86_400.0, "days"), (3_600.0, "hours"), (60.0, "minutes"), (1.0, "s"))
        unit, name = next((one for one in units if self.age >= 2 * one[0]), units[-1])
        return f"its last good copy{' on disk' if self.from_disk else ''}, {self.age / unit:.0f} {name} old"


@frozen
class _Landed:
    """The file was read: look whether there's a copy."""

    waiter: "_CopyPlace"


class _CopyPlace(Place["Leading[str, _CopyPlace] | _Landed"]):
    """The place of one who needs a copy from its file."""


class RegistryCache:
    """The copies of one client's registries. URLs are normal ones.

    directory: of the files. Other clients and processes may share it.
    most: the largest registry, in bytes.
    """

    def __init__(self, directory: str, runtime: Runtime, requests: Requests, *, most: int) -> None:
        self._directory = directory
        self._runtime = runtime
        self._requests = requests
        self._most = most
        self._copies: Lru[str, Copy] = Lru(_MAX_COPIES)
        # Why files are unusable, so that it's logged once; and which needn't be read again.
        self._problems: Lru[str, tuple[str, FileIdentity | None]] = Lru(_MAX_COPIES)
        # Only one program at a time reads a file.
        self._reads: Flights[str, _CopyPlace] = Flights()

    def put(self, url: str, index: RegistryIndex, freshness: Freshness, *, age: float) -> Program[None]:
        """Store a copy of this registry, which its server confirmed `age` seconds ago. A failed write is logged.

        freshness: from the response. If it forbids using a stale copy, the copy is deleted.
        """
        serves, at = serves_for(freshness), self._runtime.moment()
        confirmed, copy = _before(at, age), self._copies.peek(url)
        if serves <= 0.0:
            self.drop(url)
            return
        if copy is not None and copy.index is index and copy.serves == serves:
            copy.confirmed, copy.in_use = confirmed, False
            if confirmed.now - copy.since.now < WRITE_AGAIN:
                if copy.interrupted:
                    yield from self._write(url, copy)
                return
        if copy is not None:
            copy.current = False
        # Before the write: all callers who share the fetch come here, and only the first may write.
        copy = Copy(url, index, at, confirmed, serves, self._requests.proximity_of(url))
        self._copies.put(url, copy)
        yield from self._write(url, copy)

    def take(self, url: str, error: Exception) -> Program[CachedCopy | None]:
        """Return the copy to use if reading the registry failed with `error`; None if there's no usable one."""
        status = error.status if isinstance(error, BadReply) else None
        if status in GONE:
            self.drop(url)
        if not isinstance(error, Unreachable) and status not in OUTAGE:
            return None
        if self._usable(url) is None:
            yield from self._read_once(url)
        copy = self._usable(url)
        if copy is None:
            return None
        found = CachedCopy(copy.index, copy.age(self._runtime.moment()), copy.from_disk)
        if not copy.in_use:
            # Logged once for each outage.
            copy.in_use = True
            self._warn(f"{error}; {found.words}, serves")
        return found

    def stands_in(self, url: str) -> float | None:
        """Return the age in seconds of the copy in use instead of this registry; None if none is in use."""
        copy = self._usable(url)
        return None if copy is None or not copy.in_use else copy.age(self._runtime.moment())

    def drop(self, url: str) -> None:
        """Delete the copy, also one that is being written or read."""
        copy = self._copies.pop(url)
        if copy is not None:
            copy.current = False
        self._problems.pop(url)
        self._reads.detach(url)
        self._runtime.remove(self._path(url))

    def clear(self) -> None:
        """Delete the copies that this client wrote, used or is reading."""
        for url in (*self._copies, *self._reads):
            self.drop(url)

    def _path(self, url: str) -> str:
        return f"{self._directory}/{file_name(url)}"

    def _warn(self, text: str) -> None:
        self._runtime.warn("asap.discovery", text)

    def _write(self, url: str, copy: Copy) -> Program[None]:
        """Write a copy. If that is interrupted, the next caller writes it."""
        copy.interrupted = False
        with self._runtime.undoing(copy.interrupt):
            outcome = yield from WriteFile(self._path(url), copy)
        match outcome:
            case Completed():
                pass
            case Unavailable(reason):
                self._warn(f"no copy of {without_credentials(url)} is kept: {reason}")
            case Expired():
                copy.interrupt()
            case _:
                assert_never(outcome)

    def _usable(self, url: str) -> Copy | None:
        copy = self._copies.peek(url)
        return None if copy is None or copy.age(self._runtime.moment()) > copy.serves else copy

    def _read_once(self, url: str) -> Program[None]:
        """Read the copy from its file, or wait for the program that does."""
        runtime, place = self._runtime, _CopyPlace()
        joined = self._reads.join(url, place)
        if isinstance(joined, Crowded):
            return
        with runtime.undoing(lambda: runtime.give(filter(None, [self._reads.leave(place)]))):
            if isinstance(joined, Leading):
                runtime.give((joined,))
            while isinstance(effect := (yield from runtime.next_for(place)), Leading):
                yield from self._read(url, effect.flight)
                runtime.give(map(_Landed, self._reads.land(effect.flight)))

    def _read(self, url: str, flight: Flight[str, _CopyPlace]) -> Program[None]:
        at, (_, unless) = self._runtime.moment(), self._problems.peek(url) or ("", None)
        parser = CopyParser(url, wall=at.wall, most=self._most)
        reader = BodyReader(HEAD_BYTES + self._most + PIECE, parser=parser)
        outcome = yield from ReadFile(self._path(url), reader, private=True, unless=unless)
        if self._reads.flight(url) is not flight:
            return  # it was dropped meanwhile
        match outcome:
            case FileRead(identity) if identity is None or identity != unless:
                try:
                    reader.check(url)
                    self._accept(url, *parser.close(), at)
                except InvalidDocument as error:
                    # Whether the first line is usable depends on the time, too.
                    self._refuse(url, str(error), None if parser.head is None else identity)
            case Unavailable(_, errno.ENOENT):
                self._problems.pop(url)
            case Unavailable(reason):
                self._refuse(url, reason)
            case FileRead() | Expired():
                pass
            case _:
                assert_never(outcome)

    def _accept(self, url: str, head: CopyHead, index: RegistryIndex, at: Moment) -> None:
        copy = self._copies.peek(url)
        # Its server may have answered meanwhile. And a copy that is too old by the monotonic clock stays so.
        if copy is None or head.confirmed > round(copy.confirmed.wall, 3):
            self._requests.recall(url, head.proximity)
            confirmed = _before(at, max(at.wall - head.confirmed, 0.0))
            self._copies.put(url, Copy(url, index, at, confirmed, head.serves, head.proximity, from_disk=True))

    def _refuse(self, url: str, reason: str, identity: FileIdentity | None = None) -> None:
        if self._problems.peek(url) != (reason, identity):
            self._warn(f"the copy of {without_credentials(url)} isn't used: {reason}")
        self._problems.put(url, (reason, identity))


def _before(at: Moment, seconds: float) -> Moment:
    return Moment(Instant(at.now - seconds), WallTime(at.wall - seconds))
